# SPDX-License-Identifier: LGPL-2.1-or-later
"""`ha-agent vm add|define|set|list|show|history|remove|export|start|stop` as an administrator types
them, on a real registry with a real sanlock."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.registry import rebuild
from broker.config.engine_file import FOLDER
from broker.config.load import load
from broker.config.secrets import load_cluster_key
from broker.config.sections import Config
from broker.config.shared import SharedCopy, copy_at
from broker.daemon.exit_codes import ExitCode
from broker.lockspace.lease_records import read_lease_records
from broker.registry.cache import Cached, read_kept, write_kept
from broker.registry.record import VmRecord
from broker.registry.shared import HEAD
from broker.registry.shared_copy import keep
from broker.registry.volume import REGISTRY_BYTES, Registry
from broker.whiteboard import vm_lines
from broker.whiteboard.signatures import Signatures
from broker.whiteboard.sizes import SLOT_BYTES
from broker.whiteboard.slot import SlotReport, encode_slot
from broker.whiteboard.volume import Volume
from broker.wire.limits import VMS_MAX
from broker.wire.vms import VmEntry, VmWord
from scoring.vm_facts import EngineStatus, Health, VmStatus
from tests.fakes.statuses import documented
from tests.lab.real_sanlock import Daemon, needs_sanlock
from tests.unit import commands

pytestmark = needs_sanlock
MIB = 1 << 20
UUID = "00000000-1111-2222-3333-444444444444"
XML = """<domain type='kvm'><name>{name}</name>{uuid}<memory unit='MiB'>{memory}</memory>
<os><type>hvm</type></os><devices>{devices}</devices></domain>"""
#: A host of the cluster takes a lease and keeps it until its input ends.
HOLD = """
import sanlock, sys
path, space, name, unit = sys.argv[1:]
taken = sanlock.register()
sanlock.acquire(space.encode(), name.encode(), [(path, int(unit) << 20)], slkfd=taken)
print("taken", flush=True)
sys.stdin.read()
"""


def xml(name: str = "db", memory: int = 64, uuid: str = "", devices: str = "") -> str:
    made = f"<uuid>{uuid}</uuid>" if uuid else ""
    return XML.format(name=name, uuid=made, memory=memory, devices=devices)


class Host:
    """A host of a cluster with room for 5 VMs that has joined the lockspace; no daemon runs."""

    def __init__(self, folder: Path, daemon: Daemon, vms: int = 5) -> None:
        self.folder, self.shared = folder, folder / "shared"
        self.config_path = folder / "etc" / "ha-agent.toml"
        self.shared.mkdir()
        self.config_path.parent.mkdir()
        (folder / "qemu.conf").write_text('lock_manager = "sanlock"\n')
        (folder / "qemu-sanlock.conf").write_text("require_lease_for_disks = 0\n")
        self.config_path.write_text(
            f'[libvirt]\nqemu-conf = "{folder}/qemu.conf"\n'
            f'[storage]\nsanlock-conf = "{folder}/sanlock.conf"\n'
        )
        self.environment = {**daemon.environment, "HA_AGENT_CONFIG": str(self.config_path)}
        self.daemon = daemon
        words = ("init", "--storage", str(self.shared), "--domain", self.file(xml("engine-vm")))
        done = self.run(*words, "--vms", str(vms), "--local", "--yes", "--io-timeout", "1")
        assert done.returncode == ExitCode.OK, done.stderr
        self.lockspace = f"{self.config.storage.lockspace}:1:{self.config.storage.leases}:0"
        joined = daemon.client("add_lockspace", "-s", self.lockspace, "-o", "1")
        assert joined.returncode == 0, joined.stderr
        with open(self.config.storage.registry, "rb") as file:
            self.empty = file.read((VMS_MAX + 1) * SLOT_BYTES)

    def leave(self) -> None:
        self.daemon.client("rem_lockspace", "-s", self.lockspace)

    @property
    def config(self) -> Config:
        return load(str(self.config_path))

    def file(self, text: str, name: str = "vm.xml") -> str:
        path = self.folder / name
        path.write_text(text)
        return str(path)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        done = commands.run("ha-agent", *arguments, env=self.environment)
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def vm(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.run("vm", *arguments)

    def good(self, *arguments: str) -> str:
        done = self.vm(*arguments)
        assert done.returncode == ExitCode.OK, done.stderr
        return done.stdout

    def add(self, name: str, *more: str) -> str:
        return self.good("add", self.file(xml(name)), *more)

    def answer(self, *arguments: str) -> Any:
        return json.loads(self.good(*arguments, "--json"))

    def refused(self, *arguments: str) -> str:
        done = self.vm(*arguments)
        assert done.returncode != ExitCode.OK, done.stdout
        assert done.stderr.count("\n") == 1, done.stderr
        return f"{done.returncode} {done.stderr}"

    @contextlib.contextmanager
    def registry(self) -> Iterator[Registry]:
        config = self.config
        with Volume(config.storage.registry) as volume:
            yield Registry(volume, config.cluster.id, Signatures(load_cluster_key(config)))

    def records(self) -> dict[int, VmRecord]:
        with self.registry() as registry:
            return registry.read().vms

    def lease(self, number: int) -> str | None:
        with Volume(self.config.storage.leases, read_only=True) as volume:
            found = read_lease_records(volume, [14 + number])[14 + number]
        return None if found is None else found.resource

    def overwrite(self, block: int, data: bytes) -> None:
        with Volume(self.config.storage.registry) as volume:
            volume.write_at(block * SLOT_BYTES, data.ljust(SLOT_BYTES, b"\0"))

    def read_by_the_broker(self) -> None:
        """The copy that a broker here would have."""
        config = self.config
        folder = Path(config.daemon.state_dir) / FOLDER
        with self.registry() as registry:
            contents = registry.read()
            texts = {n: registry.definition(one).decode() for n, one in contents.vms.items()}
        cached = Cached(contents.generation, contents.records, texts)
        write_kept(folder, config.cluster.id, cached)
        assert read_kept(folder, config.cluster.id).vms == contents.vms


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    found = Daemon(tmp_path_factory.mktemp("sanlock") / "run", "vms")
    yield found
    found.kill()


@pytest.fixture(scope="module")
def seed(tmp_path_factory: pytest.TempPathFactory, daemon: Daemon) -> Iterator[Host]:
    """The cluster of all tests of this file: a lockspace takes seconds to be joined."""
    host = Host(tmp_path_factory.mktemp("host"), daemon)
    yield host
    host.leave()


@pytest.fixture
def host(seed: Host) -> Host:
    """The cluster, with an empty registry."""
    with open(seed.config.storage.registry, "r+b") as file:
        file.write(seed.empty)
    for path in (Path(seed.config.daemon.state_dir) / FOLDER).glob("*"):
        path.unlink()
    return seed


# --- from one VM to three ----------------------------------------------------------------------


def test_vms_are_added_changed_and_shown(host: Host) -> None:
    said = host.add("db", "--priority", "90")
    assert "db is VM 2, wanted up" in said and "ha-broker does not answer" in said
    host.add("sso")
    host.add("web", "--after", "sso,db", "--apart", "db", "--failback", "--want", "down")
    assert host.lease(2) == host.records()[2].resource != host.lease(3)
    listed = host.answer("list")
    assert [vm["name"] for vm in listed["vms"]] == ["db", "sso", "web"]
    assert listed["generation"] == 3 and listed["problem"] == "" and listed["damaged"] == {}
    assert listed["vms"][2]["settings"]["after"] == "sso,db"
    host.good("set", "web", "after=", "priority=10", "health=tcp:10.0.0.5:443")
    shown = host.answer("show", "4")["vm"]
    assert (shown["settings"]["after"], shown["settings"]["priority"]) == ("", "10")
    assert shown["settings"]["health"] == "tcp:10.0.0.5:443" and shown["problem"] == ""
    text = host.good("list")
    assert "apart=db failback" in text and text.splitlines()[0].startswith("NO  VM")
    assert "is wanted up: the cluster starts it" in host.good("start", "web")
    assert host.records()[4].want == "up"
    assert "is wanted down" in host.good("stop", "web")
    assert host.records()[4].want == "down"
    assert "already" in host.good("stop", "web")


def test_a_definition_gets_its_lease_and_its_name(host: Host) -> None:
    host.good("add", host.file(xml("other")), "--name", "db")
    record = host.records()[2]
    text = host.good("show", "db", "--xml")
    assert text == host.good("export", "db")
    for words in (("show", "db", "--xml"), ("export", "db")):
        answer = host.answer(*words)
        assert answer == {"version": 1, "number": 2, "name": "db", "xml": text}, "JSON is asked for"
    assert "<name>db</name>" in text and f"<uuid>{record.uuid}</uuid>" in text
    assert f"<key>{record.resource}</key>" in text and f'offset="{16 * MIB}"' in text
    saved = json.loads(host.good("export"))
    assert saved["vms"][0]["xml"] == text


@pytest.mark.skipif(shutil.which("jq") is None, reason="jq is not installed")
def test_a_vm_comes_back_from_the_backup_as_the_page_says(host: Host) -> None:
    """A test types the lines of docs/vm-life.md; `ha-agent` alone is replaced by this host's."""
    settings = ("--priority", "70", "--health", "http://192.0.2.1/x", "--expect", "it's up & well")
    host.add("db", *settings)
    before = json.loads(host.good("export"))
    (host.folder / "vms.json").write_text(json.dumps(before))
    host.good("stop", "db")
    host.good("remove", "db")
    page = (Path(__file__).parents[2] / "docs" / "vm-life.md").read_text()
    take, add, set_again = re.findall(r"^    ((?:jq|ha-agent vm add) .*)$", page, re.MULTILINE)
    subprocess.run(take, shell=True, cwd=host.folder, check=True)
    assert add == "ha-agent vm add db.xml"
    host.good("add", str(host.folder / "db.xml"))
    shown = set_again.replace("xargs ha-agent vm set db", "xargs printf '%s\\n'")
    words = subprocess.run(shown, shell=True, cwd=host.folder, check=True, capture_output=True)
    host.good("set", "db", *words.stdout.decode().splitlines())
    (was,), (now,) = before["vms"], json.loads(host.good("export"))["vms"]
    assert (now["uuid"], now["settings"]) == (was["uuid"], was["settings"])


