# SPDX-License-Identifier: LGPL-2.1-or-later
"""An act under way is withdrawn when it must not be done any more, up to the moment of the act."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest

from agent.actions import ActionRunner
from agent.last_look import LastLook
from agent.ports import FenceDevices, FenceLog, Hypervisors, Leases
from broker.wire.exchange import FenceNote
from scoring.decide import Decision, decide
from scoring.decision import DropFenceLease, FreeHostId, NoteFenceFailed, PowerOffHost
from scoring.hosts.last_look import look_again
from scoring.hosts.state import HostState, Seen, Takeover
from scoring.hosts.turn import HostTurn
from scoring.observation import Observation, PeerReport, Power, PowerAnswer
from scoring.state import AgentState
from scoring.vm.state import StateName
from tests.unit.builders import NOW_S, RULES, lease_of, local, off, peer, state_of

TARGET = 2
ON = PowerAnswer(TARGET, Power.ON, NOW_S - 30, identity_proven=True)
SHOOTS = Takeover(
    TARGET,
    NOW_S - 60,
    power=ON,
    fence_since_s=NOW_S - 31,
    renewal=(5, 77),
    switching_off=True,
)
FREES = replace(
    SHOOTS,
    switching_off=False,
    freeing=True,
    offs=(off(TARGET, NOW_S - 30), off(TARGET, NOW_S - 28)),
)


def hangs(**changed: Any) -> PeerReport:
    silent: dict[str, Any] = {
        "timestamp": 500,
        "heartbeat_s": NOW_S - 60,
        "unanswered_since_s": NOW_S - 59,
        "renewal_s": NOW_S - 60,
        "renewal_timestamp": 77,
    }
    return peer(TARGET, **(silent | changed))


def looked(
    step: Takeover | None,
    others: tuple[PeerReport, ...] = (),
    seen_s: float = NOW_S - 58,
    lease: Any = None,
    target: PeerReport | None = None,
    **changed: Any,
) -> HostState:
    """The memory after one more look while `step` is under way."""
    known: dict[str, Any] = {
        "storage_good_since_s": NOW_S - 900,
        "global_maintenance": False,
        "fence_lease_held": True,
        "fence_log": (),
    }
    observation = Observation(
        local=local(), peers=(target or hangs(), *others), **(known | changed)
    )
    state = HostState({TARGET: Seen(500, seen_s, changed=True)}, takeover=step)
    turn = HostTurn(RULES, state, observation, NOW_S, live=others)
    look_again(turn, lease)
    return turn.state


def why(*given: Any, **changed: Any) -> str:
    step = looked(*given, **changed).takeover
    assert step is not None
    return step.withdrawn


@pytest.mark.parametrize("step", [SHOOTS, FREES])
def test_what_still_holds_goes_on(step: Takeover) -> None:
    """Both readings may be old: the device and the write look at their age themselves."""
    assert why(step) == ""
    assert why(step, lease=lease_of(TARGET)) == ""
    assert why(step, lease=lease_of(TARGET, known=False)) == "", "not answered is not gone"


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("slot-stands-still", {"seen_s": NOW_S - 1}),
        ("does-not-answer", {"target": hangs(unanswered_since_s=None)}),
        ("does-not-answer", {"target": hangs(unanswered_since_s=NOW_S - 1)}),
        ("does-not-renew", {"target": hangs(renewal_s=NOW_S - 1)}),
        ("nobody-hears-it", {"others": (peer(3, hears=frozenset({TARGET})),)}),
        ("no-global-maintenance", {"global_maintenance": True}),
        ("no-global-maintenance", {"global_maintenance": None}),
        ("own-storage-fine", {"storage_good_since_s": None}),
        ("fence-lease-held", {"fence_lease_held": False}),
        ("fence-log-readable", {"fence_log": None}),
        ("not-in-maintenance", {"target": hangs(maintenance=True)}),
        ("not-stopped-in-order", {"target": hangs(stopped=True)}),
        ("lease-owner-known", {"lease": lease_of(3)}),
    ],
)
def test_each_precondition_that_holds_no_longer_withdraws_the_order(
    name: str, changed: dict[str, Any]
) -> None:
    assert why(SHOOTS, **changed).startswith(f"{name} holds no longer: ")


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("no-sign-of-life-since", {"seen_s": NOW_S - 1}),
        ("no-sign-of-life-since", {"target": hangs(heartbeat_s=NOW_S - 1)}),
        ("no-global-maintenance", {"global_maintenance": True}),
        ("fence-lease-held", {"fence_lease_held": False}),
        ("lease-owner-known", {"lease": lease_of(3)}),
    ],
)
def test_each_precondition_that_holds_no_longer_withdraws_the_freeing(
    name: str, changed: dict[str, Any]
) -> None:
    assert why(FREES, **changed).startswith(f"{name} holds no longer: ")


def test_a_reading_of_on_withdraws_the_freeing() -> None:
    assert why(replace(FREES, offs=())).startswith("power-off-read-twice")


@pytest.mark.parametrize("known", [True, False])
def test_an_unknown_owner_of_the_fence_lease_withdraws_no_freeing_of_the_fencer(
    known: bool,
) -> None:
    """Another owner does; an answer that is none does not."""
    fencer = replace(FREES, host_id=3, offs=(off(3, NOW_S - 3), off(3, NOW_S - 1)))
    owner = replace(lease_of(4), known=known)
    step = replace(SHOOTS, switching_off=False, fence_owner=owner, fencer=fencer)
    found = looked(step, announced=3).takeover
    assert found is not None and found.fencer is not None
    withdrawn = found.fencer.withdrawn
    assert withdrawn.startswith("lease-owner-known holds no longer") if known else withdrawn == ""


def test_what_was_withdrawn_stays_withdrawn() -> None:
    gone = replace(SHOOTS, withdrawn="it lived for a moment")
    assert why(gone) == "it lived for a moment"


def test_nothing_is_withdrawn_where_nothing_is_under_way() -> None:
    assert why(replace(SHOOTS, switching_off=False), global_maintenance=True) == ""
    assert looked(None).takeover is None


# --- switching on ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("withdrawn", "changed"),
    [
        ("", {}),
        ("host 2 is back", {"live": (peer(TARGET),)}),
        ("host 2 is back", {"uncertain": (peer(TARGET),)}),
        ("host 2 is back", {"live": (peer(3, hears=frozenset({TARGET})),)}),
        ("", {"live": (peer(3),)}),
        ("global maintenance is set, or it is not known whether it is", {"maintenance": True}),
        ("global maintenance is set, or it is not known whether it is", {"maintenance": None}),
    ],
)
def test_a_host_that_is_back_is_not_switched_on(withdrawn: str, changed: dict[str, Any]) -> None:
    maintenance = changed.pop("maintenance", False)
    observation = Observation(local(), global_maintenance=maintenance)
    turn = HostTurn(RULES, HostState(switching_on=TARGET), observation, NOW_S, **changed)
    look_again(turn, None)
    assert turn.state.on_withdrawn == withdrawn
    turn.live = turn.uncertain = ()
    look_again(turn, None)
    assert turn.state.on_withdrawn == withdrawn, "it stays so"


# --- the moment of the act ------------------------------------------------------------------

OFF = PowerOffHost(TARGET, 0, 500, 5, 77, "all silent")
FREE = FreeHostId(TARGET, 5, 77, NOW_S - 1)


def asked(
    state: AgentState | None,
    question: Callable[[LastLook], str],
    held: bool = True,
    slot: int = 500,
    view_ago_s: float = 0.0,
) -> str:
    async def run() -> str:
        look = LastLook(lambda: held)
        look.slots = {TARGET: slot}
        if state is not None:
            look.take(state, asyncio.get_running_loop().time() - view_ago_s)
        return await asyncio.to_thread(question, look)

    return asyncio.run(run())


QUESTIONS: list[tuple[AgentState, Callable[[LastLook], str]]] = [
    (state_of(takeover=SHOOTS), lambda look: look.off(OFF)),
    (state_of(takeover=FREES), lambda look: look.free(FREE)),
    (state_of(switching_on=TARGET), lambda look: look.on(TARGET)),
]


@pytest.mark.parametrize(("state", "question"), QUESTIONS)
def test_it_must_be_decided_still_by_a_host_that_looks_around_and_holds_the_lease(
    state: AgentState, question: Callable[[LastLook], str]
) -> None:
    assert asked(state, question) == ""
    assert asked(None, question) == "nothing was decided yet"
    assert asked(AgentState(RULES), question) == "it is decided no longer"
    assert asked(state, question, held=False) == "the fence lease is not held"
    late_s = RULES.timing.suspect_after
    assert asked(state, question, view_ago_s=late_s - 0.5) == ""
    assert "not looked around for 3." in asked(state, question, view_ago_s=late_s + 0.01)


def test_it_must_be_the_same_act() -> None:
    other = replace(SHOOTS, host_id=3)
    for state, question in (
        (state_of(takeover=other), QUESTIONS[0][1]),
        (state_of(takeover=replace(other, freeing=True)), QUESTIONS[1][1]),
        (state_of(takeover=FREES), QUESTIONS[0][1]),
        (state_of(takeover=SHOOTS), QUESTIONS[1][1]),
        (state_of(switching_on=3), QUESTIONS[2][1]),
    ):
        assert asked(state, question) == "it is decided no longer"


def test_of_a_fencer_the_lease_is_not_asked_for() -> None:
    fencer = replace(FREES, host_id=3)
    state = state_of(takeover=replace(SHOOTS, switching_off=False, fencer=fencer))
    act = FreeHostId(3, 5, 77, NOW_S - 1, fencer=True)
    assert asked(state, lambda look: look.free(act), held=False) == ""
    gone = replace(SHOOTS, fencer=replace(fencer, withdrawn="it lives"))
    lives = state_of(takeover=gone)
    assert asked(lives, lambda look: look.free(act), held=False) == "it lives"
    none = state_of(takeover=SHOOTS)
    assert asked(none, lambda look: look.free(act)) == "it is decided no longer"
    assert "not looked around" in asked(state, lambda look: look.free(act), view_ago_s=9.0)


def test_what_was_withdrawn_is_not_done() -> None:
    so = "it lives"
    assert asked(state_of(takeover=replace(SHOOTS, withdrawn=so)), QUESTIONS[0][1]) == so
    assert asked(state_of(takeover=replace(FREES, withdrawn=so)), QUESTIONS[1][1]) == so
    on = state_of(switching_on=TARGET, on_withdrawn=so)
    assert asked(on, QUESTIONS[2][1]) == so


def test_a_slot_that_has_changed_since_the_decision_is_seen_before_the_next_decision() -> None:
    state, question = QUESTIONS[0]
    assert "it lives" in asked(state, question, slot=501)


def test_one_that_asks_for_it_may_write_but_must_not_take_its_ask_back() -> None:
    state = state_of(takeover=SHOOTS)
    order = replace(OFF, asked=True)

    def asks(look: LastLook) -> str:
        look.asks = frozenset({TARGET})
        return look.off(order)

    assert asked(state, asks, slot=501) == ""
    assert asked(state, lambda look: look.off(order), slot=501) == "it asks for it no longer"


# --- and the fence lease --------------------------------------------------------------------


class SlowLog:
    """A fence log whose record takes its time; Leases too."""

    fence_held = True

    def __init__(self) -> None:
        self.written = asyncio.Event()
        self.told: list[str] = []

    async def note(self, note: FenceNote) -> str:
        await self.written.wait()
        self.told.append(note.step.value)
        return ""

    async def drop_fence(self) -> None:
        self.told.append("drop")


def test_the_fence_lease_stays_until_the_log_is_told_that_an_act_failed() -> None:
    async def run() -> None:
        world = SlowLog()
        actions = ActionRunner(
            cast(Hypervisors, None),
            cast(Leases, world),
            cast(FenceDevices, None),
            cast(FenceLog, world),
        )
        actions.begin(NoteFenceFailed(TARGET, "busy"))
        await asyncio.sleep(0)
        actions.begin(DropFenceLease())
        await asyncio.sleep(0)
        world.written.set()
        while actions.busy:
            await asyncio.sleep(0)
        assert world.told == ["failed"]
        actions.begin(DropFenceLease())
        while actions.busy:
            await asyncio.sleep(0)
        assert world.told == ["failed", "drop"]

    asyncio.run(run())


def test_a_decision_carries_what_was_withdrawn() -> None:
    """decide() looks again after all else; a takeover that is not pursued is withdrawn."""
    observation = Observation(
        local(),
        peers=(hangs(),),
        storage_good_since_s=NOW_S - 900,
        global_maintenance=True,
        fence_lease_held=True,
        fence_log=(),
    )
    state = state_of(name=StateName.ENGINE_DOWN, since_s=NOW_S - 60, takeover=SHOOTS)
    decision: Decision = decide(state, observation, NOW_S)
    step = decision.state.host.takeover
    assert step is not None and step.switching_off and "global maintenance" in step.withdrawn
