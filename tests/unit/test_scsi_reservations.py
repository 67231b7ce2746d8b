# SPDX-License-Identifier: LGPL-2.1-or-later
"""SCSI-3 reservations by what sg_persist really said of two targets, tgt and the kernel's own
(tests/lab/test_scsi_reservations.py has the real ones)."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.fence.reservations import ScsiReservations, is_reserved, key_of, read_keys
from agent.fence.storage_program import StorageFenceError
from agent.setup import register
from agent.terminal.errors import CommandError
from broker.config.storage_fence import StorageFenceSection
from broker.daemon.exit_codes import ExitCode
from tests.unit import commands

CLUSTER = "0b1e"
ONE, TWO = key_of(CLUSTER, 1), key_of(CLUSTER, 2)
HEAD = "  LIO-ORG   RAMDISK-MCP       4.0 \n  Peripheral device type: disk\n"
NO_KEYS = f"{HEAD}  PR generation=0x0, there are NO registered reservation keys\n"
ONE_KEY = f"{HEAD}  PR generation=0x3, 1 registered reservation key follows:\n    {TWO:#x}\n"
TWO_KEYS = (
    f"{HEAD}  PR generation=0x2, 2 registered reservation keys follow:\n"
    f"    {ONE:#x}\n    {TWO:#x}\n"
)
FREE = f"{HEAD}  PR generation=0x0, there is NO reservation held\n"
HELD = (
    f"{HEAD}  PR generation=0x2, Reservation follows:\n    Key={ONE:#x}\n"
    "    scope: LU_SCOPE,  type: Write Exclusive, registrants only\n"
)
OTHER = HELD.replace("Write Exclusive, registrants only", "Exclusive Access")


def soon_s() -> float:
    return time.monotonic() + 20.0


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose files are what sg_persist says: `keys`, `held`, `rc`; `after-keys` and
    `after-held` take their places with the first change. `calls`: the changes."""
    program = tmp_path / "sg_persist"
    program.write_text(
        "#!/bin/sh\n"
        f"cd {tmp_path}\n"
        'case "$1 $2" in\n'
        '"--in --read-keys") cat keys;;\n'
        '"--in --read-reservation") cat held;;\n'
        '*) echo "$@" >> calls\n'
        "  [ ! -e after-keys ] || mv after-keys keys; [ ! -e after-held ] || mv after-held held\n"
        "  echo 'PR out: bad field in cdb' >&2; exit $(cat rc);;\n"
        "esac\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for name, text in (("keys", TWO_KEYS), ("held", HELD), ("rc", "0")):
        (tmp_path / name).write_text(text)
    return tmp_path


def fence(own: int = 2) -> ScsiReservations:
    return ScsiReservations(["/dev/vm1"], CLUSTER, own)


def test_a_key_names_cluster_and_host() -> None:
    assert len({key_of(c, h) for c in ("a", "b") for h in (1, 2, 2000)}) == 6
    assert f"{ONE:#x}".startswith("0x6168") and ONE & 0xFFFF == 1


@pytest.mark.parametrize(
    ("text", "keys"), [(NO_KEYS, ()), (ONE_KEY, (TWO,)), (TWO_KEYS, (ONE, TWO))]
)
def test_the_keys_are_read_as_they_are_said(target: Path, text: str, keys: tuple[int, ...]) -> None:
    (target / "keys").write_text(text)
    assert read_keys("/dev/vm1", soon_s()) == frozenset(keys)


@pytest.mark.parametrize("text", ["", HEAD, TWO_KEYS.rpartition("    0x")[0], "0x1\n"])
def test_a_list_that_cannot_be_read_is_no_empty_one(target: Path, text: str) -> None:
    (target / "keys").write_text(text)
    with pytest.raises(StorageFenceError, match="cannot be read"):
        read_keys("/dev/vm1", soon_s())


@pytest.mark.parametrize("ask", [read_keys, is_reserved])
def test_a_device_that_does_not_answer_is_named(
    target: Path, ask: Callable[[str, float], object]
) -> None:
    for name in ("keys", "held"):
        (target / name).unlink()
    with pytest.raises(StorageFenceError, match=r"^/dev/vm1: sg_persist ended with 1: "):
        ask("/dev/vm1", soon_s())


@pytest.mark.parametrize(
    ("text", "says"), [(OTHER, "'Exclusive Access': not by this cluster"), ("", "cannot be read")]
)
def test_another_reservation_is_not_ours(target: Path, text: str, says: str) -> None:
    (target / "held").write_text(text)
    with pytest.raises(StorageFenceError, match=says):
        is_reserved("/dev/vm1", soon_s())


def test_it_finds_where_the_dead_host_has_its_key(target: Path) -> None:
    assert fence().find(1, "host1", soon_s()) == ("/dev/vm1",)
    assert fence().find(3, "host3", soon_s()) == ()
    (target / "held").write_text(FREE)
    with pytest.raises(StorageFenceError, match="nobody has reserved it"):
        fence().find(1, "host1", soon_s())
    (target / "keys").write_text(NO_KEYS)
    with pytest.raises(StorageFenceError, match="the key of host 2 is not there"):
        fence().find(1, "host1", soon_s())
    assert not (target / "calls").exists(), "it changes nothing"


@pytest.mark.parametrize(
    ("rc", "after", "said"),
    [
        (0, ONE_KEY, ""),
        (5, ONE_KEY, ""),
        (0, TWO_KEYS, "the key of host 1 is still there"),
        (5, NO_KEYS, "the key of this host is gone"),
    ],
)
def test_cut_is_what_the_keys_say_afterwards(target: Path, rc: int, after: str, said: str) -> None:
    """sg_persist has failed where it had done its work, and returned 0 where nothing changed."""
    (target / "rc").write_text(str(rc))
    (target / "after-keys").write_text(after)
    if not said:
        fence().cut(1, "host1", ["/dev/vm1"], soon_s())
    else:
        with pytest.raises(StorageFenceError, match=said):
            fence().cut(1, "host1", ["/dev/vm1"], soon_s())
    assert (target / "calls").read_text() == (
        f"--out --preempt --param-rk={TWO:#x} --param-sark={ONE:#x} --prout-type=5 /dev/vm1\n"
    )


@pytest.mark.parametrize("rc", [0, 2])
def test_a_boot_registers_and_reserves(target: Path, rc: int) -> None:
    (target / "rc").write_text(str(rc))
    (target / "keys").write_text(NO_KEYS)
    (target / "after-keys").write_text(TWO_KEYS)
    (target / "held").write_text(FREE)
    with pytest.raises(StorageFenceError, match="/dev/vm1: was not reserved"):
        fence().register(soon_s())
    (target / "after-held").write_text(HELD)
    assert fence().register(soon_s()) == (f"/dev/vm1: key {TWO:#x}",)
    (target / "keys").write_text(NO_KEYS)
    with pytest.raises(StorageFenceError, match=f"the key {TWO:#x} was not registered"):
        fence().register(soon_s())


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A procfs in which nothing of QEMU or libvirt runs."""
    folder = tmp_path / "proc"
    process(folder, 1, "systemd")
    process(folder, 7, "qemu-ga")
    monkeypatch.setattr(register, "PROC", folder)
    return folder


def process(proc: Path, pid: int, name: str, *words: str) -> None:
    """A process that procfs shows from now on."""
    (proc / str(pid)).mkdir(parents=True, exist_ok=True)
    (proc / str(pid) / "comm").write_text(f"{name}\n")
    (proc / str(pid) / "cmdline").write_text("\0".join(words))


def scsi(site: Path, pids: Path) -> argparse.Namespace:
    """The arguments of `storage register` on a host with that folder of pid files."""
    text = site.read_text().replace("[libvirt]\n", f'[libvirt]\npid-dir = "{pids}"\n', 1)
    site.write_text(f'{text}[storage-fence]\ntype = "scsi"\ndevices = ["/dev/vm1"]\n')
    return argparse.Namespace(config=str(site))


def test_only_this_type_has_something_to_register_with(site: Path) -> None:
    done = commands.run("ha-agent", "--config", site, "storage", "register")
    assert (done.returncode, 'storage-fence.type is not "scsi"' in done.stderr) == (4, True)


def test_a_boot_registers_before_libvirt_has_made_its_folder(
    site: Path, target: Path, proc: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = key_of("", 1)
    (target / "keys").write_text(TWO_KEYS.replace(f"{TWO:#x}", f"{key:#x}"))
    assert register.run(scsi(site, target / "qemu"), as_json=False) == 0
    assert capsys.readouterr().out == f"/dev/vm1: key {key:#x}\n"


def test_a_host_without_a_vm_registers_at_any_time(tmp_path: Path, proc: Path) -> None:
    process(proc, 9, "libvirtd")
    pids = tmp_path / "qemu"
    pids.mkdir()
    for name, pid in (("driver", 9), ("HostedEngine", 4711)):
        (pids / f"{name}.pid").write_text(str(pid))
    assert register.running_vm(str(pids)) is None


@pytest.mark.parametrize(
    ("processes", "pid_files", "said"),
    [
        ([(12, "qemu-system-x86", ("qemu", "-name", "guest=db,debug-threads=on"))], None, "db "),
        # Killed, and still in the kernel: it has no command line any more.
        ([(12, "qemu-kvm", ())], {}, "qemu-kvm .process 12. runs here"),
        ([(12, "my-emulator", ())], {"HostedEngine": "12"}, "HostedEngine .* runs here"),
        ([(12, "libvirtd", ())], None, "not known.*libvirt.pid-dir"),
        ([(12, "virtqemud", ())], None, "not known.*libvirt.pid-dir"),
        ([(12, "libvirtd", ())], {"HostedEngine": ""}, "not known.*has no number"),
    ],
    ids=["a-vm", "a-vm-that-hangs", "another-emulator", "libvirtd", "virtqemud", "bad-pid-file"],
)
def test_nothing_is_registered_where_a_vm_may_run(
    site: Path,
    target: Path,
    proc: Path,
    processes: list[tuple[int, str, tuple[str, ...]]],
    pid_files: dict[str, str] | None,
    said: str,
) -> None:
    pids = target / "qemu"
    for pid, name, words in processes:
        process(proc, pid, name, *words)
    if pid_files is not None:
        pids.mkdir()
        for name, text in pid_files.items():
            (pids / f"{name}.pid").write_text(text)
    with pytest.raises(CommandError, match=said) as refused:
        register.run(scsi(site, pids), as_json=False)
    assert refused.value.code is ExitCode.REFUSED
    assert not (target / "calls").exists()


def test_no_process_at_all_is_not_known(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    with pytest.raises(OSError, match="shows no process"):
        register.running_vm(str(tmp_path / "qemu"), tmp_path / "proc")


def test_it_needs_devices() -> None:
    with pytest.raises(ValueError, match="type scsi needs devices"):
        StorageFenceSection(type="scsi")
