# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every interleaving of two and three claims on the memory of one host, with hosts that die.

A claimant writes its claim, reads the slots one by one in any order, and does what `verdict` says;
the host of the memory starts what was begun at any later time, and publishes it at any time after
that. Asked of each state that can be reached: is the memory ever exceeded, or do two VMs that must
not share a host run there? And is every claimant that lives through with it?
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from scoring.vm.claims import WAIT_BEATS, Verdict, verdict
from scoring.vm.plan import Host
from scoring.vm.spec import in_order
from scoring.vm_facts import Claim, VmSpec

TARGET = 9
NEW, READING, BEGUN, SHOWN, THROUGH = "new", "reading", "begun", "shown", "through"
#: What a claimant has read of a slot; None: not read yet.
Read = bool | None
#: A claimant that is through with it keeps nothing.
OVER: dict[str, object] = {
    "at": THROUGH,
    "has_claim": False,
    "waited": 0,
    "target": None,
    "claims": (),
}


@dataclass(frozen=True, slots=True)
class Claimant:
    """One host that brings one VM to the target."""

    at: str = NEW
    alive: bool = True
    has_claim: bool = False
    waited: int = 0
    # What was read: the VMs that the target showed, and whether each claimant's claim stood.
    target: frozenset[int] | None = None
    claims: tuple[Read, ...] = ()


@dataclass(frozen=True, slots=True)
class Cluster:
    claimants: tuple[Claimant, ...]
    running: frozenset[int] = frozenset()
    published: frozenset[int] = frozenset()
    deaths: int = 0

    def with_claimant(self, number: int, **change: object) -> Cluster:
        found = list(self.claimants)
        found[number] = replace(found[number], **change)  # type: ignore[arg-type]
        return replace(self, claimants=tuple(found))


@dataclass(frozen=True)
class Story:
    """The room and the sizes of the VMs, both in MiB; how many hosts die; is the claim held? Must
    the first two VMs not share a host?"""

    room_mb: int
    sizes_mb: tuple[int, ...]
    deaths: int = 0
    is_held: bool = True
    is_stated_end_held: bool = True
    is_apart: bool = False

    def next_states(self, now: Cluster) -> Iterator[Cluster]:
        """Every state that one step of anybody leads to."""
        for number, it in enumerate(now.claimants):
            if it.alive:
                yield from self._steps(now, number, it)
                if now.deaths < self.deaths and it.at != THROUGH:
                    # What a dead host had read matters to nobody.
                    unread = {"target": None, "claims": ()}
                    dead = now.with_claimant(number, alive=False, waited=0, **unread)
                    yield replace(dead, deaths=now.deaths + 1)
            elif it.has_claim and self._has_ended(now, number):
                yield now.with_claimant(number, has_claim=False)
            # What was begun may come up at any time, whether its claimant lives or not.
            if it.at == BEGUN and number not in now.running:
                yield replace(now, running=now.running | {number})
        if now.published != now.running:
            yield replace(now, published=now.running)

    def _steps(self, now: Cluster, number: int, it: Claimant) -> Iterator[Cluster]:
        nothing_read = (None,) * len(now.claimants)
        if it.at == NEW:
            yield now.with_claimant(number, at=READING, has_claim=True, claims=nothing_read)
        elif it.at == READING:
            if it.target is None:
                yield from self._read(now, number, replace(it, target=now.published))
            for other, read in enumerate(it.claims):
                if other != number and read is None:
                    stands = now.claimants[other].has_claim
                    claims = (*it.claims[:other], stands, *it.claims[other + 1 :])
                    yield from self._read(now, number, replace(it, claims=claims))
        elif it.at == BEGUN and number in now.published:
            yield now.with_claimant(number, at=SHOWN)
        elif it.at == SHOWN and self._is_held_long_enough(now, number):
            yield now.with_claimant(number, **OVER)

    def _read(self, now: Cluster, number: int, it: Claimant) -> Iterator[Cluster]:
        """The states after that reading; with the last one the verdict falls."""
        is_whole = it.target is not None and all(
            read is not None for other, read in enumerate(it.claims) if other != number
        )
        if not is_whole:
            claimants = list(now.claimants)
            claimants[number] = it
            yield replace(now, claimants=tuple(claimants))
            return
        found = self.verdict(number, it)
        if found is Verdict.WAIT:
            # The claimant reads again; at any time its patience may be over.
            unread = {"target": None, "claims": (None,) * len(now.claimants)}
            yield now.with_claimant(number, **unread)
            yield now.with_claimant(number, waited=WAIT_BEATS, **unread)
        elif found is Verdict.BEGIN:
            yield now.with_claimant(number, at=BEGUN, waited=0, target=None, claims=())
        else:
            yield now.with_claimant(number, **OVER)

    def verdict(self, number: int, it: Claimant) -> Verdict:
        """What the product says of what was read."""
        assert it.target is not None
        if any(n in self.order[number].apart for n in it.target):
            return Verdict.WITHDRAW  # the choice of a target leaves out a host that shows it
        taken = sum(self.sizes_mb[n] for n in it.target)
        target = Host(TARGET, 3400, self.room_mb, self.room_mb - taken, vms=it.target)
        others = [Claim(n, TARGET, n, 1.0) for n, stands in enumerate(it.claims) if stands]
        return verdict(Claim(number, TARGET, number, 1.0), others, target, self.order, it.waited)

    @property
    def order(self) -> dict[int, VmSpec]:
        specs = [VmSpec(n, f"vm{n}", mb) for n, mb in enumerate(self.sizes_mb)]
        if self.is_apart:
            specs[:2] = replace(specs[0], apart=(1,)), replace(specs[1], apart=(0,))
        return {v.number: v for v in in_order(specs)}

    def _is_held_long_enough(self, now: Cluster, number: int) -> bool:
        """HOLD_S is over: whoever read the target before it showed the VM has ended his reading."""
        return not self.is_held or not any(
            it.at == READING and it.target is not None and number not in it.target
            for n, it in enumerate(now.claimants)
            if n != number and it.alive
        )

    def _has_ended(self, now: Cluster, number: int) -> bool:
        """The stated end of a dead host's claim: the deadline of its act, and HOLD_S."""
        is_over = now.claimants[number].at != BEGUN or number in now.published
        return is_over and (not self.is_stated_end_held or self._is_held_long_enough(now, number))


