# SPDX-License-Identifier: LGPL-2.1-or-later
"""What speaks for the life or death of a silent host that owns the engine lease.

The witnesses: its slot on the whiteboard, the renewals of its host id by its sanlock, its
answers on the network, those of its kernel and of the engine there, the power that its fence
device reads. The first two go over the storage: before anybody is switched off the network, a way
of its own, must be silent too. So are the other hosts' ears: a link that is cut makes one host
deaf, not another one dead. One that speaks for its life outweighs all that are silent: a host
without a broker keeps its VM, and its sanlock renews; a host without storage answers on the network
until its own sanlock ends its VM.
"""

from __future__ import annotations

from dataclasses import dataclass

from scoring.hosts import fence_ask
from scoring.hosts.state import Takeover
from scoring.observation import FenceAsk, FenceRecord, FenceStep, LeaseAnswer, PeerReport, Power
from scoring.rules import Rules
from scoring.storage_word import StorageWord
from scoring.vm_facts import ENGINE, Health, is_well

#: Readings of "off" that prove a power-off.
OFFS_NEEDED = 2
#: A reading of "on" that is older says nothing about now.
READING_OLD_S = 10.0
#: A renewal that was made before the slot stood still is seen so much later at most: the delta
#: lease of a quiet host is read from the volume every second.
RENEWAL_SEEN_LATE_S = 5.0
#: The slot of a machine that stops and the answers of its broker end within so long of each other:
#: a beat and a half.
TOGETHER_S = 1.5
#: So much later than its broker its kernel may have answered for the last time: they are asked in
#: turn, four times a second.
OUTLIVES_S = 0.5
#: When another host had an answer of the VM is known to about a beat there and one here.
REACHED_LATE_S = 2.0
#: So many beats a slot must have missed before its host's id is freed: the readings may have begun
#: on a weaker sign (scoring/hosts/early.py).
FREE_BEATS = 2.0


@dataclass(frozen=True, slots=True)
class Precondition:
    """One thing that must be true before an act that cannot be taken back, and its value now."""

    name: str
    holds: bool
    value: str


def evidence_text(conditions: tuple[Precondition, ...]) -> str:
    """All of them with their values, for the log."""
    return "; ".join(f"{condition.name}: {condition.value}" for condition in conditions)


@dataclass(frozen=True, slots=True)
class Evidence:
    """One beat's knowledge of a silent owner. Times are of this host's monotonic clock.

    `peer`: its slot, None where it has none. `slot_since_s`: since when that stands still.
    `looked_since_s`: since when this host reads the whiteboard without a gap. `heard_by`: the live
    hosts that say that it answers them over the network. `fence_log`: see
    Observation. `ask`: it lives, and is to be switched off by its own word (None: it is not, see
    scoring/hosts/fence_ask.py); `reached_by`: who had an answer of the VM there of late, from
    outside; `reached_s`: when the last question was asked that was answered so (None: none was).
    `touched_by`: the live hosts whom its machine, or the engine there, answers. `network_good_s`:
    when this host's own network was last seen to work (None: it was not). `word`: it has lost the
    storage, and no VM is left on it, by its own word (scoring/hosts/storage_lost.py).
    The rest is as in Observation.
    """

    lease: LeaseAnswer
    peer: PeerReport | None
    slot_since_s: float | None
    looked_since_s: float | None
    fence_lease_held: bool
    global_maintenance: bool | None
    fence_log: tuple[FenceRecord, ...] | None
    heard_by: tuple[str, ...] = ()
    ask: FenceAsk | None = None
    reached_by: tuple[str, ...] = ()
    reached_s: float | None = None
    touched_by: tuple[str, ...] = ()
    network_good_s: float | None = None
    word: StorageWord | None = None

    @property
    def heartbeat_s(self) -> float | None:
        """When it was last asked over the network and answered."""
        return None if self.peer is None else self.peer.heartbeat_s

    @property
    def answers(self) -> bool:
        """Whether it answered the last question over the network."""
        return self.heartbeat_s is not None and (
            self.peer is not None and self.peer.unanswered_since_s is None
        )


