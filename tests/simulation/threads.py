# SPDX-License-Identifier: LGPL-2.1-or-later
"""Threads in virtual time, so that what the product does in a thread runs in the simulation.

A thread of a simulated process is a real one that never runs beside anything else: whoever lets it
run waits until it sleeps or ends, and it sleeps in the virtual time of its host. So the same
program gives the same run; a host that is frozen and a process that is stopped have no thread that
goes on; and a thread ends with its process.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable

from broker.daemon.worker import Worker
from tests.simulation.timeline import PROCESS, HostLoop


class Killed(BaseException):
    """The process of this thread is gone. Nobody may catch it."""


class SimThread:
    """One call in a thread of its own, of the process that makes it, from the next moment on."""

    def __init__(self, loop: HostLoop, call: Callable[[], None]) -> None:
        self._loop = loop
        self._call = call
        self._process = PROCESS.get()
        #: The contexts of what wakes it, and of what it does: none can be entered twice at a time.
        self._outside = contextvars.copy_context()
        self._inside = contextvars.copy_context()
        self._may_run, self._rests = threading.Lock(), threading.Lock()
        self._may_run.acquire()
        self._rests.acquire()
        self._thread: threading.Thread | None = None
        self._is_killed = self._runs = self._is_over = False
        if self._process is not None:
            self._process.threads[self.kill] = None
        loop.call_soon(self._go_on, context=self._outside)

    def sleep(self, for_s: float) -> None:
        """Called within: block for so long by the host's clock."""
        self._loop.call_later(for_s, self._go_on, context=self._outside)
        self._rests.release()
        self._may_run.acquire()
        if self._is_killed:
            raise Killed

    def kill(self) -> None:
        """End it where it stands. One that does so to itself ends when it sleeps next."""
        self._is_killed = True
        if self._thread is None:
            self._over()
        elif not self._runs:
            self._go_on()

    def _go_on(self) -> None:
        """Let it run until it sleeps or ends; called in the thread of all loops."""
        if self._is_over:
            return
        self._runs = True
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()
        else:
            self._may_run.release()
        self._rests.acquire()
        self._runs = False

    def _run(self) -> None:
        _HERE.thread = self
        try:
            self._inside.run(self._call)
        except Killed:
            pass
        finally:
            self._over()
            self._rests.release()

    def _over(self) -> None:
        self._is_over = True
        if self._process is not None:
            self._process.threads.pop(self.kill, None)


class _Here(threading.local):
    thread: SimThread | None = None


_HERE = _Here()


class SimWorker(Worker):
    """The product's Worker with a thread in virtual time for each call."""

    def hand_over(self, call: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, HostLoop)
        SimThread(loop, call)


class SimTime:
    """The module `time` of a thread on a simulated host."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock

    def monotonic(self) -> float:
        """What the host's clock shows."""
        return self._clock()

    def sleep(self, seconds: float, /) -> None:
        """Only in a thread of a simulated process."""
        assert _HERE.thread is not None
        _HERE.thread.sleep(seconds)
