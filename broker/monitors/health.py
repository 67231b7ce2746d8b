# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whether the engine in the VM is well: its health page, a TCP port, or QEMU's guest agent.

It is asked while the VM is up on this host. The health is "bad" after `failures` in a row, and
"unknown" before the first answer and while the monitor itself fails.

While the VM boots it is asked every BOOT_EVERY_S, so that a healthy VM is found at once. A question
that was sent before the guest had its network may hang for seconds although the guest answers by
now; so the next question does not wait for it (broker/monitors/booting.py).
"""

from __future__ import annotations

import asyncio
import ssl

import aiohttp
import libvirt

from broker.config.errors import ConfigError
from broker.config.sections import Config, HealthSection
from broker.daemon.aiohttp_names import Resolver
from broker.daemon.bounded_search import SEARCH_S, finder, is_plain
from broker.daemon.foreign import clean, sentence
from broker.daemon.http_words import no_answer
from broker.daemon.name_lookup import NameLookup
from broker.daemon.worker import Hung, Worker
from broker.monitors.booting import BOOT_EVERY_S, Booting
from broker.monitors.runner import Unknown
from scoring.vm_facts import Health

BODY_BYTES_MAX = 65_536
SHOWN_CHARS = 80


class HealthMonitor:
    """`verdict`: the health, and why it is not good. `boot`: whether the VM boots.

    Making one raises ConfigError where health.ca-file cannot be used.
    """

    name = "health"
    unit = ""

    def __init__(self, config: Config, interval_s: float = 1.0) -> None:
        given = config.health
        self._given = given
        self._config = config
        self._asked = False
        self._failures = 0
        self._counted_s = float("-inf")
        self._interval_s = interval_s
        self.boot = Booting(lambda: self.problem(), one_at_a_time=given.guest_agent)
        self.deadline_s = given.timeout + 5.0
        self.verdict: tuple[Health, str | None] = (Health.UNKNOWN, None)
        self._libvirt = Worker("guest agent")
        self._connection: libvirt.virConnect | None = None
        self._found = finder(given.expected)
        self._search = Worker("search in the health page")
        self._lookup = NameLookup("health test")
        self._tls = _tls(given)

    def ask(self, on: bool) -> None:
        """Start or stop asking; the answers of an earlier VM are forgotten."""
        if on != self._asked:
            self._asked, self._failures, self._counted_s = on, 0, float("-inf")
            self.boot.begins() if on else self.boot.ends()
            self.verdict = (Health.UNKNOWN, "its check was not answered yet" if on else None)

    def go_on_from(self, other: HealthMonitor) -> None:
        """Replace a monitor that has other settings: its results are kept."""
        self._asked, self._failures, self.verdict = other._asked, other._failures, other.verdict
        self._counted_s = other._counted_s
        if other.boot.is_on:
            self.boot.begins()
        other.boot.ends()

    @property
    def interval_s(self) -> float:
        """How often it is sampled: quickly while the VM boots."""
        return min(BOOT_EVERY_S, self._interval_s) if self.boot.is_on else self._interval_s

    async def sample(self) -> str:
        """The health in a word; Unknown while the VM is not up here."""
        problem = None
        if self._asked:
            try:
                problem = await (self.boot.problem() if self.boot.is_on else self.problem())
            except BaseException as error:  # the deadline's too: the old result is no longer valid
                why = "no answer in time" if isinstance(error, asyncio.CancelledError) else error
                self.verdict = (Health.UNKNOWN, f"the health monitor failed: {why}")
                raise
        if not self._asked:
            raise Unknown("the VM is not up here")
        if problem is None:
            self._failures = 0
            self.verdict = (Health.GOOD, None)
            self.boot.ends()
        else:
            # More questions are no more patience: one failure counts in each interval.
            now_s = asyncio.get_running_loop().time()
            if now_s - self._counted_s >= self._interval_s or not self.boot.is_on:
                self._failures, self._counted_s = self._failures + 1, now_s
            is_bad = self._failures >= self._given.failures
            self.verdict = (Health.BAD if is_bad else Health.UNKNOWN, problem)
        return self.verdict[0].value

    def judge(self, value: str) -> str:
        """Why the engine is not well."""
        return self.verdict[1] or ""

    async def problem(self) -> str | None:
        """Why the engine does not answer well at this moment; None when it does, or when no check
        is configured."""
        given = self._given
        if given.page:
            return await self._page(given.page)
        if given.tcp:
            return await self._port(given.tcp)
        if given.guest_agent:
            return await self._agent()
        return None

    async def _page(self, url: str) -> str | None:
        given = self._given
        timeout = aiohttp.ClientTimeout(total=given.timeout)
        # No compression: a small answer must not become a large text.
        headers = {"Accept-Encoding": "identity"}
        connector = aiohttp.TCPConnector(
            resolver=Resolver(self._lookup.addresses), ssl=self._tls, force_close=True
        )
        body = bytearray()
        try:
            async with (
                aiohttp.ClientSession(
                    connector=connector, timeout=timeout, headers=headers, auto_decompress=False
                ) as session,
                session.get(url, allow_redirects=False) as answer,
            ):
                if 300 <= answer.status < 400:
                    where = clean(answer.headers.get("Location", "nowhere"), SHOWN_CHARS)
                    return f"the health page redirects ({answer.status}) to {where}"
                if answer.status != 200:
                    return f"the health page answers {answer.status}"
                while len(body) < BODY_BYTES_MAX and (
                    part := await answer.content.read(BODY_BYTES_MAX - len(body))
                ):
                    body += part
        except TimeoutError:
            return f"the health page does not answer within {given.timeout:g} s"
        except Hung as error:
            return f"the health page does not answer: {sentence(error, SHOWN_CHARS)}"
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return f"the health page does not answer: {no_answer(error, SHOWN_CHARS)}"
        text = body.decode(errors="replace")
        if is_plain(given.expected):
            found = given.expected in text
        else:
            try:
                found = await self._search.call("search", 2 * SEARCH_S, self._found, text)
            except (Hung, TimeoutError):
                return f"searching the health page for {given.expected!r} takes too long"
        return None if found else f"the health page does not say {given.expected!r}"

    async def _agent(self) -> str | None:
        what = "asking the guest agent"
        try:
            await self._libvirt.call(what, self._given.timeout + 1.0, self._ping_agent)
        except Hung as error:
            return sentence(error)
        except libvirt.libvirtError as error:
            return f"the guest agent does not answer: {sentence(error, SHOWN_CHARS)}"
        return None

    def _ping_agent(self) -> None:
        """Ping the agent; runs in the thread."""
        import libvirt_qemu

        try:
            if self._connection is None:
                self._connection = libvirt.open(self._config.libvirt.uri)
            domain = self._connection.lookupByName(self._config.vm.name)
            seconds = max(1, int(self._given.timeout))
            libvirt_qemu.qemuAgentCommand(domain, '{"execute":"guest-ping"}', seconds, 0)
        except libvirt.libvirtError:
            if self._connection is not None:
                self._connection.close()
                self._connection = None
            raise

    async def _port(self, target: str) -> str | None:
        timeout_s = self._given.timeout
        try:
            async with asyncio.timeout(timeout_s):
                await self._lookup.connect(target)
        except TimeoutError:
            return f"{target} does not answer within {timeout_s:g} s"
        except (OSError, Hung) as error:
            return f"{target} does not answer: {sentence(error, SHOWN_CHARS)}"
        return None


def _tls(given: HealthSection) -> ssl.SSLContext | bool:
    """The TLS settings for an https page; ConfigError where the CA file cannot be used."""
    if not given.verify:
        return False
    if given.ca_file is None:
        return True
    try:
        return ssl.create_default_context(cafile=given.ca_file)
    except OSError as error:
        why = error.strerror or error
        raise ConfigError(f"health.ca-file: {given.ca_file} cannot be used: {why}") from None
