# SPDX-License-Identifier: LGPL-2.1-or-later
"""Plans on which host each missing VM starts.

Every host makes this plan for itself, from the same slots, and carries out only its own part. So
there is no planner whose death would leave VMs without a place. A wrong plan costs seconds but
never data, since the VM's own lease decides which host runs it. Only missing VMs are in the plan: a
VM that runs is never moved by it.

Rules:

1. Missing VMs are placed one after the other, in the order of scoring/vm/spec.py; each gets what
   the ones before it have left.
2. A host may run a VM if it is live and open, understands several VMs, has a score above 0, has not
   failed to start that VM lately, and if no rule of the VM (`only`, `apart`, `together`) forbids
   it. A host that pauses before it starts the VM again counts where no other one has the memory:
   otherwise VMs that come later in the order would take its room in the meantime.
3. The hosts with enough memory are ordered as follows. First the host that has claimed the VM; its
   memory is reserved before any other VM is placed. Then by the VM's `prefer`; by score in steps of
   400 points (less is noise); by the share of memory that stays free, in 16ths; by which host ran
   the VM last; by the number of VMs there, so that small VMs do not all go to one host; by host id.
   For VMs that must be together, only hosts with memory for all of them count, if there is one.
4. A VM without a place is named, with the memory that it is short of on the host that has most. A
   VM with `overcommit` then starts on the best host all the same.
5. A VM that is claimed keeps its place even if its memory does not fit there any more: its own
   process, which is not shown as up yet, may have taken that memory. The host that claimed it
   checks the room itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from scoring.vm.seen import SPEAKS_SEVERAL
from scoring.vm.spec import Relations, relations
from scoring.vm_facts import VmSpec, Want

#: Scores that differ by less count as equal: the penalty for missing memory.
SCORE_STEP = 400
#: Free memory is compared as a share of the whole, in this many parts.
FREE_PARTS = 16
_NONE: Mapping[int, int] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Host:
    """One live host as its slot shows it.

    `score`: its score before the penalties of a particular VM. `total_mb`: its memory in MiB;
    `free_mb`: the part that is not committed; `free_huge_mb`: the free huge pages. `vms`: the
    numbers of the VMs there. `open`: it takes VMs (no maintenance, not stopping, in the lockspace).
    `barred`: the numbers of VMs that it must not start now. `pausing`: those that it leaves to
    other hosts for a while. `last_ran`: each VM's `last_ran` there. `lacks`: each VM's own
    penalties there, in points.
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
    pausing: frozenset[int] = frozenset()
    last_ran: Mapping[int, int] = field(default_factory=lambda: _NONE)
    lacks: Mapping[int, int] = field(default_factory=lambda: _NONE)


@dataclass(frozen=True, slots=True)
class Plan:
    """Where the missing VMs go, by VM number. `order`: for each VM with a place, the ids of the
    hosts that may take it, the best first. `short`: for each VM without a place, how many MiB it is
    short of; its whole memory if no host may run it. `largest`: for each of these VMs the host with
    most free memory among those that may run it, if there is one."""

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
        if not fits and not (v.overcommit and able):
            fits = [h for h in work.pausing(v) if free_mb[h.host_id] >= v.memory_mb]
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
    """A VM without a place: `short_mb` of its `needs_mb` are missing on `host_id`, the host with
    most free memory among those that may run it (None: no host may)."""

    number: int
    needs_mb: int
    short_mb: int
    host_id: int | None


def n_plus_1(
    specs: Iterable[VmSpec], hosts: Iterable[Host], missing: frozenset[int]
) -> Mapping[int, Mapping[int, int]]:
    """Host id -> the VMs that would lose their place if that host died, each with the MiB that it
    would be short of. Hosts without such VMs are left out, and so are VMs that have no place
    already."""
    specs, hosts = tuple(specs), tuple(hosts)
    plans = after_each_death(specs, hosts, missing)
    found = without_place(plans, specs, place(specs, hosts, missing))
    return {lost: {each.number: each.short_mb for each in vms} for lost, vms in found.items()}


def after_each_death(
    specs: Iterable[VmSpec], hosts: Iterable[Host], missing: frozenset[int]
) -> Mapping[int, Plan]:
    """Host id -> the plan for the VMs that would be missing if that host died. Hosts whose death
    would leave no VM missing are left out."""
    specs, hosts = tuple(specs), tuple(hosts)
    return {
        lost.host_id: place(specs, [host for host in hosts if host is not lost], missing | lost.vms)
        for lost in hosts
        if missing or lost.vms
    }


def without_place(
    plans: Mapping[int, Plan], specs: Iterable[VmSpec], now: Plan
) -> Mapping[int, tuple[NoPlace, ...]]:
    """Host id -> the VMs that lose their place by the plans after each death, in the order in which
    they are served. `now`: the plan for the VMs that are missing already."""
    specs = tuple(specs)
    found = {
        lost: tuple(each for each in short_of(plan, specs) if each.number not in now.short)
        for lost, plan in plans.items()
    }
    return {lost: fresh for lost, fresh in found.items() if fresh}


def short_of(plan: Plan, specs: Iterable[VmSpec]) -> tuple[NoPlace, ...]:
    """The VMs without a place in a plan for these VMs."""
    if not plan.short:
        return ()
    needs_mb = {spec.number: spec.memory_mb for spec in specs}
    return tuple(
        NoPlace(number, needs_mb[number], short_mb, plan.largest.get(number))
        for number, short_mb in plan.short.items()
    )


class Placing:
    """The hosts while VMs are placed on them: which VMs are where, and how much memory is left."""

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
        """Host id -> the free memory there, of the kind of pages that the VM takes."""
        return self._free_mb[v.huge]

    def mates_mb(self, v: VmSpec, wanted: list[VmSpec]) -> int:
        """The MiB of the VMs that must share its host and are placed nowhere yet, so that the first
        of them does not choose a host that is too small for the rest."""
        mates = self.together[v.number]
        coming = (w for w in wanted if w.number in mates and not self._at.get(w.number))
        return sum(w.memory_mb for w in coming if w.huge == v.huge)

    def able(self, v: VmSpec) -> list[Host]:
        """The hosts that may run the VM now, with enough memory or without."""
        return self._allowed(v, pausing=False)

    def pausing(self, v: VmSpec) -> list[Host]:
        """The hosts that may run the VM after a pause."""
        return self._allowed(v, pausing=True)

    def _allowed(self, v: VmSpec, *, pausing: bool) -> list[Host]:
        """The hosts that nothing forbids to run the VM, of those that pause or of the others."""
        number = v.number
        able = [
            host
            for host in self._hosts
            if number not in host.barred
            and (number in host.pausing) is pausing
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
        """The ids of the hosts, the best one first (rule 3). `pin`: the host that has claimed the
        VM."""
        number, memory_mb, free_mb = v.number, v.memory_mb, self._free_mb[v.huge]
        liking, unliked = {host_id: n for n, host_id in enumerate(v.prefer)}, len(v.prefer)
        # `lacks` is nearly always empty; looking it up would happen 10,000 times for 200 hosts and
        # 50 VMs.
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
