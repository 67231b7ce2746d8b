# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whether this host's network leads anywhere at this moment: each target of the network test is
asked once, and any answer is enough.

The network test is made for the score: it needs up to half a minute to call a target bad, and
three times that to take points for it. This monitor is asked only when somebody misses the VM,
and then every second.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from broker.monitors.runner import Unknown

#: After so many rounds in a row without any answer there is no way out.
FAILURES = 3
ASKED_S = 1.0
IDLE_S = 60.0


class WayOutMonitor:
    """True: some target answers. False: none did, FAILURES times. Unknown while nobody needs to
    know, before the first result, and where no network test is configured."""

    name = "way_out"
    unit = ""
    deadline_s = 10.0

    def __init__(self, any_answers: Callable[[], Awaitable[bool]]) -> None:
        """`any_answers`: whether one of the targets answers; Unknown where there are none."""
        self._any_answers = any_answers
        self.interval_s = IDLE_S
        self._failures = 0
        self._value: bool | None = None

    @property
    def is_asked(self) -> bool:
        """Whether somebody needs the result."""
        return self.interval_s == ASKED_S

    def ask(self, on: bool) -> bool:
        """Start or stop asking; returns whether it starts now. Earlier results are forgotten."""
        if on == self.is_asked:
            return False
        self.interval_s = ASKED_S if on else IDLE_S
        self._failures, self._value = 0, None
        return on

    async def sample(self) -> bool:
        """One round, see the class."""
        if not self.is_asked:
            raise Unknown("asked only while somebody misses the VM")
        answered = await self._any_answers()
        self._failures = 0 if answered else self._failures + 1
        if answered or self._failures >= FAILURES:
            self._value = answered
        if self._value is None or not self.is_asked:
            raise Unknown("not known yet")
        return self._value

    def judge(self, value: bool) -> str:
        """Why there is no way out."""
        return "" if value else "no target of the network test answers (network.targets)"
