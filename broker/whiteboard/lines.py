# SPDX-License-Identifier: LGPL-2.1-or-later
"""The text lines of a host's slot, beyond the reference's fields: how each one is written, and how
it is read from another host, which may have written anything. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from broker.config.addresses import advertised
from broker.daemon.foreign import whole
from broker.whiteboard import vm_lines
from broker.whiteboard.fence_log import LogRecord
from broker.whiteboard.host_ranges import hosts_of, ranges
from broker.whiteboard.mode import Mode, count, from_lines
from broker.whiteboard.slot import SlotReport
from broker.wire.exchange import Report
from broker.wire.intent import Act
from broker.wire.intent import read as read_intent
from broker.wire.status import FenceLogEntry, MeasuredOnWire, ModeStatus, MoveStatus, PenaltyOnWire
from scoring.hosts.state import Seen
from scoring.observation import FenceAsk, OnHostShutdown, PeerReport
from scoring.storage_word import StorageWord
from scoring.vm_facts import ENGINE, OutsideView, PeerVm

#: How a host reaches the VM on another one: that host's id, the stay, how many seconds ago the last
#: well-answered question was asked, and how many seconds ago the first unanswered one since then.
_OUTSIDE = re.compile(r"([0-9]{1,4}) ([0-9]{1,15}) (-|[0-9]{1,9}\.[0-9]) (-|[0-9]{1,9}\.[0-9])")
#: "unstopped 75", or "agent-dead 1200 bad 1180": seconds; " vm 5" behind it where it is not the
#: engine, which an earlier version does not take for an ask.
_FENCE_ASK = re.compile(
    r"(?:unstopped ([0-9]{1,9})|agent-dead ([0-9]{1,9}) bad ([0-9]{1,9}))(?: vm ([0-9]{1,3}))?"
)
#: The largest count in a line; the largest count of starts, half of it; the largest memory, MiB.
COUNT_MAX, LAST_RAN_MAX, MEM_MB_MAX = 10**15 - 1, 5 * 10**14, 10**12 - 1


class Others(NamedTuple):
    """What the other witnesses say of a host; see PeerReport. Made for each host and beat, so of
    the kind that costs least."""

    heartbeat_s: float | None = None
    unanswered_since_s: float | None = None
    renewal_s: float | None = None
    renewal_timestamp: int = 0
    overdue_since_s: float | None = None
    machine_silent_since_s: float | None = None
    machine_heard_s: float | None = None
    storage_word: StorageWord | None = None


@dataclass(frozen=True, slots=True)
class Freeing:
    """Host `by` frees this host's id. `generation`: of its own host id, 0: not known; `boot_id`:
    of its boot, "": not known. `under_lease`: it holds the fence lease for that."""

    by: int
    by_name: str
    generation: int
    boot_id: str
    under_lease: bool = True


@dataclass(frozen=True, slots=True)
class Ways:
    """The addresses that a host publishes: of its port for heartbeats, and of its listener."""

    ports: tuple[str, ...] = ()
    listeners: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.ports or self.listeners)


def measured_lines(measured: MeasuredOnWire) -> dict[str, str]:
    """How long a start and a boot of the VM took on this host, for the bound."""
    both = {"start-s": measured.start_s, "boot-s": measured.boot_s}
    return {key: f"{value:.2f}" for key, value in both.items() if value is not None}


def freeing_lines(host_id: int | None, fencer: bool) -> dict[str, str]:
    """The host id that this host's agent frees; `fencer`: it does so without the fence lease,
    which the dead host owns. Empty where it frees none."""
    if host_id is None:
        return {}
    return {"freeing": str(host_id), "freeing-fencer": "yes" if fencer else ""}


def freeings_of(
    host_id: int, record: LogRecord | None, reports: Iterable[SlotReport]
) -> list[Freeing]:
    """The hosts that announce the freeing of that host's id: in the fence log (`record`: the
    freeing under way there), or in their slots."""
    found = []
    if record is not None and record.target == host_id:
        found.append(
            Freeing(
                record.by, _name(record.by, record.by_name), record.by_generation, record.by_boot
            )
        )
    for report in reports:
        extra = report.extra if report.extra_trusted else {}
        if count_of(extra.get("freeing", "")) == host_id:
            name = _name(report.host_id, report.hostname)
            is_under_lease = not extra.get("freeing-fencer", "")
            boot_id = extra.get("boot-id", "")
            found.append(Freeing(report.host_id, name, 0, boot_id, is_under_lease))
    return found


def _name(host_id: int, hostname: str) -> str:
    return f"{hostname or 'host'} (id {host_id})"


def seconds(text: str | None) -> float | None:
    """A duration in another host's line; None where it is none."""
    found = re.fullmatch(r"[0-9]{1,6}\.[0-9]{2}", text or "")
    return None if found is None else float(found.group())


def intent_line(report: Report, host_id: int, now_s: float) -> str:
    """What this host is about to do; for a move also its source, and how many seconds the other
    hosts should wait for its end, since their clocks differ."""
    found = read_intent(report.intent)
    if report.moving_until_s is None or found is None:
        return report.intent
    return replace(found, source=host_id, left_s=report.moving_until_s - now_s).line


