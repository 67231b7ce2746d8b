# SPDX-License-Identifier: LGPL-2.1-or-later
"""Waits for what an order needs, after something was restarted, killed or changed.

A host goes by what its broker sampled, and by what it read of the others: each a beat or two old,
more on a busy machine. Right after a change both still tell of the time before it. So a test that
gives an order next waits here for the fact itself, and never for a state that was there already.
"""

from __future__ import annotations

import time
from functools import partial

from . import ask
from .cluster import Cluster
from .layout import host_id_of

#: For what takes a beat or two; the rest is for a busy machine.
KNOWN_S = 30.0
#: A line in the log of each daemon of ours that tells that it works, once per start.
_WORKS = {"agent": "is up, VM", "broker": "is up\n"}


def read_anew(lab: Cluster, *hosts: str) -> None:
    """Wait until every host has read of each of these others something that it wrote after this
    call began.

    The second change that a host sees since then was written after it had read the first one."""
    began_s = time.monotonic()
    askers = lab.census().first
    changes = {(asker, host): [began_s] for asker in askers for host in hosts if asker != host}

    def have_read() -> bool:
        for (asker, host), seen in changes.items():
            if len(seen) < 3 and (changed := _changed_s(lab, asker, host)) is not None:
                earliest_s, latest_s = changed
                if earliest_s > seen[-1]:
                    seen.append(latest_s)
        return all(len(seen) == 3 for seen in changes.values())

    ask.until(f"what {', '.join(hosts)} write from now on is read", KNOWN_S, have_read)


def _changed_s(lab: Cluster, asker: str, host: str) -> tuple[float, float] | None:
    """Between which two moments of this machine's monotonic clock the asker saw that host's slot
    change last: the age that it tells is of some moment of its answer."""
    asked_s = time.monotonic()
    shown = ask.status(lab, asker).get("hosts", {}).get(str(host_id_of(host)), {})
    answered_s = time.monotonic()
    age_s = shown.get("age_s")
    return None if age_s is None else (asked_s - float(age_s), answered_s - float(age_s))


def restart_libvirt(lab: Cluster, *hosts: str) -> None:
    """Kill these hosts' libvirtd; wait until the next one has answered the host's broker, and the
    other hosts know."""
    for host in hosts:
        lab.restart_libvirt(host)
    restarted_s = time.monotonic()
    for host in hosts:
        ask.until(
            f"libvirt on {host} answers its broker",
            KNOWN_S,
            partial(_libvirt_answered, lab, host, restarted_s),
        )
    read_anew(lab, *hosts)


def _libvirt_answered(lab: Cluster, host: str, since_s: float) -> bool:
    asked_s = time.monotonic()
    sample = ask.status(lab, host).get("monitors", {}).get("engine")
    if sample is None or sample["verdict"] == "unknown":
        return False
    return bool(asked_s - sample["age_s"] > since_s)


def restart(lab: Cluster, host: str, daemon: str) -> None:
    """Kill that host's `agent` or `broker`; wait until the next one works, and the other hosts
    have read what it says."""
    log = lab.log_path(host, daemon)
    before = log.read_text(errors="replace").count(_WORKS[daemon])
    lab.kill(host, daemon)
    ask.until(
        f"the next {daemon} of {host} works",
        KNOWN_S,
        lambda: log.read_text(errors="replace").count(_WORKS[daemon]) > before,
    )
    ask.until(f"{host} shows its state", KNOWN_S, lambda: ask.state(lab, host))
    read_anew(lab, host)


def in_global_maintenance(lab: Cluster, host: str, *words: str) -> None:
    """Set global maintenance on `host`, and wait until every host whose agent runs goes by it."""
    done = lab.sh(host, ["ha-agent", "maintenance", "global", *words])
    assert done.returncode == 0, done.stderr
    census = lab.census()
    for each in census.first:
        if census.daemon(each, "agent") is None:
            continue
        ask.until(f"{each} goes by it", KNOWN_S, partial(_is_in, lab, each, "GlobalMaintenance"))


def in_local_maintenance(lab: Cluster, host: str) -> None:
    """Set local maintenance on `host`, which has no VM; wait until every other host knows it."""
    done = lab.sh(host, ["ha-agent", "maintenance", "local"])
    assert done.returncode == 0, done.stderr
    ask.until("it goes by it", KNOWN_S, partial(_is_in, lab, host, "LocalMaintenance"))
    read_anew(lab, host)


def _is_in(lab: Cluster, host: str, state: str) -> bool:
    return ask.state(lab, host) == state


def sees_engine(lab: Cluster, asker: str, on: str) -> bool:
    """Whether that host says that the VM is up, and where."""
    engine = ask.status(lab, asker).get("engine", {})
    return engine.get("up") is True and engine.get("host") == host_id_of(on)


def everybody_sees_engine(lab: Cluster, on: str) -> bool:
    """Whether every host that is on says so."""
    return all(sees_engine(lab, asker, on) for asker in lab.census().first)


def has_engine(lab: Cluster, host: str) -> bool:
    """Whether that host's own broker has sampled the VM up there: an order finds it."""
    own = ask.status(lab, host).get("hosts", {}).get(str(host_id_of(host)), {})
    return bool(own.get("engine_status", {}).get("vm") == "up")


def can_take(lab: Cluster, source: str, target: str) -> bool:
    """Whether an order on `source` to move the VM to `target` finds nothing against it there."""
    shown = ask.status(lab, source)
    hosts = shown.get("hosts", {})
    own, other = (hosts.get(str(host_id_of(host)), {}) for host in (source, target))
    return bool(
        own.get("state") == "EngineUp"
        and other.get("state") == "EngineDown"
        and other.get("liveness") == "live"
        and other.get("engine_status", {}).get("vm") == "down"
        and other.get("score", 0) > 0
    )
