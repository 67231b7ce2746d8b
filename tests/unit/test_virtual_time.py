# SPDX-License-Identifier: LGPL-2.1-or-later
"""A test's own asyncio.run in virtual time."""

from __future__ import annotations

import asyncio

import pytest

from tests.fakes import virtual_time


def test_what_waits_costs_nothing_and_comes_in_its_order() -> None:
    seen: list[tuple[str, float]] = []

    async def wait(name: str, for_s: float) -> None:
        await asyncio.sleep(for_s)
        seen.append((name, asyncio.get_running_loop().time()))

    async def main() -> str:
        await asyncio.gather(wait("late", 3600.0), wait("soon", 0.25))
        return "done"

    assert virtual_time.run(main()) == "done"
    assert seen == [("soon", 0.25), ("late", 3600.0)]


def test_what_it_raises_is_raised() -> None:
    async def main() -> None:
        async with asyncio.timeout(5.0):
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        virtual_time.run(main())


def test_what_is_left_is_cancelled_and_may_clean_up() -> None:
    left: list[str] = []

    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(1.0)
            left.append("cleaned up")

    async def main() -> None:
        task = asyncio.create_task(forever())
        await asyncio.sleep(0)
        assert not task.done()

    virtual_time.run(main())
    assert left == ["cleaned up"]


def test_what_nothing_can_end_fails_at_once() -> None:
    async def main() -> None:
        await asyncio.Event().wait()

    with pytest.raises(AssertionError, match="nothing ended it"):
        virtual_time.run(main())


def test_threads_are_refused() -> None:
    async def main() -> None:
        await asyncio.to_thread(print)

    with pytest.raises(NotImplementedError):
        virtual_time.run(main())
