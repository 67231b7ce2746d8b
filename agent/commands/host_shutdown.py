# SPDX-License-Identifier: LGPL-2.1-or-later
"""`ha-agent host-shutdown` drains this host because it shuts down.

The unit ha-agent-host-shutdown runs it when it is stopped. A unit is stopped for other
reasons too (an operator, a package that is removed), and none of them may touch the VM: so
the command asks systemd whether the whole system is being stopped.
"""

from __future__ import annotations

import asyncio
import re
import subprocess
from collections.abc import Awaitable, Callable

from broker.client.ask import BrokerError, ask
from broker.daemon.exit_codes import ExitCode
from broker.wire.status import HostShutdownStatus

POLL_S = 1.0
#: A broker or agent that does not answer may be starting. During a shutdown systemd starts none
#: anew, so waiting longer is of no use.
AWAY_PATIENCE_S = 15.0
SYSTEMCTL_TIMEOUT_S = 20.0
SHOW_AGAIN_S = 15.0
_DIGITS = re.compile("[0-9]+")

Say = Callable[[], Awaitable[HostShutdownStatus]]


async def drain(say: Say, show: Callable[[str], None]) -> bool:
    """Wait until this host is empty; returns whether it is. `say`: reports to the broker that the
    host shuts down, and returns its progress; BrokerDown, BrokerRefused. `show`: gets each new
    line."""
    loop = asyncio.get_running_loop()
    began_s = well_s = loop.time()
    shown, shown_s = "", began_s
    while True:
        try:
            status = await say()
            text, over_s = status.text, began_s + status.within_s
            if status.state in ("over", "left"):
                show(text)
                return status.state == "over"
            if status.state != "no-agent":
                well_s = loop.time()
        except BrokerError as error:
            text, over_s = str(error), float("inf")
        now_s = loop.time()
        # A line that differs only in its seconds is shown now and then.
        if (words := _DIGITS.sub("", text)) != shown or now_s - shown_s >= SHOW_AGAIN_S:
            show(text)
            shown, shown_s = words, now_s
        if now_s - well_s >= AWAY_PATIENCE_S:
            show(f"given up after {AWAY_PATIENCE_S:g} s: what runs here is left to libvirt")
            return False
        if now_s >= over_s:
            show(f"given up after {now_s - began_s:.0f} s: the VM is left to libvirt")
            return False
        await asyncio.sleep(POLL_S)


def system_state() -> str:
    """The state of the system in systemd, `stopping` while it shuts down; "" if unknown."""
    try:
        done = subprocess.run(
            ["systemctl", "is-system-running"],  # noqa: S607  (of the unit's own path)
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=SYSTEMCTL_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()


def run(socket: str, state: Callable[[], str] = system_state) -> int:
    """OK: this host is empty, or the system does not shut down; FAILED: the VM is still here."""
    found = state()
    if found != "stopping":
        said = f"systemd says {found}" if found else "systemd does not say so"
        print(f"nothing is done: this host is not shutting down ({said})")
        return ExitCode.OK

    async def say() -> HostShutdownStatus:
        return await asyncio.to_thread(ask, socket, "PUT", "/v1/host-shutdown", HostShutdownStatus)

    is_empty = asyncio.run(drain(say, lambda text: print(text, flush=True)))
    return ExitCode.OK if is_empty else ExitCode.FAILED
