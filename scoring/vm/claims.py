# SPDX-License-Identifier: LGPL-2.1-or-later
"""How several hosts share out the memory of one without asking each other.

Free memory lags behind what is being started: two hosts that each send a VM to a third one at the
same moment both see the same room there, and the third runs out of memory. So whoever starts a VM,
or migrates one, first says so in its own slot (a claim), and then reads what the others say. Of two
that claim at the same time at least one reads the other's claim, and only that matters.

The steps, for a VM `v` that shall run on a host `T`:

    write the claim v>T into the own slot, acknowledged by the storage
    read all slots, begun after that
    T's free memory - claims on T that T does not show yet - v  >= 0:   begin
    each claim in the way is of a VM that is served later than v:       wait, WAIT_BEATS at most
    otherwise:                                                          withdraw, take the next host
    keep the claim until HOLD_S after T was first seen to show v

Rules:

1. A write that was not acknowledged begins nothing.
2. A claim is held for HOLD_S after T shows the VM: another host may have read T's slot before that
   and reads this slot after it; with the claim already gone it would count the VM nowhere.
3. A claim ends by itself at its stated end, for a host may die with its claim in its slot.
4. Who waits holds its claim. Two that wait for each other cannot be: one of them is served later
   in the order that all share (scoring/vm/spec.py), and that one withdraws.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from enum import StrEnum

from scoring.vm.plan import Host
from scoring.vm_facts import Claim, VmSpec

#: How long a claim outlives the first sight of the VM on its host, in seconds: longer than one
#: reading of all slots takes, since a host whose reading takes longer acts on nothing.
HOLD_S = 5.0
#: For so many beats a claim that is served first waits for those in its way to be withdrawn.
WAIT_BEATS = 5


class Verdict(StrEnum):
    """What a claim that has been written and read again allows."""

    BEGIN = "begin"
    WAIT = "wait"
    WITHDRAW = "withdraw"


def standing(claims: Iterable[Claim], now_s: float) -> tuple[Claim, ...]:
    """Those that have not ended by themselves."""
    return tuple(claim for claim in claims if now_s < claim.until_s)


def verdict(
    mine: Claim,
    others: Iterable[Claim],
    target: Host,
    order: Mapping[int, VmSpec],
    waited_beats: int,
) -> Verdict:
    """What may be done about `mine` after one reading of all slots that began when it stood.

    `others`: the other standing claims, this host's own among them. `target`: the host of `mine` as
    that reading shows it. `order`: VM number -> VM, who is served first comes first
    (scoring/vm/spec.py). A claim of a VM that is not in `order` counts as if it took all that is
    left: how much it takes is not known here.
    """
    v = order[mine.number]
    free_mb = target.free_huge_mb if v.huge else target.free_mb
    in_the_way = tuple(in_its_way(mine, others, target.vms, order))
    if all(claim.number in order for claim in in_the_way):
        taken_mb = sum(order[claim.number].memory_mb for claim in in_the_way)
        if free_mb - taken_mb - v.memory_mb >= 0 or v.overcommit:
            return Verdict.BEGIN
    served = {number: place for place, number in enumerate(order)}
    is_first = all(served[mine.number] < served.get(c.number, -1) for c in in_the_way)
    # Alone in a room that is too small it waits for nobody.
    if in_the_way and is_first and waited_beats < WAIT_BEATS and free_mb >= v.memory_mb:
        return Verdict.WAIT
    return Verdict.WITHDRAW


def in_its_way(
    mine: Claim, others: Iterable[Claim], shown: Set[int], order: Mapping[int, VmSpec]
) -> Iterable[Claim]:
    """The claims on the same memory of the same host that are not counted there yet, a VM once."""
    huge = order[mine.number].huge
    seen = {mine.number}
    for claim in others:
        if claim.host_id != mine.host_id or claim.number in shown or claim.number in seen:
            continue
        if claim.number in order and order[claim.number].huge != huge:
            continue
        seen.add(claim.number)
        yield claim
