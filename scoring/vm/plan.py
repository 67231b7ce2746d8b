# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where each missing VM goes.

Every host makes this plan for itself, from the same slots, and acts on its own part of it alone:
there is no planner whose death would leave VMs without a place. A wrong plan costs seconds and
never data, since the VM's own lease decides who runs it. A VM that runs is never in the plan: only
what is missing gets a place, so that nothing moves at rest.

Rules:

1. Missing VMs are placed one after the other, in the order of scoring/vm/spec.py, each into what
   the ones before it have left.
2. A host may run a VM where it is live and open, understands several VMs, is fit (score above 0)
   and has not failed to start it lately, and where no rule of the VM (`only`, `apart`, `together`)
   forbids it.
3. Of the hosts with enough memory (for all that must be together, where there is such a host) the
   one that has claimed the VM comes first (its room is spoken for before any other VM is placed);
   the others follow by the VM's own preference, by score in steps of 400
   points (less is noise), by the share of memory that it leaves free in 16ths, by who ran it last,
   by how many VMs are there, so that small VMs do not all go to one host, by host id.
4. A VM without a place is named together with how much memory it is short of on the host that has
   most. A VM with `overcommit` then starts where it would fit best all the same.
5. A VM that is claimed has its place, also where its memory does not fit any more: its own process,
   which is not shown as up yet, may have taken it. Who claimed it looks at the room by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from scoring.vm.seen import SPEAKS_SEVERAL
from scoring.vm.spec import Relations, relations
from scoring.vm_facts import VmSpec, Want

#: Scores that differ by less count as equal, as many points as missing memory costs.
SCORE_STEP = 400
#: Free memory is compared in so many parts of the whole.
FREE_PARTS = 16
_NONE: Mapping[int, int] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Host:
    """One live host as its slot shows it.

    `score`: what it has left of the base score, before what a VM lacks there. `total_mb`,
    `free_mb`, `free_huge_mb`: its memory, what of it is not committed, and what of its huge pages
    is free, in MiB. `vms`: numbers of the VMs that are there. `open`: it takes VMs (no
    maintenance, not stopping, knows its own VMs). `barred`: numbers of VMs that failed to start
    there lately. `last_ran`: how late in the row of all runs it ran a VM. `lacks`: points that a VM
    lacks there.
    """

    host_id: int
    score: int
    total_mb: int
    free_mb: int
    free_huge_mb: int = 0
    vms: frozenset[int] = frozenset()
    open: bool = True
    speaks: int = SPEAKS_SEVERAL
    barred: frozenset[int] = frozenset()
    last_ran: Mapping[int, int] = field(default_factory=lambda: _NONE)
    lacks: Mapping[int, int] = field(default_factory=lambda: _NONE)


@dataclass(frozen=True, slots=True)
class Plan:
    """`order`: for each VM that has a place the ids of the hosts that may take it, the best first.
    `short`: for each VM that has none how many MiB it is short of; its whole memory where no host
    may run it at all. `largest`: for each of those the host that has most room of those that may
    run it; not in it where none may."""

    order: Mapping[int, tuple[int, ...]]
    short: Mapping[int, int]
    largest: Mapping[int, int] = field(default_factory=lambda: _NONE, compare=False)


NO_PLAN = Plan(MappingProxyType({}), MappingProxyType({}))


def place(
    specs: Iterable[VmSpec],
    hosts: Iterable[Host],
    missing: frozenset[int],
    claims: Mapping[int, int] = _NONE,
) -> Plan:
    """The plan for the VMs whose numbers are `missing`; the same for any order of the input.

    `hosts`: the live ones. `claims`: VM number -> id of the host that has claimed it and does not
    show it yet.
    """
    rules = relations(tuple(specs))
    work = Placing(rules, hosts)
    wanted = [v for v in rules.order if v.number in missing and v.want is Want.UP]
    pins: dict[int, int] = {}
    for v in wanted:
        pin = claims.get(v.number)
        if pin is not None and any(host.host_id == pin for host in work.able(v)):
            pins[v.number] = pin
            work.reserve(v, pin)
    order: dict[int, tuple[int, ...]] = {}
    short: dict[int, int] = {}
    largest: dict[int, int] = {}
    for v in wanted:
        pin = pins.get(v.number)
        if pin is not None:
            work.release(v, pin)
        able, free_mb = work.able(v), work.free_mb(v)
        fits = [h for h in able if free_mb[h.host_id] >= v.memory_mb or h.host_id == pin]
        if v.number in work.together:
            with_all_mb = v.memory_mb + work.mates_mb(v, wanted)
            fits = [host for host in fits if free_mb[host.host_id] >= with_all_mb] or fits
        if not fits and v.overcommit:
            fits = able
        if fits:
            order[v.number] = work.ranked(v, fits, pin)
            work.reserve(v, order[v.number][0])
        else:
            ids = [host.host_id for host in able]
            best = max(ids, key=lambda host_id: (free_mb[host_id], -host_id), default=None)
            if best is not None:
                largest[v.number] = best
            largest_mb = 0 if best is None else free_mb[best]
            short[v.number] = v.memory_mb - max(largest_mb, 0)
    return Plan(order, short, largest)


@dataclass(frozen=True, slots=True)
class NoPlace:
    """A VM without a place: `short_mb` of its `needs_mb` are missing on `host_id`, the host that
    has most room of those that may run it (None: none may)."""

    number: int
    needs_mb: int
    short_mb: int
    host_id: int | None


