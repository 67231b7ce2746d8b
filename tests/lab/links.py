# SPDX-License-Identifier: LGPL-2.1-or-later
"""Network interfaces, by ``ip -batch`` in the network namespace of the caller."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable

from .errors import LabError


def ip(lines: Iterable[str], *, may_fail: bool = False) -> None:
    """Run the lines of an ``ip`` batch; LabError with ip's own words if one fails."""
    done = subprocess.run(
        ["ip", "-batch", "-"], input="\n".join(lines), capture_output=True, text=True, timeout=20
    )
    if done.returncode != 0 and not may_fail:
        raise LabError(f"ip: {done.stderr.strip() or done.returncode}")


def bridge(name: str, mac: str) -> list[str]:
    """The lines that make a bridge. Without an address of its own a bridge has its ports' lowest:
    when the port of a host without power goes, everyone's ARP entry for it is wrong, for a minute
    to an idle server."""
    return [
        f"link add {name} type bridge forward_delay 0 stp_state 0",
        f"link set {name} address {mac}",
    ]
