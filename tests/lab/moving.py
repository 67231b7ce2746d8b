# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the tests of live migrations do again and again: order one, slow it down so that it can be
interrupted, and see that one QEMU is left, with its lease, and every host in its state."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from . import ask, ready
from .cluster import Cluster
from .layout import VM_NAME, host_id_of

#: MiB/s at which the lab's guest takes minutes; at FREE it takes a second or two.
SLOW, FREE = 2, 10_000
#: A busy machine asks slowly, and an order is taken up with the next beat.
BEGUN_S = 20.0
ENDED_S = 90.0
#: Two beats, what the questions themselves take, and what a loaded machine adds.
SETTLED_S = 15.0


def others(lab: Cluster, host: str) -> list[str]:
    return [name for name in lab.hosts if name != host]


def source_of(lab: Cluster) -> str:
    """The engine's host, once it says that the VM is up and healthy."""
    host = lab.wait_healthy(60.0)
    settled(lab, host, 30.0)
    return host


def order(lab: Cluster, host: str, *words: str) -> subprocess.CompletedProcess[str]:
    """`ha-agent …` on a host, to its end."""
    return lab.sh(host, ["ha-agent", *words])


def refusal(lab: Cluster, host: str, *words: str) -> str:
    """What an order is refused with."""
    done = order(lab, host, *words)
    assert done.returncode == 11, (words, done)
    return done.stderr


def speed(lab: Cluster, host: str, mib_per_s: int) -> None:
    """For a migration from that host, one under way or the next one."""
    done = lab.sh(host, ["virsh", "migrate-setspeed", VM_NAME, str(mib_per_s)])
    assert done.returncode == 0, done.stderr


def migration(lab: Cluster, host: str) -> dict[str, Any] | None:
    found: dict[str, Any] | None = ask.status(lab, host).get("migration")
    return found


@contextmanager
def slow_migration(lab: Cluster, source: str, target: str) -> Iterator[subprocess.Popen[str]]:
    """One from source to target that is under way and will be for minutes; the command that
    ordered it is waited for at the end."""
    speed(lab, source, SLOW)
    argv, environment = lab.sh_command(source, ["ha-agent", "migrate", "--to", target])
    command = subprocess.Popen(
        argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        ask.until("memory is on its way", BEGUN_S, lambda: _moves(lab, source, command))
        yield command
    finally:
        command.kill()
        command.communicate()
        if lab.is_on(source):
            # Kept by the VM that stays there; where it has left, there is nothing to set.
            lab.sh(source, ["virsh", "migrate-setspeed", VM_NAME, str(FREE)])


def _moves(lab: Cluster, source: str, command: subprocess.Popen[str]) -> bool:
    assert command.poll() is None, command.communicate()
    return bool((migration(lab, source) or {}).get("remaining", 0) > 0)


def ended(command: subprocess.Popen[str], within_s: float = ENDED_S) -> tuple[int, str]:
    """The exit code of an order's command and all that it said."""
    out, err = command.communicate(timeout=within_s)
    return command.returncode, out + err


def unsettled(lab: Cluster, on: str) -> str:
    """What is missing; "": nothing. One QEMU, there, with its lease; that host in EngineUp, all
    others that are on ready, and every one of them knows where the VM is."""
    census = lab.census()
    engines = [host for host in census.first for _ in census.engines(host)]
    if engines != [on]:
        return f"QEMU runs on {engines}"
    running = sorted(census.first)
    hosts = ask.status(lab, on).get("hosts", {})
    shown = {name: hosts.get(str(host_id_of(name)), {}) for name in running}
    for name, host in shown.items():
        wanted = "EngineUp" if name == on else "EngineDown"
        state, score, liveness = (host.get(key) for key in ("state", "score", "liveness"))
        if state != wanted or not score or score <= 0 or liveness != "live":
            return f"{on} sees {name} {liveness} in {state} with a score of {score}"
    if not holds_lease(lab, on):
        return f"the lease is not held on {on} alone"
    if not lab.page_answers():
        return "the page does not answer"
    blind = [host for host in running if not ready.sees_engine(lab, host, on)]
    return f"{blind} do not see the VM on {on}" if blind else ""


def holds_lease(lab: Cluster, host: str) -> bool:
    """Whether that host's QEMU holds the engine lease, and nobody else does."""
    pid = lab.sh(host, ["cat", f"/run/libvirt/qemu/{VM_NAME}.pid"]).stdout.strip()
    if not pid.isdigit() or ask.lease_holders(lab, host) != {int(pid)}:
        return False
    elsewhere = [name for name in lab.census().first if name != host]
    return not any(ask.lease_holders(lab, name) for name in elsewhere)


def settled(lab: Cluster, on: str, within_s: float = SETTLED_S) -> float:
    """Wait until it is; how many seconds that took."""
    began_s = time.monotonic()
    while missing := unsettled(lab, on):
        waited_s = time.monotonic() - began_s
        assert waited_s < within_s, f"not settled on {on} after {waited_s:.0f} s: {missing}"
        time.sleep(ask.POLL_S)
    return time.monotonic() - began_s


def boots(lab: Cluster) -> int:
    """How often the guest has booted so far; one that was moved has not."""
    found = lab.status()["engine"]["boots"]
    assert isinstance(found, int), found
    return found
