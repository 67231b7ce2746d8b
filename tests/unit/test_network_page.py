# SPDX-License-Identifier: LGPL-2.1-or-later
"""docs/network.md has every port, and the firewall opens what it says, no more and no less."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from xml.etree import ElementTree

from agent.invite.offer import FIRST_PORT, PORTS
from broker.config.addresses import API_PORT
from broker.config.sections import HEARTBEAT_PORT

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "network.md").read_text()
#: libvirt's (remote.html; migration_port_min of qemu.conf) and sshd's.
LIBVIRT_TLS, MIGRATION, SSH = "tcp 16514", "tcp 49152-49215", "tcp 22"
OURS = {
    f"udp {HEARTBEAT_PORT}",
    f"tcp {API_PORT}",
    f"tcp {FIRST_PORT}-{FIRST_PORT + PORTS - 1}",
}


def between_the_hosts() -> set[str]:
    """The ports of the first table."""
    table = PAGE.partition("## Between the hosts")[2].partition("## Beside them")[0]
    found = re.findall(r"^\| ((?:tcp|udp) [0-9 to]+?) \|", table, re.MULTILINE)
    return {each.replace(" to ", "-") for each in found}


def test_the_page_has_each_port_that_is_ours_and_that_a_migration_needs() -> None:
    assert between_the_hosts() == {*OURS, LIBVIRT_TLS, MIGRATION, SSH}


def test_firewalld_opens_what_the_page_says() -> None:
    service = ElementTree.parse(ROOT / "packaging/firewalld/ha-agent.xml").getroot()
    opened = {f"{each.get('protocol')} {each.get('port')}" for each in service.iter("port")}
    assert opened == between_the_hosts() - {SSH}


def test_the_line_for_nftables_opens_the_same() -> None:
    (udp,) = re.findall(r"udp dport (\d+) accept", PAGE)
    (tcp,) = re.findall(r"tcp dport \{ ([0-9, -]+) \} accept", PAGE)
    opened = {f"udp {udp}", *(f"tcp {each}" for each in tcp.split(", "))}
    assert opened == between_the_hosts() - {SSH}


def listens() -> set[str]:
    """The files of the product that bind a socket of the network."""
    found = set()
    binds = {"bind", "create_server", "start_server", "create_datagram_endpoint"}
    for package in ("scoring", "broker", "agent"):
        for path in sorted((ROOT / package).rglob("*.py")):
            # A file that has none of the words calls none of them: most need no look at all.
            if not any(word in (text := path.read_text()) for word in binds):
                continue
            calls = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Call)]
            names = {call.func.attr for call in calls if isinstance(call.func, ast.Attribute)}
            if names & binds:
                found.add(str(path.relative_to(ROOT)))
    return found


def test_who_binds_a_socket_stands_on_the_page() -> None:
    """A new file here needs a row of the page, or binds what nobody reaches from outside."""
    assert listens() == {
        "agent/setup/invite.py",  # tcp 8767 to 8774
        "broker/api/front.py",  # tcp 8765, api.tls-listen
        "broker/api/bounded_server.py",  # the same, and the UNIX socket
        "broker/monitors/bridge.py",  # the kernel's netlink
        "broker/peers/heartbeat_port.py",  # udp 8766
    }
