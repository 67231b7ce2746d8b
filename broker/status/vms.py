# SPDX-License-Identifier: LGPL-2.1-or-later
"""The protected VMs in the status, and those that have no place, in words. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from broker.peers.vm_places import VmSeen
from broker.wire.vms import VmEntry, VmWord, WithoutPlace
from scoring.vm.plan import NO_PLAN, NoPlace, Plan, short_of, without_place
from scoring.vm.state import StateName
from scoring.vm_facts import VmSpec, Want

MIB_IN_GIB = 1024
_UP_WORDS: Mapping[str, VmWord] = {
    StateName.ENGINE_STARTING: VmWord.BOOTING,
    StateName.ENGINE_MIGRATING_AWAY: VmWord.MOVING,
    StateName.ENGINE_STOP: VmWord.STOPPING,
    StateName.ENGINE_FORCE_STOP: VmWord.STOPPING,
}
#: States of a machine that starts its VM.
_STARTS = frozenset({StateName.ENGINE_START.value, StateName.ENGINE_STARTING.value})


@dataclass(frozen=True, slots=True)
class Known:
    """What the entries are made from. `specs`: all VMs, the engine too. `seen`: where each is.
    `since`: by VM, for how long that has been so, and whether it was so before the broker looked.
    `plan`: where those go that are missing; `plans`: by host id, where they would go after its
    death. `said`: by VM, why this host's agent does what it does about it; `blocked`: by
    VM that it does not start, what is in the way. `refused`: by VM, why
    this host cannot start it. `differs`: by host id and VM, in what it runs there unlike its
    definition, and `differences`: by VM, each in a sentence, of those that run here.
    `boot_s`: by VM, how long its guest booted last. `name_of`: a host's name. `holds_still`: in
    global maintenance nothing is started. `stays`: VMs that are to leave this host and cannot, or
    not now; `queued`: VMs that leave it after others."""

    specs: tuple[VmSpec, ...]
    seen: Mapping[int, VmSeen]
    name_of: Callable[[int], str]
    since: Mapping[int, tuple[float | None, bool]] = field(default_factory=dict)
    plan: Plan = NO_PLAN
    plans: Mapping[int, Plan] = field(default_factory=dict)
    said: Mapping[int, str] = field(default_factory=dict)
    blocked: Mapping[int, str] = field(default_factory=dict)
    refused: Mapping[int, str] = field(default_factory=dict)
    differs: Mapping[tuple[int, int], tuple[str, ...]] = field(default_factory=dict)
    differences: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    boot_s: Mapping[int, float] = field(default_factory=dict)
    host_id: int = 0
    holds_still: bool = False
    stays: frozenset[int] = frozenset()
    queued: frozenset[int] = frozenset()


def entries(known: Known, now_s: float) -> tuple[VmEntry, ...]:
    """All VMs, by number."""
    without = {each.number: each for each in short_of(known.plan, known.specs)}
    return tuple(
        _entry(known, spec, known.seen[spec.number], without.get(spec.number), now_s)
        for spec in sorted(known.specs, key=lambda spec: spec.number)
    )


def _entry(
    known: Known, spec: VmSpec, seen: VmSeen, without: NoPlace | None, now_s: float
) -> VmEntry:
    place, number = seen.place, spec.number
    word = _word(spec, seen, is_short=without is not None)
    host = place.host
    if word is VmWord.STARTING:
        host = seen.acting
    for_s, at_least = known.since.get(number, (None, False))
    left = {at: until_s - now_s for at, until_s in seen.barred.items() if until_s > now_s}
    return VmEntry(
        number=number,
        name=spec.name,
        priority=spec.priority,
        want=spec.want.value,
        memory_mb=spec.memory_mb,
        state=word,
        up=place.up,
        healthy=place.healthy,
        host=host,
        hostname=None if host is None else known.name_of(host),
        for_s=for_s,
        at_least=at_least,
        reason=_reason(known, spec, seen, word, without, left),
        target=None if seen.word is None or word is not VmWord.MOVING else seen.word.target,
        barred={at: round(left_s, 1) for at, left_s in sorted(left.items())},
        refused=known.refused.get(number, ""),
        order=_order(known, number, place.host),
        after=spec.after,
        apart=spec.apart,
        together=spec.together,
        only=spec.only,
        prefer=spec.prefer,
        stays=place.up is True and host == known.host_id and number in known.stays,
        differs=() if not place.up or host is None else known.differs.get((host, number), ()),
        differences=known.differences.get(number, ()) if host == known.host_id else (),
    )


def _order(known: Known, number: int, host: int | None) -> tuple[int, ...]:
    """The hosts that may take it: now, or after the death of the host where it is up."""
    plan = known.plan if host is None else known.plans.get(host, NO_PLAN)
    return plan.order.get(number, ())


def _word(spec: VmSpec, seen: VmSeen, is_short: bool) -> VmWord:
    state = "" if seen.word is None else seen.word.state
    if seen.place.up:
        return _UP_WORDS.get(state, VmWord.UP)
    if seen.place.up is None:
        return VmWord.UNKNOWN
    if state in _STARTS:
        return VmWord.STARTING
    if spec.want is Want.DOWN:
        return VmWord.OFF
    return VmWord.NO_PLACE if is_short else VmWord.WAITING


def _reason(
    known: Known,
    spec: VmSpec,
    seen: VmSeen,
    word: VmWord,
    without: NoPlace | None,
    left: Mapping[int, float],
) -> str:
    """Why it is not up and healthy, or what is about to happen. `left`: for how many seconds each
    host still pauses after it failed there."""
    said = known.said.get(spec.number, "")
    here = seen.acting == known.host_id
    if word is VmWord.MOVING and seen.word is not None and seen.word.target is not None:
        return f"to {known.name_of(seen.word.target)}"
    if word is VmWord.UNKNOWN:
        return seen.place.known
    if word is VmWord.OFF:
        return f"somebody stopped it (ha-agent vm start {spec.name})"
    if without is not None and word is VmWord.NO_PLACE:
        return _short_in_words(without, known.name_of)
    if word is VmWord.UP:
        if seen.place.healthy:
            if here and spec.number in known.stays | known.queued:
                return said
            return "it is wanted down" if spec.want is Want.DOWN else ""
        report = None if seen.word is None else seen.word.report
        reason = "" if report is None else report.reason or ""
        return said if here and said and not reason else reason
    if here and said:
        return said
    if word is VmWord.WAITING:
        return _waits(known, spec, left) or said
    return _ready(known, spec) if word is VmWord.BOOTING else ""


def _waits(known: Known, spec: VmSpec, left: Mapping[int, float]) -> str:
    """What a VM that is to be started waits for. `left`: see _reason."""
    if known.holds_still:
        return "global maintenance: nothing is started"
    if wanted := _names(known, spec, healthy=False):
        return f"waits for {wanted}"
    order = known.plan.order.get(spec.number, ())
    if not order:
        return ""
    name = known.name_of(order[0])
    if order[0] in left:
        return f"it failed on {name}, which starts it again after a pause"
    return known.blocked.get(spec.number) or f"{name} is to start it"


def _ready(known: Known, spec: VmSpec) -> str:
    """Which of the VMs that it had to wait for are healthy."""
    names = _names(known, spec, healthy=True)
    return f"{names} {'are' if ' and ' in names else 'is'} healthy" if names else ""


def _names(known: Known, spec: VmSpec, healthy: bool) -> str:
    names = {each.number: each.name for each in known.specs}
    return " and ".join(
        names[number]
        for number in spec.after
        if number in known.seen and bool(known.seen[number].place.healthy) is healthy
    )


def short(known: Known) -> tuple[WithoutPlace, ...]:
    """The VMs that have no place now, the most urgent first."""
    return tuple(_without(each, known) for each in short_of(known.plan, known.specs))


def n_plus_1(known: Known) -> tuple[WithoutPlace, ...]:
    """The VMs that would have no place after a host's death, by host."""
    found = without_place(known.plans, known.specs, known.plan)
    return tuple(_without(each, known, lost) for lost, vms in sorted(found.items()) for each in vms)


