# SPDX-License-Identifier: LGPL-2.1-or-later
"""What of a VM lives on one host is named, with what it costs; and init can share nvram and TPM."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent.commands import config_check
from agent.setup import shared_state
from agent.setup.shared_state import TPM_SOURCE_VERSION, state_folder, with_shared_state
from agent.terminal.errors import CommandError
from agent.vm import one_host
from agent.vm.imported import Imported
from broker.config.sections import Config, HostSection, StorageSection, VmSection
from broker.this_host.disks_shown import one_host as shown
from broker.vm.domain_facts import Layer
from broker.vm.errors import BadDomain
from broker.vm.host_local import one_host as found_in_xml
from broker.vm.in_use import InUse

UUID = "6e67696e-0000-4000-8000-0000000000a1"
#: A Windows server as people have one.
WINDOWS = f"""<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>win</name><uuid>{UUID}</uuid>
  <memory unit='GiB'>8</memory>
  <memoryBacking><hugepages/></memoryBacking>
  <vcpu cpuset='4-11'>8</vcpu><cputune><vcpupin vcpu='0' cpuset='4'/></cputune><numatune/>
  <os><type machine='pc-q35-7.2'>hvm</type>
    <loader secure='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE_4M.ms.fd</loader>
    <nvram template='/usr/share/OVMF/OVMF_VARS_4M.ms.fd'>/var/lib/libvirt/nvram/win.fd</nvram>
    <kernel>/boot/k</kernel></os>
  <cpu mode='host-passthrough'/>
  <devices>
    <disk type='file' device='disk'><source file='/images/win.qcow2'/><target dev='vda'/></disk>
    <disk type='file' device='cdrom'><source file='/iso/virtio.iso'/><target dev='sda'/></disk>
    <disk type='volume'><source pool='p' volume='v'/><target dev='vdb'/></disk>
    <disk type='block'><source dev='/dev/mapper/x'/><target dev='vdc'/></disk>
    <disk type='network'><source protocol='nbd' name='x'><host socket='/s'/></source>
      <target dev='vdd'/></disk>
    <filesystem><source dir='/srv/share'/><target dir='share'/></filesystem>
    <interface type='bridge'><source bridge='br0'/></interface>
    <interface type='network'><source network='lan'/></interface>
    <interface type='user'/>
    <hostdev type='pci'><source><address bus='0x3b'/></source></hostdev>
    <tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>
  </devices>
  <qemu:commandline><qemu:arg value='-no-hpet'/></qemu:commandline>