def renewal_patience_s(rules: Rules) -> float:
    """How long a host id must stand still before sanlock on that host counts as silent.

    It renews every 2 * io_timeout (sanlock's src/timeouts.h, id_renewal_seconds); half an
    io_timeout is left for the writing.
    """
    return max(rules.timing.fence_after, 2.5 * rules.io_timeout_s)


def hangs(renewed_s: float | None, evidence: Evidence, now_s: float, rules: Rules) -> bool:
    """Whether its machine is known to hang before its sanlock has been silent for long enough.

    A sanlock that lives may not renew for 2 * io_timeout, so its silence says nothing for that
    long. A kernel answers at once or not at all. All of this must be true:

    1. For `fence_after` neither its kernel nor the engine there has answered this host, both of
       which had answered it just before.
    2. This host's own network has worked meanwhile.
    3. No other host says that its kernel or the engine there answers.
    4. All ended together, as they do where a machine stops, and not one by one, as where a broker
       dies and then a cable breaks: its slot and the answers of its broker; and its kernel did not
       outlive its broker.
    5. Its host id (`renewed_s`) was not renewed since.
    """
    peer, slot_s, network_s = evidence.peer, evidence.slot_since_s, evidence.network_good_s
    if peer is None or slot_s is None or network_s is None or renewed_s is None:
        return False
    since_s, heard_s, kernel_s = (
        peer.machine_silent_since_s,
        peer.heartbeat_s,
        peer.machine_heard_s,
    )
    if since_s is None or heard_s is None or kernel_s is None:
        return False
    reached_s = evidence.reached_s
    return (
        now_s - since_s >= rules.timing.fence_after
        and network_s >= since_s
        and not evidence.touched_by
        and (reached_s is None or reached_s - since_s <= REACHED_LATE_S)
        and abs(heard_s - slot_s) <= TOGETHER_S
        and kernel_s - heard_s <= OUTLIVES_S
        and renewed_s - slot_s <= RENEWAL_SEEN_LATE_S
    )


def renews(renewal_s: float | None, slot_since_s: float | None, now_s: float, rules: Rules) -> bool:
    """Whether a silent host's sanlock goes on renewing its host id: so its machine lives, and a VM
    that it had most likely runs there.

    `renewal_s`: when its present renewal was first seen; `slot_since_s`: since when its slot
    stands still. The last renewal of a host that died is no sign of life.
    """
    if renewal_s is None or slot_since_s is None:
        return False
    came_later = renewal_s - slot_since_s > RENEWAL_SEEN_LATE_S
    return came_later and now_s - renewal_s < renewal_patience_s(rules)


def renewal_since_s(takeover: Takeover, evidence: Evidence) -> float | None:
    """Since when its host id stands still as it is on disk; None where it was not read yet.

    Two look at it, this agent and its broker, and not at the same moment: where they saw different
    renewals the one that came later counts.
    """
    peer, since_s = evidence.peer, takeover.renewal_since_s
    if takeover.renewal is None or peer is None or peer.renewal_s is None:
        return since_s
    if peer.renewal_timestamp == takeover.renewal[1]:
        return peer.renewal_s
    return None if since_s is None else max(since_s, peer.renewal_s)


def may_free(
    takeover: Takeover, evidence: Evidence, now_s: float, rules: Rules
) -> tuple[Precondition, ...]:
    """Everything that must be true before the host id may be freed; the order is the log's."""
    last_s = takeover.offs[-1].read_s if takeover.offs else None
    fence_since_s = takeover.fence_since_s
    return (
        _no_global_maintenance(evidence),
        _fence_lease_held(evidence),
        *_proven_off(takeover, evidence, now_s, rules),
        _misses_beats(takeover, evidence, now_s, rules),
        Precondition(
            "read-while-holding",
            last_s is not None and fence_since_s is not None and last_s >= fence_since_s,
            f"last read at {last_s}, fence lease held since {fence_since_s}",
        ),
    )