def _without(each: NoPlace, known: Known, if_dies: int | None = None) -> WithoutPlace:
    name = next(spec.name for spec in known.specs if spec.number == each.number)
    why = _short_in_words(each, known.name_of)
    has = f"{name} has no place: {why}"
    text = has if if_dies is None else f"if {known.name_of(if_dies)} dies, {has}"
    return WithoutPlace(
        vm=each.number,
        name=name,
        needs_mb=each.needs_mb,
        short_mb=each.short_mb,
        largest=each.host_id,
        has_mb=each.needs_mb - each.short_mb,
        text=text,
        if_dies=if_dies,
        if_dies_name="" if if_dies is None else known.name_of(if_dies),
    )


def _short_in_words(each: NoPlace, name_of: Callable[[int], str]) -> str:
    """`6 GiB short (needs 8, host3 has 2)`."""
    if each.host_id is None:
        return f"no host may run it (needs {size(each.needs_mb)})"
    has_mb = each.needs_mb - each.short_mb
    if all(mb % MIB_IN_GIB == 0 for mb in (each.short_mb, each.needs_mb, has_mb)):
        needs, has = f"{each.needs_mb // MIB_IN_GIB}", f"{has_mb // MIB_IN_GIB}"
    else:
        needs, has = size(each.needs_mb), size(has_mb)
    return f"{size(each.short_mb)} short (needs {needs}, {name_of(each.host_id)} has {has})"


def size(mb: float) -> str:
    """An amount of memory for people."""
    if mb < MIB_IN_GIB:
        return f"{mb:.0f} MiB"
    return f"{mb / MIB_IN_GIB:.1f}".removesuffix(".0") + " GiB"