def test_a_definition_is_changed_and_taken_back(host: Host) -> None:
    host.add("db")
    uuid = host.records()[2].uuid
    host.good("define", "db", host.file(xml("anything", 128)))
    assert (host.records()[2].memory_mb, host.records()[2].uuid) == (128, uuid)
    kept = host.answer("history", "db")["definitions"]
    assert [one["back"] for one in kept] == [0, 1]
    assert "--restore N" in host.good("history", "db")
    host.good("history", "db", "--restore", "1")
    assert host.records()[2].memory_mb == 64
    assert "definitions 0 to 2" in host.refused("history", "db", "--restore", "7")


def test_a_decision_for_the_recorded_disks_writes_the_definition_anew(host: Host) -> None:
    """Raising a priority decides nothing about disks."""
    host.add("db")

    def definitions() -> list[int]:
        return [kept.generation for kept in host.records()[2].definitions]

    first = definitions()
    host.good("set", "db", "priority=60")
    assert definitions() == first
    assert "disks recorded" in host.good("set", "db", "disks=recorded")
    assert len(definitions()) == 2 and definitions()[1:] == first
    assert "disks takes one value" in host.refused("set", "db", "disks=running")


def test_dry_runs_change_nothing(host: Host) -> None:
    host.add("db")
    host.good("stop", "db")
    before = Path(host.config.storage.registry).read_bytes()
    lease = host.lease(3)
    assert host.answer("add", host.file(xml("web")), "--dry-run")["dry_run"] is True
    for words in (
        ("define", "db", host.file(xml("db", 99))),
        ("set", "db", "priority=1"),
        ("start", "db"),
        ("remove", "db"),
    ):
        assert host.good(*words, "--dry-run").splitlines()[-1].startswith("would"), words
    assert Path(host.config.storage.registry).read_bytes() == before and host.lease(3) == lease


def test_a_removed_vm_leaves_its_name_and_at_last_its_number(host: Host) -> None:
    host.add("db")
    old = host.lease(2)
    said = "11 ha-agent: db is wanted up: ha-agent vm stop db first\n"
    assert host.refused("remove", "db") == said, "a start of it may be under way"
    host.good("stop", "db")
    assert "its disks are as they were" in host.good("remove", "db")
    assert "no VM 'db'" in host.refused("show", "db")
    host.add("db")
    assert host.records()[3].name == "db", "a number that was never used comes first"
    host.add("a")
    host.add("b")
    host.add("c")
    assert host.records()[2].name == "c" and host.lease(2) not in (old, None)
    assert "storage grow --vms" in host.refused("add", host.file(xml("d")))


