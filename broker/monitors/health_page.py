# SPDX-License-Identifier: LGPL-2.1-or-later
"""The engine's health page: asked while the VM is up here, "bad" after BAD_AFTER failures in
a row, "unknown" before the first answer."""

from __future__ import annotations

import re

import aiohttp

from broker.config import HealthSection
from scoring.observation import Health

BAD_AFTER = 2
BODY_BYTES_MAX = 65_536


class HealthPageMonitor:
    """`verdict`: the health, and why it is not good."""

    name = "health"
    interval_s = 1.0

    def __init__(self, given: HealthSection) -> None:
        self._given = given
        self._expect = re.compile(given.expect)
        self._asked = False
        self._failures = 0
        self.deadline_s = given.timeout + 5.0
        self.verdict: tuple[Health, str | None] = (Health.UNKNOWN, None)

    def ask(self, on: bool) -> None:
        """Begin or cease to ask; what an earlier VM answered is forgotten."""
        if on != self._asked:
            self._asked, self._failures = on, 0
            self.verdict = (Health.UNKNOWN, "the health page has not answered yet" if on else None)

    async def sample(self) -> str | None:
        """The health in a word; None while the VM is not up here."""
        if not self._asked:
            return None
        problem = await self._problem()
        if not self._asked:
            return None
        if problem is None:
            self._failures = 0
            self.verdict = (Health.GOOD, None)
        else:
            self._failures += 1
            is_bad = self._failures >= BAD_AFTER
            self.verdict = (Health.BAD if is_bad else Health.UNKNOWN, problem)
        return self.verdict[0].value

    async def _problem(self) -> str | None:
        """Why the page is not good; None when it is."""
        given = self._given
        if not given.url:
            return None
        timeout = aiohttp.ClientTimeout(total=given.timeout)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.get(given.url, allow_redirects=False) as answer,
            ):
                if answer.status != 200:
                    return f"the health page answers {answer.status}"
                body = await answer.content.read(BODY_BYTES_MAX)
        except TimeoutError:
            return f"the health page does not answer within {given.timeout:g} s"
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return f"the health page does not answer: {type(error).__name__}"
        if self._expect.search(body.decode(errors="replace")) is None:
            return f"the health page does not say {given.expect!r}"
        return None
