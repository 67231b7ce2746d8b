# SPDX-License-Identifier: LGPL-2.1-or-later
"""The order in which missing VMs are served, and which VMs must share a host or must not.

Several VMs that are missing at once compete for the memory of the remaining hosts. Every host must
find the same order without asking another; otherwise two of them would start VMs into the same
memory. So the order depends on nothing but the registry, which is the same on every host.

Rules:

1. A VM is at least as urgent as every VM that waits for it: a database is not served after the web
   server that needs it.
2. Among VMs of equal urgency, a VM that others wait for comes first; then the larger one, since
   small ones still fit later; then the lower number.
3. A cycle in `after` is refused when a VM is added. If a damaged or foreign record contains one all
   the same, it delays no VM: in the chain of a VM, that VM itself does not count again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import NamedTuple

from scoring.vm_facts import VmSpec


class Relations(NamedTuple):
    """What follows from the registry alone. `order`: the VMs in the order in which they are served.
    `apart`, `together`: for each VM those with which it must not, or must, share a host."""

    order: tuple[VmSpec, ...]
    apart: Mapping[int, frozenset[int]]
    together: Mapping[int, frozenset[int]]


@lru_cache(maxsize=4)
def relations(specs: tuple[VmSpec, ...]) -> Relations:
    """The relations of these VMs; cached, since each beat needs them and they change seldom."""
    return Relations(in_order(specs), apart_of(specs), together_of(specs))


def in_order(specs: Iterable[VmSpec]) -> tuple[VmSpec, ...]:
    """All VMs in the order in which they are served, whatever the order of `specs`."""
    known = {spec.number: spec for spec in specs}
    urgency = {number: spec.priority for number, spec in known.items()}
    for spec in known.values():
        for number in _needed(spec, known):
            urgency[number] = max(urgency[number], spec.priority)
    depths: dict[int, int] = {}
    for number in sorted(known):
        _depth(number, known, depths, ())
    return tuple(
        sorted(
            known.values(),
            key=lambda v: (-urgency[v.number], depths[v.number], -v.memory_mb, v.number),
        )
    )


def cycle(specs: Iterable[VmSpec]) -> tuple[int, ...]:
    """The numbers of VMs that wait for each other in a circle, from the lowest on; empty: none."""
    known = {spec.number: spec for spec in specs}
    for number in sorted(known):
        way = [number]
        if _returns(number, known, way, set()):
            return tuple(way)
    return ()


def apart_of(specs: Iterable[VmSpec]) -> Mapping[int, frozenset[int]]:
    """For each VM those with which it must not share a host; the relation holds in both directions,
    whichever record has it."""
    return _both_ways({spec.number: spec.apart for spec in specs})


def together_of(specs: Iterable[VmSpec]) -> Mapping[int, frozenset[int]]:
    """For each VM those with which it must share its host; the relation holds in both directions,
    and for VMs that are related through others."""
    groups = _both_ways({spec.number: spec.together for spec in specs})
    whole: dict[int, frozenset[int]] = {}
    for number in groups:
        found, ahead = {number}, [number]
        while ahead:
            fresh = groups.get(ahead.pop(), frozenset()) - found
            found |= fresh
            ahead += fresh
        whole[number] = frozenset(found - {number})
    return whole


def _both_ways(said: Mapping[int, tuple[int, ...]]) -> Mapping[int, frozenset[int]]:
    pairs: dict[int, set[int]] = {number: set() for number in said}
    for number, named in said.items():
        for other in named:
            if other in said and other != number:
                pairs[number].add(other)
                pairs[other].add(number)
    return {number: frozenset(with_whom) for number, with_whom in pairs.items()}


def _needed(spec: VmSpec, known: Mapping[int, VmSpec]) -> set[int]:
    """Every VM that this one waits for, directly or through others."""
    found: set[int] = set()
    ahead = list(spec.after)
    while ahead:
        number = ahead.pop()
        if number in known and number not in found:
            found.add(number)
            ahead += known[number].after
    return found


def _depth(
    number: int, known: Mapping[int, VmSpec], depths: dict[int, int], way: tuple[int, ...]
) -> int:
    """The length of the longest chain of VMs for which this one waits."""
    if number in depths:
        return depths[number]
    before = [n for n in known[number].after if n in known and n not in way and n != number]
    deepest = max((_depth(n, known, depths, (*way, number)) + 1 for n in before), default=0)
    if not way:
        depths[number] = deepest
    return deepest


def _returns(start: int, known: Mapping[int, VmSpec], way: list[int], dead_ends: set[int]) -> bool:
    """Whether `after` leads from the last VM of `way` to `start`; then `way` is that circle."""
    for number in sorted(known[way[-1]].after):
        if number == start:
            return True
        if number not in known or number in dead_ends or number in way:
            continue
        way.append(number)
        if _returns(start, known, way, dead_ends):
            return True
        dead_ends.add(way.pop())
    return False
