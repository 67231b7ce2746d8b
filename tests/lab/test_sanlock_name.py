# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a fixed name makes of the real sanlock, good and bad, and what the product makes of that:
daemons of their own on a lockspace in a file, in the place of hosts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.lockspace.delta_leases import read_last_owner, read_named_leases
from broker.lockspace.rejoin import OwnLease, is_made_up
from broker.whiteboard.volume import Volume

from .real_sanlock import Daemon, needs_sanlock

pytestmark = needs_sanlock
SPACE, OFFSET = "names", 1 << 20
IO_TIMEOUT_S = "1"
NAME = "ha-of-this-machine"

#: Looks as the broker does until the id is joined or held back, and tells which.
LOOK = """
import asyncio, sys
from pathlib import Path
from broker.lockspace.joined_mark import JoinedMark
from broker.lockspace.rejoin import Rejoin
from broker.lockspace.sanlock import SanlockLockspace
path, folder, boot, name = sys.argv[1:]
rejoin = Rejoin(frozenset({name}), 1.0, JoinedMark(Path(folder), boot))
lockspace = SanlockLockspace("names", 1, path, 1, rejoin)
asyncio.run(lockspace._look())
print(lockspace.problem or "joined")
"""


class Site:
    """A lockspace with one lease, and who works on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.leases = folder / "leases"
        self.leases.write_bytes(bytes(2 * OFFSET))
        for words in (
            ("-s", f"{SPACE}:0:{self.leases}:0", "-o", IO_TIMEOUT_S),
            ("-r", f"{SPACE}:engine:{self.leases}:{OFFSET}"),
        ):
            subprocess.run(["sanlock", "direct", "init", *words], check=True, capture_output=True)
        self.daemons: list[Daemon] = []
        self.holders: list[subprocess.Popen[bytes]] = []

    def daemon(self, name: str) -> Daemon:
        self.daemons.append(Daemon(self.folder / f"run{len(self.daemons)}", name))
        return self.daemons[-1]

    def join(self, daemon: Daemon, host_id: int) -> None:
        where = f"{SPACE}:{host_id}:{self.leases}:0"
        done = daemon.client("add_lockspace", "-s", where, "-o", IO_TIMEOUT_S)
        assert done.returncode == 0, done.stderr

    def lease(self) -> OwnLease:
        with Volume(str(self.leases), read_only=True) as volume:
            return read_named_leases(volume, [1])[1]

    def owner(self) -> int | None:
        with Volume(str(self.leases), read_only=True) as volume:
            return read_last_owner(volume, "engine")

    def hold(self, daemon: Daemon, host_id: int) -> subprocess.Popen[bytes]:
        """A process that holds the lease, as QEMU does; it ends where it cannot have it."""
        resource = f"{SPACE}:engine:{self.leases}:{OFFSET}"
        argv = ["sanlock", "client", "command", "-r", resource, "-c", "/bin/sleep", "600"]
        holder = subprocess.Popen(
            argv, env=daemon.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self.holders.append(holder)
        for _ in range(300):
            if holder.poll() is not None or self.owner() == host_id:
                break
            time.sleep(0.1)
        return holder

    def look(self, daemon: Daemon, boot: str, name: str = NAME) -> str:
        state = self.folder / "state"
        state.mkdir(exist_ok=True)
        done = subprocess.run(
            [sys.executable, "-c", LOOK, str(self.leases), str(state), boot, name],
            env={**daemon.environment, "PYTHONPATH": str(Path(__file__).parents[2])},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def end(self) -> None:
        for process in (*self.holders, *(daemon.process for daemon in self.daemons)):
            process.kill()
            process.wait()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    try:
        yield site
    finally:
        site.end()


def test_the_real_sanlock_frees_the_lease_of_a_process_that_lives(site: Site) -> None:
    """Killed and started again under its fixed name: the reason for broker/lockspace/rejoin.py."""
    ours, other = site.daemon(NAME), site.daemon("other")
    site.join(ours, 1)
    site.join(other, 2)
    assert (site.lease().name, site.lease().generation) == (NAME, 1)
    holder = site.hold(ours, 1)
    assert holder.poll() is None
    assert site.hold(other, 2).poll() is not None, "its owner lives"

    ours.kill()
    again = site.daemon(NAME)
    site.join(again, 1)
    assert "fast reacquire" in again.client("log_dump").stdout
    assert site.lease().generation == 2
    assert holder.poll() is None, "it runs on"
    assert site.hold(other, 2).poll() is None
    assert site.owner() == 2, "and somebody else has its lease"


def test_a_name_that_sanlock_makes_up_is_watched(site: Site) -> None:
    first = site.daemon("")
    site.join(first, 1)
    assert is_made_up(site.lease().name)
    first.kill()
    again = site.daemon("")
    argv = ["sanlock", "client", "add_lockspace", "-s", f"{SPACE}:1:{site.leases}:0"]
    site.holders.append(subprocess.Popen([*argv, "-o", IO_TIMEOUT_S], env=again.environment))
    for _ in range(100):
        log = again.client("log_dump").stdout
        if "delta_large_delay" in log:
            break
        time.sleep(0.1)
    assert "delta_large_delay 8 delay 68" in log
    assert site.lease().generation == 1


def test_the_broker_takes_the_id_back_after_a_boot_and_not_on_the_same_one(site: Site) -> None:
    ours = site.daemon(NAME)
    assert site.look(ours, "boot-a") == "joined"
    ours.kill()
    again = site.daemon(NAME)
    assert "must stand still for 68 s more" in site.look(again, "boot-a")
    assert site.lease().generation == 1, "nothing was asked of sanlock"
    assert site.look(again, "boot-b") == "joined"
    assert site.lease().generation == 2
    assert "fast reacquire" in again.client("log_dump").stdout


def test_the_broker_takes_the_id_back_from_the_sanlock_that_gave_it_up(site: Site) -> None:
    """A sanlock that cannot renew ends the process with the lease, and gives the host id up only
    then: a process that does not end keeps the id."""
    ours = site.daemon(NAME)
    assert site.look(ours, "boot-a") == "joined"
    holder = site.hold(ours, 1)
    assert holder.poll() is None
    was = site.leases.read_bytes()
    with site.leases.open("r+b") as leases:
        leases.write(bytes(512))
    holder.wait(60)
    for _ in range(300):
        if SPACE not in ours.client("status").stdout:
            break
        time.sleep(0.1)
    with site.leases.open("r+b") as leases:
        leases.write(was[:512])
    assert site.look(ours, "boot-a") == "joined"
    assert site.lease().generation == 2
    ours.kill()
    assert "must stand still" in site.look(site.daemon(NAME), "boot-a")


def test_a_sanlock_whose_process_does_not_end_keeps_the_id(site: Site) -> None:
    """The connection is held open by a child of the one that holds the lease: as QEMU's is by one
    of its threads that the kernel keeps, and a freeing's by its process (record 38)."""
    ours = site.daemon(NAME)
    assert site.look(ours, "boot-a") == "joined"
    note = site.folder / "child"
    keeps = "import os,sys,time\nif os.fork() == 0: open(sys.argv[1], 'w').write(str(os.getpid()))"
    keeps += "\ntime.sleep(600)"
    resource = f"{SPACE}:engine:{site.leases}:{OFFSET}"
    argv = ["sanlock", "client", "command", "-r", resource, "-c", sys.executable, "-c", keeps]
    argv.append(str(note))
    holder = subprocess.Popen(argv, env=ours.environment)
    site.holders.append(holder)
    for _ in range(300):
        if site.owner() == 1:
            break
        time.sleep(0.1)
    with site.leases.open("r+b") as leases:
        leases.write(bytes(512))
    holder.wait(60)
    time.sleep(3)
    in_it = SPACE in ours.client("status").stdout
    os.kill(int(note.read_text()), signal.SIGKILL)
    assert in_it


def test_a_copy_of_the_machine_does_not_take_the_id_of_the_living(site: Site) -> None:
    """The disk was copied with sanlock.conf on it; the board has another UUID."""
    site.join(site.daemon(NAME), 1)
    copy = site.daemon(NAME)
    assert "not this machine's" in site.look(copy, "boot-b", "ha-of-the-copy")
    assert site.lease().generation == 1