def test_from_standard_input(host: Host) -> None:
    done = subprocess.run(
        [Path(sys.executable).parent / "ha-agent", "vm", "add", "-", "--json"],
        input=xml("db"),
        capture_output=True,
        text=True,
        env=host.environment,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["vm"]["name"] == "db"


# --- what is refused, each with a sentence ------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("<domain", "9 ha-agent: FILE: is not XML"),
        ("<network/>", "9 ha-agent: FILE: holds <network>, not a libvirt <domain>"),
        (
            "<domain type='kvm'><name>db</name><devices/></domain>",
            "9 ha-agent: FILE: has no usable <memory>; add one",
        ),
        ("<domain type='kvm'><memory>9</memory><devices/></domain>", "has no <name>"),
        (xml("db", uuid="zzz"), "its <uuid> is none: 'zzz'"),
        (xml("12"), "2 ha-agent: '12' is no name for a VM"),
        (xml("a b"), "is no name for a VM"),
        (xml("engine"), "11 ha-agent: the name engine is taken by the engine"),
        (xml("engine-vm"), "taken by the engine"),
        (xml().replace("kvm", "xen"), "is of type 'xen', not kvm or qemu"),
        (
            xml(devices="<emulator>/tmp/evil</emulator>"),
            "its emulator /tmp/evil is not in libvirt.emulators of this host",
        ),
        (
            xml().replace(
                "</domain>",
                "<q:commandline xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'/></domain>",
            ),
            "commandline of another namespace, and libvirt.passthrough is off",
        ),
    ],
)
def test_a_definition_that_no_host_would_start(host: Host, text: str, why: str) -> None:
    path = host.file(text)
    assert why.replace("FILE", path) in host.refused("add", path)
    assert host.records() == {}


def test_what_libvirt_would_leave_out_without_a_word_is_said(host: Host) -> None:
    """A word that is misspelt: the VM would start without its disk."""
    disk = DISK.format(kind="raw", path="/srv/db.raw")
    said = host.good("add", host.file(xml("db", devices=disk.replace("<source", "<souce"))))
    assert said.count("libvirt does not know all of it, and leaves that out") == 1
    said = host.good("define", "db", host.file(xml("db", devices=disk)))
    assert "libvirt does not know" not in said


def test_names_that_are_taken_or_unknown(host: Host) -> None:
    host.add("db")
    assert "11 ha-agent: the name db is taken by VM 2" in host.refused("add", host.file(xml("db")))
    uuid = host.records()[2].uuid
    said = host.refused("add", host.file(xml("db2", uuid=uuid)))
    assert "db has this UUID already" in said and "vm define db" in said
    assert "for another VM take its <uuid> out" in said
    assert "it is another VM" in host.refused("define", "db", host.file(xml("db", uuid=UUID)))
    assert "2 ha-agent: no VM 'dbb'; did you mean db?" in host.refused("show", "dbb")
    assert "no VM 'x'; there are: db, engine-vm" in host.refused("stop", "x")
    assert "no host 'h9'" in host.refused("set", "db", "only=h9")
    assert "no setting 'prio'; did you mean priority?" in host.refused("set", "db", "prio=1")
    assert "'90' is no KEY=VALUE" in host.refused("set", "db", "90")
    for bad in ("health=ftp://x", "health=tcp:x:99999", "health=tcp:x:0", "health=tcp:fd00::1:80"):
        assert "tcp:[V6]:PORT" in host.refused("set", "db", bad), bad
    host.good("set", "db", "health=tcp:[fd00::1]:80")
    for bad in ("priority=101", "failback=maybe", "want=sideways", "expect=("):
        assert "would fit" in host.refused("set", "db", bad), bad
    for bad in ("starting=soon", "bad-health=0", "stop-grace=2d", "stop-grace=1e9", "starting=-5"):
        assert "2 ha-agent: " in (said := host.refused("set", "db", bad)), bad
        assert "seconds, or a time such as 90s" in said and "would fit" in said, bad
    assert "the engine is always wanted up" in host.refused("stop", "engine")
    assert "is not in the registry" in host.refused("set", "engine", "priority=1")


def test_the_uuid_of_the_engine_is_taken(host: Host) -> None:
    """While the engine is not in the registry too: libvirt knows a domain by its UUID."""
    text = Path(host.config.vm.definition).read_text()
    uuid = text.partition("<uuid>")[2].partition("</uuid>")[0]
    said = host.refused("add", host.file(xml("db", uuid=uuid)))
    assert "11 ha-agent: " in said and "engine has this UUID already" in said
    assert host.records() == {}


def test_a_setting_that_is_given_twice(host: Host) -> None:
    host.add("db")
    said = host.refused("set", "db", "priority=1", "priority=2")
    assert "2 ha-agent: priority is given twice" in said


@pytest.mark.parametrize("word", ["add", "define", "restore"])
def test_two_vms_do_not_write_to_one_disk(host: Host, word: str) -> None:
    """A copied definition in which the disk was left: no lease keeps the two apart."""
    disk = DISK.format(kind="raw", path=f"{host.shared}/db.raw")
    own = DISK.format(kind="raw", path=f"{host.shared}/web.raw")
    if word == "restore":
        host.good("add", host.file(xml("web", devices=disk)))
        host.good("define", "web", host.file(xml("web", devices=own)))
    elif word == "define":
        host.good("add", host.file(xml("web", devices=own)))
    host.good("add", host.file(xml("db", devices=disk)))
    before = host.records()
    words = {
        "add": ("add", host.file(xml("web", devices=disk))),
        "define": ("define", "web", host.file(xml("web", devices=disk))),
        "restore": ("history", "web", "--restore", "1"),
    }
    said = host.refused(*words[word])
    assert f"11 ha-agent: web: disk vda is {host.shared}/db.raw, which db uses too" in said
    assert "give it one of its own" in said and host.records() == before


def test_a_disk_of_the_engine_is_taken_too(host: Host) -> None:
    disk = DISK.format(kind="raw", path=f"{host.shared}/engine.raw")
    path = Path(host.config.vm.definition)
    before = path.read_text()
    path.write_text(before.replace("<devices>", f"<devices>{disk}"))
    try:
        said = host.refused("add", host.file(xml("web", devices=disk)))
        assert "which engine-vm uses too" in said
        host.good("define", "engine", str(path))
        assert "which engine-vm uses too" in host.refused(
            "add", host.file(xml("web", devices=disk))
        )
    finally:
        path.write_text(before)


