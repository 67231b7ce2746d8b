# SPDX-License-Identifier: LGPL-2.1-or-later
"""A running broker whose storage breaks for real: full, read-only, shrunk, gone, hung and back.

The broker goes on, its status says what happened and what to do, and once the storage is mended
the next beat is fine by itself.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from agent.status.troubles import troubles
from broker.broker import Broker, Given
from broker.config.load import load
from broker.monitors.runner import MonitorRunner
from broker.monitors.watched import Watched
from broker.whiteboard.board import Board
from broker.whiteboard.sizes import SLOT_BYTES
from broker.whiteboard.store import VolumeStore
from tests.fakes.broker import Engine, report
from tests.fakes.hanging_storage import FUSE, fuse_client
from tests.fakes.lockspace import FakeLockspace
from tests.fakes.waiting import PATIENCE_S, stop

SLOTS = 16
#: The file system of hanging_storage, with writes.
WRITABLE = FUSE.replace(
    "def read(",
    """def write(self, path, data, offset, fh):
        return os.pwrite(fh, data, offset)

    def read(""",
)

Beat = Callable[[], Awaitable[str]]


def run(*words: str | Path) -> None:
    done = subprocess.run([*map(str, words)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"{words[0]}: {done.stderr.strip()}")


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """An ext4 of its own, with a whiteboard on it whose blocks are not taken yet."""
    image, place = tmp_path / "image", tmp_path / "mnt"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(8 << 20)
    run("mkfs.ext4", "-q", "-O", "^has_journal", image)
    run("mount", "-o", "loop", image, place)
    with (place / "whiteboard").open("wb") as file:
        file.truncate(SLOTS * SLOT_BYTES)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False)


def beating(folder: Path, whiteboard: Path, test: Callable[[Beat], Awaitable[None]]) -> None:
    """A broker on that volume; `test` gets a beat, which answers what the status then says."""
    path = folder / "ha-agent.toml"
    path.write_text(
        f'[host]\nid = 1\nname = "host1"\n[storage]\nwhiteboard = "{whiteboard}"\nleases = "/l"\n'
        f'[daemon]\nstate-dir = "{folder}/state"\nsocket = "{folder}/sock"\n'
    )

    async def main() -> None:
        broker = Broker(
            load(str(path)),
            Board(VolumeStore(str(whiteboard), 2.0), 1),
            FakeLockspace(),
            Watched(MonitorRunner([]), Engine()),
            Given(None),
        )

        async def beat() -> str:
            now_s = asyncio.get_running_loop().time()
            broker.take_report(report(), now_s)
            await broker.beat(now_s)
            lines = troubles(broker.status(asyncio.get_running_loop().time()))
            return "\n".join(line for line in lines if line.startswith("STORAGE"))

        await test(beat)

    asyncio.run(main())


def test_a_full_file_system_is_named_and_goes_on_when_there_is_room(
    tmp_path: Path, mounted: Path
) -> None:
    async def test(beat: Beat) -> None:
        with (mounted / "filler").open("wb", buffering=0) as filler, pytest.raises(OSError):
            while True:
                filler.write(b"x" * SLOT_BYTES)
        said = await beat()
        assert "No space left" in said and "free space on its file system" in said
        (mounted / "filler").unlink()
        os.sync()
        assert await beat() == ""

    beating(tmp_path, mounted / "whiteboard", test)


def test_a_file_system_that_went_read_only_is_named(tmp_path: Path, mounted: Path) -> None:
    async def test(beat: Beat) -> None:
        assert await beat() == ""
        run("mount", "-o", "remount,abort", mounted)
        said = await beat() + await beat()
        assert "read-only" in said.lower() and "kernel log" in said

    beating(tmp_path, mounted / "whiteboard", test)


def test_a_mount_that_is_gone_is_not_taken_for_an_empty_whiteboard(
    tmp_path: Path, mounted: Path
) -> None:
    async def test(beat: Beat) -> None:
        run("umount", "-l", mounted)
        said = await beat()
        assert "No such file" in said and "its file system is mounted" in said
        run("mount", "-o", "loop", tmp_path / "image", mounted)
        assert await beat() == ""
        assert not (tmp_path / "mnt2").exists()

    beating(tmp_path, mounted / "whiteboard", test)


def test_a_device_that_shrinks_under_a_broker_is_named(tmp_path: Path) -> None:
    image = tmp_path / "device"
    with image.open("wb") as file:
        file.truncate(SLOTS * SLOT_BYTES)
    done = subprocess.run(
        ["losetup", "-f", "--show", str(image)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no loop device: {done.stderr.strip()}")
    device = done.stdout.strip()

    async def test(beat: Beat) -> None:
        assert await beat() == ""
        os.truncate(image, SLOT_BYTES)
        run("losetup", "-c", device)
        said = await beat() + await beat()
        assert device in said and "enlarge the volume" in said, said
        os.truncate(image, SLOTS * SLOT_BYTES)
        run("losetup", "-c", device)
        await beat()
        assert await beat() == ""

    try:
        beating(tmp_path, Path(device), test)
    finally:
        subprocess.run(["losetup", "-d", device], check=False)


def test_a_device_that_became_read_only_is_called_so(tmp_path: Path) -> None:
    """The kernel says "Operation not permitted", and owner and mode were to be checked."""
    image = tmp_path / "device"
    image.write_bytes(bytes(SLOTS * SLOT_BYTES))
    found = subprocess.run(["losetup", "-f", "--show", image], capture_output=True, text=True)
    device = found.stdout.strip()
    if not device:
        pytest.skip(f"losetup: {found.stderr.strip()}")

    async def test(beat: Beat) -> None:
        assert await beat() == ""
        run("blockdev", "--setro", device)
        # The first is of an open device, the second of its opening.
        for said in (await beat(), await beat()):
            assert "the device is read-only on this host" in said
        run("blockdev", "--setrw", device)
        assert await beat() == ""

    try:
        beating(tmp_path, Path(device), test)
    finally:
        subprocess.run(["losetup", "-d", device], check=False)


def test_a_client_that_hangs_and_comes_back_after_its_end(tmp_path: Path) -> None:
    """Hung, then shut out (its descriptors fail for good), then mounted anew."""
    backing, place = tmp_path / "backing", tmp_path / "mount"
    backing.mkdir()
    place.mkdir()
    with (backing / "whiteboard").open("wb") as file:
        file.truncate(SLOTS * SLOT_BYTES)

    async def test(beat: Beat) -> None:
        with fuse_client(backing, place, tmp_path / "a.py", WRITABLE) as process:
            assert await beat() == ""
            stop(process)
            said = await beat()
            assert "has not answered" in said
            process.send_signal(signal.SIGCONT)
            async with asyncio.timeout(PATIENCE_S):  # it goes on by itself
                while await beat():
                    await asyncio.sleep(0.05)
            process.kill()
            process.wait()
            said = await beat()
            assert f"mount it anew: umount -l {place}; systemctl restart" in said, said
        with fuse_client(backing, place, tmp_path / "b.py", WRITABLE):
            await beat()
            assert await beat() == ""

    beating(tmp_path, place / "whiteboard", test)
