# SPDX-License-Identifier: LGPL-2.1-or-later
"""The evidence for the life or death of a silent host that owns a lease, and what must be true
before its host id is freed or it is switched off.

A silent host may be dead, may hang, or may only be unreachable from here; where it still runs the
VM, a second start destroys the disk. No single witness distinguishes these cases, so each of the
two dangerous actions has a list of preconditions that must all hold.

The witnesses: the host's slot on the whiteboard; the renewals of its host id by its sanlock; its
answers on the network; the answers of its kernel and of the engine there; its power, as its fence
device reads it; and what the other hosts hear of it.

Rules:

1. One sign of life outweighs every silence. A host whose broker has ended keeps its VM, and its
   sanlock renews. A host without storage answers on the network until its own sanlock ends its VM.
2. The slot and the renewals both depend on the storage. So the network must be silent as well
   before a host is switched off.
3. What the other hosts hear counts as well: a cut link makes this host deaf, not the other one
   dead.
"""

from __future__ import annotations

from dataclasses import dataclass

from scoring.hosts import fence_ask
from scoring.hosts.fence_rate import fence_wait
from scoring.hosts.state import Takeover
from scoring.hosts.turn import title_of
from scoring.observation import FenceAsk, FenceRecord, LeaseAnswer, PeerReport, Power
from scoring.rules import Rules
from scoring.storage_word import StorageWord
from scoring.vm_facts import Health, VmSpec, is_well

#: Readings of "off" that prove a power-off.
OFFS_NEEDED = 2
#: The greatest age of a reading of "on" that still counts.
READING_OLD_S = 10.0
#: How late this host may see a renewal that was made before the slot stopped changing: the delta
#: lease of a quiet host is read from the volume every second.
RENEWAL_SEEN_LATE_S = 5.0
#: When a machine stops, its last slot and its broker's last answer are at most this far apart: a
#: beat and a half.
TOGETHER_S = 1.5
#: When a machine stops, the last answer of its kernel is at most this much later than the last one
#: of its broker: they are asked in turn, four times a second.
OUTLIVES_S = 0.5
#: How exactly this host knows when another host last reached the VM: about one beat there and one
#: here.
REACHED_LATE_S = 2.0
#: A slot must have missed this many beats before its host's id is freed: the readings may have
#: begun on a weaker sign (scoring/hosts/early.py).
FREE_BEATS = 2.0


@dataclass(frozen=True, slots=True)
class Precondition:
    """One condition that must hold before an action that cannot be undone, and its present
    value."""

    name: str
    holds: bool
    value: str


def evidence_text(conditions: tuple[Precondition, ...]) -> str:
    """All conditions with their values, for the log."""
    return "; ".join(f"{condition.name}: {condition.value}" for condition in conditions)


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known in one beat about a silent owner. Times are of this host's monotonic clock.

    `peer`: its slot (None: it has none). `slot_since_s`: since when the slot has not changed.
    `looked_since_s`: since when this host reads the whiteboard without a gap. `heard_by`: the live
    hosts that publish that the owner answers them over the network. `ask`: the owner lives and asks
    to be switched off (None: it does not; see scoring/hosts/fence_ask.py); `spec`: the VM that it
    asks for, by the registry. `reached_by`: the hosts that have reached that VM there lately, as
    its users do; `reached_s`: when the last such question was asked that a VM there answered (None:
    none was). `touched_by`: the live hosts that the owner's kernel, or the engine there, answers.
    `network_good_s`: when this host's own network was last seen to work (None: it was not). `word`:
    the owner says that it has lost the storage and that no VM is left on it (None: it does not; see
    scoring/hosts/storage_lost.py). `giving_up`: it says so, and that a VM is left (None: it does
    not). `others_reached`: the VMs there, but the one that it asks for,
    that a host has reached lately. The other fields are those of Observation.
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
    giving_up: StorageWord | None = None
    spec: VmSpec | None = None
    others_reached: tuple[int, ...] = ()

    def title(self, host_id: int) -> str:
        """The silent owner for people, with its name where its slot says it."""
        return title_of(host_id, () if self.peer is None else (self.peer,))

    @property
    def ask_in_words(self) -> str:
        """Why it is to be switched off by its own word."""
        assert self.ask is not None
        return fence_ask.in_words(self.ask, "" if self.spec is None else self.spec.name)

    @property
    def heartbeat_s(self) -> float | None:
        """When the last question was asked that it answered over the network."""
        return None if self.peer is None else self.peer.heartbeat_s

    @property
    def answers(self) -> bool:
        """Whether it answered the last question over the network."""
        return self.heartbeat_s is not None and (
            self.peer is not None and self.peer.unanswered_since_s is None
        )


