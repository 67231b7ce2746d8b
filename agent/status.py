# SPDX-License-Identifier: LGPL-2.1-or-later
"""`ha-agent --status`: the cluster as this host's broker sees it, for people or as JSON."""

from __future__ import annotations

import time

from agent.columns import printable as _printable
from agent.columns import table as _table
from broker.client import ask
from broker.exit_codes import ExitCode
from broker.wire import Bound, FenceLogEntry, HostStatus, ModeStatus, Status, WitnessStatus

#: Monitors whose silence is worth a line; the others say little by being unknown.
_MATTERS = frozenset({"engine", "memory", "definition"})
#: A way to a fence device that was not proven for so long is worth a line.
FENCE_PATH_OLD_S = 86_400.0
_HEAD = ("", "ID", "HOST", "STATE", "SCORE", "ENGINE", "AGE", "WHY")


def run(socket_path: str, as_json: bool) -> int:
    """Print it; OK, or ENGINE_DOWN when no live host has the VM up. Raises as `ask` does."""
    status = ask(socket_path, "GET", "/v1/status", Status)
    if as_json:
        import msgspec

        print(msgspec.json.format(msgspec.json.encode(status), indent=2).decode())
    else:
        print(as_text(status))
    return ExitCode.OK if status.engine.up else ExitCode.ENGINE_DOWN


def as_text(status: Status) -> str:
    """The first lines answer: is it up, where, is anything wrong; then a line for each host."""
    lines = [_engine_line(status)]
    if status.global_maintenance:
        lines.append(
            "GLOBAL MAINTENANCE: nothing starts, stops or moves"
            f"{_mode(status.global_mode)} (ha-agent maintenance none)"
        )
    elif status.global_maintenance is None:
        lines.append("whether global maintenance is set has not been read yet")
    lines += [
        f"LOCAL MAINTENANCE on {_printable(host.hostname)}{_mode(host.mode)}"
        for host in status.hosts.values()
        if host.maintenance
    ]
    if status.switched_off is not None:
        lines.append(f"SWITCHED OFF: {switched_off(status.switched_off)} (ha-agent why)")
    lines += [
        f"NOW: {_printable(host.hostname)} is about to {_printable(host.intent)}"
        for host in status.hosts.values()
        if host.intent and host.liveness == "live"
    ]
    lines += _fence_paths(status)
    lines += [
        f"{_printable(host.hostname)} is silent: {_witnesses(host.witnesses)}"
        for host in status.hosts.values()
        if host.liveness == "silent" and host.witnesses is not None
    ]
    if status.config_problem:
        lines.append(f"CONFIGURATION: an older one is in force: {status.config_problem}")
    if status.network:
        lines.append(f"NETWORK: {_printable(status.network)}")
    lines += [
        f"MONITOR {name} is {monitor.verdict}: {_printable(monitor.problem)}"
        for name, monitor in status.monitors.items()
        if name != "network"  # it has its line above, with the other hosts' word in it
        if monitor.verdict == "bad" or (monitor.verdict == "unknown" and name in _MATTERS)
    ]
    if status.storage.problem:
        storage = status.storage
        since = "" if storage.trouble_s is None else f" for {storage.trouble_s:.0f} s"
        lines.append(f"STORAGE {storage.state}{since}: {storage.problem}")
    budget_s = status.lockspace_budget_s
    if budget_s is not None and budget_s < status.lockspace_budget_max_s / 2:
        lines.append(
            f"LEASE: this host's id was not renewed for long; sanlock ends the VM here in"
            f" {budget_s:.0f} s"
        )
    if status.lockspace != "joined":
        lines.append(f"LOCKSPACE: {status.lockspace}")
    lines += [f"BAD SLOT {slot}: {cause}" for slot, cause in status.bad_slots.items()]
    if status.bound is not None:
        lines.append(as_sentence(status.bound, status.engine.hostname or ""))
    lines.append("")
    lines += _table([_HEAD, *(_row(host) for host in status.hosts.values())])
    if status.reasons:
        lines.append("")
        lines.append("this host: " + "; ".join(reason.text for reason in status.reasons))
    return "\n".join(lines)


