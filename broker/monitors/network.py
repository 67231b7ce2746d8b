# SPDX-License-Identifier: LGPL-2.1-or-later
"""The network test: which fraction of probes to each target is answered.

A window has five probes half a second apart, each with its own five seconds, as in the reference.
`ping`: ICMP without privileges (icmp(7), net.ipv4.ping_group_range); where the group is not in
that range, a raw socket is tried. `dns`: a query over TCP. `tcp`: a connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from broker.config.sections import NetworkSection
from broker.daemon.foreign import sentence
from broker.daemon.name_lookup import NameLookup
from broker.monitors.network_verdict import TargetResult, Windows
from broker.monitors.runner import Unknown

COUNT = 5
APART_S = 0.5
TIMEOUT_S = 5.0
#: The name to resolve where `network.dns-name` is empty: the root, whose name servers every
#: resolver knows (RFC 8109).
DNS_NAME = "."
#: The target where the test is `dns` and no target is configured.
RESOLVER = "resolver"
#: At most so many of the system's name servers are asked (resolv.conf(5), MAXNS).
NAME_SERVERS_MAX = 3
#: The length of a library's error text that is kept.
WHY_CHARS = 120

#: Time for a target to answer the single question of `any_answers`.
ANY_TIMEOUT_S = 2.0

#: One probe; raises OSError or a library's error when it is not answered.
Probe = Callable[[str], Awaitable[None]]


class NetworkMonitor:
    """The result of each target; Unknown where nothing is to be tested."""

    name = "network"
    unit = "fraction"

    def __init__(
        self,
        given: NetworkSection,
        interval_s: float = 10.0,
        windows: Windows | None = None,
        apart_s: float = APART_S,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        """`windows`: the windows of an earlier monitor."""
        self.interval_s = interval_s
        self.deadline_s = COUNT * (apart_s + timeout_s) + 5.0
        self.windows = Windows() if windows is None else windows
        self._apart_s, self._timeout_s = apart_s, timeout_s
        self.given = given
        self._lookup = NameLookup("network test")
        self._targets = given.targets
        if given.test == "dns" and not given.targets:
            self._targets = (RESOLVER,)

    async def sample(self) -> tuple[TargetResult, ...]:
        if self.given.test == "none" or not self._targets:
            raise Unknown("no network test is configured (network.test, network.targets)")
        found = await asyncio.gather(*(self._window(target) for target in self._targets))
        return self.windows.take(dict(zip(self._targets, found, strict=True)))

    async def any_answers(self) -> bool:
        """Whether some target answers one question within ANY_TIMEOUT_S; Unknown where there is
        nothing to ask, or nothing to ask it with."""
        if self.given.test == "none" or not self._targets:
            raise Unknown("no network test is configured (network.test, network.targets)")
        asking = [asyncio.ensure_future(self._answers(target)) for target in self._targets]
        try:
            for one in asyncio.as_completed(asking):
                if await one:
                    return True
        finally:
            for task in asking:
                task.cancel()
        return False

    async def _answers(self, target: str) -> bool:
        try:
            async with asyncio.timeout(ANY_TIMEOUT_S):
                await self._probe()(target)
        except (Unknown, ImportError):
            raise  # the question could not be sent: nothing is known of the network
        except Exception:  # any error of a library is a failed probe
            return False
        return True

    def _probe(self) -> Probe:
        probes: dict[str, Probe] = {"ping": self._ping, "dns": self._dns, "tcp": self._connect}
        return probes[self.given.test]

    def judge(self, value: tuple[TargetResult, ...]) -> str:
        """Which targets have not answered well for all of their windows."""
        away = (one for one in value if one.fraction is not None and one.fraction < 1.0)
        return "; ".join(one.text for one in away)

    async def _window(self, target: str) -> tuple[float, str]:
        """One window: the fraction of answered probes, and why the last one was not."""
        probe = self._probe()
        answered, why = 0, ""
        for number in range(COUNT):
            if number:
                await asyncio.sleep(self._apart_s)
            try:
                async with asyncio.timeout(self._timeout_s):
                    await probe(target)
                answered += 1
            except (Unknown, ImportError):
                raise  # the question could not be sent: nothing is known of the network
            except TimeoutError:
                why = f"no answer within {self._timeout_s:g} s"
            except Exception as error:  # any error of a library is a failed probe
                why = sentence(error, WHY_CHARS)
        return answered / COUNT, why

    async def _ping(self, target: str) -> None:
        from icmplib import SocketPermissionError, async_ping

        address = (await self._lookup.addresses(target))[0]
        try:
            host = await async_ping(address, 1, timeout=self._timeout_s, privileged=False)
        except SocketPermissionError:
            try:
                host = await async_ping(address, 1, timeout=self._timeout_s, privileged=True)
            except SocketPermissionError:
                raise Unknown(
                    "this user may not ping: have its group in net.ipv4.ping_group_range"
                ) from None
        if not host.packets_sent:
            raise OSError("the ping cannot be sent: is there a route?")
        if not host.is_alive:
            raise TimeoutError

    async def _dns(self, target: str) -> None:
        """Ask over TCP; any DNS answer counts, even one with an error code."""
        from dns import asyncquery, message

        if target != RESOLVER:
            servers = await self._lookup.addresses(target)
        elif self.given.dns_server:
            servers = await self._lookup.addresses(self.given.dns_server)
        else:
            servers = _name_servers()
        query = message.make_query(self.given.dns_name or DNS_NAME, "NS")
        each_s = self._timeout_s / len(servers)
        for server in servers[:-1]:
            try:
                await asyncquery.tcp(query, server, timeout=each_s, port=self.given.dns_port)
            except Exception:  # noqa: S112  the next server is asked
                continue
            return
        await asyncquery.tcp(query, servers[-1], timeout=each_s, port=self.given.dns_port)

    async def _connect(self, target: str) -> None:
        await self._lookup.connect(target)


def _name_servers() -> list[str]:
    """The system's name servers in resolv.conf(5) at this moment; OSError where there are none."""
    from dns import resolver

    try:
        servers = resolver.Resolver().nameservers
    except resolver.NoResolverConfiguration:
        servers = []
    if not servers:
        raise OSError("no name server is configured in /etc/resolv.conf")
    return [str(server) for server in servers[:NAME_SERVERS_MAX]]