def intent_of(line: str, host_id: int, age_s: float = 0.0) -> tuple[str, MoveStatus | None]:
    """The intent that host `host_id` published `age_s` ago: its words, and the move of the VM that
    it describes. A move whose source is another host is ignored."""
    found = read_intent(line)
    if found is None or found.act is not Act.MIGRATE or found.source not in (None, host_id):
        return line, None
    left_s = None if found.left_s is None else max(0.0, found.left_s - age_s)
    return found.words, MoveStatus(host_id, found.host, left_s)


def outside_line(seen: OutsideView | None, now_s: float) -> str:
    """How this host reaches the VM on another one; ages, since the hosts' clocks differ."""
    if seen is None or (seen.good_s is None and seen.bad_since_s is None):
        return ""
    ages = (
        "-" if at_s is None else f"{max(0.0, now_s - at_s):.1f}"
        for at_s in (seen.good_s, seen.bad_since_s)
    )
    return f"{seen.owner} {seen.stay} {' '.join(ages)}"


def outside_of(line: str, read_s: float) -> OutsideView | None:
    """How another host reaches the VM, from a line that was read at `read_s`; None where the line
    is not valid."""
    found = _OUTSIDE.fullmatch(line)
    if found is None:
        return None
    owner, stay, *ages = found.groups()
    good_s, bad_since_s = (None if age == "-" else read_s - float(age) for age in ages)
    return OutsideView(int(owner), int(stay), good_s, bad_since_s)


def way_out_line(way_out: bool | None) -> str:
    """Whether this host's network leads anywhere; empty: it was not asked."""
    return "" if way_out is None else "good" if way_out else "bad"


def way_out_of(line: str) -> bool | None:
    """Whether another host's network leads anywhere; None: unknown."""
    return {"good": True, "bad": False}.get(line)


def uplink_line(uplink_up: bool | None) -> str:
    """Whether the VM's bridges on this host lead out; empty: unknown, or there are none."""
    return "" if uplink_up is None else "up" if uplink_up else "down"


def uplink_of(line: str) -> bool | None:
    """Whether the VM's bridges on another host lead out; None: unknown."""
    return {"up": True, "down": False}.get(line)


def log_entry(record: LogRecord, signature: str = "") -> FenceLogEntry:
    """A record of the fence log as the status shows it. `signature`: the fault of its signature."""
    return FenceLogEntry(
        record.number,
        record.step.value,
        record.by,
        record.by_name,
        record.target,
        record.target_name,
        record.wall_s,
        record.ordered,
        f"came to nothing: {record.over}; {record.text}" if record.over else record.text,
        signature,
    )


def local_mode_of(report: SlotReport) -> Mode:
    """A host's published local mode; without particulars where it published none."""
    extra = report.extra if report.extra_trusted else {}
    own = {key: value for key, value in extra.items() if key.startswith("mode-")}
    return from_lines({key.removeprefix("mode-"): value for key, value in own.items()})


def mode_of(report: SlotReport) -> ModeStatus | None:
    """Another host's published local mode, for the status."""
    if not report.maintenance:
        return None
    extra = report.extra if report.extra_trusted else {}
    mode = local_mode_of(report)
    left = count(extra.get("mode-left", ""))
    return ModeStatus(
        mode.owner, mode.reason, mode.since_epoch_s, None if left is None else float(left)
    )


def host_shutdown_of(report: SlotReport) -> str:
    """What a host that shuts down does with its VM; "" where it does not shut down."""
    said = report.extra.get("host-shutdown", "") if report.extra_trusted else ""
    return said if said in (OnHostShutdown.MIGRATE, OnHostShutdown.SHUTDOWN) else ""


def peer_report(
    report: SlotReport,
    seen: Seen | None,
    others: Others,
    is_signed: bool = False,
    reaches_of: Callable[[Mapping[str, str]], frozenset[int]] = lambda extra: frozenset(),
) -> PeerReport:
    """A host's slot, and when it was seen to live, as input of a decision. `is_signed`: the slot
    is signed with the cluster's key; only then its request to be switched off counts. `reaches_of`:
    reads PeerReport.reaches from the lines of a host that knows a registry."""
    extra = report.extra if report.extra_trusted else {}
    read_s = seen.since_s if seen is not None and seen.timestamp == report.timestamp else None
    _, move = intent_of(extra.get("intent", ""), report.host_id)
    vms = vm_lines.decode(extra, report.host_id, read_s, is_agent_away(extra))
    until_s = None
    if read_s is not None and move is not None and move.left_s is not None:
        until_s = read_s + move.left_s
    engine = PeerVm(
        report.engine_status,
        state_of(report),
        last_ran_of(extra),
        until_s,
        memory_short_of(extra),
        uplink_of(extra.get("uplink", "")),
    )
    reached = vm_lines.reached_in(extra, read_s)
    if read_s is not None and (outside := outside_of(extra.get("outside", ""), read_s)):
        reached[ENGINE] = outside
    return PeerReport(
        host_id=report.host_id,
        timestamp=report.timestamp,
        score=report.score,
        vms={ENGINE: engine, **vms.vms},
        hostname=report.hostname,
        maintenance=report.maintenance,
        stopped=report.stopped,
        boot_id=extra.get("boot-id", ""),
        read_s=read_s,
        touches=hears_of(extra.get("touches", "")),
        mem_free_mb=mem_free_of(extra.get("mem-free", "")),
        hears=hears_of(extra.get("hears", "")),
        way_out=way_out_of(extra.get("way-out", "")),
        fence_ask=fence_ask_of(extra.get("fence-ask", "")) if is_signed else None,
        claims=vms.claims,
        speaks=vms.speaks,
        registry=vms.registry,
        total_mb=vms.memory.total_mb,
        free_mb=vms.memory.free_mb,
        free_huge_mb=vms.memory.free_huge_mb,
        host_score=vms.host_score,
        reached=reached,
        reaches=reaches_of(extra) if vms.registry else frozenset(),
        **others._asdict(),
    )


