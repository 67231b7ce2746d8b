# SPDX-License-Identifier: LGPL-2.1-or-later
"""The network test: which fraction of probes to each target is answered.

Five probes half a second apart, each with its own five seconds, as the reference does.
`ping`: ICMP without privileges (icmp(7), net.ipv4.ping_group_range); where that does not
hold for us, a raw socket is tried. `dns`: a query over TCP. `tcp`: a connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from broker.config import NetworkSection
from broker.monitors import Sampled, Unknown
from broker.network_verdict import TargetResult, Windows

COUNT = 5
APART_S = 0.5
TIMEOUT_S = 5.0
#: Asked of the resolver where `network.dns-name` is empty: the root's name servers, which
#: every resolver can tell (RFC 8109).
DNS_NAME = "."

#: One probe; raises OSError or a library's error when it is not answered.
Probe = Callable[[str], Awaitable[None]]


class NetworkMonitor(Sampled):
    """The result of each target; Unknown where nothing is to be tested."""

    name = "network"
    unit = "fraction"

    def __init__(
        self, given: NetworkSection, interval_s: float = 10.0, windows: Windows | None = None
    ) -> None:
        """`windows`: what an earlier monitor has seen."""
        self.interval_s = interval_s
        self.deadline_s = COUNT * (APART_S + TIMEOUT_S) + 5.0
        self.windows = Windows() if windows is None else windows
        self._given = given
        self._targets = given.targets
        if given.test == "dns" and not given.targets:
            self._targets = ("resolver",)

    async def sample(self) -> tuple[TargetResult, ...]:
        if self._given.test == "none" or not self._targets:
            raise Unknown("no network test is configured (network.test, network.targets)")
        found = await asyncio.gather(*(self._window(target) for target in self._targets))
        return self.windows.take(dict(zip(self._targets, found, strict=True)))

    async def _window(self, target: str) -> tuple[float, str]:
        """One window: the fraction of answered probes, and why the last one was not."""
        if self._given.test == "ping":
            return await _pings(target)
        probe = self._dns if self._given.test == "dns" else _connect
        answered, why = 0, ""
        for number in range(COUNT):
            if number:
                await asyncio.sleep(APART_S)
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    await probe(target)
                answered += 1
            except TimeoutError:
                why = f"no answer within {TIMEOUT_S:g} s"
            except Exception as error:  # what a library raises is its own affair
                why = str(error).split("\n")[0][:120] or type(error).__name__
        return answered / COUNT, why

    async def _dns(self, target: str) -> None:
        """Ask a resolver over TCP; any answer that is one counts, NXDOMAIN too."""
        from dns import asyncquery, asyncresolver, message

        server, port = self._given.dns_server, self._given.dns_port
        if target != "resolver":
            server = target
        if not server:
            resolver = asyncresolver.get_default_resolver()
            if not resolver.nameservers:
                raise OSError("no name server is configured in /etc/resolv.conf")
            server = str(resolver.nameservers[0])
        query = message.make_query(self._given.dns_name or DNS_NAME, "NS")
        await asyncquery.tcp(query, server, timeout=TIMEOUT_S, port=port)


async def _connect(target: str) -> None:
    """Open a TCP connection to `host:port` or `[v6]:port`, and close it."""
    host, _, port = target.rpartition(":")
    _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    writer.close()
    await writer.wait_closed()


async def _pings(target: str) -> tuple[float, str]:
    from icmplib import ICMPLibError, NameLookupError, SocketPermissionError, async_ping

    async def ask(privileged: bool) -> float:
        host = await async_ping(
            target, count=COUNT, interval=APART_S, timeout=TIMEOUT_S, privileged=privileged
        )
        return float(host.packets_received) / COUNT

    try:
        try:
            fraction = await ask(False)
        except SocketPermissionError:
            fraction = await ask(True)
    except NameLookupError:
        return 0.0, "its name cannot be resolved"
    except (ICMPLibError, OSError) as error:
        return 0.0, str(error).split("\n")[0][:120] or type(error).__name__
    return fraction, "" if fraction == 1.0 else f"{fraction:.0%} of the pings answered"
