# SPDX-License-Identifier: LGPL-2.1-or-later
"""Two experiments on the real sanlock, each in a mount namespace of its own: what the product
counts on where a freeing of a host id does not end (docs/decisions/0038).

    python -m tests.lab.late_freeing lease|write FOLDER     prints one line of JSON
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

import sanlock

from agent.leases.sanlock_direct import SanlockDirect

from .host_storage import HostStorage

ALIGN = 1 << 20
SPACE, FENCE = b"ls", b"fence"
SETTLE_S = 3.0
#: sanlock ends the lease of a host whose renewals are 8 times as late.
IO_TIMEOUT_S = 2


class WritesHang(HostStorage):
    """A host's storage of which only the writes are held back."""

    def _gate(self) -> None:
        pass

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        super()._gate()
        return super().write(path, data, offset, fh)


def owners(leases: Path) -> list[int]:
    """The host ids that own the fence lease on disk."""
    disks = [(str(leases), 2 * ALIGN)]
    return [found["host_id"] for found in sanlock.read_resource_owners(SPACE, FENCE, disks)]


def refusal(function: object, *arguments: object, **named: object) -> int:
    """The errno with which sanlock refuses a call; 0 where it does not."""
    assert callable(function)
    try:
        function(*arguments, **named)
    except sanlock.SanlockException as error:
        return int(error.errno)
    return 0


def the_lease(leases: Path) -> dict[str, object]:
    """A process that inherits the connection keeps the lease when its parent is killed."""
    found: dict[str, object] = {"owners, not joined": owners(leases)}
    sanlock.add_lockspace(SPACE, 1, str(leases), iotimeout=IO_TIMEOUT_S, wait=True)
    disks = [(str(leases), 2 * ALIGN)]
    out, into = os.pipe()
    agent = os.fork()
    if agent == 0:
        _hold_and_hand_on(disks, into)
    os.close(into)
    told = os.read(out, 200).decode()
    assert told.isdigit(), told
    child_pid = int(told)
    os.kill(agent, signal.SIGKILL)
    os.waitpid(agent, 0)
    time.sleep(SETTLE_S)
    found["owners, agent killed"] = owners(leases)
    connection = sanlock.register()
    found["acquire"] = refusal(sanlock.acquire, SPACE, FENCE, disks, slkfd=connection)
    os.close(connection)
    found["leave"] = refusal(sanlock.rem_lockspace, SPACE, 1, str(leases), unused=True)
    os.kill(child_pid, signal.SIGKILL)
    time.sleep(SETTLE_S)
    found["owners, child ended"] = owners(leases)
    found["leave then"] = refusal(sanlock.rem_lockspace, SPACE, 1, str(leases), unused=True)
    return found


def _hold_and_hand_on(disks: list[tuple[str, int]], into: int) -> NoReturn:
    """In a process of its own: take the fence lease, give the connection to a child, wait."""
    try:
        connection = sanlock.register()
        sanlock.acquire(SPACE, FENCE, disks, slkfd=connection)
        child = subprocess.Popen(["sleep", "600"], pass_fds=(connection,))
        os.write(into, str(child.pid).encode())
        signal.pause()
    except sanlock.SanlockException as error:
        os.write(into, str(error).encode())
    os._exit(1)


async def the_write(folder: Path, leases: Path) -> dict[str, object]:
    """A freeing whose write hangs in the kernel, killed, does not end before that write has."""
    sanlock.add_lockspace(SPACE, 1, str(leases), iotimeout=IO_TIMEOUT_S, wait=True)
    mount, fault = folder / "mount", folder / "fault"
    mount.mkdir()
    fault.write_text("hang")
    code = "from tests.lab.late_freeing import mount; import sys; mount(*sys.argv[1:])"
    mounted = subprocess.Popen([sys.executable, "-c", code, leases.parent, fault, mount])
    while not (mount / leases.name).exists():
        await asyncio.sleep(0.1)
    out, into = os.pipe()
    begun = SanlockDirect().write(
        "release_id", "-s", f"ls:1:{mount / leases.name}:0", deadline_s=1.0, descriptors=(into,)
    )
    writing = asyncio.ensure_future(begun)
    await asyncio.sleep(0.5)
    os.close(into)
    await asyncio.sleep(0.5 + 2 * SETTLE_S)
    os.set_blocking(out, False)
    found: dict[str, object] = {"over, killed": writing.done(), "held": _is_held(out)}
    fault.write_text("ok")
    found["code"] = (await asyncio.wait_for(writing, 30.0))[0]
    found["held then"] = _is_held(out)
    _, text = await SanlockDirect().read("read_leader", "-s", f"ls:1:{leases}:0")
    found["free"] = "timestamp 0" in text.splitlines()
    subprocess.run(["umount", "-l", mount], check=True)
    mounted.kill()
    return found


def mount(root: str, fault: str, where: str) -> None:
    """Mount WritesHang; returns when the mount is gone."""
    import mfusepy

    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    storage = WritesHang(folder, Path(fault))
    mfusepy.FUSE(storage, where, foreground=True, direct_io=True, max_threads=8)


def _is_held(out: int) -> bool:
    """Whether somebody still has the other end of the pipe."""
    try:
        return os.read(out, 1) != b""
    except BlockingIOError:
        return True


def main() -> None:
    what, folder = sys.argv[1], Path(sys.argv[2])
    volume = folder / "volume"
    volume.mkdir()
    leases = volume / "leases"
    leases.write_bytes(bytes(8 * ALIGN))
    os.makedirs("/run/sanlock", exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", "/run/sanlock"], check=True)
    for named in (f"-s ls:0:{leases}:0", f"-r ls:fence:{leases}:{2 * ALIGN}"):
        made = ["sanlock", "direct", "init", *named.split()]
        subprocess.run(made, check=True, stdout=subprocess.DEVNULL)
    argv = ["sanlock", "daemon", "-D", "-w", "0", "-l", "0", "-h", "0", "-U", "root", "-G", "root"]
    environment = {**os.environ, "SANLOCK_PRIVILEGED": "0"}
    with (folder / "sanlock.log").open("wb") as log:
        daemon = subprocess.Popen(argv, env=environment, stdout=log, stderr=log)
    try:
        while not Path("/run/sanlock/sanlock.sock").exists():
            time.sleep(0.1)
        found = the_lease(leases) if what == "lease" else asyncio.run(the_write(folder, leases))
        print(json.dumps(found))
    finally:
        daemon.kill()
        daemon.wait()


if __name__ == "__main__":
    main()