def test_a_mac_of_another_vm_and_none_at_all(host: Host) -> None:
    card = "<interface type='bridge'>{mac}<source bridge='br0'/></interface>"
    mac = "<mac address='52:54:00:00:00:07'/>"
    host.good("add", host.file(xml("db", devices=card.format(mac=mac))))
    said = host.good("add", host.file(xml("web", devices=card.format(mac=mac))))
    assert "db has the MAC 52:54:00:00:00:07 too" in said
    said = host.good("add", host.file(xml("wiki", devices=card.format(mac=""))))
    assert "interface 1 had no <mac>, it gets 52:54:00:" in said
    made = host.good("export", "wiki")
    assert made.count("<mac address=") == 1
    host.good("define", "wiki", host.file(xml("wiki", 128, devices=card.format(mac=""))))
    address = made.partition("<mac address=")[2][:20]
    assert f"<mac address={address}" in host.good("export", "wiki"), "it stays as it is"


def test_rules_that_contradict_each_other(host: Host) -> None:
    host.add("a")
    host.add("b", "--after", "a")
    assert "they wait for each other: a for b, b for a" in host.refused("set", "a", "after=b")
    assert "a cannot be after itself" in host.refused("set", "a", "after=a")
    host.good("set", "a", "apart=b")
    assert "a and b are to be together and apart" in host.refused("set", "b", "together=a")
    said = host.refused("add", host.file(xml("c")), "--after", "nobody")
    assert "no VM 'nobody'" in said
    said = host.refused("remove", "a")
    assert "b has after=a: ha-agent vm set b after= first" in said


def test_a_vm_that_runs_is_not_removed_and_its_number_not_used_again(host: Host) -> None:
    host.add("db")
    record = host.records()[2]
    with holding(host, host.environment, record):
        assert "11 ha-agent: db runs on" in host.refused("remove", "db")
        with host.registry() as registry:
            registry.put(msgspec.structs.replace(record, removed=True), None, 1.0, "x")
        for name in ("a", "b", "c"):
            host.add(name)
        said = host.refused("add", host.file(xml("d")))
        assert "storage grow" in said and host.lease(2) == record.resource


# --- two at once ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_that_add_at_once_get_a_number_each(host: Host) -> None:
    done: dict[str, subprocess.CompletedProcess[str]] = {}

    def add(name: str) -> None:
        path = host.file(xml(name), f"{name}.xml")
        argv = [str(Path(sys.executable).parent / "ha-agent"), "vm", "add", path]
        done[name] = subprocess.run(argv, capture_output=True, text=True, env=host.environment)

    threads = [threading.Thread(target=add, args=(name,)) for name in ("one", "two", "three")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {name: each.stderr for name, each in done.items()} == dict.fromkeys(done, "")
    records = host.records()
    assert sorted(records) == [2, 3, 4]
    assert {record.name for record in records.values()} == {"one", "two", "three"}
    assert [host.lease(number) for number in records] == [r.resource for r in records.values()]


@contextlib.contextmanager
def holding(
    host: Host, environment: dict[str, str], vm: VmRecord | None = None
) -> Iterator[subprocess.Popen[str]]:
    """A process on the host of that environment holds the lease of the VM all the while; None: it
    changes the registry."""
    storage = host.config.storage
    lease = ("registry", "3") if vm is None else (vm.resource, str(vm.unit))
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, storage.leases, storage.lockspace, *lease],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None and process.stdin is not None
        assert process.stdout.readline() == "taken\n"
        yield process
        process.stdin.close()


def test_who_waits_too_long_is_told_who_has_it(host: Host) -> None:
    with holding(host, host.environment):
        said = host.refused("add", host.file(xml("db")))
    assert "11 ha-agent: the registry is being changed by a command on host 1" in said
    assert host.records() == {}


# --- a registry that is not well -----------------------------------------------------------------


def test_a_damaged_record_is_named_and_defined_anew(host: Host) -> None:
    host.add("db", "--priority", "90")
    host.add("web")
    host.read_by_the_broker()
    host.overwrite(2, b"x" * SLOT_BYTES)
    text = host.good("list")
    assert "db: its record in the registry cannot be read" in text and "vm define db FILE" in text
    host.good("define", "db", host.file(xml("db")))
    assert host.records()[2].priority == 90, "this host's copy knows the settings"
    assert "cannot be read" not in host.good("list")


def test_a_damaged_record_of_which_no_host_has_a_copy(host: Host) -> None:
    host.add("db")
    uuid = host.records()[2].uuid
    host.overwrite(2, b"x" * SLOT_BYTES)
    assert "2: its record in the registry cannot be read" in host.good("list")
    host.good("define", "2", host.file(xml("whatever")))
    assert host.records()[2].uuid == uuid, "its lease still says so"


def test_a_damaged_definition_is_taken_back(host: Host) -> None:
    host.add("db")
    host.good("define", "db", host.file(xml("db", 128)))
    host.overwrite(256 + (4 + host.records()[2].definitions[0].place) * 16, b"x" * SLOT_BYTES)
    assert "the definition of db is damaged" in host.good("list")
    assert "7 ha-agent: db: registry" in host.refused("export", "db")
    host.good("history", "db", "--restore", "1")
    assert "damaged" not in host.good("list") and host.records()[2].memory_mb == 64


def test_a_torn_header_and_another_clusters_registry(host: Host) -> None:
    host.add("db")
    host.read_by_the_broker()
    host.overwrite(0, b"x" * SLOT_BYTES)
    said = host.refused("add", host.file(xml("web")))
    assert said.startswith("7 ha-agent: registry") and "its header cannot be read" in said
    done = host.vm("list")
    assert done.returncode == 0 and "db" in done.stdout, "this host's copy"
    assert "its header cannot be read" in done.stderr
    with Volume(host.config.storage.registry) as volume:
        for block in range(VMS_MAX + 1):
            volume.write_at(block * SLOT_BYTES, bytes(SLOT_BYTES))
        Registry(volume, "another", Signatures()).make()
    assert "belongs to another cluster" in host.refused("add", host.file(xml("web")))


def test_a_registry_that_is_full(host: Host) -> None:
    record = VmRecord(number=2, name="x", uuid=UUID, generation=0, memory_mb=1)
    with host.registry() as registry:
        for number in range(2, VMS_MAX + 1):
            full = msgspec.structs.replace(record, number=number, name=f"x{number}")
            registry.put(full, None, 1.0, "x")
    said = host.refused("add", host.file(xml("db")))
    assert said.startswith("7 ha-agent: registry") and "it holds 128 VMs" in said


def test_a_registry_that_is_not_there(host: Host) -> None:
    host.add("db")
    host.read_by_the_broker()
    path = Path(host.config.storage.registry)
    away = path.with_name("away")
    path.rename(away)
    try:
        said = host.refused("set", "db", "priority=1")
        assert said.startswith(f"7 ha-agent: registry {path}: opening: No such file")
        assert "db" in host.vm("list").stdout
    finally:
        away.rename(path)


