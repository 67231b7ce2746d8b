# SPDX-License-Identifier: LGPL-2.1-or-later
"""`leave --undo`: the lines of init and join go, everybody else's stay, and no running VM loses
what keeps its lease."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import libvirt
import msgspec
import pytest

from agent.setup import undo
from agent.setup.leave import vm_is_not_here
from agent.setup.undo import undo_steps
from agent.storage.device_rule import HEAD
from agent.terminal.errors import CommandError
from agent.terminal.steps import Step
from broker.config.load import load
from broker.config.machine import system_uuid
from broker.config.sections import Config
from broker.lockspace.rejoin import own_name

QEMU = '# somebody\'s\nuser = "root"\nlock_manager = "sanlock"\n'
QEMU_SANLOCK = 'user = "sanlock"\nrequire_lease_for_disks = 0\n'


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """A host as init leaves it, with lines of its administrator."""
    path = tmp_path / "ha-agent.toml"
    path.write_text(
        '[host]\nid = 1\nsystem-uuid = "0a0b0c0d-0000-4000-8000-000000000001"\n'
        f'[storage]\nwhiteboard = "/w"\nleases = "/l"\nsanlock-conf = "{tmp_path}/sanlock.conf"\n'
        f'[libvirt]\nuri = "test:///default"\nqemu-conf = "{tmp_path}/qemu.conf"\n'
        f'pki-dir = "{tmp_path}/pki"\n'
        '[network]\ntest = "none"\n'
    )
    found = load(str(path))
    (tmp_path / "qemu.conf").write_text(QEMU)
    (tmp_path / "qemu-sanlock.conf").write_text(QEMU_SANLOCK)
    name = own_name(system_uuid(found))
    (tmp_path / "sanlock.conf").write_text(f"# theirs\nour_host_name = {name}\n")
    (tmp_path / "90.rules").write_text(f"{HEAD}rule\n")
    monkeypatch.setattr(undo, "restart_libvirt", lambda: "libvirtd.service restarted")
    monkeypatch.setattr(undo, "vms_with_a_lease", lambda *_, **__: [])
    return found


def steps(config: Config, folder: Path) -> list[Step]:
    """The steps that take lines and files back."""
    found = undo_steps(config, folder, folder / "90.rules")
    assert [step.name for step in found[:2]] == ["definitions", "certificates"], "before the driver"
    return found[2:]


def test_the_lines_of_init_go_and_all_others_stay(config: Config, tmp_path: Path) -> None:
    (tmp_path / "qemu.conf").chmod(0o600)
    due = steps(config, tmp_path)
    assert [step.look() for step in due] == [None] * 3
    said = [step.act() for step in due]
    assert "restarted" in said[0]
    assert (tmp_path / "qemu.conf").read_text() == '# somebody\'s\nuser = "root"\n'
    assert (tmp_path / "qemu.conf").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "qemu-sanlock.conf").read_text() == 'user = "sanlock"\n'
    assert (tmp_path / "sanlock.conf").read_text() == "# theirs\n"
    assert not (tmp_path / "90.rules").exists()
    assert all("nothing of ours" in (step.look() or "") for step in steps(config, tmp_path))


def test_what_an_administrator_wrote_stays(config: Config, tmp_path: Path) -> None:
    (tmp_path / "qemu.conf").write_text('#lock_manager = "sanlock"\n')
    (tmp_path / "qemu-sanlock.conf").unlink()
    (tmp_path / "sanlock.conf").write_text("our_host_name = another\n")
    (tmp_path / "90.rules").write_text("a rule of theirs\n")
    assert all("nothing of ours" in (step.look() or "") for step in steps(config, tmp_path))
    (tmp_path / "90.rules").unlink()
    assert all("nothing of ours" in (step.look() or "") for step in steps(config, tmp_path))


def test_a_file_that_only_the_set_up_wrote_goes(config: Config, tmp_path: Path) -> None:
    path = tmp_path / "sanlock.conf"
    path.write_text(path.read_text().removeprefix("# theirs\n"))
    for step in steps(config, tmp_path):
        step.act()
    assert not path.exists() and (tmp_path / "qemu.conf").exists()


def test_a_vm_that_runs_under_a_lease_keeps_the_lock_driver(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(undo, "vms_with_a_lease", lambda *_, **__: ["db", "web"])
    with pytest.raises(CommandError, match="db, web runs here under a lease"):
        steps(config, tmp_path)[0].look()
    assert (tmp_path / "qemu.conf").read_text() == QEMU


NODE = """<node>
<domain type='test'><name>plain</name><memory>1024</memory><os><type>hvm</type></os></domain>
<domain type='test'><name>db</name><memory>1024</memory><os><type>hvm</type></os><devices>
<lease><lockspace>ha</lockspace><key>db</key><target path='/l' offset='1048576'/></lease></devices>
</domain></node>"""


def test_libvirt_is_asked_which_vms_run_and_its_silence_is_no_answer(tmp_path: Path) -> None:
    (tmp_path / "node.xml").write_text(NODE)
    assert undo.vms_with_a_lease(f"test://{tmp_path}/node.xml") == ["db"]
    with pytest.raises(CommandError, match="whether a VM runs is not known"):
        undo.vms_with_a_lease("test:///not/there.xml")


SHUT_OFF = """<domain type='test'><name>db</name><memory>1024</memory><os><type>hvm</type></os>
<devices><lease><lockspace>{lockspace}</lockspace><key>db</key>
<target path='/l' offset='1048576'/></lease></devices></domain>"""


@pytest.mark.parametrize(
    ("slots", "ids", "lockspace", "goes"),
    [
        ({1, 2}, {}, "hosted-engine", True),
        # The daemons of host 2 are dead; whether the VM runs there is not known.
        ({1}, {2: (1, 77)}, "hosted-engine", True),
        ({1}, {1: (4, 77), 2: (1, 0)}, "hosted-engine", False),
        ({1, 2}, {}, "of-another-cluster", False),
    ],
)
def test_no_vm_of_a_cluster_that_goes_on_stays_defined_where_the_lock_driver_goes(
    config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    slots: set[int],
    ids: dict[int, tuple[int, int]],
    lockspace: str,
    goes: bool,
) -> None:
    """A VM was left there, with a lease that libvirt ignores without the driver: `virsh start` ran
    it a second time."""
    monkeypatch.undo()
    monkeypatch.setattr(undo, "read_leases", lambda path: (None, ids))
    reports = dict.fromkeys(slots)
    monkeypatch.setattr(undo, "read_slots", lambda path: SimpleNamespace(reports=reports))
    connection = libvirt.open(config.libvirt.uri)
    domain = connection.defineXML(SHUT_OFF.format(lockspace=lockspace))
    try:
        step = undo_steps(config, tmp_path, tmp_path / "90.rules")[0]
        assert (step.look() is None) is goes
        if goes:
            assert step.act().startswith("db: taken out of libvirt here")
            assert step.look() == "no VM of this cluster is defined in libvirt"
        names = [each.name() for each in connection.listAllDomains()]
        assert ("db" in names) is not goes and "test" in names
    finally:
        if not goes:
            domain.undefine()
        connection.close()


def test_what_the_page_says_that_it_takes_back_it_takes_back(
    config: Config, tmp_path: Path
) -> None:
    """The first four lines of the table of docs/uninstall.md, as the page has them."""
    page = (Path(__file__).parents[2] / "docs" / "uninstall.md").read_text()
    rows = re.findall(r"^\| `(/[^`]+)` \| `?(.+?)`? \|", page, re.MULTILINE)[:4]
    files = [tmp_path / Path(path).name.replace("90-ha-agent", "90") for path, _ in rows]
    lines = [line.replace("…", own_name(system_uuid(config))) for _, line in rows[:3]]
    assert all(line in file.read_text() for line, file in zip(lines, files, strict=False))
    for step in steps(config, tmp_path):
        step.act()
    assert not any(line in file.read_text() for line, file in zip(lines, files, strict=False))
    assert not files[3].exists()


@pytest.mark.parametrize(
    ("lockspace", "name", "refused"), [("ha", "db", True), ("other", "db", False)]
)
def test_whoever_runs_a_vm_of_the_cluster_does_not_leave(
    tmp_path: Path, config: Config, lockspace: str, name: str, refused: bool
) -> None:
    """Only the engine kept a host from leaving: a VM of the registry ran on, unwatched."""
    (tmp_path / "node.xml").write_text(NODE)
    own = msgspec.structs.replace(config.storage, lockspace=lockspace)
    libvirt_here = msgspec.structs.replace(config.libvirt, uri=f"test://{tmp_path}/node.xml")
    here = msgspec.structs.replace(config, storage=own, libvirt=libvirt_here)
    if refused:
        with pytest.raises(CommandError, match=f"{name} runs here under a lease of this cluster"):
            vm_is_not_here(here)
    else:
        assert vm_is_not_here(here).endswith("nor another VM of this cluster")
