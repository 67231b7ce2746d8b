# SPDX-License-Identifier: LGPL-2.1-or-later
"""Virtual time: one queue of everything that will happen, and event loops that live on it.

Rules of this file:

1. Nothing sleeps, no thread, no socket. When nothing is ready, time jumps to the next timer.
2. Order is by (time, number of arrival): the same program gives the same run on any machine.
3. There is one true time. Each host has a clock of its own (its loop's `time()`) that starts
   at its boot, where it likes, and runs a little fast or slow.
4. What is due is either a plan of the run's author (`plan`: a fault, a verb of a scenario)
   or a consequence. `leap` passes over a stretch in which only the same consequences would
   come again and again: it moves all of these, and the hosts' clocks, to its end.
5. A loop that is ended runs nothing any more; one that is frozen runs later what it missed.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable, Coroutine
from heapq import heapify, heappop, heappush
from typing import Any, TypeVar

T = TypeVar("T")

#: Handles that may run at one moment before it is called an endless loop.
HANDLES_AT_ONCE_MAX = 200_000


class Stuck(Exception):
    """Time stands still: something goes round and round without waiting."""


class Handle:
    """A callback that waits for its turn; what asyncio calls Handle and TimerHandle."""

    __slots__ = ("args", "call", "context", "dropped", "loop", "planned", "when_s")

    def __init__(
        self,
        call: Callable[..., object],
        args: tuple[Any, ...],
        context: contextvars.Context | None,
        loop: HostLoop | None,
        when_s: float = 0.0,
    ) -> None:
        self.call = call
        self.args = args
        self.context = context
        self.loop = loop
        self.when_s = when_s
        self.dropped = False
        self.planned = False

    def cancel(self) -> None:
        """Do not run it."""
        self.dropped = True

    def cancelled(self) -> bool:
        """Whether it was cancelled."""
        return self.dropped

    def when(self) -> float:
        """When it is due, by the clock of its loop."""
        return self.when_s


class Timeline:
    """True time in seconds since the simulation began, and what is due when."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.events = 0
        self.halted = False
        self.leapt_s = 0.0
        self._inside: HostLoop | None = None
        self._number = 0
        self._heap: list[tuple[float, int, Handle]] = []
        self._ready: deque[Handle] = deque()

    def at(self, when_s: float, call: Callable[..., object], *args: Any) -> Handle:
        """Let the world do something at a true time."""
        handle = Handle(call, args, None, None, when_s)
        self.push(max(when_s, self.now_s), handle)
        return handle

    def after(self, delay_s: float, call: Callable[..., object], *args: Any) -> Handle:
        """Call `call` after `delay_s` seconds, counted from now."""
        return self.at(self.now_s + delay_s, call, *args)

    def plan(self, when_s: float, call: Callable[..., object], *args: Any) -> Handle:
        """Let something be done from outside at a true time; a leap does not move it."""
        handle = self.at(when_s, call, *args)
        handle.planned = True
        return handle

    def next_plan_s(self) -> float:
        """When the next plan is due; infinity without one."""
        due = (s for s, _, handle in self._heap if handle.planned and not handle.dropped)
        return min(due, default=float("inf"))

    def leap(self, by_s: float) -> None:
        """Pass over a stretch of time: everything but plans comes that much later."""
        assert by_s >= 0 and not self._ready
        # The order of all consequences stays as it is, and so does the heap's of each kind.
        moved = [
            (s if handle.planned else s + by_s, n, handle)
            for s, n, handle in self._heap
            if not handle.dropped
        ]
        heapify(moved)
        self._heap[:] = moved
        self.now_s += by_s
        self.leapt_s += by_s

    def shift(self, loop: HostLoop, by_s: float) -> None:
        """Let all that waits for that loop's clock come so much later, or earlier."""
        moved = [
            (max(s + by_s, self.now_s), n, handle)
            if handle.loop is loop and not handle.dropped
            else (s, n, handle)
            for s, n, handle in self._heap
        ]
        heapify(moved)
        self._heap[:] = moved

    def push(self, true_s: float, handle: Handle) -> None:
        """Queue a handle for a true time."""
        self._number += 1
        heappush(self._heap, (true_s, self._number, handle))

    def ready(self, handle: Handle) -> None:
        """Queue a handle for this very moment, behind all that is ready already."""
        self._ready.append(handle)

    def run_until(self, until_s: float) -> None:
        """Let everything happen that is due up to a true time, and set the clock to it.

        Ends at once where somebody sets `halted`.
        """
        try:
            self._run_until(until_s)
        finally:
            self._enter(None)
        if not self.halted:
            self.now_s = max(self.now_s, until_s)

    def _run_until(self, until_s: float) -> None:
        heap, ready = self._heap, self._ready
        at_once = 0
        while not self.halted:
            if ready:
                at_once += 1
                if at_once > HANDLES_AT_ONCE_MAX:
                    raise Stuck(f"{HANDLES_AT_ONCE_MAX} callbacks ran at {self.now_s:.6f}")
                handle = ready.popleft()
            else:
                if not heap or heap[0][0] > until_s:
                    break
                true_s, _, handle = heappop(heap)
                if handle.dropped:
                    continue
                if true_s > self.now_s:
                    self.now_s = true_s
                    at_once = 0
                if handle.loop is not None and handle.when_s > handle.loop.floor_s:
                    # The loop's own clock must not show less than the time of the timer.
                    handle.loop.floor_s = handle.when_s
            if handle.dropped:
                continue
            self._run(handle)

    def _enter(self, loop: HostLoop | None) -> None:
        """Be inside that event loop, None: in none."""
        if loop is not self._inside:
            asyncio._set_running_loop(loop)
            self._inside = loop

    def _run(self, handle: Handle) -> None:
        self.events += 1
        loop = handle.loop
        if loop is None:
            self._enter(None)
            handle.call(*handle.args)
            return
        if loop.ended:
            return
        if loop.frozen_until_s > self.now_s:
            self.push(loop.frozen_until_s, handle)
            return
        process = None if handle.context is None else handle.context.get(PROCESS)
        if process is not None and process.is_stopped:
            process.held.append(handle)
            return
        self._enter(loop)
        try:
            if handle.context is None:
                handle.call(*handle.args)
            else:
                handle.context.run(handle.call, *handle.args)
        except Exception as error:
            loop.call_exception_handler({"message": "in a callback", "exception": error})

    def call_within(self, loop: HostLoop, function: Callable[..., T], *args: Any) -> T:
        """Call something that expects to run inside an event loop, from outside of any."""
        before = asyncio._get_running_loop()
        asyncio._set_running_loop(loop)
        try:
            return function(*args)
        finally:
            asyncio._set_running_loop(before)