</domain>"""
#: A VM with EFI firmware, whose nvram lies where libvirt puts it.
EFI = "<domain><name>vm</name><os firmware='efi'/><devices/></domain>"


def nothing_shared(layer: Layer) -> bool:
    return layer.kind == "network" and "socket" not in layer.place


def named(xml: str) -> dict[str, str]:
    return {each.what: each.cost for each in found_in_xml(xml, nothing_shared)}


def test_each_thing_that_one_host_has_is_named_with_its_cost() -> None:
    found = found_in_xml(WINDOWS, nothing_shared)
    assert [each.what for each in found if each.costs_data] == [
        "disk vda in /images/win.qcow2, which is not on the shared storage",
        "firmware nvram in /var/lib/libvirt/nvram/win.fd",
        f"TPM state in /var/lib/libvirt/swtpm/{UUID}",
        "shared folder /srv/share",
    ]
    assert [each.what for each in found if not each.costs_data] == [
        "cdrom sda in /iso/virtio.iso, which is not on the shared storage",
        "disk vdb in pool=p volume=v",
        "disk vdc on /dev/mapper/x",
        "disk vdd by name=x protocol=nbd socket=/s",
        "kernel /boot/k",
        "Secure Boot firmware /usr/share/OVMF/OVMF_CODE_4M.ms.fd",
        "host device pci bus=0x3b",
        "interface 1 without a <mac>",
        "interface 2 without a <mac>",
        "interface 3 without a <mac>",
        "interface on bridge br0",
        "interface on network lan",
        "CPU host-passthrough",
        "cpuset 4-11",
        "CPU pinning",
        "NUMA placement",
        "huge pages",
        "arguments of qemu:commandline",
    ]
    costs = named(WINDOWS)
    assert "template in its place" in costs["firmware nvram in /var/lib/libvirt/nvram/win.fd"]
    assert "BitLocker" in costs[f"TPM state in /var/lib/libvirt/swtpm/{UUID}"]
    assert shown(InUse(None, one_host=found)) == tuple(map(str, found[:4]))  # type: ignore[arg-type]
    assert shown(None) == ()


def test_what_is_on_the_shared_storage_costs_nothing() -> None:
    found = found_in_xml(WINDOWS, lambda layer: True)
    assert not any(each.costs_data for each in found)
    assert not any("/iso" in each.what or "/boot" in each.what for each in found)


def test_what_the_definition_leaves_to_libvirt_is_named_where_libvirt_puts_it() -> None:
    assert list(named(EFI)) == ["firmware nvram in /var/lib/libvirt/qemu/nvram/vm_VARS.fd"]
    flash = EFI.replace(" firmware='efi'/>", "><loader type='pflash'>/f</loader></os>")
    assert "firmware /f" in named(flash) and len(named(flash)) == 2
    source = EFI.replace(
        " firmware='efi'/>", "><nvram type='file'><source file='/n'/></nvram></os>"
    )
    assert list(named(source)) == ["firmware nvram in /n"]
    tpm = "<domain><devices><tpm><backend type='passthrough'/></tpm></devices></domain>"
    assert list(named(tpm)) == ["TPM of the host"]
    placed = (
        "<domain><devices><tpm><backend type='emulator'><source type='dir' path='/t'/></backend>"
        "</tpm><filesystem/></devices></domain>"
    )
    assert list(named(placed)) == ["TPM state in /t"]
    assert named("<domain><cpu mode='custom'/></domain>") == {}
    with pytest.raises(BadDomain):
        found_in_xml("<x/>", nothing_shared)


def test_config_check_names_it_as_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = (
        "<lease><lockspace>hosted-engine</lockspace><key>engine</key>"
        f"<target path='{tmp_path}/leases' offset='1048576'/></lease></devices>"
    )
    definition = tmp_path / "engine.xml"
    definition.write_text(WINDOWS.replace("</devices>", lease))
    config = tmp_path / "ha-agent.toml"
    config.write_text(
        f'[host]\nid = 1\n[storage]\nwhiteboard = "{tmp_path}/whiteboard"\n'
        f'leases = "{tmp_path}/leases"\n[vm]\nname = "win"\ndefinition = "{definition}"\n'
    )
    # Devices lie on no file system that a path of the definition could lie on too.
    (tmp_path / "whiteboard").symlink_to("/dev/null")
    (tmp_path / "leases").symlink_to("/dev/zero")
    found = [each for each in config_check.checks(str(config)) if each.name == "one-host"]
    assert {each.verdict for each in found} == {"warning"} and len(found) == 22
    assert found[0].text.startswith("disk vda in /images/win.qcow2, which is not on the shared")
    (tmp_path / "leases").unlink()
    left = [each.text for each in config_check.checks(str(config)) if each.name == "one-host"]
    assert not any("not on the shared storage" in text for text in left), "it is not known"
    assert 0 < len(left) < 19
    definition.unlink()
    given = Config(
        host=HostSection(id=1),
        storage=StorageSection(whiteboard="/w", leases="/l"),
        vm=VmSection(definition=str(definition)),
    )
    assert one_host.found_in(given) == ()


# --- init --share-state ------------------------------------------------------------------------


def imported(xml: str) -> Imported:
    return Imported(xml, "win", "", ("a note",))


def test_nvram_and_tpm_state_go_beside_the_whiteboard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, tpm = tmp_path / "old.fd", tmp_path / "swtpm"
    old.write_bytes(b"boot entries")
    old.chmod(0o600)
    (tpm / UUID / "tpm2").mkdir(parents=True)
    (tpm / UUID / "tpm2" / "state").write_bytes(b"sealed")
    monkeypatch.setattr(shared_state, "TPM_FOLDER", str(tpm))
    storage = StorageSection(whiteboard=f"{tmp_path}/whiteboard", leases="/l")
    folder = state_folder(storage, "win")
    xml = WINDOWS.replace("/var/lib/libvirt/nvram/win.fd", str(old))
    made = with_shared_state(imported(xml), folder, TPM_SOURCE_VERSION)
    assert (folder / "win_VARS.fd").read_bytes() == b"boot entries"
    assert os.stat(folder / "win_VARS.fd").st_mode & 0o777 == 0o600
    assert (folder / "tpm" / "tpm2" / "state").read_bytes() == b"sealed"
    left = [each.what for each in found_in_xml(made.xml, lambda x: str(tmp_path) in x.place)]
    assert not any("nvram" in each or "TPM" in each for each in left)
    assert "template=" in made.xml and "<qemu:commandline" in made.xml
    assert made.notes[0] == "a note" and "is copied from" in made.notes[1]
    again = with_shared_state(imported(xml), folder, TPM_SOURCE_VERSION)
    assert again.notes[1:] == (
        f"its nvram is in {folder}/win_VARS.fd",
        f"its TPM state is in {folder}/tpm",
    )


def test_what_this_libvirt_cannot_do_is_said_plainly(tmp_path: Path) -> None:
    made = with_shared_state(imported(WINDOWS), tmp_path / "s", 9_000_000)
    assert "made from the template at its first start" in made.notes[1]
    assert "STAYS in" in made.notes[2] and "libvirt 9.0 takes no other place" in made.notes[2]
    none = with_shared_state(imported("<domain><os/><devices/></domain>"), tmp_path, 9_000_000)
    assert none.notes[1] == "it has neither nvram nor TPM: there is no state to share"


def test_a_firmware_that_libvirt_chooses_gets_its_nvram_named(tmp_path: Path) -> None:
    made = with_shared_state(imported(EFI), tmp_path / "s", 0)
    assert f"<nvram>{tmp_path}/s/win_VARS.fd</nvram>" in made.xml
    typed = EFI.replace(" firmware='efi'/>", "><nvram type='file'><source file='/n'/></nvram></os>")
    made = with_shared_state(imported(typed), tmp_path / "s", 0)
    assert "source" not in made.xml and "type=" not in made.xml


def test_where_there_is_no_folder_or_no_room_it_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = StorageSection(whiteboard="/dev/vg/whiteboard", leases="/dev/vg/leases")
    with pytest.raises(CommandError, match="is a device"):
        state_folder(device, "win")
    old = tmp_path / "old.fd"
    old.touch()
    xml = WINDOWS.replace("/var/lib/libvirt/nvram/win.fd", str(old))
    (tmp_path / "file").touch()
    with pytest.raises(CommandError, match="copying"):
        with_shared_state(imported(xml), tmp_path / "file" / "x", 0)
