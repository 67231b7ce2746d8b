# SPDX-License-Identifier: LGPL-2.1-or-later
"""`sanlock direct`: what was begun is over when its process has really ended, and not before."""

from __future__ import annotations

import asyncio
import fcntl
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from agent.leases import sanlock_direct
from agent.leases.sanlock_direct import FreeingFile, FreeingOnFile, SanlockDirect, spawn
from tests.fakes import virtual_time

FREEING = FreeingOnFile(2, 5, True, "read off twice")


class Stuck:
    """A process that waits for the storage: SIGKILL does not end it, `free` does."""

    def __init__(self, output: bytes = b"", code: int = 0) -> None:
        self.returncode: int | None = None
        self.killed = False
        self._output, self._code = output, code
        self._freed = asyncio.Event()

    def kill(self) -> None:
        self.killed = True

    def free(self) -> None:
        self._freed.set()

    async def communicate(self) -> tuple[bytes, bytes | None]:
        await self._freed.wait()
        self.returncode = -9 if self.killed else self._code
        return self._output, None


class Spawner:
    """Begins processes that are given to it, in order."""

    def __init__(self, *processes: Stuck) -> None:
        self.processes = list(processes)
        self.begun: list[tuple[tuple[str, ...], tuple[int, ...]]] = []

    async def __call__(self, arguments: Sequence[str], descriptors: Sequence[int]) -> Stuck:
        self.begun.append((tuple(arguments), tuple(descriptors)))
        return self.processes.pop(0)


def test_what_ends_in_time_says_what_it_said() -> None:
    async def run() -> None:
        process = Stuck(b" timestamp 7\n", 3)
        process.free()
        direct = SanlockDirect(Spawner(process))
        assert await direct.read("read_leader") == (3, "timestamp 7")
        again = Stuck(b"done\n")
        again.free()
        spawner = Spawner(again)
        direct = SanlockDirect(spawner)
        written = await direct.write("release_id", "-s", "x", deadline_s=9.0, descriptors=(4, 5))
        assert written == (0, "done") and not again.killed
        assert spawner.begun == [(("release_id", "-s", "x"), (4, 5))]

    asyncio.run(run())


def test_a_write_that_was_killed_is_over_only_when_its_process_has_ended() -> None:
    async def run() -> None:
        process = Stuck()
        direct = SanlockDirect(Spawner(process))
        writing = asyncio.ensure_future(direct.write("release_id", deadline_s=0.01, descriptors=()))
        await asyncio.sleep(0.05)
        assert process.killed, "what is not begun by then never is"
        assert not writing.done(), "but what the kernel holds of it may still land"
        process.free()
        assert await writing == (-1, "no end within 0.01 s, killed")

    virtual_time.run(run())


def test_reads_that_do_not_end_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sanlock_direct, "READ_DEADLINE_S", 0.01)

    async def run() -> None:
        stuck, fine = Stuck(), Stuck(b"timestamp 7")
        fine.free()
        spawner = Spawner(stuck, fine)
        direct = SanlockDirect(spawner)
        assert await direct.read("read_leader") == (-1, "no end within 0.01 s")
        assert stuck.killed
        assert await direct.read("read_leader") == (-1, "an earlier one has not ended")
        assert len(spawner.begun) == 1
        stuck.free()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert await direct.read("read_leader") == (0, "timestamp 7")

    virtual_time.run(run())


def test_the_real_process_inherits_what_it_is_to_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child that lives on after its parent's copies are closed keeps connection and lock."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    stub = tmp_path / "sanlock"
    stub.write_text(f"#!{sys.executable}\nimport sys\nsys.stdin = open('{tmp_path}/go')\n")
    stub.chmod(0o755)
    os.mkfifo(tmp_path / "go")

    async def run() -> None:
        file = FreeingFile(tmp_path / "state" / "freeing.json")
        ours, theirs = os.pipe()
        locked = file.begin(FREEING)
        process = await spawn(("release_id",), (theirs, locked))
        os.close(theirs)
        os.close(locked)
        with pytest.raises(BlockingIOError):
            file.begin(FREEING)
        os.set_blocking(ours, False)
        with pytest.raises(BlockingIOError):
            os.read(ours, 1)
        waiting = asyncio.ensure_future(file.has_ended())
        await asyncio.sleep(0.05)
        assert not waiting.done() and file.found() == FREEING
        # What waits to be read from opens for writing only now.
        os.close(await asyncio.to_thread(os.open, tmp_path / "go", os.O_WRONLY))
        await process.communicate()
        await asyncio.wait_for(waiting, 10.0)
        assert os.read(ours, 1) == b"", "the last copy is closed"
        os.close(ours)

    monkeypatch.setattr(sanlock_direct, "LOOK_S", 0.02)
    asyncio.run(run())


def test_what_the_file_says_is_found_by_the_next_agent_until_its_end_was_told(
    tmp_path: Path,
) -> None:
    file = FreeingFile(tmp_path / "freeing.json")
    assert file.found() is None
    asyncio.run(file.has_ended())
    os.close(file.begin(FreeingOnFile(3, 9, evidence="x" * 5000)))
    os.close(file.begin(FREEING))
    assert file.found() == FREEING, "a longer one of before is gone"
    asyncio.run(file.has_ended())
    file.end()
    file.end()
    assert file.found() is None
    file.path.write_text("no JSON")
    assert file.found() is None


def test_a_file_that_cannot_be_written_is_an_error_and_leaves_nothing_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = FreeingFile(tmp_path / "freeing.json")

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="No space"):
            file.begin(FREEING)
    descriptor = os.open(file.path, os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(descriptor)