def n_plus_1(
    specs: Iterable[VmSpec], hosts: Iterable[Host], missing: frozenset[int]
) -> Mapping[int, Mapping[int, int]]:
    """Host id -> the VMs that would have no place if that host died, with the MiB that they would
    be short of; hosts whose death leaves nobody without a place are not in it. VMs that have no
    place already are named for no host."""
    specs, hosts = tuple(specs), tuple(hosts)
    plans = after_each_death(specs, hosts, missing)
    found = without_place(plans, specs, place(specs, hosts, missing))
    return {lost: {each.number: each.short_mb for each in vms} for lost, vms in found.items()}


def after_each_death(
    specs: Iterable[VmSpec], hosts: Iterable[Host], missing: frozenset[int]
) -> Mapping[int, Plan]:
    """Host id -> the plan for what would be missing if that host died; a host whose death would
    change nothing is not in it."""
    specs, hosts = tuple(specs), tuple(hosts)
    return {
        lost.host_id: place(specs, [host for host in hosts if host is not lost], missing | lost.vms)
        for lost in hosts
        if missing or lost.vms
    }


def without_place(
    plans: Mapping[int, Plan], specs: Iterable[VmSpec], now: Plan
) -> Mapping[int, tuple[NoPlace, ...]]:
    """What `n_plus_1` finds in the plans after each death, with the host that comes closest; who is
    served first comes first. `now`: the plan for what is missing already."""
    specs = tuple(specs)
    found = {
        lost: tuple(each for each in short_of(plan, specs) if each.number not in now.short)
        for lost, plan in plans.items()
    }
    return {lost: fresh for lost, fresh in found.items() if fresh}


def short_of(plan: Plan, specs: Iterable[VmSpec]) -> tuple[NoPlace, ...]:
    """The VMs without a place in a plan of these VMs, as people see them."""
    if not plan.short:
        return ()
    needs_mb = {spec.number: spec.memory_mb for spec in specs}
    return tuple(
        NoPlace(number, needs_mb[number], short_mb, plan.largest.get(number))
        for number, short_mb in plan.short.items()
    )


class Placing:
    """The hosts while VMs are placed on them: where each VM is, and what room is left."""

    def __init__(self, rules: Relations, hosts: Iterable[Host]) -> None:
        self.together = {vm: mates for vm, mates in rules.together.items() if mates}
        self._apart = rules.apart
        self._hosts: list[Host] = []
        self._free_mb: tuple[dict[int, int], dict[int, int]] = ({}, {})
        self._at: dict[int, set[int]] = {}
        self._count: dict[int, int] = {}
        for host in hosts:
            self._free_mb[False][host.host_id] = host.free_mb
            self._free_mb[True][host.host_id] = host.free_huge_mb
            self._count[host.host_id] = len(host.vms)
            for number in host.vms:
                self._at.setdefault(number, set()).add(host.host_id)
            if host.open and host.speaks >= SPEAKS_SEVERAL:
                self._hosts.append(host)

    def reserve(self, v: VmSpec, host_id: int) -> None:
        self._at.setdefault(v.number, set()).add(host_id)
        self._free_mb[v.huge][host_id] -= v.memory_mb
        self._count[host_id] += 1

    def release(self, v: VmSpec, host_id: int) -> None:
        self._at[v.number].discard(host_id)
        self._free_mb[v.huge][host_id] += v.memory_mb
        self._count[host_id] -= 1

    def free_mb(self, v: VmSpec) -> Mapping[int, int]:
        """Host id -> what is left there of the kind of memory that it takes."""
        return self._free_mb[v.huge]

    def mates_mb(self, v: VmSpec, wanted: list[VmSpec]) -> int:
        """MiB of those that must come with it and are nowhere yet: the first of them does not
        choose a host that is too small for the rest."""
        mates = self.together[v.number]
        coming = (w for w in wanted if w.number in mates and not self._at.get(w.number))
        return sum(w.memory_mb for w in coming if w.huge == v.huge)

    def able(self, v: VmSpec) -> list[Host]:
        """The hosts that may run it, whether its memory fits there or not."""
        number = v.number
        able = [
            host
            for host in self._hosts
            if number not in host.barred
            and (host.score > host.lacks.get(number, 0) if host.lacks else host.score > 0)
        ]
        if v.only:
            able = [host for host in able if host.host_id in v.only]
        if without := self._all_hosts_of(self._apart[number]):
            able = [host for host in able if host.host_id not in without]
        if beside := self._all_hosts_of(self.together.get(number, frozenset())):
            able = [host for host in able if host.host_id in beside]
        return able

    def _all_hosts_of(self, numbers: frozenset[int]) -> set[int]:
        return {host_id for number in numbers for host_id in self._at.get(number, ())}

    def ranked(self, v: VmSpec, fits: list[Host], pin: int | None) -> tuple[int, ...]:
        """Their ids, the best host first."""
        number, memory_mb, free_mb = v.number, v.memory_mb, self._free_mb[v.huge]
        liking, unliked = {host_id: n for n, host_id in enumerate(v.prefer)}, len(v.prefer)
        # Hardly a host lacks anything: that is not looked up 10,000 times for 200 hosts and 50 VMs.
        points = [h.score - h.lacks.get(number, 0) if h.lacks else h.score for h in fits]
        best = max(points)
        keys = [
            (
                host.host_id != pin,
                liking.get(host.host_id, unliked) if unliked else 0,
                (best - its) // SCORE_STEP,
                -((free_mb[host.host_id] - memory_mb) * FREE_PARTS // (host.total_mb or 1)),
                -host.last_ran.get(number, 0),
                self._count[host.host_id],
                host.host_id,
            )
            for host, its in zip(fits, points, strict=True)
        ]
        return tuple(key[-1] for key in sorted(keys))