def test_a_cluster_of_one_vm_says_how_it_becomes_more(tmp_path: Path, daemon: Daemon) -> None:
    path = tmp_path / "ha-agent.toml"
    path.write_text('[host]\nid = 1\n[storage]\nwhiteboard = "/s/w"\nleases = "/s/l"\n')
    environment = {**daemon.environment, "HA_AGENT_CONFIG": str(path)}
    (tmp_path / "vm.xml").write_text(xml())
    for words in (("list",), ("add", str(tmp_path / "vm.xml")), ("stop", "db")):
        done = commands.run("ha-agent", "vm", *words, env=environment)
        assert done.returncode == ExitCode.CONFIG, done.stderr
        assert "storage grow --vms N" in done.stderr


def test_the_engine_moves_into_the_registry_and_out_again(host: Host) -> None:
    mine = host.config_path.with_name("engine.xml").read_text()
    uuid = mine.partition("<uuid>")[2].partition("</uuid>")[0]
    other = host.file(xml("whatever", 96, uuid=UUID))
    assert "it is another VM" in host.refused("define", "engine", other)
    said = host.good("define", "engine", host.file(xml("whatever", 96)))
    assert "is in the registry now" in said
    record = host.records()[1]
    assert (record.name, record.uuid, record.memory_mb) == ("engine-vm", uuid, 96)
    text = host.good("export", "engine")
    assert "<key>engine</key>" in text and f'offset="{MIB}"' in text
    host.good("set", "engine", "priority=100")
    assert host.answer("list")["vms"][0]["problem"] == ""
    assert host.config.vm.definition == str(host.config_path.with_name("engine.xml"))
    host.read_by_the_broker()
    assert host.config.vm.definition == f"{host.config.daemon.state_dir}/vms/engine.xml"
    assert Path(host.config.vm.definition).read_text() == text
    assert "vm.definition of each host again" in host.good("remove", "engine")
    host.read_by_the_broker()
    assert host.config.vm.definition == str(host.config_path.with_name("engine.xml"))


# --- beside libvirt's test driver ----------------------------------------------------------------


TEST = "http://libvirt.org/schemas/domain/test/1.0"
NODE = """<node>{domains}</node>"""
RUNS = """<domain type='test'><name>{name}</name><uuid>{uuid}</uuid><memory unit='MiB'>96</memory>
<os><type>hvm</type></os><devices>{devices}</devices></domain>"""
DISK = """<disk type='file' device='disk'><driver name='qemu' type='{kind}'/><source file='{path}'/>
<target dev='vda' bus='virtio'/></disk>"""


@contextlib.contextmanager
def node(host: Host, *domains: str) -> Iterator[None]:
    """The host's libvirt is one that has these domains, which run."""
    path = host.file(NODE.format(domains="".join(domains)), "node.xml")
    before = host.config_path.read_text()
    assert "[libvirt]\n" in before
    uri = f'[libvirt]\nuri = "test://{path}"\n'
    host.config_path.write_text(before.replace("[libvirt]\n", uri))
    try:
        yield
    finally:
        host.config_path.write_text(before)


def test_what_runs_becomes_the_definition(host: Host) -> None:
    """A snapshot was made and memory was added while it ran: a start elsewhere boots the same."""
    old = DISK.format(kind="raw", path="/srv/db.raw")
    host.good("add", host.file(xml("db", 64, UUID, old)))
    record = host.records()[2]
    runs = RUNS.format(name="db", uuid=UUID, devices=DISK.format(kind="qcow2", path="/srv/db.snap"))
    with node(host, runs):
        assert "would" in host.good("define", "db", "--from-running", "--dry-run")
        assert host.records()[2] == record
        host.good("define", "db", "--from-running")
    text = host.good("export", "db")
    assert "/srv/db.snap" in text and "/srv/db.raw" not in text and 'type="qcow2"' in text
    assert host.records()[2].memory_mb == 96
    assert "<domain type='kvm'" in text.replace('"', "'"), "all else is the record's"
    assert f"<key>{record.resource}</key>" in text, "its lease too"
    host.good("history", "db", "--restore", "1")
    assert "/srv/db.raw" in host.good("export", "db")


@pytest.mark.parametrize("how", ["its UUID", "its name"])
def test_what_runs_here_without_a_lease_is_not_added(host: Host, how: str) -> None:
    """Another host would start it a second time."""
    is_uuid = how == "its UUID"
    runs = RUNS.format(name="old" if is_uuid else "db", uuid=UUID, devices="")
    file = host.file(xml("db", 64, UUID if is_uuid else ""))
    with node(host, runs):
        said = host.refused("add", file)
        assert "runs on this host, without a lease" in said and "virsh shutdown" in said
        assert host.records() == {}
    stopped = runs.replace(
        "type='test'>", f"type='test' xmlns:t='{TEST}'><t:runstate>5</t:runstate>"
    )
    with node(host, stopped):
        host.good("add", file)


def test_what_does_not_run_here_defines_nothing(host: Host) -> None:
    host.good("add", host.file(xml("db", 64, UUID)))
    record = host.records()[2]
    stopped = RUNS.format(name="db", uuid=UUID, devices="").replace(
        "type='test'>", f"type='test' xmlns:t='{TEST}'><t:runstate>5</t:runstate>"
    )
    for domains, said in (
        ((), "is not to be had from libvirt here"),
        ((stopped,), "db does not run on this host"),
    ):
        with node(host, *domains):
            assert said in host.refused("define", "db", "--from-running")
        assert host.records()[2] == record


def test_doctor_proves_each_vm_that_this_host_may_run(host: Host) -> None:
    disk = DISK.format(kind="raw", path=host.file("", "disk.raw"))
    gone = DISK.format(kind="raw", path=f"{host.folder}/gone.raw")
    bridge = "<interface type='bridge'><source bridge='br-nowhere'/></interface>"
    host.good("add", host.file(xml("fine", devices=disk)))
    host.good("add", host.file(xml("lacks", devices=gone + bridge)))
    off, elsewhere = (gone.replace("gone.raw", f"{name}-gone.raw") for name in ("off", "else"))
    host.good("add", host.file(xml("off", devices=off)), "--want", "down")
    host.good("add", host.file(xml("elsewhere", devices=elsewhere)))
    with host.registry() as registry:  # no command takes a host that has no slot
        record = msgspec.structs.replace(host.records()[5], only=(7,))
        registry.put(record, None, 1.0, "host1")

    def found() -> list[tuple[str, str]]:
        answer = json.loads(host.run("doctor", "--json").stdout)
        checks = [each for each in answer["checks"] if each["name"] == "vms"]
        assert all(each["fix"] or each["verdict"] == "ok" for each in checks)
        return [(each["verdict"], each["text"]) for each in checks]

    with node(host):
        seen = found()
        assert seen[0] == ("ok", "fine: what its definition needs is on this host")
        assert [(v, t.partition(":")[0]) for v, t in seen[1:]] == [
            ("fail", "lacks"),
            ("fail", "lacks"),
            ("warn", "off"),
        ]
        assert "br-nowhere" in seen[1][1] and "gone.raw" in seen[2][1] and "gone.raw" in seen[3][1]
        host.overwrite(3, b"no record")
        (damaged, *others) = found()
        assert damaged[0] == "fail" and damaged[1].startswith("VM 3: its record in the registry")
        assert others == [seen[0], seen[3]], "the others are looked at as before"
    assert found()[-1][0] == "warn", "no libvirt answers"


