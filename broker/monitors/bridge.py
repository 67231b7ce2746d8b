# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whether the management bridge exists, is up and has a carrier; and the same of the VM's bridges.

The state is read from sysfs (the kernel's ABI/testing/sysfs-class-net); rtnetlink(7) only
reports that something changed, and wakes the monitor (LinkEvents).
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

from broker.monitors.runner import Unknown

_IFF_UP = 0x1
#: Multicast group of link changes (linux/rtnetlink.h).
_RTMGRP_LINK = 0x1
#: Messages read at once; the loop calls again for the rest.
_READS_MAX = 100
#: operstates of an interface that can carry nothing (RFC 2863, ifOperStatus).
_NOT_UP = frozenset({"down", "lowerlayerdown", "notpresent", "dormant", "testing"})

#: Types of interfaces that stand on other interfaces (DEVTYPE in uevent).
_STACKED = ("bond", "vlan", "vxlan", "macvlan", "team")
#: The master interface of all ports of Open vSwitch's kernel module.
_OVS = "ovs-system"
#: How deep interfaces may stand on each other: a VLAN on a bond on cards is three deep.
DEPTH_MAX = 4


class BridgeMonitor:
    """True: the bridge is up, and one of its uplinks, if it has any, has a carrier. Unknown where
    no bridge is configured."""

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
        if uplinks and not any(self._leads_out(uplink) for uplink in uplinks):
            return f"{self._bridge}: no carrier on {', '.join(uplinks)}"
        state = self._text(self._bridge, "operstate")
        return f"{self._bridge} is {state}" if state in _NOT_UP else ""

    def _uplinks(self) -> list[str]:
        """The bridge's ports that lead out: network cards and what stands on other interfaces
        (bonds, teams, VLANs, VXLANs), or, where there are none of these, every port that is not a
        VM's tap. For Open vSwitch sysfs lists the ports of all its bridges together."""
        if "DEVTYPE=openvswitch" in self._text(self._bridge, "uevent").split():
            return [port for port in self._lower(_OVS) if self._is_card(port)]
        try:
            ports = sorted(port.name for port in (self._net / self._bridge / "brif").iterdir())
        except OSError:
            return []
        ports = [port for port in ports if not (self._net / port / "tun_flags").exists()]
        cards = [port for port in ports if self._is_card(port)]
        return cards or ports

    def _is_card(self, port: str) -> bool:
        """Whether the port is a network card, or stands on one; a container's veth is neither."""
        words = self._text(port, "uevent").split()
        stands_on_one = any(f"DEVTYPE={kind}" in words for kind in _STACKED)
        return (self._net / port / "device").exists() or stands_on_one or bool(self._lower(port))

    def _lower(self, interface: str) -> list[str]:
        """The interfaces that this one stands on (ABI/testing/sysfs-class-net, lower_*)."""
        try:
            names = sorted(entry.name for entry in (self._net / interface).iterdir())
        except OSError:
            return []
        return [name.removeprefix("lower_") for name in names if name.startswith("lower_")]

    def _leads_out(self, interface: str, depth: int = DEPTH_MAX) -> bool:
        """Whether the interface has a carrier, and, where it stands on others, one of those too: a
        VXLAN has a carrier while the cable of its card is out."""
        if self._text(interface, "carrier") != "1":
            return False
        lower = self._lower(interface) if depth else []
        return not lower or any(self._leads_out(each, depth - 1) for each in lower)

    def _text(self, interface: str, attribute: str) -> str:
        """An attribute; empty where it cannot be read (the carrier of an interface that is
        down, any attribute of an interface that vanishes)."""
        try:
            return (self._net / interface / attribute).read_text().strip()
        except OSError:
            return ""

    def leads_out(self) -> bool | None:
        """Whether the bridge is up and one of its uplinks has a carrier; None: it has no uplinks.

        Open vSwitch works on while the interface of the bridge's name is down.
        """
        place = self._net / self._bridge
        if not place.is_dir():
            return False
        if (place / "bridge").is_dir() and self._is_down():
            return False
        uplinks = self._uplinks()
        return any(map(self._leads_out, uplinks)) if uplinks else None

    def _is_down(self) -> bool:
        """Whether an administrator set the bridge down; False where that cannot be read."""
        try:
            return not int(self._text(self._bridge, "flags"), 16) & _IFF_UP
        except ValueError:
            return False


class UplinkMonitor:
    """True: some bridge of the VM's network cards is up and has a carrier on an uplink. False:
    none has. Unknown where the VM is on no bridge with an uplink."""

    name = "uplink"
    unit = ""
    deadline_s = 5.0

    def __init__(
        self,
        bridges: tuple[str, ...],
        interval_s: float = 2.0,
        net: Path = Path("/sys/class/net"),
    ) -> None:
        self.interval_s = interval_s
        self._bridges = {name: BridgeMonitor(name, net=net) for name in bridges}

    async def sample(self) -> bool:
        found = [
            each for bridge in self._bridges.values() if (each := bridge.leads_out()) is not None
        ]
        if not found:
            raise Unknown("the VM is on no bridge that has an uplink")
        return any(found)

    def judge(self, value: bool) -> str:
        """The bridges without a carrier."""
        names = ", ".join(self._bridges)
        return "" if value else f"down, or no carrier on any uplink: {names}"


def vm_bridges(definition: str) -> tuple[str, ...]:
    """The bridges of the network cards in a VM's definition, each once; none where the definition
    cannot be read."""
    try:
        return bridges_in(Path(definition).read_bytes())
    except OSError:
        return ()


def bridges_in(xml: str | bytes) -> tuple[str, ...]:
    """The bridges of the cards in a definition (libvirt's formatdomain, "Bridge to LAN")."""
    try:
        root = ElementTree.fromstring(xml)  # noqa: S314  (root's own file, or a member's word)
    except (ElementTree.ParseError, ValueError, LookupError):
        return ()  # LookupError and ValueError: an unknown encoding
    sources = root.iterfind("devices/interface[@type='bridge']/source")
    names = [source.get("bridge", "") for source in sources]
    return tuple(dict.fromkeys(name for name in names if name and "/" not in name))


class LinkEvents:
    """Calls `changed` whenever the kernel reports a changed link. Close it when done.

    OSError where the kernel refuses the subscription.
    """

    def __init__(self, changed: Callable[[], object]) -> None:
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
            # ENOBUFS: messages were lost, so something has changed.
            pass
        self._changed()

    def close(self) -> None:
        """Stop listening."""
        self._loop.remove_reader(self._socket)
        self._socket.close()
