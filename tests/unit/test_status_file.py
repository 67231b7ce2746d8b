# SPDX-License-Identifier: LGPL-2.1-or-later
"""libvirt writes its status file of the VM: the kernel reports that at once, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from broker.monitors import status_file
from broker.monitors.status_file import StatusFileEvents

PATIENCE_S = 10.0


def watched(folder: Path, test: Callable[[Callable[[], Awaitable[None]]], Awaitable[None]]) -> int:
    """How often a change was reported while `test` ran; it gets what waits for the next one."""
    told = 0

    async def run() -> None:
        came = asyncio.Event()

        def changed() -> None:
            nonlocal told
            told += 1
            came.set()

        async def next_one() -> None:
            async with asyncio.timeout(PATIENCE_S):
                await came.wait()
            came.clear()

        events = StatusFileEvents(str(folder), "vm", changed)
        try:
            await test(next_one)
        finally:
            events.close()

    asyncio.run(run())
    return told


def rewritten(folder: Path, name: str) -> None:
    """Rewrite a file as libvirt does: another file takes its name."""
    (folder / f"{name}.new").write_text("<domstatus/>")
    (folder / f"{name}.new").rename(folder / name)


def test_each_way_to_write_it_is_told(tmp_path: Path) -> None:
    async def test(next_one: Callable[[], Awaitable[None]]) -> None:
        await next_one()  # what was before is not known
        rewritten(tmp_path, "vm.xml")
        await next_one()
        (tmp_path / "vm.xml").write_text("<domstatus/>")
        await next_one()

    assert watched(tmp_path, test) == 3


def test_what_another_vm_s_is_is_not_told(tmp_path: Path) -> None:
    async def test(next_one: Callable[[], Awaitable[None]]) -> None:
        await next_one()
        for name in ("vm2.xml", "other.xml", "vm.pid", "vm.xml.new"):
            rewritten(tmp_path, name)
        rewritten(tmp_path, "vm.xml")
        await next_one()

    assert watched(tmp_path, test) == 2


def test_a_folder_that_comes_later_or_again_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status_file, "AGAIN_S", 0.01)
    folder = tmp_path / "qemu"

    async def test(next_one: Callable[[], Awaitable[None]]) -> None:
        for _ in range(2):
            folder.mkdir()
            await next_one()
            rewritten(folder, "vm.xml")
            await next_one()
            (folder / "vm.xml").unlink()
            folder.rmdir()

    assert watched(folder, test) == 4


def test_where_the_kernel_lets_nobody_watch_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing:
        def inotify_init1(self, flags: int) -> int:
            return -1

    async def run() -> None:
        monkeypatch.setattr(status_file, "_libc", Refusing())
        with pytest.raises(OSError):
            StatusFileEvents("/nowhere", "vm", lambda: None)

    asyncio.run(run())
