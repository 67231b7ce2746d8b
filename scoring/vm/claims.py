# SPDX-License-Identifier: LGPL-2.1-or-later
"""How several hosts share the free memory of one host without asking each other.

A host's free memory is published only after a VM has started there. So if two hosts send a VM to a
third one at the same moment, both see the same free memory, and the third host runs out of it.
Therefore a host that is about to start or migrate a VM first writes that into its own slot (a
claim), and then reads the claims of the others. If two hosts claim at the same time, at least one
of them reads the other's claim, and that is enough.

The steps, for a VM `v` that is to run on a host `T`:

    write the claim v>T into this host's slot; the storage acknowledges it
    after that, begin to read all slots
    T's free memory - claims on T that T does not show yet - v  >= 0,
    and no claim is against a rule of the VMs:                          begin
    all conflicting claims are of VMs that are served later than v:     wait, WAIT_BEATS at most
    otherwise:                                                          withdraw, try the next host
    keep the claim until HOLD_S after T was first seen to show v

Rules:

1. As long as the write of the claim is not acknowledged, nothing begins.
2. A claim is kept for HOLD_S after T shows the VM. Another host may have read T's slot before that
   moment and read this slot after it; without the claim it would not count the VM at all.
3. A claim ends by itself at its stated end, since a host may die with a claim in its slot.
4. A claim conflicts with another one for memory (the same host), or for a rule of the VMs: those of
   `apart` on one host, those of `together` on two. If each VM changed its target for the other's
   claim, both would do so for ever.
5. A host that waits keeps its claim. Two hosts cannot wait for each other: one of the two VMs is
   served later in the order that all hosts share (scoring/vm/spec.py), and its host withdraws.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from enum import StrEnum

from scoring.vm.plan import Host
from scoring.vm.spec import relations
from scoring.vm_facts import Claim, VmSpec

#: How long a claim is kept after the VM was first seen on its host, in seconds. This is longer than
#: one reading of all slots takes; a host whose reading takes longer starts nothing.
HOLD_S = 5.0
#: How many beats the claim of the VM that is served first waits for the others to be withdrawn.
WAIT_BEATS = 5


class Verdict(StrEnum):
    """What to do about a claim once it is acknowledged and all slots were read after it."""

    BEGIN = "begin"
    WAIT = "wait"
    WITHDRAW = "withdraw"


def standing(claims: Iterable[Claim], now_s: float) -> tuple[Claim, ...]:
    """The claims that have not ended by themselves."""
    return tuple(claim for claim in claims if now_s < claim.until_s)


def verdict(
    mine: Claim,
    others: Iterable[Claim],
    target: Host,
    order: Mapping[int, VmSpec],
    waited_beats: int,
) -> Verdict:
    """What to do about the claim `mine`, by a reading of all slots that began after it was
    acknowledged.

    `others`: all other standing claims, including those of this host. `target`: the host of `mine`
    as that reading shows it. `order`: the VMs by number, in the order in which they are served
    (scoring/vm/spec.py). A claim for a VM that is not in `order` counts as if it took all the free
    memory, since its size is not known here.
    """
    v, others = order[mine.number], tuple(others)
    free_mb = target.free_huge_mb if v.huge else target.free_mb
    for_memory = tuple(conflicts(mine, others, target.vms, order))
    by_rule = tuple(against_rules(mine, others, order))
    if not by_rule and all(claim.number in order for claim in for_memory):
        taken_mb = sum(order[claim.number].memory_mb for claim in for_memory)
        if free_mb - taken_mb - v.memory_mb >= 0 or v.overcommit:
            return Verdict.BEGIN
    conflicting = (*for_memory, *by_rule)
    served = {number: place for place, number in enumerate(order)}
    is_first = all(served[mine.number] < served.get(c.number, -1) for c in conflicting)
    # Where the memory is too small even without the other claims, waiting does not help.
    would_fit = free_mb >= v.memory_mb or v.overcommit
    if conflicting and is_first and waited_beats < WAIT_BEATS and would_fit:
        return Verdict.WAIT
    return Verdict.WITHDRAW


def conflicts(
    mine: Claim, others: Iterable[Claim], shown: Set[int], order: Mapping[int, VmSpec]
) -> Iterable[Claim]:
    """The other claims on the same kind of memory of the same host. `shown`: the VMs that the host
    shows already, whose memory is counted there. Each VM counts once."""
    huge = order[mine.number].huge
    seen = {mine.number}
    for claim in others:
        if claim.host_id != mine.host_id or claim.number in shown or claim.number in seen:
            continue
        if claim.number in order and order[claim.number].huge != huge:
            continue
        seen.add(claim.number)
        yield claim


def against_rules(
    mine: Claim, others: Iterable[Claim], order: Mapping[int, VmSpec]
) -> Iterable[Claim]:
    """The other claims that a rule of the VMs does not allow beside `mine`."""
    rules = relations(tuple(order.values()))
    apart, together = rules.apart[mine.number], rules.together[mine.number]
    for claim in others:
        forbidden = apart if claim.host_id == mine.host_id else together
        if claim.number in forbidden:
            yield claim
