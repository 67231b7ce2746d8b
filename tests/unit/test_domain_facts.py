# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a domain XML says, compared: an unchanged VM never differs, a changed one says in what.

The files in domains/ are libvirt 9.0's own words of one definition (`file.xml`): as it defined it,
as it ran, with an external snapshot, in the commit of that, and after the pivot back.
"""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.vm.domain_facts import (
    CHAIN_MAX,
    Differs,
    Layer,
    differences,
    layers,
    parse,
    parse_disk,
    read,
)
from broker.vm.domain_text import composed, element_of, with_facts_of
from broker.vm.errors import BadDomain
from tests.unit.draws import draws

DOMAINS = Path(__file__).parent / "domains"
OVERLAY = Layer("file", "/srv/vm/overlay.qcow2", "qcow2")
BASE = Layer("file", "/srv/vm/base.qcow2", "qcow2")


def text(name: str) -> str:
    return (DOMAINS / f"{name}.xml").read_text()


def told(recorded: str, found: str) -> list[tuple[str, str, str, str]]:
    return [
        (each.code.value, each.what, each.recorded, each.found)
        for each in differences(read(recorded), read(found))
    ]


# --- libvirt's own words ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["file", "inactive", "live", "live_pivoted"])
def test_an_unchanged_vm_never_differs(name: str) -> None:
    assert told(text("file"), text(name)) == []


def test_an_external_snapshot_is_another_image_with_the_recorded_one_below() -> None:
    disk = read(text("live_snapshot")).disks["vda"]
    assert disk.chain == (OVERLAY, BASE)
    assert told(text("file"), text("live_snapshot")) == [
        ("disks-differ", "vda", f"{BASE}", f"{OVERLAY}")
    ]


def test_a_commit_that_waits_for_its_pivot_is_told_as_a_block_job() -> None:
    disk = read(text("live_commit")).disks["vda"]
    assert (disk.job, disk.pivot) == ("active-commit", True)
    copying = text("live_commit").replace(" ready='yes'", "")
    assert not read(copying).disks["vda"].pivot
    words = "active-commit, it may go over to another image now"
    assert ("block-job", "vda", "", words) in told(text("file"), text("live_commit"))
    assert ("block-job", "vda", "", "active-commit, copying") in told(text("file"), copying)


# --- one change after another ----------------------------------------------------------------

CHANGES = [
    ("<vcpu>1</vcpu>", "<vcpu>2</vcpu>", ("vcpus-differ", "vCPUs", "1", "2")),
    (
        "<vcpu>1</vcpu>",
        "<vcpu current='1'>4</vcpu>",
        ("vcpus-differ", "vCPUs", "1", "1 of 4"),
    ),
    ("unit='MiB'>64<", "unit='MiB'>65<", ("memory-differs", "memory", "64 MiB", "65 MiB")),
    ("machine='pc'", "machine='pc-q35-7.2'", ("firmware-differs", "machine", "pc", "pc-q35-7.2")),
    (
        "</type></os>",
        "</type><kernel>/boot/vmlinuz</kernel></os>",
        ("firmware-differs", "kernel", "", "/boot/vmlinuz"),
    ),
    (
        "<memballoon",
        "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm><memballoon",
        ("tpm-differs", "TPM", "", "emulator"),
    ),
    (
        "<memballoon",
        "<hostdev type='pci'><source><address bus='0x3b' slot='0'/></source></hostdev><memballoon",
        ("devices-differ", "host device pci bus=0x3b slot=0x0", "", "passed through"),
    ),
    (
        "<memballoon",
        "<interface type='bridge'><mac address='52:54:00:00:00:01'/><source bridge='br0'/>"
        "</interface><memballoon",
        ("devices-differ", "interface 52:54:00:00:00:01", "", "bridge br0"),
    ),
    (
        "<target dev='sda'",
        "<source file='/iso/x.iso'/><target dev='sda'",
        ("devices-differ", "cdrom sda", "empty", "/iso/x.iso"),
    ),
    (
        "<memballoon",
        "<filesystem><source dir='/srv'/><target dir='x'/></filesystem><memballoon",
        ("devices-differ", "file system x", "", "/srv"),
    ),
    ("<rng model", "<rng model='virtio'/><rng model", ("devices-differ", "rng", "1", "2")),
    (
        "<watchdog model='i6300esb' action='reset'/>",
        "",
        ("devices-differ", "watchdog", "1", ""),
    ),
    (
        "<memballoon",
        "<disk type='block'><source dev='/dev/x'/><target dev='vdb'/></disk><memballoon",
        ("disks-differ", "vdb", "", "/dev/x (raw)"),
    ),
]


@pytest.mark.parametrize(("old", "new", "expected"), CHANGES, ids=str)
def test_each_change_is_told_once_and_both_ways(
    old: str, new: str, expected: tuple[str, str, str, str]
) -> None:
    changed = text("file").replace(old, new, 1)
    assert changed != text("file")
    assert told(text("file"), changed) == [expected]
    if expected[1] == "machine":
        return  # pc is a name for the other one's kind, not the other way round
    code, what, recorded, found = expected
    back = told(changed, text("file"))
    if what != "watchdog":  # libvirt adds a watchdog by itself
        assert back == [(code, what, found, recorded)] or back[0][:2] == (code, what)


def test_what_is_left_to_libvirt_is_not_compared() -> None:
    """No MAC, no model, no loader, no nvram, no topology: libvirt chooses them."""
    plain = "<interface type='network'><source network='n'/></interface>"
    chosen = (
        "<interface type='network'><mac address='52:54:00:0a:0b:0c'/>"
        "<source network='n' portid='1' bridge='virbr0'/><model type='rtl8139'/></interface>"
    )
    mine = text("file").replace("<memballoon", plain + "<memballoon")
    theirs = text("file").replace("<memballoon", chosen + "<memballoon")
    theirs = theirs.replace(
        "</type></os>", "</type><loader>/OVMF</loader><nvram>/var/x_VARS.fd</nvram></os>"
    ).replace("<cpu mode", "<vcpus/><cpu mode")
    assert told(mine, theirs) == []
    assert told(theirs, mine)[0][:2] == ("devices-differ", "interface 52:54:00:0a:0b:0c")
    model = mine.replace("<source network='n'/>", "<source network='n'/><model type='e1000'/>")
    assert told(model, theirs) == [("devices-differ", "model of interface 1", "e1000", "rtl8139")]
    other = theirs.replace("network='n' portid", "network='m' portid")
    assert told(mine, other) == [("devices-differ", "interface 1", "network n", "network m")]


def test_an_interface_that_is_recorded_by_its_mac_is_found_by_it() -> None:
    one = (
        "<interface type='bridge'><mac address='52:54:00:00:00:0{}'/><source bridge='{}'/>"
        "<model type='virtio'/></interface>"
    )
    mine = text("file").replace(
        "<memballoon", one.format(1, "a") + one.format(2, "b") + "<memballoon"
    )
    theirs = text("file").replace(
        "<memballoon", one.format(2, "b") + one.format(1, "a") + one.format(3, "c") + "<memballoon"
    )
    assert told(mine, theirs) == [("devices-differ", "interface 52:54:00:00:00:03", "", "bridge c")]


def test_memory_is_rounded_as_libvirt_does_and_of_numa_cells_the_sum_counts() -> None:
    def memory(given: str) -> str:
        return read(f"<domain>{given}</domain>").facts[Differs.MEMORY, "memory"]

    assert memory("<memory unit='b'>1</memory>") == "1 MiB"
    assert memory("<memory>1025</memory>") == "2 MiB"
    assert memory("<memory unit='GiB'> 8 </memory>") == "8192 MiB"
    cells = "<cpu><numa><cell memory='1' unit='GiB'/><cell memory='1024'/></numa></cpu>"
    dimm = "<devices><memory><target><size unit='MiB'>10</size></target></memory></devices>"
    assert memory(f"{cells}{dimm}<memory>7</memory>") == "1035 MiB"
    assert (Differs.MEMORY, "memory") not in read("<domain/>").facts
    for bad in ("<memory>much</memory>", "<memory unit='x'>1</memory>", "<memory/>"):
        with pytest.raises(BadDomain, match="has memory of"):
            read(f"<domain>{bad}</domain>")


def test_a_network_disk_is_named_without_what_libvirt_writes_down_by_itself() -> None:
    disk = (
        "<domain><devices><disk type='network'><driver type='raw'/><source protocol='nbd' name='x'"
        "{}><host name='a'{}/></source><target dev='vda'/></disk></devices></domain>"
    )
    assert (
        told(
            disk.format("", ""), disk.format(" index='1'", " port='10809' transport='tcp' tls='no'")
        )
        == []
    )
    assert told(disk.format("", ""), disk.format("", " port='7'"))
    assert read(disk.format("", "")).disks["vda"].chain[0].place == "name=x protocol=nbd name=a"


def test_recorded_layers_below_are_compared_where_they_are_said() -> None:
    chain = (
        "<backingStore type='file'><format type='qcow2'/><source file='{}'/></backingStore>"
        "<target dev='vda'"
    )
    base = text("file").replace("<target dev='vda'", chain.format("/srv/below.qcow2"))
    assert told(base, base) == []
    assert told(text("file"), base) == [], "what is not said is left to the images themselves"
    other = text("file").replace("<target dev='vda'", chain.format("/srv/other.qcow2"))
    assert told(base, other)[0][1:] == (
        "layers below vda",
        "/srv/below.qcow2 (qcow2)",
        "/srv/other.qcow2 (qcow2)",
    )
    assert told(base, text("file"))[0][3] == "none"


def test_a_chain_without_end_is_cut() -> None:
    inner = "<source file='/x'/>"
    for _ in range(CHAIN_MAX + 5):
        inner = f"<source file='/x'/><backingStore>{inner}</backingStore>"
    assert len(layers(ElementTree.fromstring(f"<disk>{inner}</disk>"))) == CHAIN_MAX
    assert layers(ElementTree.fromstring("<disk/>")) == ()


@pytest.mark.parametrize(
    ("xml", "why"),
    [("", "is not XML"), ("<network/>", "holds <network>"), ("<domain>", "is not XML")],
)
def test_what_is_no_domain_is_refused(xml: str, why: str) -> None:
    with pytest.raises(BadDomain, match=why):
        read(xml)


def test_odd_devices_are_named_by_what_they_say() -> None:
    odd = (
        "<domain><os><nvram><source file='/v'/></nvram></os><devices>"
        "<hostdev type='usb'><source><vendor id='0x0951'/><product id='0x1625'/>"
        "<address bus='1' device='2'/></source></hostdev><hostdev type='mdev'/>"
        "<hostdev type='x'><source><address uuid='abc'/></source></hostdev>"
        "<interface type='user'/><tpm><backend/></tpm><filesystem/><tpm/></devices></domain>"
    )
    names = {name for _, name in read(odd).facts}
    assert names >= {"host device usb 0x951:0x1625", "host device mdev", "host device x uuid=abc"}
    assert read(odd).facts[Differs.FIRMWARE, "nvram"] == "/v"
    assert read("<domain><os/></domain>").disks == {}


# --- the definition with other disks -----------------------------------------------------------


def test_what_ran_is_taken_into_the_definition_and_nothing_else_changes() -> None:
    ran = element_of(parse(text("live_commit")), "vda")
    assert "mirror" not in ran and "alias" not in ran and "index" not in ran
    started = composed(text("file"), {"vda": ran})
    assert read(started).disks["vda"].chain == (OVERLAY,)
    assert told(started, text("live_snapshot")) == []
    assert [each[0] for each in told(text("file"), started)] == ["disks-differ"]
    assert composed(text("file"), {}) == text("file")


def test_a_disk_that_was_added_while_it_ran_is_added_whole() -> None:
    disk = "<disk type='file' device='disk'><source file='/a  b'/><target dev='vdb'/></disk>"
    live = text("live").replace("<controller", f"{disk}<controller", 1)
    ran = element_of(parse(live), "vdb")
    assert read(composed(text("file"), {"vdb": ran})).disks["vdb"].chain[0].place == "/a  b"


def test_text_between_elements_is_no_part_of_what_is_taken_over() -> None:
    """libvirt takes a definition with such text; that of a running VM is never without it then."""
    xml = text("live").replace("</disk>", "</disk> a note ", 1).replace("</cpu>", "</cpu> note ", 1)
    root = parse(xml)
    (target, *_) = read(xml).disks
    assert "note" not in element_of(root, target)
    assert read(with_facts_of(text("inactive"), xml, list(Differs))).disks


def test_a_disk_without_driver_or_source_takes_both() -> None:
    bare = "<domain><devices><disk><target dev='vda'/></disk></devices></domain>"
    ran = "<disk type='block'><source dev='/dev/x'/><target dev='vda'/></disk>"
    assert read(composed(bare, {"vda": ran})).disks["vda"].chain == (
        Layer("block", "/dev/x", "raw"),
    )
    empty = "<disk><driver type='qcow2'/><target dev='vda'/></disk>"
    assert read(composed(bare, {"vda": empty})).disks["vda"].chain == ()


def test_what_is_no_disk_is_refused() -> None:
    for bad in ("", "<cdrom/>", "<disk/>"):
        with pytest.raises(BadDomain):
            parse_disk(bad)
    with pytest.raises(BadDomain, match="no <devices>"):
        composed("<domain/>", {"vda": "<disk><target dev='vda'/></disk>"})


def test_namespaces_keep_their_usual_names() -> None:
    uri = "http://libvirt.org/schemas/domain/qemu/1.0"
    xml = f"<domain xmlns:qemu='{uri}'><devices/><qemu:commandline/></domain>"
    ran = "<disk><source file='/x'/><target dev='vda'/></disk>"
    assert "<qemu:commandline" in composed(xml, {"vda": ran})


# --- adopted -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("old", "new", "expected"), CHANGES, ids=str)
def test_what_is_adopted_differs_no_more(
    old: str, new: str, expected: tuple[str, str, str, str]
) -> None:
    changed = text("file").replace(old, new, 1)
    for mine, theirs in ((text("file"), changed), (changed, text("file"))):
        codes = {each.code for each in differences(read(mine), read(theirs))}
        adopted = with_facts_of(mine, theirs, codes)
        assert told(adopted, theirs) == []
        assert ("<memballoon" in adopted) and "<emulator>" in adopted, "all the rest stays"


def test_what_is_adopted_of_a_running_vm_has_nothing_of_this_run() -> None:
    live = text("live").replace(
        "<controller",
        "<interface type='bridge'><mac address='52:54:00:00:00:01'/><source bridge='b'/>"
        "<target dev='vnet0'/><alias name='net0'/></interface><controller",
        1,
    )
    adopted = with_facts_of(text("file"), live, {Differs.DEVICES})
    assert "52:54:00:00:00:01" in adopted and "vnet0" not in adopted and "net0" not in adopted
    assert with_facts_of("<domain/>", live, {Differs.TPM, Differs.FIRMWARE}) == "<domain />\n"


# --- any definition ----------------------------------------------------------------------------

paths = st.text("abc/._- ", min_size=1, max_size=12).map(lambda name: f"/{name}")
disks = st.lists(st.tuples(st.sampled_from(["raw", "qcow2"]), paths), max_size=4)
domains = st.fixed_dictionaries(
    {
        "memory": st.integers(1, 4096),
        "vcpus": st.integers(1, 64),
        "disks": disks,
        "bridges": st.lists(st.sampled_from(["br0", "br1"]), max_size=3),
        "macs": st.booleans(),
        "rng": st.integers(0, 2),
        "tpm": st.booleans(),
    }
)


def written(given: dict[str, object], by_libvirt: bool) -> str:
    """A definition as a person writes it, or as libvirt shows the running VM."""
    root = ElementTree.Element("domain", {"type": "kvm"})
    ElementTree.SubElement(root, "name").text = "vm"
    memory = int(str(given["memory"]))
    unit, value = ("KiB", memory * 1024) if by_libvirt else ("MiB", memory)
    ElementTree.SubElement(root, "memory", {"unit": unit}).text = str(value)
    attributes = {"placement": "static"} if by_libvirt else {}
    ElementTree.SubElement(root, "vcpu", attributes).text = str(given["vcpus"])
    devices = ElementTree.SubElement(root, "devices")

    def add(tag: str, **attributes: str) -> ElementTree.Element:
        made = ElementTree.SubElement(devices, tag, attributes)
        if by_libvirt:
            ElementTree.SubElement(made, "alias", {"name": f"{tag}0"})
            ElementTree.SubElement(made, "address", {"type": "pci", "slot": "0x0a"})
        return made

    for number, (form, path) in enumerate(given["disks"]):  # type: ignore[arg-type, var-annotated]
        disk = add("disk", type="file", device="disk")
        ElementTree.SubElement(disk, "driver", {"name": "qemu", "type": form})
        source = ElementTree.SubElement(disk, "source", {"file": path})
        if by_libvirt:
            source.set("index", str(number + 1))
            ElementTree.SubElement(disk, "backingStore")
        ElementTree.SubElement(disk, "target", {"dev": f"vd{'abcd'[number]}"})
    for number, bridge in enumerate(given["bridges"]):  # type: ignore[arg-type, var-annotated]
        interface = add("interface", type="bridge")
        if given["macs"] or by_libvirt:
            mac = f"52:54:00:00:00:{number:02x}"
            ElementTree.SubElement(interface, "mac", {"address": mac})
        ElementTree.SubElement(interface, "source", {"bridge": bridge})
        if by_libvirt:
            ElementTree.SubElement(interface, "target", {"dev": f"vnet{number}"})
            ElementTree.SubElement(interface, "model", {"type": "virtio"})
    for _ in range(int(str(given["rng"]))):
        add("rng", model="virtio")
    if given["tpm"]:
        tpm = add("tpm", model="tpm-crb")
        ElementTree.SubElement(tpm, "backend", {"type": "emulator"})
    if by_libvirt:
        for tag in ("controller", "memballoon", "input", "watchdog"):
            add(tag)
    return ElementTree.tostring(root, encoding="unicode")


@settings(max_examples=draws(200))
@given(domains)
def test_whatever_a_person_wrote_libvirt_s_words_of_it_are_no_difference(
    given: dict[str, object],
) -> None:
    assert told(written(given, False), written(given, True)) == []


@settings(max_examples=draws(200))
@given(domains, domains)
def test_two_definitions_differ_exactly_where_they_were_made_otherwise(
    one: dict[str, object], two: dict[str, object]
) -> None:
    codes = {each[0] for each in told(written(one, False), written(two, True))}
    expected = {
        code
        for code, keys in (
            ("memory-differs", ["memory"]),
            ("vcpus-differ", ["vcpus"]),
            ("disks-differ", ["disks"]),
            ("tpm-differs", ["tpm"]),
            ("devices-differ", ["bridges", "rng"]),
        )
        if any(one[key] != two[key] for key in keys)
    }
    assert codes == expected


@settings(max_examples=draws(200))
@given(domains, domains)
def test_what_ran_is_what_is_started(one: dict[str, object], two: dict[str, object]) -> None:
    """The definition with the disks that ran has exactly these, where it had them or not."""
    live = written(two, True)
    ran = {target: element_of(parse(live), target) for target in read(live).disks}
    started = read(composed(written(one, False), ran))
    for target, disk in read(live).disks.items():
        assert started.disks[target].chain[0] == disk.chain[0]
