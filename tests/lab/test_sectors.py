# SPDX-License-Identifier: LGPL-2.1-or-later
"""Lease volumes with either sector size, on the real sanlock: made, joined, asked, taken, freed.

sanlock answers EINVAL to each reading call that does not name the volume's own size, so that a
volume of 4096 byte sectors was made and never joined.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.storage.room import sector_of
from broker.lockspace.delta_leases import layout_at
from broker.whiteboard.lease_sectors import ALIGN_OF_SECTOR

from .real_sanlock import Daemon, needs_sanlock

pytestmark = needs_sanlock

#: In the place of both daemons of host 1; prints what each call said.
BOTH_DAEMONS = """
import asyncio, sys
from pathlib import Path
from agent.leases.sanlock import SanlockLeases
from agent.storage.made import make_leases
from broker.config.load import load
from broker.lockspace.joined_mark import JoinedMark
from broker.lockspace.rejoin import Rejoin
from broker.lockspace.sanlock import SanlockLockspace
from scoring.decision import FreeHostId

path, folder, align = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
config = load(folder / "ha.toml")
make_leases(config)
lockspace = SanlockLockspace(
    "names", 1, path, 1, Rejoin(frozenset({"me"}), 1.0, JoinedMark(folder, "boot"))
)
leases = SanlockLeases(config, align)


async def owner():
    # Right behind a join sanlock does not yet know the standing of its own host.
    while not (answer := await leases.ask_fence()).known:
        await asyncio.sleep(0.2)
    return answer.owner


async def both():
    await lockspace._look()
    print("joined", lockspace.joined, lockspace.problem)
    print("engine", (await leases.ask_engine()).known)
    print("taken", (await leases.take_fence()).held)
    print("owner", await owner())
    await lockspace._look_at_fence()
    print("seen", lockspace.fence_owner.host_id)
    generation, timestamp = await leases.read_delta(1)
    print("renewed", generation, timestamp > 0)
    await leases.drop_fence()
    # sanlock gives it back behind the end of the connection.
    while await owner() is not None:
        await asyncio.sleep(0.2)
    print("given back", await owner())


asyncio.run(both())
"""

CONFIG = """
[host]
id = 1
[storage]
whiteboard = "{folder}/whiteboard"
leases = "{path}"
lockspace = "names"
io-timeout = 1
[vm]
definition = "/etc/vm.xml"
[daemon]
state-dir = "{folder}"
"""


@pytest.fixture(params=[512, 4096])
def device(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, int]]:
    """A block device with such sectors."""
    image = tmp_path / "image"
    with image.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 160 << 20)
    words = ["losetup", "-f", "--show", "-b", str(request.param), str(image)]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no loop device: {done.stderr.strip()}")
    try:
        yield done.stdout.strip(), request.param
    finally:
        subprocess.run(["losetup", "-d", done.stdout.strip()], check=True)


def test_a_lease_volume_is_made_joined_and_used(device: tuple[str, int], tmp_path: Path) -> None:
    path, sector = device
    assert sector_of(path) == sector
    (tmp_path / "ha.toml").write_text(CONFIG.format(path=path, folder=tmp_path))
    daemon = Daemon(tmp_path / "run", "me")
    try:
        argv = [sys.executable, "-c", BOTH_DAEMONS, path, tmp_path, ALIGN_OF_SECTOR[sector]]
        done = subprocess.run(
            [str(word) for word in argv],
            env={**daemon.environment, "PYTHONPATH": str(Path(__file__).parents[2])},
            capture_output=True,
            text=True,
            timeout=120,
        )
    finally:
        daemon.kill()
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "joined True ",
        "engine True",
        "taken True",
        "owner 1",
        "seen 1",
        "renewed 1 True",
        "given back None",
    ]
    assert layout_at(path).sector == sector


def test_a_file_has_the_sectors_of_its_file_system(device: tuple[str, int], tmp_path: Path) -> None:
    path, sector = device
    mount = tmp_path / "mount"
    mount.mkdir()
    subprocess.run(["mkfs.ext4", "-q", path], check=True)
    subprocess.run(["mount", path, str(mount)], check=True)
    try:
        assert sector_of(str(mount / "leases")) == sector, "not made yet"
        (mount / "leases").write_bytes(bytes(4096))
        assert sector_of(str(mount / "leases")) == sector
    finally:
        subprocess.run(["umount", str(mount)], check=True)