def test_signing_anew_after_a_change_of_the_cluster_key(host: Host) -> None:
    host.add("db")
    secrets = Path(host.config.daemon.secrets)
    old = secrets.read_text()
    key = old.partition('cluster-key = "')[2].partition('"')[0]
    try:
        secrets.write_text(f'cluster-key = "{"ab" * 32}"\ncluster-key-accepted = "{key}"\n')
        assert host.answer("sign")["signed"] == 2 and host.answer("sign")["signed"] == 0
        secrets.write_text(f'cluster-key = "{"ab" * 32}"\n')
        assert [vm["name"] for vm in host.answer("list")["vms"]] == ["db"]
    finally:
        secrets.write_text(old)


def test_the_times_of_a_vm(host: Host) -> None:
    host.add("db", "--stop-grace", "10m", "--starting", "1h30m")
    kept = host.records()[2]
    assert (kept.stop_grace_s, kept.starting_s, kept.bad_health_s) == (600, 5400, None)
    host.good("set", "db", "bad-health=90", "starting=", "migration-timeout=30m")
    spec = host.records()[2].spec()
    assert (spec.stop_grace_s, spec.starting_s, spec.bad_health_s) == (600, None, 90)
    assert spec.migration_timeout_s == 1800
    shown = dict(line.split(None, 1) for line in host.good("show", "db").splitlines())
    assert (shown["stop-grace"], shown["starting"], shown["bad-health"]) == (
        "600",
        "the cluster's",
        "90",
    )
    assert "db: starting the cluster's" in host.good("set", "db", "starting=")
    assert shown["expect"] == "none"
    assert shown["migration-timeout"] == "1800"


def test_the_engine_has_its_times_and_its_health_check_from_the_configuration(host: Host) -> None:
    host.good("define", "engine", host.file(xml("engine-vm")))
    said = host.refused("set", "engine", "stop-grace=60", "health=guest-agent")
    assert "libvirt.migration-timeout" in host.refused("set", "engine", "migration-timeout=60")
    assert "11 ha-agent: health, stop-grace" in said and "timing.stop-grace" in said


def test_state_on_the_hosts_own_disk_is_said_when_a_vm_is_added(host: Host) -> None:
    tpm = "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>"
    text = xml("win", devices=tpm).replace("<os>", "<os firmware='efi'>")
    said = host.good("add", host.file(text))
    assert "firmware nvram in /var/lib/libvirt/qemu/nvram/win_VARS.fd: another host starts" in said
    assert f"TPM state in /var/lib/libvirt/swtpm/{host.records()[2].uuid}" in said
    shared = f"<nvram>{host.shared}/win.fd</nvram></os>"
    text = xml("lin").replace("<os>", "<os firmware='efi'>").replace("</os>", shared)
    assert "nvram" not in host.good("add", host.file(text))


@pytest.mark.slow
def test_a_registry_on_a_mount_that_is_read_only(host: Host) -> None:
    """NFS is remounted so after an error: what is known is shown, nothing is half written."""
    host.add("db")
    host.read_by_the_broker()
    before, lease = host.records(), host.lease(2)
    path = host.config.storage.registry
    agent = str(Path(sys.executable).parent / "ha-agent")

    def read_only(*words: str) -> subprocess.CompletedProcess[str]:
        script = f'mount --bind {path} {path} && mount -o remount,bind,ro {path} && exec "$@"'
        argv = ["unshare", "-m", "sh", "-c", script, "-", agent, "vm", *words]
        return subprocess.run(argv, capture_output=True, text=True, env=host.environment)

    for words in (("set", "db", "priority=1"), ("add", host.file(xml("web"))), ("stop", "db")):
        done = read_only(*words)
        assert done.returncode == ExitCode.STORAGE, done.stderr
        assert done.stderr.startswith(f"ha-agent: registry {path}: ") and "ead-only" in done.stderr
        assert done.stderr.count("\n") == 1, done.stderr
    assert "db" in read_only("list").stdout
    assert (host.records(), host.lease(2)) == (before, lease)


@pytest.mark.slow
def test_of_two_that_add_one_name_at_once_one_is_refused(host: Host) -> None:
    agent = str(Path(sys.executable).parent / "ha-agent")
    files = [host.file(xml("db", memory), f"{memory}.xml") for memory in (64, 128)]
    begun = [
        subprocess.Popen(
            [agent, "vm", "add", path],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=host.environment,
        )
        for path in files
    ]
    ended = [(*process.communicate(), process.returncode) for process in begun]
    assert sorted(code for _, _, code in ended) == [ExitCode.OK, ExitCode.REFUSED]
    (said,) = (stderr for _, stderr, code in ended if code)
    assert "the name db is taken by VM 2" in said and said.count("\n") == 1
    assert list(host.records()) == [2]


def test_a_lease_of_something_else_in_a_definition_is_replaced_by_its_own(host: Host) -> None:
    foreign = (
        "<lease><lockspace>other</lockspace><key>theirs</key>"
        "<target path='/elsewhere' offset='7'/></lease>"
    )
    host.good("add", host.file(xml("db", devices=foreign)))
    text = host.good("show", "db", "--xml")
    assert (
        text.count("<lease>") == 1 and "theirs" not in text and host.records()[2].resource in text
    )


def test_a_header_that_is_lost_is_written_anew_where_the_records_prove_whose_it_is(
    host: Host,
) -> None:
    """A write that a power cut tore loses the header. The VMs stay, and can be changed again."""
    host.add("db", "--priority", "90")
    host.read_by_the_broker()
    before = host.records()
    for torn in (b"x" * SLOT_BYTES, b""):
        host.overwrite(0, torn)
        said = host.refused("set", "db", "priority=1")
        assert said.startswith("7 ha-agent: registry")
        assert "is written anew" in host.good("sign")
        assert host.records() == before
    assert "written anew" not in host.good("sign")
    host.good("set", "db", "priority=80")
    assert host.records()[2].generation > before[2].generation


