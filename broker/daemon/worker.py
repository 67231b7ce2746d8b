# SPDX-License-Identifier: LGPL-2.1-or-later
"""Runs blocking library calls off the event loop, with a deadline.

A Worker is one named daemon thread that runs one call at a time. A call that misses its
deadline is left running (a thread in a hung system call cannot be ended) and reported as
hung with its age; until it comes back no other call is accepted, so nothing piles up. The
thread does not keep the process from ending, and ends when its Worker is no longer used.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

from broker.daemon.errors import HaError

T = TypeVar("T")


class Hung(HaError):
    """A call did not return in time, or an earlier one still has not returned.

    `what`: the call that hangs. `age_s`: for how long, in seconds.
    """

    def __init__(self, worker: str, what: str, age_s: float) -> None:
        super().__init__(f"{worker}: {what} has not answered for {age_s:.1f} s")
        self.what = what
        self.age_s = age_s


class Worker:
    """One thread for the blocking calls of one library or device."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._running: tuple[str, float] | None = None
        self._turn = asyncio.Lock()

    @property
    def busy(self) -> bool:
        """Whether a call is running, in time or late."""
        return self._running is not None

    async def call(self, what: str, timeout_s: float, function: Callable[..., T], *args: Any) -> T:
        """Run `function(*args)` in the thread; its result or its exception.

        Callers take turns. Raises Hung when it takes longer than `timeout_s`, or when an earlier
        call has missed its deadline and still runs.
        """
        async with self._turn:
            return await self._call(what, timeout_s, function, args)

    async def _call(
        self, what: str, timeout_s: float, function: Callable[..., T], args: tuple[Any, ...]
    ) -> T:
        loop = asyncio.get_running_loop()
        if self._running is not None:
            raise Hung(self.name, self._running[0], loop.time() - self._running[1])
        future: asyncio.Future[T] = loop.create_future()
        # A call that returns too late, or after the caller was cancelled, is ignored; its error
        # must not be logged as "never retrieved".
        future.add_done_callback(lambda late: late.cancelled() or late.exception())
        self._running = (what, loop.time())
        self.hand_over(lambda: self._run(loop, future, function, args))
        try:
            # Not wait_for: until Python 3.12 it hides that its caller was cancelled.
            async with asyncio.timeout(timeout_s):
                return await asyncio.shield(future)
        except TimeoutError:
            if future.done():
                return future.result()
            raise Hung(self.name, what, timeout_s) from None

    def hand_over(self, call: Callable[[], None]) -> None:
        """Have the thread run the call; returns at once."""
        if self._thread is None:
            self._thread = threading.Thread(
                target=_work, args=(self._calls,), name=self.name, daemon=True
            )
            self._thread.start()
            weakref.finalize(self, self._calls.put, None).atexit = False
        self._calls.put(call)

    def _run(
        self,
        loop: asyncio.AbstractEventLoop,
        future: asyncio.Future[T],
        function: Callable[..., T],
        args: tuple[Any, ...],
    ) -> None:
        try:
            result = function(*args)
        except BaseException as error:
            failure = error
            done: Callable[[], None] = lambda: self._end(future, failure=failure)  # noqa: E731
        else:
            done = lambda: self._end(future, result=result)  # noqa: E731
        with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits any more
            loop.call_soon_threadsafe(done)

    def _end(
        self, future: asyncio.Future[T], result: Any = None, failure: BaseException | None = None
    ) -> None:
        self._running = None
        if future.cancelled():
            return
        if failure is not None:
            future.set_exception(failure)
        else:
            future.set_result(result)


def _work(calls: queue.SimpleQueue[Callable[[], None] | None]) -> None:
    """The thread's loop; it holds no reference to its Worker, which could never end otherwise."""
    while (call := calls.get()) is not None:
        call()
        del call