class HostLoop(asyncio.AbstractEventLoop):
    """The event loop of everything that runs on a host from one boot to its end.

    Only what a program without sockets, threads and signals asks of a loop is there; the
    rest raises NotImplementedError (asyncio.AbstractEventLoop).

    `rate`: seconds of its clock per true second. `problems`: what reached the loop's
    exception handler; it must stay empty.
    """

    def __init__(self, timeline: Timeline, clock_s: float, rate: float) -> None:
        self._timeline = timeline
        self._began_s = timeline.now_s
        self._clock_s = clock_s
        self.rate = rate
        self.floor_s = clock_s
        self.ended = False
        self.frozen_until_s = 0.0
        self.problems: list[str] = []

    # --- what the product and asyncio use -----------------------------------------------

    def time(self) -> float:
        now_s = self._clock_s + (self._timeline.now_s - self._began_s) * self.rate
        return now_s if now_s > self.floor_s else self.floor_s

    def call_soon(  # type: ignore[override]
        self,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> Handle:
        handle = Handle(callback, args, context or contextvars.copy_context(), self)
        self._timeline._ready.append(handle)
        return handle

    def call_soon_threadsafe(  # type: ignore[override]
        self,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> Handle:
        # A thread of a simulated process runs only while this loop waits for it.
        return self.call_soon(callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> Handle:
        handle = Handle(callback, args, context or contextvars.copy_context(), self, when)
        self._timeline.push(max(self.true_s(when), self._timeline.now_s), handle)
        return handle

    def call_later(  # type: ignore[override]
        self,
        delay: float,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> Handle:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def create_task(  # type: ignore[override]
        self,
        coro: Coroutine[Any, Any, T],
        *,
        name: str | None = None,
        context: contextvars.Context | None = None,
    ) -> asyncio.Task[T]:
        task = asyncio.Task(coro, loop=self, name=name, context=context)
        process = (contextvars.copy_context() if context is None else context).get(PROCESS)
        if process is not None:
            process.own(task)
        return task

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return not self.ended

    def is_closed(self) -> bool:
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self.problems.append(f"{context.get('message')}: {error!r}")

    # --- what the world uses ------------------------------------------------------------

    def leapt(self, by_s: float) -> None:
        """The timeline leapt: this clock did not."""
        self._began_s += by_s
        self.frozen_until_s += by_s

    def jump(self, by_s: float) -> None:
        """Have the clock jump forward; what was due meanwhile is due now."""
        self._clock_s += by_s
        self._timeline.shift(self, -by_s / self.rate)

    def true_s(self, clock_s: float) -> float:
        """The true time at which this host's clock shows `clock_s`."""
        return self._began_s + (clock_s - self._clock_s) / self.rate


class Process:
    """A daemon: the tasks it is made of. `on_end(process, error)`: its main task is over.

    `expected`: what may end it; anything else that ends a task of its is in `failures`.

    `kill`: SIGKILL. Its tasks are cancelled and never get a word in: adapters must ask
    `alive` before they change anything in the world.
    """

    def __init__(
        self,
        loop: HostLoop,
        name: str,
        on_end: Callable[[Process, BaseException | None], None],
    ) -> None:
        self.name = name
        self.loop = loop
        self.alive = True
        self.tasks: dict[asyncio.Task[Any], None] = {}
        #: How to end each of its threads (tests/simulation/threads.py), which end with it.
        self.threads: dict[Callable[[], None], None] = {}
        self.failures: list[str] = []
        #: SIGSTOP: what is due meanwhile waits here.
        self.is_stopped = False
        self.held: list[Handle] = []
        self._stops = 0
        self.expected: tuple[type[BaseException], ...] = ()
        self._on_end = on_end
        self._main: asyncio.Task[Any] | None = None

    def start(self, main: Coroutine[Any, Any, Any]) -> None:
        """Begin its main task."""
        context = contextvars.copy_context()
        context.run(PROCESS.set, self)
        self._main = self.loop.create_task(main, name=self.name, context=context)

    def begin(self, work: Coroutine[Any, Any, None]) -> None:
        """A task of its own, for something that it is asked."""
        context = contextvars.copy_context()
        context.run(PROCESS.set, self)
        self.loop.create_task(work, context=context)

    def own(self, task: asyncio.Task[Any]) -> None:
        """A task was made by this process."""
        self.tasks[task] = None
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self.tasks.pop(task, None)
        error = None if task.cancelled() else task.exception()
        if task is self._main:
            if self.alive:
                self.alive = False
                self._on_end(self, error)
                self._end_all()
        elif error is not None and self.alive and not isinstance(error, self.expected):
            self.failures.append(f"task {task.get_name()} of {self.name}: {error!r}")

    def stop(self, for_s: float) -> None:
        """SIGSTOP, and SIGCONT that much later; infinity: never."""
        self.is_stopped = True
        self._stops += 1
        if for_s < float("inf"):
            self.loop._timeline.after(for_s, self._goes_on, self._stops)

    def _goes_on(self, stop: int) -> None:
        if stop == self._stops and self.is_stopped:
            self.go_on()

    def go_on(self) -> None:
        """SIGCONT: what was due meanwhile runs now."""
        self.is_stopped = False
        held, self.held = self.held, []
        for handle in held:
            self.loop._timeline.push(self.loop._timeline.now_s, handle)

    def kill(self) -> None:
        """End it at once."""
        self.alive = False
        self.go_on()
        self._end_all()

    def _end_all(self) -> None:
        for task in list(self.tasks):
            task.cancel()
        for end in list(self.threads):
            end()


PROCESS: contextvars.ContextVar[Process | None] = contextvars.ContextVar("process", default=None)