def _misses_beats(
    takeover: Takeover, evidence: Evidence, now_s: float, rules: Rules
) -> Precondition:
    """A device that lies, and a packet that is lost, must not be enough. Where this host has
    switched it off itself, more was known before."""
    since_s, least_s = evidence.slot_since_s, FREE_BEATS * rules.timing.beat
    is_late = since_s is not None and now_s - since_s >= least_s
    return Precondition(
        "slot-missed-beats",
        is_late or takeover.ordered_s is not None,
        f"slot changed at {since_s}, at least {least_s:g} s ago unless ordered off",
    )


def may_free_fencer(
    takeover: Takeover, evidence: Evidence, announced: int | None, now_s: float, rules: Rules
) -> tuple[Precondition, ...]:
    """Everything that must be true before the id of a host that owns the fence lease may be freed
    (scoring/hosts/dead_fencer.py). `takeover`: what is known of that host; `evidence.lease`: of the
    fence lease. `announced`: the host whose id this host frees without the fence lease, as its slot
    on the storage says."""
    return (
        _no_global_maintenance(evidence),
        Precondition(
            "announced",
            announced == takeover.host_id,
            f"this host's slot says so of {announced or 'nobody'}",
        ),
        *_proven_off(takeover, evidence, now_s, rules),
    )


def _proven_off(
    takeover: Takeover, evidence: Evidence, now_s: float, rules: Rules
) -> tuple[Precondition, ...]:
    """What proves that a host which owns a lease is off."""
    offs, lease = takeover.offs, evidence.lease
    first_s, last_s = (offs[0].read_s, offs[-1].read_s) if offs else (None, None)
    signs = [
        at_s
        for at_s in (evidence.slot_since_s, evidence.heartbeat_s)
        if at_s is not None and first_s is not None and at_s >= first_s
    ]
    return (
        Precondition(
            "power-off-read-twice", len(offs) >= OFFS_NEEDED, f"{len(offs)} of {OFFS_NEEDED}"
        ),
        Precondition(
            "read-fresh",
            last_s is not None and now_s - last_s <= rules.io_timeout_s,
            f"last read at {last_s}, now {now_s}, at most {rules.io_timeout_s} s ago",
        ),
        Precondition(
            "device-proven-its",
            bool(offs) and all(off.identity_proven for off in offs),
            "system GUID equals the published one" if offs else "no reading",
        ),
        Precondition(
            "no-sign-of-life-since",
            not signs,
            f"first read at {first_s}, slot changed at {evidence.slot_since_s}, "
            f"answered at {evidence.heartbeat_s}",
        ),
        _lease_owner_known(takeover, lease),
    )


def may_power_off(
    takeover: Takeover, evidence: Evidence, now_s: float, rules: Rules
) -> tuple[Precondition, ...]:
    """Everything that must be true before a host is switched off; the order is the log's.

    Those that only time or this host's own next step brings stand last. A host that asks for it
    itself need not be silent, but its VM must be sick by all that is known; one that has lost the
    storage, and has no VM any more, may answer on the network.
    """
    if evidence.ask is not None:
        return _may_power_off_as_asked(takeover, evidence, evidence.ask, now_s, rules)
    if evidence.word is not None:
        return _may_power_off_without_storage(takeover, evidence, evidence.word, now_s, rules)
    timing, peer = rules.timing, evidence.peer
    after_s = timing.fence_after
    renewed_s = renewal_since_s(takeover, evidence)
    unanswered_s = None if peer is None else peer.unanswered_since_s
    is_hung = hangs(renewed_s, evidence, now_s, rules)
    patience_s = after_s if is_hung else renewal_patience_s(rules)
    return (
        *_never_without(takeover, evidence, rules),
        Precondition(
            "network-witness",
            evidence.heartbeat_s is not None,
            "it has answered on the network" if evidence.heartbeat_s is not None else "none",
        ),
        Precondition(
            "nobody-hears-it",
            not evidence.heard_by,
            ", ".join(evidence.heard_by) or "no live host says that it answers",
        ),
        Precondition(
            "does-not-answer",
            unanswered_s is not None and now_s - unanswered_s >= after_s,
            f"last answered at {evidence.heartbeat_s}, without answer since {unanswered_s}",
        ),
        _own_storage_fine(evidence, now_s, after_s),
        _slot_stands_still(evidence, now_s, after_s),
        _does_not_renew(
            renewed_s, patience_s, now_s, ", for its kernel answers nobody" if is_hung else ""
        ),
        _log_allows(evidence, now_s, rules),
        _fence_lease_held(evidence),
        _reads_on(takeover, now_s),
    )


