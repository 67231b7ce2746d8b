# SPDX-License-Identifier: LGPL-2.1-or-later
"""SCSI-3 reservations by what sg_persist really said of two targets, tgt and the kernel's own
(tests/lab/test_scsi_reservations.py has the real ones)."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from agent.fence.reservations import ScsiReservations, is_reserved, key_of, read_keys
from agent.fence.storage_program import StorageFenceError
from agent.setup.register import running_vm
from broker.config.storage_fence import StorageFenceSection
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
    ("rc", "after", "is_cut"),
    [(0, ONE_KEY, True), (5, ONE_KEY, True), (0, TWO_KEYS, False), (5, NO_KEYS, False)],
)
def test_cut_is_what_the_keys_say_afterwards(
    target: Path, rc: int, after: str, is_cut: bool
) -> None:
    """sg_persist has failed where it had done its work, and returned 0 where nothing changed."""
    (target / "rc").write_text(str(rc))
    (target / "after-keys").write_text(after)
    if is_cut:
        fence().cut(1, "host1", ["/dev/vm1"], soon_s())
    else:
        with pytest.raises(StorageFenceError, match="the key of host 1 is still there"):
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


def test_it_registers_by_a_command_and_not_while_a_vm_runs_here(site: Path, target: Path) -> None:
    done = commands.run("ha-agent", "--config", site, "storage", "register")
    assert (done.returncode, 'storage-fence.type is not "scsi"' in done.stderr) == (4, True)
    pids = target / "qemu"
    pids.mkdir()
    text = site.read_text().replace("[libvirt]\n", f'[libvirt]\npid-dir = "{pids}"\n', 1)
    site.write_text(f'{text}[storage-fence]\ntype = "scsi"\ndevices = ["/dev/vm1"]\n')
    (target / "keys").write_text(TWO_KEYS.replace(f"{TWO:#x}", f"{key_of('', 1):#x}"))
    done = commands.run("ha-agent", "--config", site, "storage", "register")
    assert (done.returncode, done.stdout) == (0, f"/dev/vm1: key {key_of('', 1):#x}\n"), done.stderr
    (pids / "driver.pid").write_text(str(os.getpid()))
    assert running_vm(str(pids)) is None
    (pids / "HostedEngine.pid").write_text(str(os.getpid()))
    done = commands.run("ha-agent", "--config", site, "storage", "register")
    assert (done.returncode, "HostedEngine runs here" in done.stderr) == (11, True)


def test_it_needs_devices() -> None:
    with pytest.raises(ValueError, match="type scsi needs devices"):
        StorageFenceSection(type="scsi")