def with_others(peer: PeerReport, others: Others) -> PeerReport:
    """Adds to a slot what the other witnesses say of its host by now."""
    return replace(peer, **others._asdict())


def fence_ask_line(ask: FenceAsk | None) -> str:
    """The request to be switched off, as a line of this host's slot; empty: there is none."""
    if ask is None:
        return ""
    of_vm = "" if ask.vm == ENGINE else f" vm {ask.vm}"
    if ask.unstopped_s is not None:
        return f"unstopped {ask.unstopped_s:.0f}{of_vm}"
    assert ask.agent_dead_s is not None and ask.bad_s is not None
    return f"agent-dead {ask.agent_dead_s:.0f} bad {ask.bad_s:.0f}{of_vm}"


def fence_ask_of(text: str) -> FenceAsk | None:
    """What another host wrote of it; None where it is nothing of the kind."""
    found = _FENCE_ASK.fullmatch(text)
    if found is None:
        return None
    *seconds, vm = found.groups()
    unstopped, dead, bad = (None if each is None else float(each) for each in seconds)
    return FenceAsk(unstopped, dead, bad, ENGINE if vm is None else int(vm))


def memory_short_line(penalties: Iterable[PenaltyOnWire]) -> str:
    """Whether this host is short of memory for the VM by its own score; empty: it is not."""
    return "yes" if any(penalty.name == "memory" for penalty in penalties) else ""


def memory_short_of(extra: Mapping[str, str]) -> bool:
    """Whether another host is. An earlier version says so by the sentence of its penalty alone,
    which gives way where its slot is full."""
    return extra.get("memory-short", "") == "yes" or "penalty-memory" in extra


def mem_free_line(mem_free_mb: float | None) -> str:
    """The memory that a new VM could get here, in whole MiB; empty where it is unknown."""
    return "" if mem_free_mb is None else str(max(0, int(mem_free_mb)))


def mem_free_of(text: str) -> float | None:
    """The memory that a new VM could get there, MiB; None where the host published none."""
    found = whole(text, MEM_MB_MAX)
    return None if found is None else float(found)


def ways_of(report: SlotReport) -> Ways | None:
    """The addresses at which a host answers heartbeats; None where its lines are not trusted."""
    if not report.extra_trusted:
        return None
    extra = report.extra
    return Ways(advertised(extra.get("heartbeat", "")), advertised(extra.get("api", "")))


def hears_line(hosts: Iterable[int]) -> str:
    """The hosts that have answered this one over the network in the last seconds."""
    return ",".join(ranges(hosts))


def hears_of(text: str) -> frozenset[int]:
    """The hosts that have answered another host, by its own line."""
    return frozenset(hosts_of(text))


def state_of(report: SlotReport) -> str:
    """The state of another host's agent; "" where it published none, or where that agent is away:
    what it was about to do is then not done."""
    extra = report.extra if report.extra_trusted else {}
    return "" if is_agent_away(extra) else extra.get("state", "")


def is_agent_away(extra: Mapping[str, str]) -> bool:
    """Whether the agent of another host does not act any more, by its lines."""
    agent = extra.get("agent", "")
    return agent == "stopped" or agent.startswith("silent")


def penalties_of(extra: Mapping[str, str]) -> list[PenaltyOnWire]:
    """The penalties that another host published."""
    parts = []
    for key, value in extra.items():
        name, _, why = value.partition(" ")
        if key.startswith("penalty-"):
            parts.append(PenaltyOnWire(key.removeprefix("penalty-"), count_of(name), why))
    return parts


def last_ran_of(extra: Mapping[str, str]) -> int:
    """How often the VM had been started when this host ran it last; 0: it never did. The next
    host counts on from the largest, so there must be room above any value that is accepted."""
    return min(count_of(extra.get("last-ran", "")), LAST_RAN_MAX)


def count_of(text: str) -> int:
    """A count that another host wrote, 0 where it is none or above COUNT_MAX."""
    return whole(text, COUNT_MAX) or 0