def renewal_patience_s(rules: Rules, owner_io_timeout_s: float = 0.0) -> float:
    """How long a host id must not have been renewed before sanlock on that host counts as silent.

    sanlock renews every 2 * io_timeout (its src/timeouts.h, id_renewal_seconds); half an
    io_timeout is added for the write. `owner_io_timeout_s`: that of the sanlock there, where it is
    known; by mistake it may be another one than here, and then the longer one counts.
    """
    return max(rules.timing.fence_after, 2.5 * max(rules.io_timeout_s, owner_io_timeout_s))


def why_not_hung(renewed_s: float | None, evidence: Evidence, now_s: float, rules: Rules) -> str:
    """What keeps the machine from being known to hang before its sanlock has been silent for long
    enough, for the log; "": it is known.

    A live sanlock may not renew for 2 * io_timeout, so its silence proves nothing for that long. A
    kernel answers at once or not at all. All of this must be true:

    1. For `fence_after` neither the machine's kernel nor the engine on it has answered this host,
       although both had answered just before.
    2. This host's own network has worked meanwhile.
    3. No other host says that the kernel or the engine there answers it, and none has reached a VM
       there since, the engine or another one.
    4. All signs of life ended at the same moment, as they do when a machine stops: the slot, the
       answers of the broker, and the answers of the kernel. They would end at different moments if
       first the broker died and then a cable broke.
    5. The host id (`renewed_s`) has not been renewed since.
    """
    peer, slot_s, network_s = evidence.peer, evidence.slot_since_s, evidence.network_good_s
    if peer is None or slot_s is None or renewed_s is None:
        return "its slot and its renewals have not been seen"
    since_s, heard_s, kernel_s = (
        peer.machine_silent_since_s,
        peer.heartbeat_s,
        peer.machine_heard_s,
    )
    if since_s is None or heard_s is None or kernel_s is None:
        return "its kernel or its VM answers, or one of them did not before"
    if now_s - since_s < rules.timing.fence_after:
        return f"its kernel is silent only since {since_s}"
    if network_s is None or network_s < since_s:
        return f"this host's own network was last seen to work at {network_s}, before {since_s}"
    if evidence.touched_by:
        return f"its kernel answers {', '.join(evidence.touched_by)}"
    if evidence.reached_s is not None and evidence.reached_s - since_s > REACHED_LATE_S:
        return f"its VM answered at {evidence.reached_s}, after {since_s}"
    if abs(heard_s - slot_s) > TOGETHER_S:
        return f"its broker answered last at {heard_s}, its slot changed last at {slot_s}"
    if kernel_s - heard_s > OUTLIVES_S:
        return f"its kernel answered last at {kernel_s}, its broker at {heard_s}"
    if renewed_s - slot_s > RENEWAL_SEEN_LATE_S:
        return f"its slot changed last at {slot_s}, before that renewal"
    return ""


def renews(
    renewal_s: float | None,
    slot_since_s: float | None,
    now_s: float,
    rules: Rules,
    owner_io_timeout_s: float = 0.0,
) -> bool:
    """Whether a silent host's sanlock goes on renewing the host id. Then the machine lives, and its
    VM most likely still runs.

    `renewal_s`: when the present renewal was first seen; `slot_since_s`: since when the slot has
    not changed. The last renewal before a host's death is no sign of life. `owner_io_timeout_s`:
    see `renewal_patience_s`.
    """
    if renewal_s is None or slot_since_s is None:
        return False
    came_later = renewal_s - slot_since_s > RENEWAL_SEEN_LATE_S
    return came_later and now_s - renewal_s < renewal_patience_s(rules, owner_io_timeout_s)


def renewal_since_s(takeover: Takeover, evidence: Evidence) -> float | None:
    """Since when the owner's host id on disk has not been renewed; None: it was not read yet.

    This agent and its broker both read the host id, at different moments. Where they saw different
    renewals, the later one counts.
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
    """Everything that must be true before the host id may be freed, in the order of the log."""
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
    """A lost packet together with a device that reports a wrong power must not be enough to free a
    host id. Where this host has given the order to switch off, stricter conditions held before."""
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
    (scoring/hosts/dead_fencer.py). `takeover`: the memory about that host. `evidence.lease`: the
    answer about the fence lease. `announced`: the host whose id this host frees without the fence
    lease, as its own slot on the storage says."""
    return (
        _no_global_maintenance(evidence),
        Precondition(
            "announced",
            announced == takeover.host_id,
            f"this host's slot announces host {announced}"
            if announced
            else "this host's slot announces none",
        ),
        *_proven_off(takeover, evidence, now_s, rules),
    )


