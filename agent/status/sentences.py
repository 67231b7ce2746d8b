# SPDX-License-Identifier: LGPL-2.1-or-later
"""Parts of the status in words. Its imports are cheap, since `ha-agent --status` loads it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from broker.wire.status import (
        Bound,
        FenceLogEntry,
        HostStatus,
        ModeStatus,
        Status,
        WitnessStatus,
    )

#: Penalties of a host that cannot start the VM, or failed to, with the words before the reason.
_CANNOT = {
    "cannot-start": "cannot start the VM",
    "retries": "failed to start the VM",
    "cut-off": "is no standby",
}


def cannot(host: HostStatus) -> list[str]:
    """Why a host cannot start the VM, or failed to: a sentence for each reason."""
    return [f"{_CANNOT[p.name]}: {p.why}" for p in host.penalties if p.name in _CANNOT]


def is_cut_off(host: HostStatus) -> bool:
    """Whether nobody would reach the VM on that host, as the host itself published."""
    return any(p.name == "cut-off" for p in host.penalties)


def proven_off(status: Status, host: HostStatus) -> str:
    """By whom and when a silent host was proven to be off; empty: it was not, or it is back."""
    # The newest stands first. A record whose signature is at fault proves nothing.
    found = (
        one
        for one in status.fence_log
        if one.target == host.host_id and one.step != "intent" and not one.signature
    )
    newest = next(found, None)
    if host.liveness != "silent" or newest is None or newest.step not in ("dead", "freeing"):
        return ""
    when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(newest.at))
    return f"power off, proven by {newest.by_name} at {when}"


def duration(seconds: float) -> str:
    """A duration for people: the two largest units."""
    whole = int(seconds)
    for unit_s, unit, next_s, next_unit in (
        (86_400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= unit_s:
            return f"{whole // unit_s} {unit} {whole % unit_s // next_s} {next_unit}"
    return f"{whole} s"


def switched_off(entry: FenceLogEntry) -> str:
    """Why this host was switched off, in a sentence."""
    when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(entry.at))
    by = f"{entry.by_name} (id {entry.by})"
    if entry.ordered:
        return f"{by} switched this host off at {when}, so that its VM could run elsewhere"
    return f"{by} found this host without power at {when} and freed its host id"


def if_it_dies(found: Bound, hostname: str, name: str = "the VM") -> str:
    """What would happen to the VM, called `name`, if its host died now."""
    if found.held:
        return f"if {hostname} dies now, {name} is NOT started: {found.held}"
    parts = f"detect {found.detect_s:.1f} + prove {found.prove_s:.1f} + lease {found.lease_s:.1f}"
    if found.total_s is None:
        text = f"{parts} s + the boot, which was not measured yet"
    else:
        text = f"about {found.total_s:.0f} s: {parts} + boot {found.boot_s:.1f}"
    return f"if {hostname} dies now, {name} answers in {text} (proof by {found.by})"


def host_shutdown(host: HostStatus) -> str:
    """A host that shuts down, or was shut down, and what happens to its VM."""
    name = host.hostname
    if host.liveness == "silent":
        if not host.stopped:
            return f"SHUT DOWN: {name} was shutting down when it fell silent"
        since = "" if host.age_s is None else f" {duration(host.age_s)} ago"
        return f"SHUT DOWN: {name} was shut down{since}, in order"
    if host.engine_status.vm != "up":
        return f"SHUTTING DOWN: {name} is shutting down; the VM does not run there"
    what = "is moved away first" if host.host_shutdown == "migrate" else "is shut down first"
    return f"SHUTTING DOWN: {name} is shutting down; the VM {what}"


def outside(status: Status) -> str:
    """Which hosts reach the VM as its users do; empty: no host ever has on this host and stay."""
    parts = []
    for host in status.hosts.values():
        seen = host.outside
        if seen is None or seen.owner != status.engine.host or host.liveness == "silent":
            continue
        who = host.hostname
        if seen.bad_s is None and seen.good_age_s is not None:
            parts.append(f"by {who} {duration(seen.good_age_s)} ago")
        elif seen.bad_s is not None and seen.good_age_s is not None:
            network = {True: ", its network is good", False: ", its own network is bad"}
            why = network.get(host.way_out, "") if host.way_out is not None else ""
            parts.append(f"not by {who} for {duration(seen.bad_s)}{why}")
    return "; ".join(parts)


def mode(given: ModeStatus | None) -> str:
    """Who set a maintenance mode, when, why, and until when; begins with its separator."""
    if given is None:
        return ""
    text = ""
    if given.owner:
        text += f"; set by {given.owner}"
    if given.since is not None:
        text += time.strftime(" at %Y-%m-%d %H:%M UTC", time.gmtime(given.since))
    if given.reason:
        text += f": {given.reason}"
    if given.left_s is None:
        return f"{text}; it has no end"
    return f"{text}; ends in {duration(given.left_s)}{', SOON' if given.ends_soon else ''}"


#: The words for a heartbeat that has no age.
_HEARTBEAT = {
    "no-key": "network not asked: no cluster-key",
    "not-advertised": "network not asked: it advertises no address",
    "not-asked": "network not asked yet",
}


def witnesses(seen: WitnessStatus) -> str:
    """The observations of each witness of a host's life, with their ages."""
    age_s = seen.whiteboard_age_s
    parts = ["whiteboard never changed" if age_s is None else f"whiteboard {duration(age_s)}"]
    if seen.unanswered_s is not None:
        parts.append(f"network {duration(seen.unanswered_s)} without answer")
    elif seen.heartbeat_age_s is not None:
        parts.append(f"network answered {duration(seen.heartbeat_age_s)} ago")
    else:
        parts.append(_HEARTBEAT.get(seen.heartbeat, seen.heartbeat))
    if seen.renewal_age_s is None:
        parts.append(f"sanlock: {seen.sanlock_state}")
    else:
        parts.append(f"sanlock renewed {duration(seen.renewal_age_s)} ago")
    return ", ".join(parts)


def last_word(status: Status, host: HostStatus) -> str:
    """How old the row of a host that is not live is, in words that follow the host's name."""
    if status.storage.blind and not host.local:
        age = "" if host.age_s is None else f", its last word is {duration(host.age_s)} old"
        return f"cannot be read from here{age}"
    if status.storage.blind:
        return "is this host: it cannot read the whiteboard, and takes no VM over"
    if host.liveness == "silent":
        return f"is silent{'; it was stopped in good order' if host.stopped else ''}"
    return "was not seen to write yet"
