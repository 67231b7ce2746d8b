# SPDX-License-Identifier: LGPL-2.1-or-later
"""What an administrator wants of one protected VM, and the order in which missing VMs are served.

Several VMs that are missing at once compete for the memory of the hosts that are left. Every host
must come to the same order without asking another, or two of them start into the same room; so the
order depends on nothing but what the registry says of the VMs, and is the same on every host.

Rules:

1. A VM is at least as urgent as every VM that waits for it: a database that the web server needs
   is not served after it.
2. Among VMs of equal urgency, what others wait for comes first, then the larger one (small ones
   still fit later), then the lower number.
3. A cycle in `after` is refused when a VM is added. One that a damaged or foreign record brings in
   all the same delays nobody: a VM that is met again on its own way counts for nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import NamedTuple

from scoring.vm_facts import VmSpec


class Relations(NamedTuple):
    """What follows from the registry alone: who is served first, and who goes with whom."""

    order: tuple[VmSpec, ...]
    apart: Mapping[int, frozenset[int]]
    together: Mapping[int, frozenset[int]]


@lru_cache(maxsize=4)
def relations(specs: tuple[VmSpec, ...]) -> Relations:
    """The relations of these VMs; the registry changes seldom, and is asked each beat."""
    return Relations(in_order(specs), apart_of(specs), together_of(specs))


def in_order(specs: Iterable[VmSpec]) -> tuple[VmSpec, ...]:
    """All VMs, who is served first comes first; the same for any order of `specs`."""
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
    """The numbers of VMs that wait for each other in a circle, the lowest first; empty: none do."""
    known = {spec.number: spec for spec in specs}
    for number in sorted(known):
        way = [number]
        if _returns(number, known, way, set()):
            return tuple(way)
    return ()


def apart_of(specs: Iterable[VmSpec]) -> Mapping[int, frozenset[int]]:
    """With whom each VM must not share a host; it holds both ways, whoever says it."""
    return _both_ways({spec.number: spec.apart for spec in specs})


def together_of(specs: Iterable[VmSpec]) -> Mapping[int, frozenset[int]]:
    """With whom each VM must share its host; it holds both ways, and from one to the next."""
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
    """How many VMs stand in a row before this one can start."""
    if number in depths:
        return depths[number]
    before = [n for n in known[number].after if n in known and n not in way and n != number]
    deepest = max((_depth(n, known, depths, (*way, number)) + 1 for n in before), default=0)
    if not way:
        depths[number] = deepest
    return deepest


def _returns(start: int, known: Mapping[int, VmSpec], way: list[int], dead_ends: set[int]) -> bool:
    """Whether `after` leads from the end of `way` back to its start; `way` is then that circle."""
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