def _may_power_off_as_asked(
    takeover: Takeover, evidence: Evidence, ask: FenceAsk, now_s: float, rules: Rules
) -> tuple[Precondition, ...]:
    """All but the silence: the host lives, and asks for it (scoring/hosts/fence_ask.py)."""
    health = Health.UNKNOWN if evidence.peer is None else evidence.peer.engine.report.health
    vms = {} if evidence.peer is None else evidence.peer.vms
    well = [n for n, its in sorted(vms.items()) if n != ENGINE and is_well(its.report)]
    return (
        *_never_without(takeover, evidence, rules),
        Precondition("asks-for-it", fence_ask.is_asked(ask, rules), fence_ask.in_words(ask)),
        Precondition("its-vm-is-sick", health is Health.BAD, f"health {health} by its own check"),
        Precondition(
            "no-other-vm-is-well-there",
            not well,
            ", ".join(f"VM {number}" for number in well) or "no other VM is up there, and not sick",
        ),
        Precondition(
            "nobody-reaches-its-vm",
            not evidence.reached_by,
            ", ".join(evidence.reached_by) or "no live host had an answer of it of late",
        ),
        _own_storage_fine(evidence, now_s, rules.timing.fence_after),
        _log_allows(evidence, now_s, rules),
        _fence_lease_held(evidence),
        _reads_on(takeover, now_s),
    )


def _may_power_off_without_storage(
    takeover: Takeover, evidence: Evidence, word: StorageWord, now_s: float, rules: Rules
) -> tuple[Precondition, ...]:
    """All but its silence on the network: it says there that it has lost the storage, and no VM is
    left on it (scoring/hosts/storage_lost.py). What goes over the storage must be silent as ever.
    """
    lost_s = word.lost_s or 0.0
    return (
        *_never_without(takeover, evidence, rules),
        Precondition(
            "lost-its-storage",
            lost_s > 0,
            f"for {lost_s:.0f} s and no VM is left there, as it said at {word.heard_s}",
        ),
        _own_storage_fine(evidence, now_s, rules.timing.fence_after),
        _slot_stands_still(evidence, now_s, rules.timing.fence_after),
        _does_not_renew(renewal_since_s(takeover, evidence), renewal_patience_s(rules), now_s),
        _log_allows(evidence, now_s, rules),
        _fence_lease_held(evidence),
        _reads_on(takeover, now_s),
    )


def _slot_stands_still(evidence: Evidence, now_s: float, after_s: float) -> Precondition:
    since_s = evidence.slot_since_s
    return Precondition(
        "slot-stands-still",
        since_s is not None and now_s - since_s >= after_s,
        f"since {since_s}, at least {after_s:g} s",
    )


def _does_not_renew(
    renewed_s: float | None, patience_s: float, now_s: float, why: str = ""
) -> Precondition:
    return Precondition(
        "does-not-renew",
        renewed_s is not None and now_s - renewed_s >= patience_s,
        f"host id renewed at {renewed_s}, at least {patience_s:g} s ago{why}",
    )


def _never_without(
    takeover: Takeover, evidence: Evidence, rules: Rules
) -> tuple[Precondition, ...]:
    """What forbids to switch a host off whether it is silent or asks for it."""
    peer = evidence.peer
    return (
        Precondition("allowed", rules.fence_power_off, "fence.power-off is set"),
        _no_global_maintenance(evidence),
        Precondition(
            "not-stopped-in-order", peer is not None and not peer.stopped, "what its slot says"
        ),
        Precondition(
            "not-in-maintenance", peer is not None and not peer.maintenance, "what its slot says"
        ),
        _lease_owner_known(takeover, evidence.lease),
    )


