# SPDX-License-Identifier: LGPL-2.1-or-later
"""Asks a VM that boots for its health, four times a second, without waiting for the question
before.

A connection that is begun before the guest has its network is tried again by the kernel after one
second, then after two more, and so on: it may hang long after the guest answers. So each question
is given up after QUICK_S; one of them at a time may take as long as the check allows, for a page
that answers late. The first good answer counts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

BOOT_EVERY_S = 0.25
#: The deadline of each further question that is asked while the first one still waits.
QUICK_S = 1.0
#: A VM that is not well after this time is asked as seldom as any other.
BOOT_MAX_S = 600.0
_LATE = f"it does not answer within {QUICK_S:g} s"


class Booting:
    """`ask`: one question; why the VM does not answer well, None: it does. `one_at_a_time`: no
    question may be put beside another one."""

    def __init__(self, ask: Callable[[], Awaitable[str | None]], one_at_a_time: bool) -> None:
        self._ask, self._one_at_a_time = ask, one_at_a_time
        self._patient: asyncio.Task[str | None] | None = None
        self._quick: set[asyncio.Task[str | None]] = set()
        self._is_on = False
        #: Until when; None: nothing was asked yet.
        self._until_s: float | None = None
        self._said = "its check was not answered yet"

    @property
    def is_on(self) -> bool:
        """Whether the VM is booting, as far as is known."""
        until_s = self._until_s
        return self._is_on and (until_s is None or asyncio.get_running_loop().time() < until_s)

    def begins(self) -> None:
        """The VM has come up."""
        self._is_on, self._until_s = True, None

    def ends(self) -> None:
        """The VM is well, or is not up any more; no question is left."""
        self._is_on = False
        for task in (self._patient, *self._quick):
            if task is not None:
                task.cancel()
        self._patient, self._quick = None, set()

    async def problem(self) -> str | None:
        """Ask once more, and wait BOOT_EVERY_S at most for a good answer to any question. Returns
        what was answered last where there is none."""
        loop = asyncio.get_running_loop()
        end_s = loop.time() + BOOT_EVERY_S
        if self._until_s is None:
            self._until_s = loop.time() + BOOT_MAX_S
        if self._patient is None:
            self._patient = asyncio.create_task(_once(self._ask), name="health of a booting VM")
        elif not self._one_at_a_time:
            self._quick.add(asyncio.create_task(_quickly(self._ask), name="health, quickly"))
        while under_way := {*self._quick, *({self._patient} if self._patient else ())}:
            left_s = end_s - loop.time()
            if left_s <= 0:
                break
            done, _ = await asyncio.wait(
                under_way, timeout=left_s, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                if task is self._patient:
                    self._patient = None
                self._quick.discard(task)
                # An error of the check itself is raised here, as it is for one question.
                if (said := task.result()) is None:
                    return None
                self._said = said
        return self._said


async def _once(ask: Callable[[], Awaitable[str | None]]) -> str | None:
    return await ask()


async def _quickly(ask: Callable[[], Awaitable[str | None]]) -> str | None:
    try:
        async with asyncio.timeout(QUICK_S):
            return await ask()
    except TimeoutError:
        return _LATE