def _proven_off(
    takeover: Takeover, evidence: Evidence, now_s: float, rules: Rules
) -> tuple[Precondition, ...]:
    """The conditions that prove a host off that owns a lease."""
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
    """Everything that must be true before a host is switched off, in the order of the log.

    Conditions that come true with time, or by this host's own next step, stand last. A host that
    asks to be switched off need not be silent, but every check of its VM must say that the VM is
    sick. A host that has lost the storage, and has no VM any more, may answer on the network.
    """
    if evidence.ask is not None:
        return _may_power_off_as_asked(takeover, evidence, evidence.ask, now_s, rules)
    if evidence.word is not None:
        return _may_power_off_without_storage(takeover, evidence, evidence.word, now_s, rules)
    timing, peer = rules.timing, evidence.peer
    after_s = timing.fence_after
    renewed_s = renewal_since_s(takeover, evidence)
    unanswered_s = None if peer is None else peer.unanswered_since_s
    not_hung = why_not_hung(renewed_s, evidence, now_s, rules)
    patience_s = _renewal_patience_s(evidence, rules) if not_hung else after_s
    why = f"; not known to hang: {not_hung}" if not_hung else ", for its kernel answers nobody"
    return (
        *_always_required(takeover, evidence, rules),
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
        _does_not_renew(renewed_s, patience_s, now_s, why),
        _log_allows(evidence, now_s, rules),
        _fence_lease_held(evidence),
        _reads_on(takeover, now_s),
    )


def _may_power_off_as_asked(
    takeover: Takeover, evidence: Evidence, ask: FenceAsk, now_s: float, rules: Rules
) -> tuple[Precondition, ...]:
    """The conditions for a live host that asks to be switched off (scoring/hosts/fence_ask.py):
    all but those of its silence."""
    vms = {} if evidence.peer is None else evidence.peer.vms
    health = vms[ask.vm].report.health if ask.vm in vms else Health.UNKNOWN
    reached = evidence.others_reached
    others = ((n, its.report) for n, its in sorted(vms.items()) if n != ask.vm)
    well = [number for number, report in others if is_well(report) or number in reached]
    is_asked = fence_ask.is_asked(ask, rules, evidence.spec)
    return (
        *_always_required(takeover, evidence, rules),
        Precondition("asks-for-it", is_asked, evidence.ask_in_words),
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
    """The conditions for a host that says over the network that it has lost the storage and that no
    VM is left on it (scoring/hosts/storage_lost.py): all but those of its silence on the network.
    """
    lost_s = word.lost_s or 0.0
    return (
        *_always_required(takeover, evidence, rules),
        Precondition(
            "lost-its-storage",
            lost_s > 0,
            f"for {lost_s:.0f} s and has given its VMs up, as it said at {word.heard_s}",
        ),
        _own_storage_fine(evidence, now_s, rules.timing.fence_after),
        _slot_stands_still(evidence, now_s, rules.timing.fence_after),
        _does_not_renew(
            renewal_since_s(takeover, evidence), _renewal_patience_s(evidence, rules), now_s
        ),
        _log_allows(evidence, now_s, rules),
        _fence_lease_held(evidence),
        _reads_on(takeover, now_s),
    )


def _renewal_patience_s(evidence: Evidence, rules: Rules) -> float:
    return renewal_patience_s(rules, evidence.lease.owner_io_timeout_s)


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


def _always_required(
    takeover: Takeover, evidence: Evidence, rules: Rules
) -> tuple[Precondition, ...]:
    """The conditions of every switching off, whether the host is silent or asks for it."""
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
    is_set = evidence.global_maintenance
    value = "not known" if is_set is None else "set" if is_set else "not set"
    return Precondition("no-global-maintenance", is_set is False, value)


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


def _log_allows(evidence: Evidence, now_s: float, rules: Rules) -> Precondition:
    if evidence.fence_log is None or evidence.peer is None:
        return Precondition("fence-log-readable", False, "the fence log was not read")
    wait_s, why = fence_wait(evidence.fence_log, evidence.peer, now_s, rules)
    return Precondition("not-too-often", wait_s <= 0, why)
