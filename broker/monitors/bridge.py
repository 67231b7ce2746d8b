# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whether the management bridge is there, up, and has a way out.

The state is read from sysfs (the kernel's ABI/testing/sysfs-class-net); rtnetlink(7) only
tells that something changed, and wakes the monitor (LinkEvents).
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path

from broker.monitors import Unknown

_IFF_UP = 0x1
#: Multicast group of link changes (linux/rtnetlink.h).
_RTMGRP_LINK = 0x1
#: Messages taken at once; what is left makes the loop call again.
_READS_MAX = 100
#: operstate of an interface that cannot carry anything (RFC 2863, ifOperStatus).
_NOT_UP = frozenset({"down", "lowerlayerdown", "notpresent", "dormant", "testing"})


class BridgeMonitor:
    """True: up, with carrier on an uplink if it has uplinks. Unknown where none is configured."""

    name = "bridge"
    unit = ""
    deadline_s = 5.0

    def __init__(
        self, bridge: str, interval_s: float = 2.0, net: Path = Path("/sys/class/net")
    ) -> None:
        self.interval_s = interval_s
        self._bridge = bridge
        self._net = net
        self._why = ""

    async def sample(self) -> bool:
        if not self._bridge:
            raise Unknown("no management bridge is configured (network.bridge)")
        self._why = self._problem()
        return not self._why

    def judge(self, value: bool) -> str:
        """Why the bridge is down."""
        return self._why

    def _problem(self) -> str:
        place = self._net / self._bridge
        if not place.is_dir():
            return f"{self._bridge} is not there"
        try:
            is_up = bool(int(self._text(self._bridge, "flags"), 16) & _IFF_UP)
        except ValueError:
            return f"{self._bridge} is going away"
        if not is_up:
            return f"{self._bridge} is administratively down"
        uplinks = self._uplinks()
        if uplinks and not any(self._text(uplink, "carrier") == "1" for uplink in uplinks):
            return f"{self._bridge}: no carrier on {', '.join(uplinks)}"
        state = self._text(self._bridge, "operstate")
        return f"{self._bridge} is {state}" if state in _NOT_UP else ""

    def _uplinks(self) -> list[str]:
        """Its ports that lead out: network cards, bonds and VLANs, or, where it has none of
        these, whatever is not a VM's tap."""
        try:
            ports = sorted(port.name for port in (self._net / self._bridge / "brif").iterdir())
        except OSError:
            return []
        ports = [port for port in ports if not (self._net / port / "tun_flags").exists()]
        cards = [port for port in ports if self._is_card(port)]
        return cards or ports

    def _is_card(self, port: str) -> bool:
        kinds = ("DEVTYPE=bond", "DEVTYPE=vlan")
        words = self._text(port, "uevent").split()
        return (self._net / port / "device").exists() or any(kind in words for kind in kinds)

    def _text(self, interface: str, attribute: str) -> str:
        """An attribute; empty where it cannot be read (the carrier of an interface that is
        down, anything of one that vanishes)."""
        try:
            return (self._net / interface / attribute).read_text().strip()
        except OSError:
            return ""


class LinkEvents:
    """Calls `changed` whenever the kernel tells of a changed link. Close it when done.

    OSError where the kernel does not let us listen.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
        )
        try:
            self._socket.bind((0, _RTMGRP_LINK))
        except OSError:
            self._socket.close()
            raise
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket, self._read)

    def _read(self) -> None:
        try:
            for _ in range(_READS_MAX):
                self._socket.recv(65_536)
        except BlockingIOError:
            pass
        except OSError:
            # ENOBUFS: more has changed than the kernel could tell. It is a change all the same.
            pass
        self._changed()

    def close(self) -> None:
        """Listen no more."""
        self._loop.remove_reader(self._socket)
        self._socket.close()
