# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whether the engine in the VM is well: its health page, a TCP port, or QEMU's guest agent.

Asked while the VM is up here; "bad" after `failures` in a row, "unknown" before the first
answer.
"""

from __future__ import annotations

import asyncio
import ssl

import aiohttp
import libvirt

from broker.config import Config, HealthSection
from broker.monitors import Sampled
from broker.page_search import SEARCH_S, finder, is_plain
from broker.worker import Hung, Worker
from scoring.observation import Health

BODY_BYTES_MAX = 65_536
SHOWN_CHARS = 80


class HealthMonitor(Sampled):
    """`verdict`: the health, and why it is not good."""

    name = "health"
    unit = ""

    def __init__(self, config: Config, interval_s: float = 1.0) -> None:
        given = config.health
        self._given = given
        self._config = config
        self._asked = False
        self._failures = 0
        self.interval_s = interval_s
        self.deadline_s = given.timeout + 5.0
        self.verdict: tuple[Health, str | None] = (Health.UNKNOWN, None)
        self._libvirt = Worker("guest agent")
        self._found = finder(given.expect)
        self._search = Worker("search in the health page")
        self._tls = _tls(given)

    def ask(self, on: bool) -> None:
        """Begin or cease to ask; what an earlier VM answered is forgotten."""
        if on != self._asked:
            self._asked, self._failures = on, 0
            self.verdict = (Health.UNKNOWN, "the engine has not answered yet" if on else None)

    def go_on_from(self, other: HealthMonitor) -> None:
        """Take the place of one with other settings: what it knew still holds."""
        self._asked, self.verdict = other._asked, other.verdict

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
            is_bad = self._failures >= self._given.failures
            self.verdict = (Health.BAD if is_bad else Health.UNKNOWN, problem)
        return self.verdict[0].value

    def judge(self, value: str) -> str:
        """Why the engine is not well."""
        return self.verdict[1] or ""

    async def _problem(self) -> str | None:
        """Why the engine is not well; None when it is, or when nothing is to be asked."""
        given = self._given
        if given.url:
            return await self._page()
        if given.tcp:
            return await _port(given.tcp, given.timeout)
        if given.guest_agent:
            return await self._agent()
        return None

    async def _page(self) -> str | None:
        given = self._given
        timeout = aiohttp.ClientTimeout(total=given.timeout)
        body = bytearray()
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.get(given.url, allow_redirects=False, ssl=self._tls) as answer,
            ):
                if 300 <= answer.status < 400:
                    where = _shown(answer.headers.get("Location", "nowhere"))
                    return f"the health page sends elsewhere ({answer.status}): {where}"
                if answer.status != 200:
                    return f"the health page answers {answer.status}"
                while len(body) < BODY_BYTES_MAX and (
                    part := await answer.content.read(BODY_BYTES_MAX - len(body))
                ):
                    body += part
        except TimeoutError:
            return f"the health page does not answer within {given.timeout:g} s"
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return f"the health page does not answer: {_shown(f'{type(error).__name__}: {error}')}"
        text = body.decode(errors="replace")
        if is_plain(given.expect):
            found = given.expect in text
        else:
            try:
                found = await self._search.call("search", 2 * SEARCH_S, self._found, text)
            except (Hung, TimeoutError):
                return f"searching the health page for {given.expect!r} takes too long"
        return None if found else f"the health page does not say {given.expect!r}"

    async def _agent(self) -> str | None:
        what = "asking the guest agent"
        try:
            await self._libvirt.call(what, self._given.timeout + 1.0, self._ping_agent)
        except Hung as error:
            return str(error)
        except libvirt.libvirtError as error:
            return f"the guest agent does not answer: {_shown(str(error))}"
        return None

    def _ping_agent(self) -> None:
        """Runs in the thread."""
        import libvirt_qemu

        connection = libvirt.open(self._config.libvirt.uri)
        try:
            domain = connection.lookupByName(self._config.vm.name)
            seconds = max(1, int(self._given.timeout))
            libvirt_qemu.qemuAgentCommand(domain, '{"execute":"guest-ping"}', seconds, 0)
        finally:
            connection.close()


async def _port(address: str, timeout_s: float) -> str | None:
    host, _, port = address.rpartition(":")
    try:
        async with asyncio.timeout(timeout_s):
            _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
            writer.close()
            await writer.wait_closed()
    except TimeoutError:
        return f"{address} does not answer within {timeout_s:g} s"
    except OSError as error:
        return f"{address} does not answer: {_shown(str(error))}"
    return None


def _tls(given: HealthSection) -> ssl.SSLContext | bool:
    """How a https page is verified; OSError where the CA file cannot be used."""
    if not given.verify:
        return False
    return ssl.create_default_context(cafile=given.ca_file) if given.ca_file else True


def _shown(text: str) -> str:
    """A stranger's text, short and in one line."""
    return "".join(c if c.isprintable() else "?" for c in text)[:SHOWN_CHARS]
