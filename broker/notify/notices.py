# SPDX-License-Identifier: LGPL-2.1-or-later
"""Takes every notice of the broker and hands it to the channels.

notify -> inbox -> (rules) -> (folding) -> outlet mail
                                        -> outlet webhook
                                        -> outlet command
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from broker.config.errors import ConfigError
from broker.config.secrets import load_notify_secrets
from broker.config.sections import Config
from broker.events.notice import Notice
from broker.notify.folding import Folding
from broker.notify.limits import Limits
from broker.notify.message import Message, StampedNotice
from broker.notify.outlet import Outlet
from broker.notify.render import Renderer
from broker.notify.rules import Rules
from broker.notify.sender import Sender
from broker.wire.kinds import Kind
from broker.wire.notify import NotifyOutcome, NotifyStatus

log = logging.getLogger("ha-broker.notify")


@dataclass(frozen=True, slots=True)
class Setting:
    """A configuration that was checked: rules, templates, and the sender of each channel."""

    rules: Rules
    renderer: Renderer
    senders: dict[str, Sender]
    repeat_after_s: float
    cluster: str
    host: str


def setting(config: Config) -> Setting:
    """The `[notify]` tables as checked objects; ConfigError where secrets or CA files are unusable.

    The module of a channel is imported only where the channel is configured.
    """
    given = config.notify
    senders: dict[str, Sender] = {}
    secrets = load_notify_secrets(config)
    key = ""
    try:
        if given.smtp.server:
            from broker.notify.smtp import SmtpSender

            key = "notify.smtp.ca-file"
            senders["smtp"] = SmtpSender(given.smtp, secrets.smtp_password)
        if given.webhook.url:
            from broker.notify.webhook import WebhookSender

            key = "notify.webhook.ca-file"
            senders["webhook"] = WebhookSender(given.webhook, secrets.webhook_key)
        if given.command.argv:
            from broker.notify.command import CommandSender

            senders["command"] = CommandSender(given.command)
    except OSError as error:
        raise ConfigError(f"{key}: cannot be used: {error}") from None
    return Setting(
        Rules(given.rules.patterns()),
        Renderer(given.templates),
        senders,
        given.repeat_after,
        config.cluster.name,
        config.host_name,
    )


class Notices:
    """All notices on their way to the channels. `problem`: why notifications do not work as
    configured, empty when they do. `wall`: UTC seconds since 1970."""

    def __init__(
        self, start: Setting, limits: Limits | None = None, wall: Callable[[], float] = time.time
    ) -> None:
        self._limits = limits or Limits()
        self._wall = wall
        self._inbox: deque[StampedNotice] = deque()
        self._news = asyncio.Event()
        self._folding = Folding(self._limits.folded)
        self._setting = start
        self._outlets: dict[str, Outlet] = {}
        self._tasks: dict[Outlet, asyncio.Task[None]] = {}
        self._taken = self._dropped = 0
        self._testing = asyncio.Lock()
        self.problem = ""
        self.use(start)

    @classmethod
    def of(cls, config: Config, wall: Callable[[], float] = time.time) -> Notices:
        """Notices as configured. Where the configuration cannot be used (ConfigError of `setting`)
        nothing is sent, and the status shows why: a bad secret must not stop the broker."""
        try:
            return cls(setting(config), wall=wall)
        except ConfigError as error:
            log.error("no notifications: %s", error)
            notices = cls(silent(config), wall=wall)
            notices.problem = str(error)
            return notices

    # --- for everybody --------------------------------------------------------------------

    def notify(self, notice: Notice) -> None:
        """Take a notice: O(1), does not wait, never raises. One that finds no room is counted."""
        if not self._outlets:
            return
        self._taken += 1
        if len(self._inbox) >= self._limits.inbox:
            self._dropped += 1
            return
        self._inbox.append(StampedNotice(notice, self._wall()))
        self._news.set()

    def use(self, new: Setting) -> None:
        """Use another configuration from now on; waiting notices go out by the new one."""
        new.renderer.go_on_from(self._setting.renderer)
        self._setting, self.problem = new, ""
        for name in set(self._outlets) - set(new.senders):
            self._dropped += self._outlets.pop(name).give_up()
        for name, sender in new.senders.items():
            if name in self._outlets:
                self._outlets[name].use(sender)
            else:
                self._outlets[name] = Outlet(name, sender, self._compose, self._limits)
        self._news.set()

    def status(self, now_s: float) -> NotifyStatus:
        """The counters of the notifications."""
        setting = self._setting
        return NotifyStatus(
            told=self._taken,
            dropped=self._dropped,
            folded=self._folding.held,
            problem=self.problem or setting.rules.problem or setting.renderer.problem,
            transports={name: out.status(now_s) for name, out in sorted(self._outlets.items())},
        )

    async def test(self) -> dict[str, NotifyOutcome]:
        """Send a test notice by each channel at once, past queue and rules; the results."""
        async with self._testing:
            notice = Notice(Kind.TEST, self._setting.host, "a test: somebody asked for it")
            message = await self._compose((StampedNotice(notice, self._wall()),), 0)
            outlets = sorted(self._outlets.items())
            outcomes = await asyncio.gather(*(out.try_once(message) for _, out in outlets))
            return {name: outcome for (name, _), outcome in zip(outlets, outcomes, strict=True)}

    # --- the task ---------------------------------------------------------------------------

    async def run(self) -> None:
        """Send for ever. When it is cancelled it tries for `closing_s` to send what is left."""
        try:
            while True:
                await self._work()
        finally:
            await self._close()

    async def _work(self) -> None:
        """One turn: sort the notices that came in, then wait for more."""
        loop = asyncio.get_running_loop()
        self._keep_tasks()
        self._hand_on(loop.time())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(self._folding.next_s(self._setting.repeat_after_s)):
                await self._news.wait()
        self._news.clear()

    def _hand_on(self, now_s: float) -> None:
        try:
            self._sort(now_s)
        except Exception:
            log.exception("notices were lost by a bug, which is no reason to stop")

    def _sort(self, now_s: float) -> None:
        """Queue each notice that the rules want, and that was not sent lately, for all channels."""
        for stamped in self._folding.due(now_s, self._setting.repeat_after_s):
            self._send(stamped)
        while self._inbox:
            stamped = self._inbox.popleft()
            if not self._setting.rules.want(stamped.notice):
                continue
            if (fresh := self._folding.take(stamped, now_s)) is not None:
                self._send(fresh)

    def _send(self, stamped: StampedNotice) -> None:
        for outlet in self._outlets.values():
            outlet.put(stamped)

    def _keep_tasks(self) -> None:
        """Start a task for each new outlet, and cancel those of removed ones."""
        outlets = set(self._outlets.values())
        for gone in set(self._tasks) - outlets:
            self._tasks.pop(gone).cancel()
        for new in outlets - set(self._tasks):
            self._tasks[new] = asyncio.create_task(new.run(), name=f"notify by {new.name}")

    async def _compose(self, notices: tuple[StampedNotice, ...], lost: int) -> Message:
        setting = self._setting
        message = Message(uuid.uuid4().hex, setting.cluster, setting.host, notices, lost)
        return await setting.renderer.fill(message)

    async def _close(self) -> None:
        self._hand_on(asyncio.get_running_loop().time())
        self._keep_tasks()
        for outlet in self._outlets.values():
            outlet.close()
        tasks = list(self._tasks.values())
        try:
            if tasks:
                await asyncio.wait(tasks, timeout=self._limits.closing_s)
        finally:
            for task in tasks:
                task.cancel()
            for name, outlet in self._outlets.items():
                if left := outlet.give_up():
                    log.error("%s: %d notices could not be sent before the end", name, left)


def silent(config: Config) -> Setting:
    """A setting that sends nothing."""
    renderer = Renderer(config.notify.templates)
    return Setting(Rules({}), renderer, {}, 60.0, config.cluster.name, config.host_name)