def test_a_header_without_a_record_of_this_cluster_is_left_alone(host: Host) -> None:
    path = Path(host.config.storage.registry)
    host.overwrite(0, b"x" * SLOT_BYTES)
    junk = path.read_bytes()
    assert "its header cannot be read" in host.refused("sign")
    assert path.read_bytes() == junk


# --- what is lost is written anew from a copy ------------------------------------------------


def test_a_registry_of_which_nothing_can_be_read_is_written_anew_from_the_copy(host: Host) -> None:
    """Header, records and definitions are overwritten; one record more that never was a VM's."""
    host.add("db", "--priority", "90")
    host.add("sso", "--after", "db")
    host.read_by_the_broker()
    before = host.records()
    for block in (0, 2, 3, 9):
        host.overwrite(block, b"x" * SLOT_BYTES)
    assert "ha-agent vm rebuild" in host.refused("sign")
    said = host.refused("rebuild")
    assert said.startswith("11 ") and "rebuild --overwrite" in said
    would = host.answer("rebuild", "--overwrite", "--dry-run")
    assert "ha-agent vm rebuild" in host.refused("set", "db", "priority=1"), "nothing was done"
    done = host.answer("rebuild", "--overwrite")
    assert done.pop("done").startswith("written anew: the header, the records of db, sso")
    assert would.pop("done").startswith("would be written anew: the header")
    assert done == would
    assert (done["records"], done["emptied"], done["lost"]) == (["db", "sso"], [9], [])
    after = host.records()
    for number, record in after.items():
        assert record.generation > before[number].generation, "every host takes it"
        assert record.spec() == before[number].spec()
        assert record.definitions == before[number].definitions, "they were not damaged"
    assert "<name>db</name>" in host.good("show", "db", "--xml")
    assert host.good("rebuild") == "nothing of the registry is lost\n"
    host.add("web")


def test_an_emptied_registry_and_its_definitions_come_from_the_copy(host: Host) -> None:
    host.add("db")
    host.read_by_the_broker()
    with open(host.config.storage.registry, "r+b") as file:
        file.truncate(0)
        file.truncate(REGISTRY_BYTES)
    shown = json.loads(host.run("storage", "show", "--json").stdout)["volumes"]
    assert "vm rebuild" in shown[-1]["problem"]
    assert "ha-agent vm rebuild" in host.run("storage", "grow", "--vms", "3").stderr
    assert "the records of db" in host.good("rebuild")
    assert "<name>db</name>" in host.good("show", "db", "--xml")


def test_a_definition_that_nobody_has_is_named(host: Host) -> None:
    host.add("db")
    host.read_by_the_broker()
    for path in (Path(host.config.daemon.state_dir) / FOLDER).glob("*.xml"):
        path.unlink()
    with open(host.config.storage.registry, "r+b") as file:
        file.truncate(0)
        file.truncate(REGISTRY_BYTES)
    done = host.vm("rebuild")
    assert done.returncode == ExitCode.DEFINITION
    assert "ha-agent vm define db FILE" in done.stderr


def test_the_shared_configuration_comes_from_the_copy(host: Host) -> None:
    host.add("db")
    host.read_by_the_broker()
    config = host.config
    keep(config.daemon.state_dir, SharedCopy(config.cluster.id, 7, "[timing]\nfence-after = 20\n"))
    try:
        host.overwrite(HEAD, b"x" * SLOT_BYTES)
        assert "cannot be read" in host.run("config", "history").stderr
        assert "the shared configuration of generation 7" in host.good("rebuild")
        assert "rebuilt from a copy" in host.run("config", "history").stdout
        assert host.good("rebuild") == "nothing of the registry is lost\n"
    finally:
        copy_at(config.daemon.state_dir).unlink()


def test_a_host_that_knows_less_than_another_one_does_not_write_it_anew(host: Host) -> None:
    host.add("db")
    host.read_by_the_broker()
    host.overwrite(0, b"x" * SLOT_BYTES)
    config = host.config
    down = EngineStatus(VmStatus.DOWN, Health.BAD, "off")
    slot = SlotReport(2, 1, 3400, down, "host2", extra={vm_lines.REGISTRY: "99"})
    with Volume(config.storage.whiteboard) as volume:
        before = volume.read_at(2 * SLOT_BYTES)
        volume.write_at(2 * SLOT_BYTES, encode_slot(slot))
        try:
            said = host.refused("rebuild")
        finally:
            volume.write_at(2 * SLOT_BYTES, before)
    assert "host2 (host 2) knows generation 99" in said and "type this there" in said


@pytest.mark.parametrize(
    ("up", "state", "is_written"),
    [(True, VmWord.UP, False), (None, VmWord.UNKNOWN, False), (False, VmWord.WAITING, True)],
)
def test_a_lease_is_written_anew_only_while_its_vm_is_down(
    host: Host, monkeypatch: pytest.MonkeyPatch, up: bool | None, state: VmWord, is_written: bool
) -> None:
    """A new lease is free: whoever finds the VM's host silent could take it."""
    host.add("db")
    host.read_by_the_broker()
    with open(host.config.storage.leases, "r+b") as file:
        file.seek(16 * MIB)
        file.write(bytes(MIB))
    assert "no broker says here whether it is down" in host.vm("rebuild").stderr
    assert "no broker says here whether it is down" in host.refused(
        "define", "db", host.file(xml())
    )
    assert host.lease(2) is None
    vm = VmEntry(2, "db", 50, "up", 64, state, up, None, 1, "host1")
    status = msgspec.structs.replace(documented(), vms=(vm,))
    for name, value in host.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(rebuild, "status_of", lambda config: status)
    for is_dry in (True, False):
        done = rebuild.rebuilt(host.config, False, is_dry)
        assert done.leases == ["db"] * is_written and bool(done.not_down) is not is_written
        assert any("not known" in why for why in done.not_down) is (up is None)
        assert (host.lease(2) is not None) is (is_written and not is_dry)


def test_without_a_copy_nothing_is_written_anew(host: Host) -> None:
    host.add("db")
    assert "has no copy of the registry" in host.refused("rebuild")


# --- a storage without room ----------------------------------------------------------------------

