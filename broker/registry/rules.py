# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whether what administrators want of all VMs can be had together. Pure.

A rule that contradicts another one is found when it is typed, not in the night when a VM has no
place. Only what no state of the cluster could fulfil is a contradiction; what does not fit at the
moment is not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations, pairwise

from scoring.vm.spec import apart_of, cycle, together_of
from scoring.vm_facts import VmSpec


def contradictions(specs: Iterable[VmSpec], host_name: Mapping[int, str]) -> tuple[str, ...]:
    """What cannot be fulfilled, a sentence each. `host_name`: names of hosts by their id."""
    known = {spec.number: spec for spec in specs}
    return tuple(_found(known, host_name))


def _found(known: Mapping[int, VmSpec], host_name: Mapping[int, str]) -> Iterator[str]:
    def hosts(ids: Iterable[int]) -> str:
        return ", ".join(host_name.get(host, str(host)) for host in ids)

    for spec in known.values():
        for rule in ("after", "apart", "together"):
            if spec.number in getattr(spec, rule):
                yield f"{spec.name} cannot be {_WORDS[rule]} itself"
        outside = [host for host in spec.prefer if spec.only and host not in spec.only]
        if outside:
            yield f"{spec.name} prefers {hosts(outside)}, and may run on {hosts(spec.only)} only"
    circle = cycle(known.values())
    if len(circle) > 1:
        names = [known[number].name for number in (*circle, circle[0])]
        circle_of = ", ".join(f"{a} for {b}" for a, b in pairwise(names))
        yield f"they wait for each other: {circle_of}"
    together, apart = together_of(known.values()), apart_of(known.values())
    for one, other in combinations(sorted(known), 2):
        a, b = known[one], known[other]
        is_together, is_apart = other in together[one], other in apart[one]
        if is_together and is_apart:
            yield f"{a.name} and {b.name} are to be together and apart"
        if is_together and a.only and b.only and not set(a.only) & set(b.only):
            yield (
                f"{a.name} and {b.name} are to be together, but {a.name} may run on"
                f" {hosts(a.only)} only, and {b.name} on {hosts(b.only)}"
            )
        if is_apart and set(a.only) == set(b.only) and len(a.only) == 1:
            yield f"{a.name} and {b.name} are to be apart, but both may run on {hosts(a.only)} only"
    for group in sorted({tuple(sorted({number, *mates})) for number, mates in together.items()}):
        bound = [known[number] for number in group if known[number].only]
        hosts_of_each = [set(spec.only) for spec in bound]
        # Two that share no host have the sentence above already.
        is_said = any(not a & b for a, b in combinations(hosts_of_each, 2))
        if len(bound) > 2 and not is_said and not set.intersection(*hosts_of_each):
            them = ", ".join(spec.name for spec in bound)
            yield f"{them} are to be together, but no host is one that all of them may run on"


_WORDS = {"after": "after", "apart": "apart from", "together": "together with"}
