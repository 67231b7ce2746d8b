# SPDX-License-Identifier: LGPL-2.1-or-later
"""One channel with its queue and its task; a failure of one channel does not reach another.

waiting -> (pace) -> message -> try -> sent
                        ^        |
                        back-off-+- failed for give_up_s, or refused -> counted as failed
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

from broker.events.notice import one_line
from broker.notify.backlog import Backlog
from broker.notify.limits import Limits
from broker.notify.message import Message, StampedNotice
from broker.notify.sender import ERROR_CHARS_MAX, Refused, Sender, SendFailed
from broker.wire.notify import NotifyOutcome, TransportStatus

log = logging.getLogger("ha-broker.notify")

#: Makes a message, ready to be sent, from notices and the number of lost ones.
Compose = Callable[[tuple[StampedNotice, ...], int], Awaitable[Message]]


class Outlet:
    """`sender` may be replaced at any time; counters and queue stay."""

    def __init__(self, name: str, sender: Sender, compose: Compose, limits: Limits) -> None:
        self.name = name
        self.sender = sender
        self._compose = compose
        self._limits = limits
        self._backlog = Backlog(limits)
        self._poke = asyncio.Event()
        self._closing = False
        self._in_hand = 0
        self._sent = self._failed = 0
        self._last_error = ""
        self._error_s: float | None = None
        self._sent_s: float | None = None

    # --- notices come in ------------------------------------------------------------------

    def put(self, stamped: StampedNotice) -> None:
        """Queue a notice where it is severe enough for this channel."""
        if stamped.notice.severity >= self.sender.severity:
            self._backlog.put(stamped)
            self._poke.set()

    def use(self, sender: Sender) -> None:
        """Send by this sender from now on; the next attempt is made at once."""
        self.sender = sender
        self._poke.set()

    def close(self) -> None:
        """Send the waiting notices as one message, once, and end."""
        self._closing = True
        self._poke.set()

    def give_up(self) -> int:
        """Stop sending; the notices that wait count as dropped. Returns how many they were."""
        self._backlog.dropped += self._in_hand
        left, self._in_hand = self._backlog.drop_all() + self._in_hand, 0
        return left

    def status(self, now_s: float) -> TransportStatus:
        """The counters: messages for `sent` and `failed`, notices for the others."""
        return TransportStatus(
            sent=self._sent,
            failed=self._failed,
            dropped=self._backlog.dropped,
            queued=len(self._backlog) + self._in_hand,
            last_error=self._last_error,
            last_error_age_s=None if self._error_s is None else now_s - self._error_s,
            last_sent_age_s=None if self._sent_s is None else now_s - self._sent_s,
        )

    # --- messages go out --------------------------------------------------------------------

    async def run(self) -> None:
        """Send what is queued, until it is closed and nothing is left."""
        while True:
            while not len(self._backlog):
                if self._closing:
                    return
                await self._poked_before(None)
            await self._pace()
            notices, lost = self._backlog.take(everything=self._closing)
            self._in_hand = len(notices)
            try:
                await self._deliver(await self._compose(notices, lost))
            except Exception:
                self._failed += 1
                log.exception("%s: a message was lost by a bug", self.name)
            self._in_hand = 0

    async def try_once(self, message: Message) -> NotifyOutcome:
        """One attempt; never raises."""
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        sender, final = self.sender, False
        try:
            async with asyncio.timeout(sender.timeout_s):
                await sender.send(message)
            error = ""
        except TimeoutError:
            error = f"the message was not sent within {sender.timeout_s:g} s"
        except SendFailed as failure:
            error, final = str(failure), isinstance(failure, Refused)
        except Exception as bug:
            log.exception("%s: a bug, and no reason to stop", self.name)
            error = one_line(f"{type(bug).__name__} in the program", ERROR_CHARS_MAX)
        now_s = loop.time()
        return NotifyOutcome(not error, error, now_s - started_s, final)

    async def _pace(self) -> None:
        """Wait until the next message may go out."""
        loop = asyncio.get_running_loop()
        while not self._closing and loop.time() < (until_s := self._backlog.not_before_s()):
            await self._poked_before(until_s)

    async def _deliver(self, message: Message) -> None:
        limits, loop = self._limits, asyncio.get_running_loop()
        end_s, pause_s = loop.time() + limits.give_up_s, limits.retry_first_s
        while True:
            outcome = await self.try_once(message)
            now_s = loop.time()
            if outcome.ok:
                self._sent, self._sent_s = self._sent + 1, now_s
                self._backlog.sent(now_s)
                if self._last_error:
                    log.info("%s: works again", self.name)
                self._last_error = ""
                return
            if outcome.error != self._last_error:
                log.warning("%s: %s", self.name, outcome.error)
            self._last_error, self._error_s = outcome.error, now_s
            if outcome.final or self._closing or now_s + pause_s > end_s:
                self._failed += 1
                log.error("%s: not sent: %s", self.name, message.subject)
                return
            sender = self.sender
            while not self._closing and self.sender is sender and loop.time() < now_s + pause_s:
                await self._poked_before(now_s + pause_s)
            pause_s = min(limits.retry_max_s, 2 * pause_s)

    async def _poked_before(self, until_s: float | None) -> None:
        """Return when the outlet was poked, or at `until_s`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(until_s):
                await self._poke.wait()
        self._poke.clear()