def _own_storage_fine(evidence: Evidence, now_s: float, after_s: float) -> Precondition:
    looked_s = evidence.looked_since_s
    return Precondition(
        "own-storage-fine",
        looked_s is not None and now_s - looked_s >= after_s,
        f"read without a gap since {looked_s}, at least {after_s:g} s",
    )


def _reads_on(takeover: Takeover, now_s: float) -> Precondition:
    power, fence_since_s = takeover.power, takeover.fence_since_s
    holds = (
        power is not None
        and power.power is Power.ON
        and power.identity_proven
        and fence_since_s is not None
        and fence_since_s <= power.read_s
        and now_s - power.read_s <= READING_OLD_S
    )
    value = "not read" if power is None else f"{power.power.value} at {power.read_s}"
    return Precondition("reads-on-while-holding", holds, value)


def _no_global_maintenance(evidence: Evidence) -> Precondition:
    value = evidence.global_maintenance
    return Precondition("no-global-maintenance", value is False, str(value))


def _fence_lease_held(evidence: Evidence) -> Precondition:
    return Precondition(
        "fence-lease-held", evidence.fence_lease_held, str(evidence.fence_lease_held)
    )


def _lease_owner_known(takeover: Takeover, lease: LeaseAnswer) -> Precondition:
    return Precondition(
        "lease-owner-known",
        lease.known and lease.owner == takeover.host_id and lease.owner_generation > 0,
        f"owner {lease.owner}, generation {lease.owner_generation}",
    )


# --- how often hosts may be switched off -----------------------------------------------------

HOUR_S = 3600.0


def _log_allows(evidence: Evidence, now_s: float, rules: Rules) -> Precondition:
    if evidence.fence_log is None or evidence.peer is None:
        return Precondition("fence-log-readable", False, "the fence log was not read")
    wait_s, why = fence_wait(evidence, now_s, rules)
    return Precondition("not-too-often", wait_s <= 0, why)


def fence_wait(evidence: Evidence, now_s: float, rules: Rules) -> tuple[float, str]:
    """How long until this host may be switched off, seconds, and why.

    After the n-th act within an hour, over the whole cluster, fence_backoff doubled n - 1 times;
    after fences_per_hour of them none until the oldest is an hour ago: a fault that all have is
    not cured by switching off. One that somebody began on this very boot of the host is this
    same act: who finishes it needs no new leave. An order that was withdrawn is none.
    """
    assert evidence.peer is not None
    this_act = (evidence.peer.host_id, evidence.peer.boot_id)
    acts: dict[tuple[tuple[int, str], int], float] = {}
    for record in evidence.fence_log or ():
        act = (record.target, record.boot_id)
        if record.step is FenceStep.INTENT and now_s - record.at_s < HOUR_S and act != this_act:
            acts[act, record.by] = record.at_s
        elif record.withdrawn:
            acts.pop((act, record.by), None)
    last_s: dict[tuple[int, str], float] = {}
    for (act, _), at_s in acts.items():
        last_s[act] = max(at_s, last_s.get(act, at_s))
    shots = sorted(last_s.values())
    if not shots:
        return 0.0, "nobody else was switched off within the hour"
    if len(shots) >= rules.fences_per_hour:
        wait_s = shots[-rules.fences_per_hour] + HOUR_S - now_s
        return wait_s, f"{len(shots)} others were switched off within the hour: a fault of all?"
    wait_s = shots[-1] + rules.timing.fence_backoff * 2 ** (len(shots) - 1) - now_s
    why = f"{len(shots)} other(s) within the hour, the last {now_s - shots[-1]:.0f} s ago"
    return wait_s, why


def is_noted(
    fence_log: tuple[FenceRecord, ...] | None, own_id: int, host_id: int, boot_id: str
) -> bool:
    """Whether the log has this host's own intent to switch off that boot of a host, still open: the
    orders of one act need one record, however many they are."""
    about = [
        record
        for record in fence_log or ()
        if (record.by, record.target, record.boot_id) == (own_id, host_id, boot_id)
    ]
    return bool(about) and about[-1].step is FenceStep.INTENT