def explore(story: Story) -> dict[Cluster, list[Cluster]]:
    """Every state that can be reached, with those that come after it."""
    first = Cluster(tuple(Claimant() for _ in story.sizes_mb))
    found: dict[Cluster, list[Cluster]] = {}
    ahead = [first]
    while ahead:
        now = ahead.pop()
        if now not in found:
            found[now] = list(story.next_states(now))
            ahead += found[now]
    return found


def ends(found: dict[Cluster, list[Cluster]]) -> set[Cluster]:
    """The states from which some way leads to where every living claimant is through."""
    before: dict[Cluster, list[Cluster]] = {}
    for now, after in found.items():
        for state in after:
            before.setdefault(state, []).append(now)
    ahead = [now for now in found if all(c.at == THROUGH or not c.alive for c in now.claimants)]
    leading = set(ahead)
    while ahead:
        fresh = [state for state in before.get(ahead.pop(), ()) if state not in leading]
        leading.update(fresh)
        ahead += fresh
    return leading


def exceeded(story: Story, now: Cluster) -> bool:
    """Whether the target runs what it must not."""
    if story.is_apart and {0, 1} <= now.running:
        return True
    return sum(story.sizes_mb[n] for n in now.running) > story.room_mb


STORIES = [
    pytest.param(Story(room, sizes, deaths), id=f"{room}-{'+'.join(map(str, sizes))}-dead{deaths}")
    for room, sizes, deaths in [
        (4, (4, 4), 2),
        (8, (4, 4), 2),
        (7, (4, 3), 2),
        (6, (4, 3), 2),
        (8, (4, 4, 4), 0),
        (8, (6, 3, 2), 0),
    ]
]
STORIES += [
    pytest.param(Story(8, sizes, deaths, is_apart=True), id=f"apart-{len(sizes)}-dead{deaths}")
    for sizes, deaths in [((4, 4), 2), ((4, 3, 1), 0)]
]


@pytest.mark.parametrize("story", STORIES)
def test_the_room_is_never_exceeded_and_nobody_waits_for_ever(story: Story) -> None:
    found = explore(story)
    assert not [now for now in found if exceeded(story, now)]
    assert ends(found) == found.keys()


@pytest.mark.parametrize(
    "story",
    [
        pytest.param(Story(4, (4, 4), is_held=False), id="dropped at the first sight"),
        pytest.param(
            Story(4, (4, 4), deaths=1, is_stated_end_held=False), id="a dead host's ends too early"
        ),
        pytest.param(
            Story(8, (4, 4), is_held=False, is_apart=True), id="of a rule, at first sight"
        ),
    ],
)
def test_without_the_hold_it_is_exceeded(story: Story) -> None:
    """Each hold is needed: the search finds the state that it keeps away."""
    assert any(exceeded(story, now) for now in explore(story))


def test_where_there_is_room_for_all_everybody_begins() -> None:
    found = explore(Story(9, (3, 3, 3)))
    over = [now for now in found if all(it.at == THROUGH for it in now.claimants)]
    assert over and all(now.running == {0, 1, 2} for now in over)