def _fence_paths(status: Status) -> list[str]:
    """A line for each way to a fence device that was not proven for long."""
    lines = []
    for path in status.fence_paths:
        if path.proven_age_s is not None and path.proven_age_s < FENCE_PATH_OLD_S and path.ok:
            continue
        since = "never" if path.proven_age_s is None else f"{duration(path.proven_age_s)} ago"
        who = "itself" if path.by == path.host else f"by host {path.by}"
        lines.append(
            f"FENCE PATH of host {path.host} {who}: last proven {since}: "
            f"{_printable(path.detail) or 'not tried for long'}"
        )
    return lines


def switched_off(entry: FenceLogEntry) -> str:
    """Why this host was switched off, in a sentence."""
    when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(entry.at))
    by = f"{_printable(entry.by_name)} (id {entry.by})"
    if entry.ordered:
        return f"{by} switched this host off at {when}: it hung while the VM was its own"
    return f"{by} found this host without power at {when} and freed its host id"


def as_sentence(found: Bound, hostname: str) -> str:
    """What would become of the VM if its host died now."""
    parts = f"detect {found.detect_s:.1f} + prove {found.prove_s:.1f} + lease {found.lease_s:.1f}"
    if found.total_s is None:
        text = f"{parts} s + the boot, which was not measured yet"
    else:
        text = f"about {found.total_s:.0f} s: {parts} + boot {found.boot_s:.1f}"
    where = _printable(hostname)
    return f"if {where} dies now, the VM answers in {text} (proof by {found.by})"


def _engine_line(status: Status) -> str:
    engine = status.engine
    if not engine.up:
        return f"{status.cluster}: the engine is DOWN: no live host has it up"
    health = "up and healthy" if engine.healthy else "up, not healthy"
    return f"{status.cluster}: the engine is {health} on {engine.hostname} (id {engine.host})"


#: What to say of a heartbeat that has no age.
_HEARTBEAT = {
    "no-key": "network not asked: no cluster-key",
    "not-advertised": "network not asked: it advertises no address",
    "not-asked": "network not asked yet",
}


def _witnesses(seen: WitnessStatus) -> str:
    """What each witness of a host's life says, with its age."""
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


def _mode(mode: ModeStatus | None) -> str:
    """Who set it, when, why, and until when."""
    if mode is None:
        return ""
    text = ""
    if mode.owner:
        text += f"; set by {_printable(mode.owner)}"
    if mode.since is not None:
        text += time.strftime(" at %Y-%m-%d %H:%M UTC", time.gmtime(mode.since))
    if mode.reason:
        text += f": {_printable(mode.reason)}"
    if mode.left_s is None:
        return f"{text}; it has no end"
    return f"{text}; ends in {duration(mode.left_s)}{', SOON' if mode.ends_soon else ''}"


def duration(seconds: float) -> str:
    """For people: the two largest units."""
    whole = int(seconds)
    for unit_s, unit, next_s, next_unit in (
        (86_400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= unit_s:
            return f"{whole // unit_s} {unit} {whole % unit_s // next_s} {next_unit}"
    return f"{whole} s"


def _row(host: HostStatus) -> tuple[str, ...]:
    why = [f"{part.name} -{part.points}" for part in host.penalties]
    if host.liveness != "live":
        why.insert(0, host.liveness.upper())
    if host.maintenance:
        why.insert(0, "local maintenance")
    if host.agent not in ("", "ok"):
        why.append(f"agent {host.agent}")
    status = host.engine_status
    engine = f"{status.vm.value}/{status.health.value}"
    if host.domain_type and status.vm == "up":
        engine += f" ({host.domain_type})"
    age = "?" if host.age_s is None else f"{host.age_s:.0f} s"
    return (
        "*" if host.local else "",
        str(host.host_id),
        _printable(host.hostname),
        host.state or "?",
        str(host.score),
        engine,
        age,
        _printable(", ".join(why)),
    )