#: Mounts a small file system, puts the volume there as holes and leaves no room for them, then
#: goes on with the words behind.
FULL = """
set -e
volume=$1 folder=$2 option=$3; shift 3
rm -f $folder/small.img
truncate -s 48M $folder/small.img
mkfs.ext4 -q -F $folder/small.img
mount -o loop $folder/small.img $folder/small
cp --sparse=always $volume $folder/small/volume
mount --bind $folder/small/volume $volume
dd if=/dev/zero of=$folder/small/fill bs=64k 2>/dev/null || true
dd if=/dev/zero of=$folder/small/fill2 bs=1k 2>/dev/null || true
set +e
"$@"; echo "=== $?"
"$option" vm list --json; echo "=== $?"
rm $folder/small/fill $folder/small/fill2
"$@"; echo "=== $?"
"""


def on_a_full_file_system(host: Host, *words: str) -> list[tuple[str, int]]:
    """What the command says there, what the list says then, and what the command says once there
    is room; each with its exit code."""
    agent = str(Path(sys.executable).parent / "ha-agent")
    (host.folder / "small").mkdir(exist_ok=True)
    volume = host.config.storage.registry
    argv = ["unshare", "-m", "sh", "-c", FULL, "-", volume, str(host.folder), agent]
    done = subprocess.run(
        [*argv, agent, "vm", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=host.environment,
    )
    parts = done.stdout.split("=== ")
    if len(parts) != 4:
        pytest.skip(f"no small file system can be mounted here: {done.stdout}")
    said = [parts[0], *(part.partition("\n")[2] for part in parts[1:3])]
    codes = [int(part.partition("\n")[0]) for part in parts[1:]]
    return list(zip(said, codes, strict=True))


@pytest.mark.parametrize("words", [("add", "web"), ("define", "db"), ("set", "db")])
@pytest.mark.slow
def test_a_registry_on_a_full_file_system(host: Host, words: tuple[str, str]) -> None:
    """Nothing is half written: what stood there stands there, and with room the same command is
    done."""
    host.add("db", "--priority", "90")
    what, name = words
    host.file(xml(name, 96), "new.xml")
    command = {
        "add": ("add", f"{host.folder}/new.xml"),
        "define": ("define", name, f"{host.folder}/new.xml"),
        "set": ("set", name, "disks=recorded"),
    }[what]
    first, listed, again = on_a_full_file_system(host, *command)
    assert first[1] == ExitCode.STORAGE, first
    assert first[0].startswith(f"ha-agent: registry {host.config.storage.registry}: ")
    assert "No space left" in first[0] and "free space on its file system" in first[0]
    assert first[0].count("\n") == 1
    kept = json.loads(listed[0])
    assert [(vm["name"], vm["memory_mb"], vm["problem"]) for vm in kept["vms"]] == [("db", 64, "")]
    assert (kept["damaged"], kept["problem"]) == ({}, "")
    assert again[1] == ExitCode.OK, again


# --- two hosts -----------------------------------------------------------------------------------


@pytest.fixture
def other(host: Host, tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of commands on a second host of the cluster: another sanlock, which has
    joined under host id 2, and another configuration."""
    daemon = Daemon(tmp_path / "run", "other")
    text = host.config_path.read_text()
    assert "\nid = 1\n" in text
    config = tmp_path / "ha-agent.toml"
    config.write_text(
        text.replace("\nid = 1\n", "\nid = 2\n").replace(
            host.config.daemon.state_dir, str(tmp_path / "state")
        )
    )
    lockspace = host.lockspace.replace(":1:", ":2:", 1)
    joined = daemon.client("add_lockspace", "-s", lockspace, "-o", "1")
    assert joined.returncode == 0, joined.stderr
    yield {**daemon.environment, "HA_AGENT_CONFIG": str(config)}
    daemon.client("rem_lockspace", "-s", lockspace)
    daemon.kill()


def test_a_vm_whose_host_died_for_good_is_removed(host: Host, tmp_path: Path) -> None:
    """The lease was never given back; its host's id is freed once that host is proven dead."""
    host.add("db")
    daemon = Daemon(tmp_path / "run", "gone")
    lockspace = host.lockspace.replace(":1:", ":2:", 1)
    assert daemon.client("add_lockspace", "-s", lockspace, "-o", "1").returncode == 0
    with holding(host, daemon.environment, host.records()[2]) as process:
        daemon.kill()
        process.kill()
    host.good("stop", "db")
    assert "11 ha-agent: db runs on" in host.refused("remove", "db")
    freed = subprocess.run(["sanlock", "direct", "release_id", "-s", lockspace], text=True)
    assert freed.returncode == 0
    host.good("remove", "db")
    for name in ("a", "b", "c", "d"):
        host.add(name)
    assert sorted(host.records()) == [2, 3, 4, 5], "its number is used again"


def at_once(
    host: Host, other: dict[str, str], *paths: str
) -> list[subprocess.CompletedProcess[str]]:
    """`vm add` of a file on each of the two hosts, at the same moment."""
    agent = str(Path(sys.executable).parent / "ha-agent")
    begun = [
        subprocess.Popen(
            [agent, "vm", "add", path],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for path, environment in zip(paths, (host.environment, other), strict=True)
    ]
    found = []
    for each in begun:
        stdout, stderr = each.communicate()
        found.append(subprocess.CompletedProcess(each.args, each.returncode, stdout, stderr))
    return found


@pytest.mark.slow
def test_two_hosts_that_add_at_once_get_a_number_each(host: Host, other: dict[str, str]) -> None:
    paths = [host.file(xml(name), f"{name}.xml") for name in ("one", "two")]
    done = at_once(host, other, *paths)
    assert [each.returncode for each in done] == [0, 0], [each.stderr for each in done]
    records = host.records()
    assert {number: one.name for number, one in records.items()} in (
        {2: "one", 3: "two"},
        {2: "two", 3: "one"},
    )
    assert [host.lease(number) for number in records] == [r.resource for r in records.values()]
    assert sorted(one.generation for one in records.values()) == [1, 2]


@pytest.mark.slow
def test_of_two_hosts_that_add_one_name_at_once_one_is_refused(
    host: Host, other: dict[str, str]
) -> None:
    paths = [host.file(xml("db", memory), f"{memory}.xml") for memory in (64, 128)]
    done = at_once(host, other, *paths)
    assert sorted(each.returncode for each in done) == [ExitCode.OK, ExitCode.REFUSED]
    (said,) = (each.stderr for each in done if each.returncode)
    assert "the name db is taken by VM 2" in said and said.count("\n") == 1
    assert list(host.records()) == [2]


@pytest.mark.slow
def test_who_waits_too_long_is_told_which_host_it_is(host: Host, other: dict[str, str]) -> None:
    with holding(host, other):
        said = host.refused("add", host.file(xml("db")))
    assert "11 ha-agent: the registry is being changed by a command on host 2" in said
    assert host.records() == {}
