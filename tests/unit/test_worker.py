# SPDX-License-Identifier: LGPL-2.1-or-later
"""Blocking calls: deadlines, turns, and nothing that piles up."""

from __future__ import annotations

import asyncio
import gc
import threading

import pytest

from broker.daemon.worker import Hung, Worker


async def free(worker: Worker) -> None:
    """Wait until the worker takes calls again."""
    for _ in range(200):
        try:
            assert await worker.call("again", 1.0, lambda: "free") == "free"
            return
        except Hung:
            await asyncio.sleep(0.01)
    pytest.fail("the worker never came back")


def test_results_and_errors_come_back() -> None:
    async def run() -> None:
        worker = Worker("test")
        assert await worker.call("adding", 5.0, lambda a, b: a + b, 1, 2) == 3
        with pytest.raises(ZeroDivisionError):
            await worker.call("dividing", 5.0, lambda: 1 // 0)

    asyncio.run(run())


def test_callers_take_turns() -> None:
    async def run() -> None:
        worker = Worker("test")
        running: list[int] = []

        def once() -> int:
            running.append(1)
            most = len(running)
            threading.Event().wait(0.01)
            running.pop()
            return most

        seen = await asyncio.gather(*(worker.call("once", 5.0, once) for _ in range(5)))
        assert seen == [1] * 5

    asyncio.run(run())


def test_a_hung_call_is_reported_with_its_name_and_nothing_is_piled_on_it() -> None:
    async def run() -> None:
        worker = Worker("storage")
        let_go = threading.Event()
        begun: list[str] = []

        def hang() -> None:
            begun.append("hang")
            let_go.wait(30)

        with pytest.raises(Hung, match="storage: reading has not answered"):
            await worker.call("reading", 0.05, hang)
        for _ in range(3):
            with pytest.raises(Hung, match="reading"):
                await worker.call("writing", 0.05, begun.append, "second")
        assert begun == ["hang"]
        let_go.set()
        await free(worker)

    asyncio.run(run())


def test_a_late_error_is_swallowed() -> None:
    async def run() -> None:
        worker = Worker("test")
        let_go = threading.Event()

        def fail_late() -> None:
            let_go.wait(30)
            raise OSError("late")

        with pytest.raises(Hung):
            await worker.call("failing", 0.05, fail_late)
        let_go.set()
        await asyncio.sleep(0.1)
        assert await worker.call("next", 1.0, lambda: 1) == 1

    asyncio.run(run())


def test_an_error_after_the_caller_was_cancelled_is_swallowed() -> None:
    shouted: list[object] = []

    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, what: shouted.append(what))
        worker, let_go = Worker("test"), threading.Event()

        def fail_late() -> None:
            let_go.wait(30)
            raise OSError("late")

        caller = asyncio.create_task(worker.call("failing", 30.0, fail_late))
        await asyncio.sleep(0.05)
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        let_go.set()
        await free(worker)

    asyncio.run(run())
    gc.collect()
    assert not shouted


def test_the_thread_ends_with_its_worker() -> None:
    async def run() -> threading.Thread:
        worker = Worker("short-lived")
        return await worker.call("who", 5.0, threading.current_thread)

    thread = asyncio.run(run())
    gc.collect()
    thread.join(5.0)
    assert not thread.is_alive()


@pytest.mark.parametrize("turns", range(5))
def test_who_is_cancelled_as_the_call_ends_is_cancelled(turns: int) -> None:
    """asyncio.wait_for of Python 3.11 returns the result then, and a daemon that is to end does
    not."""

    async def test() -> None:
        worker, goes_on, has_ended = Worker("test"), threading.Event(), threading.Event()
        task = asyncio.create_task(worker.call("a call", 5.0, goes_on.wait))
        while not worker.busy:
            await asyncio.sleep(0)
        worker.hand_over(has_ended.set)
        goes_on.set()
        # The loop stands still until the result is on its way to it.
        assert has_ended.wait(5.0)
        for _ in range(turns):
            await asyncio.sleep(0)
        was_waiting = task.cancel()
        await asyncio.wait([task])
        assert task.cancelled() is was_waiting

    asyncio.run(test())
