# SPDX-License-Identifier: LGPL-2.1-or-later
"""A host whose sick VM cannot be ended asks to be switched off; who hears it looks at all the rest
before it does so."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from broker.this_host.sick_vm import SickVm
from broker.whiteboard.lines import Others, fence_ask_line, fence_ask_of, peer_report
from broker.whiteboard.slot import SlotReport
from broker.wire.exchange import Report
from scoring.decide import Decision
from scoring.decision import AskPower, Code, PowerOffHost, PowerOffVm, StartVm, TakeFenceLease
from scoring.hosts.evidence import Precondition, may_power_off
from scoring.hosts.fence_ask import asking, in_words, is_asked
from scoring.hosts.state import Takeover
from scoring.observation import (
    FenceAsk,
    FenceLeaseAnswer,
    PeerReport,
    Power,
    PowerAnswer,
    VmStopEnded,
)
from scoring.rules import Rules
from scoring.timing import Timing
from scoring.vm.state import StateName
from scoring.vm.unstoppable import STOP_RETRY_S
from scoring.vm_facts import EngineStatus, OutsideView, PeerVm, VmHere, VmSpec
from tests.unit.builders import (
    DOWN,
    NOW_S,
    RULES,
    SICK,
    TIMING,
    UNANSWERED,
    UNKNOWN,
    UP,
    evidence,
    free_lease,
    in_state,
    lease_of,
    local,
    peer,
)

OWNER = 2
UNSTOPPED = FenceAsk(unstopped_s=75.0)
LONG_AGO_S = 2000.0
PATIENCE_S = TIMING.force_stop_patience
DEAD_S = TIMING.agent_dead_after


def codes(decision: Decision) -> list[Code]:
    return [reason.code for reason in decision.reasons]


# --- the host that asks -----------------------------------------------------------------------


def sick(
    engine: EngineStatus = SICK,
    state: StateName = StateName.ENGINE_STARTING,
    failed_s: float = PATIENCE_S,
    acted_s: float = NOW_S - 5,
    remembered: dict[str, Any] | None = None,
    live: tuple[PeerReport, ...] = (),
    here: dict[str, Any] | None = None,
    **observed: Any,
) -> Decision:
    """A host that could not end its VM's process since `failed_s` ago."""
    known = {"unstopped_since_s": NOW_S - failed_s, "acted_s": acted_s} | (remembered or {})
    return in_state(
        state, local(engine, **(here or {})), live=live, remembered=known, for_s=10.0, **observed
    )


def test_it_asks_when_ending_the_vm_has_failed_for_long_enough() -> None:
    decision = sick()
    assert decision.state.engine.asks_off and codes(decision)[0] is Code.FENCE_ASKED
    assert not sick(failed_s=PATIENCE_S - 0.1).state.engine.asks_off


def test_it_asks_while_it_tries_once_more() -> None:
    decision = sick(state=StateName.ENGINE_FORCE_STOP, remembered={"acting": True})
    assert decision.state.engine.asks_off


@pytest.mark.parametrize(
    "changed",
    [
        {"engine": UP},
        {"engine": UNANSWERED},
        {"engine": UNKNOWN},
        {"engine": DOWN},
        {"global_maintenance": True},
        {"global_maintenance": None},
        {"here": {"maintenance": True}},
        {"here": {"lease_held": False}},
        {"stopping": True},
        {"remembered": {"unstopped_since_s": None}},
        {"remembered": {"rules": replace(RULES, timing=Timing(force_stop_patience=0))}},
    ],
)
def test_it_does_not_ask(changed: dict[str, Any]) -> None:
    decision = sick(**changed)
    assert not decision.state.engine.asks_off and Code.FENCE_ASKED not in codes(decision)


def test_an_ask_is_withdrawn() -> None:
    asked: dict[str, Any] = {"remembered": {"asks_off": True}}
    assert sick(**asked).state.engine.asks_off
    assert not sick(engine=UP, **asked).state.engine.asks_off


@pytest.mark.parametrize("report", [UP, UNANSWERED, UNKNOWN])
def test_it_does_not_ask_while_another_vm_is_not_known_to_be_sick(report: EngineStatus) -> None:
    db = VmHere(report, NOW_S, number=2)
    decision = sick(here={"vms": (db,)}, specs=(VmSpec(2, "db", 1024),))
    assert not decision.state.engine.asks_off
    assert (
        codes(decision)[0] is Code.FENCE_HELD_BACK and "db must leave" in decision.reasons[0].text
    )
    unnamed = sick(here={"vms": (db,)}, remembered={"asks_off": True})
    assert not unnamed.state.engine.asks_off and "VM 2 must leave" in unnamed.reasons[0].text


@pytest.mark.parametrize("report", [SICK, DOWN])
def test_it_asks_where_no_other_vm_is_well(report: EngineStatus) -> None:
    assert sick(here={"vms": (VmHere(report, NOW_S, number=2),)}).state.engine.asks_off


def test_it_does_not_ask_while_somebody_outside_reaches_the_vm() -> None:
    def seen(good_s: float, stay: int = 7) -> PeerReport:
        return peer(3, outside=OutsideView(1, stay, good_s=good_s))

    remembered = {"last_ran": 7}
    newest_s = NOW_S - TIMING.isolation_after
    assert not sick(live=(seen(newest_s + 0.1),), remembered=remembered).state.engine.asks_off
    assert sick(live=(seen(newest_s),), remembered=remembered).state.engine.asks_off
    assert sick(live=(seen(NOW_S, stay=6),), remembered=remembered).state.engine.asks_off


def test_a_stop_that_failed_is_remembered_from_the_first_on() -> None:
    failed = VmStopEnded(False, "the process does not end")
    first = sick(
        state=StateName.ENGINE_FORCE_STOP,
        remembered={"unstopped_since_s": None, "acting": True},
        outcomes=(failed,),
    )
    assert first.state.engine.unstopped_since_s == NOW_S
    again = sick(state=StateName.ENGINE_FORCE_STOP, remembered={"acting": True}, outcomes=(failed,))
    assert again.state.engine.unstopped_since_s == NOW_S - PATIENCE_S


def test_a_guest_that_was_asked_to_shut_down_is_not_ended_by_that() -> None:
    passed_on = VmStopEnded(True)
    asked = sick(state=StateName.ENGINE_STOP, remembered={"acting": True}, outcomes=(passed_on,))
    assert asked.state.engine.unstopped_since_s == NOW_S - PATIENCE_S
    ended = sick(
        state=StateName.ENGINE_FORCE_STOP, remembered={"acting": True}, outcomes=(passed_on,)
    )
    assert ended.state.engine.unstopped_since_s is None


@pytest.mark.parametrize("engine", [UP, DOWN])
def test_it_is_forgotten_when_the_vm_is_well_or_gone(engine: EngineStatus) -> None:
    assert sick(engine=engine).state.engine.unstopped_since_s is None


@pytest.mark.parametrize("engine", [UNKNOWN, UNANSWERED])
def test_it_is_not_forgotten_for_want_of_an_answer(engine: EngineStatus) -> None:
    assert sick(engine=engine).state.engine.unstopped_since_s is not None


def test_the_process_is_ended_once_more_after_a_pause() -> None:
    decision = sick(acted_s=NOW_S - STOP_RETRY_S)
    assert decision.state.engine.name is StateName.ENGINE_FORCE_STOP
    assert decision.actions == (PowerOffVm(),)
    assert not sick(acted_s=NOW_S - STOP_RETRY_S + 0.1).actions
    assert not sick(UNANSWERED, acted_s=NOW_S - STOP_RETRY_S).actions


def test_a_vm_that_is_sick_by_its_own_check_alone_is_not_stopped() -> None:
    """Law 11: what its users can reach is never stopped for it."""
    reaches = peer(3, outside=OutsideView(1, 7, good_s=NOW_S - 1))
    kwargs: dict[str, Any] = {"for_s": TIMING.bad_health, "remembered": {"last_ran": 7}}
    name = StateName.ENGINE_UP_BAD_HEALTH
    left = in_state(name, local(SICK), live=(reaches,), **kwargs)
    assert left.state.engine.name is name and left.state.engine.since_s == NOW_S
    assert codes(left) == [Code.SICK_BUT_REACHED]
    assert in_state(name, local(SICK), **kwargs).state.engine.name is StateName.ENGINE_STOP


# --- those that are asked ----------------------------------------------------------------------


def test_what_amounts_to_an_ask() -> None:
    assert is_asked(UNSTOPPED, RULES)
    assert not is_asked(None, RULES)
    assert is_asked(FenceAsk(None, DEAD_S, DEAD_S), RULES)
    assert not is_asked(FenceAsk(None, DEAD_S - 1, DEAD_S), RULES)
    assert not is_asked(FenceAsk(None, DEAD_S, DEAD_S - 1), RULES)
    assert not is_asked(FenceAsk(None, None, DEAD_S), RULES)
    assert not is_asked(FenceAsk(None, DEAD_S, None), RULES)


def test_a_start_may_take_as_long_as_it_may() -> None:
    rules = Rules(timing=Timing(engine_starting=2000))
    assert not is_asked(FenceAsk(None, 1999, 1999), rules)
    assert is_asked(FenceAsk(None, 2000, 2000), rules)


def test_dead_agents_are_left_to_people_where_that_is_set() -> None:
    never = Rules(timing=Timing(agent_dead_after=0))
    assert not is_asked(FenceAsk(None, 80_000, 80_000), never)
    assert is_asked(UNSTOPPED, never)


def test_two_hosts_that_ask_at_once_are_a_fault_of_all() -> None:
    two, three = (peer(host, fence_ask=UNSTOPPED) for host in (2, 3))
    assert asking((two,), RULES) is two
    assert asking((two, three), RULES) is None
    assert asking((two, peer(3)), RULES) is two


def owner(engine: EngineStatus = SICK, **changed: Any) -> PeerReport:
    slot: dict[str, Any] = {
        "fence_ask": UNSTOPPED,
        "state": StateName.ENGINE_FORCE_STOP.value,
        "boot_id": "its-boot",
        "last_ran": 7,
        "heartbeat_s": NOW_S - 1,
        "renewal_s": NOW_S - 5,
        "renewal_timestamp": 77,
    }
    return peer(OWNER, engine=engine, **(slot | changed))


ON = PowerAnswer(OWNER, Power.ON, NOW_S - 1, identity_proven=True)
STEP = Takeover(OWNER, NOW_S - 9, power=ON, fence_since_s=NOW_S - 2)


def heard(
    who: PeerReport | None = None,
    others: tuple[PeerReport, ...] = (),
    remembered: dict[str, Any] | None = None,
    here: dict[str, Any] | None = None,
    **observed: Any,
) -> Decision:
    """A host that hears the ask, and holds the fence lease with the power read on under it."""
    memory = {"lease": lease_of(OWNER), "takeover": STEP} | (remembered or {})
    known: dict[str, Any] = {
        "fence_devices": frozenset({OWNER}),
        "fence_lease_held": True,
        "fence_log": (),
    }
    known |= observed
    return in_state(
        StateName.ENGINE_DOWN,
        local(**(here or {})),
        live=(who or owner(), *others),
        remembered=memory,
        for_s=900.0,
        **known,
    )


def orders(decision: Decision) -> list[PowerOffHost]:
    return [each for each in decision.actions if isinstance(each, PowerOffHost)]


def test_a_host_that_asks_is_switched_off() -> None:
    decision = heard()
    (order,) = orders(decision)
    assert order.asked and order.host_id == OWNER
    step = decision.state.host.takeover
    assert step is not None and step.switching_off
    assert Code.POWER_OFF_ORDERED in codes(decision)


def test_its_power_is_asked_and_the_fence_lease_taken_first() -> None:
    fresh = heard(remembered={"takeover": None}, fence_lease_held=False)
    assert AskPower(OWNER) in fresh.actions and not orders(fresh)
    assert Code.OWNER_ASKS in codes(fresh)
    ripe = heard(remembered={"takeover": replace(STEP, fence_since_s=None)}, fence_lease_held=False)
    assert TakeFenceLease() in ripe.actions and not orders(ripe)


@pytest.mark.parametrize(
    ("who", "changed"),
    [
        (owner(fence_ask=None), {}),
        (owner(UP), {}),
        (owner(UNANSWERED), {}),
        (owner(UNKNOWN), {}),
        (owner(stopped=True), {}),
        (owner(maintenance=True), {}),
        (owner(), {"global_maintenance": True}),
        (owner(), {"global_maintenance": None}),
        (owner(), {"storage_good_since_s": NOW_S - 9.9}),
        (owner(), {"fence_lease_held": False}),
        (owner(), {"fence_log": None}),
        (owner(), {"fence_devices": frozenset()}),
        (owner(), {"lockspace_joined": False}),
        (owner(), {"others": (peer(3, outside=OutsideView(OWNER, 7, NOW_S - 1)),)}),
        (owner(), {"here": {"outside": OutsideView(OWNER, 7, NOW_S - 1)}}),
        (owner(vms={2: PeerVm(UP)}), {}),
        (owner(vms={2: PeerVm(UNANSWERED)}), {}),
        (owner(vms={2: PeerVm(UNKNOWN)}), {}),
        (owner(), {"others": (peer(3, fence_ask=UNSTOPPED),)}),
        (owner(), {"others": (peer(3, engine=UP),)}),
        (owner(), {"remembered": {"lease": free_lease()}}),
        (owner(), {"remembered": {"lease": lease_of(3)}}),
        (owner(), {"remembered": {"lease": lease_of(OWNER, current_generation=6)}}),
        (owner(), {"remembered": {"lease": replace(lease_of(OWNER), known=False)}}),
        (
            owner(),
            {"remembered": {"takeover": replace(STEP, power=replace(ON, power=Power.UNKNOWN))}},
        ),
        (
            owner(),
            {"remembered": {"takeover": replace(STEP, power=replace(ON, identity_proven=False))}},
        ),
        (owner(), {"remembered": {"rules": replace(RULES, fence_power_off=False)}}),
    ],
)
def test_it_is_not_switched_off_unless_all_else_holds(
    who: PeerReport, changed: dict[str, Any]
) -> None:
    decision = heard(who, **changed)
    assert not orders(decision)
    assert not any(isinstance(action, StartVm) for action in decision.actions)


@pytest.mark.parametrize("report", [SICK, DOWN])
def test_a_vm_that_is_sick_or_down_there_keeps_nobody_from_it(report: EngineStatus) -> None:
    assert orders(heard(owner(vms={2: PeerVm(report)})))


def test_a_place_that_was_seen_before_says_nothing_of_this_stay() -> None:
    view = OutsideView(OWNER, 6, good_s=NOW_S - 1)
    assert orders(heard(here={"outside": view}))


def test_without_a_fence_device_people_are_told() -> None:
    decision = heard(fence_devices=frozenset())
    assert "power it off by hand" in decision.reasons[-1].text


def test_a_vm_that_does_not_hold_the_lease_is_no_reason() -> None:
    decision = heard(remembered={"lease": free_lease()})
    assert codes(decision) == [Code.OWNER_ASKS]


def test_the_lease_is_asked_anew_without_forgetting_what_has_begun() -> None:
    asked = heard(remembered={"lease": lease_of(OWNER, NOW_S - LONG_AGO_S)})
    assert Code.LEASE_ASKED in codes(asked)
    assert asked.state.host.takeover == STEP


def test_a_better_host_goes_first_and_the_one_that_asks_is_none() -> None:
    """No host waits for the asking one, however well it scores and whatever it does."""
    assert orders(heard(owner(score=3400)))
    behind = heard(others=(peer(3, last_ran=9),), remembered={"missing_since_s": NOW_S - 1.0})
    assert not orders(behind) and Code.TAKEOVER_TURN in codes(behind)


def test_an_order_is_withdrawn_with_the_ask() -> None:
    under_way = replace(STEP, switching_off=True)
    told_off: dict[str, Any] = {"remembered": {"takeover": under_way}}
    held = heard(**told_off).state.host.takeover
    assert held is not None and held.withdrawn == ""
    step = heard(owner(fence_ask=None), **told_off).state.host.takeover
    assert step is not None and step.withdrawn == "the VM runs on host2 (id 2)"
    told = owner(UNKNOWN, fence_ask=None, state=StateName.UNKNOWN_LOCAL_VM_STATE.value)
    step = heard(told, **told_off).state.host.takeover
    assert step is not None and "lives and owns the engine lease" in step.withdrawn
    step = heard(owner(UP), **told_off).state.host.takeover
    assert step is not None and step.withdrawn == "the VM runs on host2 (id 2)"


def test_nothing_is_started_while_the_host_lives_and_only_its_ask_is_known() -> None:
    gone = heard(remembered={"lease": lease_of(OWNER, current_generation=6), "takeover": None})
    assert gone.state.engine.name is StateName.ENGINE_DOWN
    assert codes(gone) == [Code.OWNER_ASKS]


def holds(**changed: Any) -> dict[str, Precondition]:
    found = evidence(OWNER, ask=changed.pop("ask", UNSTOPPED), peer={"engine": SICK}, **changed)
    return {each.name: each for each in may_power_off(STEP, found, NOW_S, RULES)}


def test_the_preconditions_are_told_with_their_values() -> None:
    told_all = holds()
    assert all(each.holds for each in told_all.values())
    assert told_all["asks-for-it"].value == "its VM is sick, and could not be ended for 75 s"
    assert not holds(reached_by=("host3 (id 3)",))["nobody-reaches-its-vm"].holds
    assert not holds(ask=FenceAsk(None, 60.0, 20.0))["asks-for-it"].holds
    without = replace(evidence(OWNER), ask=UNSTOPPED, peer=None)
    missing = {c.name for c in may_power_off(STEP, without, NOW_S, RULES) if not c.holds}
    assert "its-vm-is-sick" in missing


def test_a_fence_lease_that_was_not_given_pauses_as_ever() -> None:
    refused = FenceLeaseAnswer(False, NOW_S, "taken")
    decision = heard(
        remembered={"takeover": replace(STEP, taking_fence=True)},
        fence_lease_held=False,
        outcomes=(refused,),
    )
    assert Code.TAKEOVER_PAUSED in codes(decision)


# --- what stands in the slot --------------------------------------------------------------------


def report(**changed: Any) -> Report:
    known: dict[str, Any] = {
        "score": 3400,
        "state": "EngineStarting",
        "penalties": (),
        "reasons": (),
        "last_ran": 7,
    }
    return Report(**(known | changed))


def test_an_agent_that_asks_is_quoted() -> None:
    ask = SickVm().ask(report(unstopped_since_s=25.0), None, 100.0)
    assert ask == FenceAsk(unstopped_s=75.0)
    assert SickVm().ask(report(), None, 100.0) is None
    assert in_words(FenceAsk(unstopped_s=75.0)) == "its VM is sick, and could not be ended for 75 s"


def test_of_a_dead_agent_the_broker_says_since_when() -> None:
    seen = SickVm()
    seen.look(SICK, True, 10.0)
    seen.look(SICK, True, 50.0)
    ask = seen.ask(report(), 70.0, 100.0)
    assert ask == FenceAsk(agent_dead_s=70.0, bad_s=90.0)
    assert in_words(ask) == "its agent is dead for 70 s, its VM sick for 90 s"
    assert seen.ask(report(unstopped_since_s=1.0), 70.0, 100.0) == ask, "its last word is old"


def test_an_agent_that_was_never_heard_may_have_been_stopped_in_order() -> None:
    seen = SickVm()
    seen.look(SICK, True, 10.0)
    assert seen.ask(None, 70.0, 100.0) is None


@pytest.mark.parametrize("engine", [UP, DOWN, UNKNOWN, UNANSWERED])
def test_what_is_not_known_to_be_bad_breaks_the_time(engine: EngineStatus) -> None:
    seen = SickVm()
    seen.look(SICK, True, 10.0)
    seen.look(engine, True, 20.0)
    assert seen.ask(report(), 70.0, 100.0) is None
    seen.look(SICK, True, 30.0)
    assert seen.ask(report(), 70.0, 100.0) == FenceAsk(agent_dead_s=70.0, bad_s=70.0)


def test_what_was_never_healthy_is_not_sick() -> None:
    seen = SickVm()
    seen.look(SICK, False, 10.0)
    assert seen.ask(report(), 70.0, 100.0) is None


def test_a_slot_that_is_not_signed_asks_for_nothing() -> None:
    slot = SlotReport(
        host_id=OWNER,
        timestamp=500,
        score=3400,
        engine_status=SICK,
        hostname="host2",
        maintenance=False,
        stopped=False,
        conf_on_shared_storage=False,
        local_conf_timestamp=0,
        extra={"fence-ask": "unstopped 75"},
        extra_trusted=True,
    )
    others = Others()
    assert peer_report(slot, None, others, is_signed=True).fence_ask == UNSTOPPED
    assert peer_report(slot, None, others).fence_ask is None


@pytest.mark.parametrize("ask", [None, FenceAsk(75.0), FenceAsk(None, 1200.0, 1180.0)])
def test_it_is_read_as_it_was_written(ask: FenceAsk | None) -> None:
    assert fence_ask_of(fence_ask_line(ask)) == ask


@pytest.mark.parametrize(
    "text",
    [
        "",
        "unstopped",
        "unstopped -1",
        "unstopped 1.5",
        "unstopped 1 ",
        "unstopped 9999999999",
        "unstopped \u0663",
        "UNSTOPPED 5",
        "agent-dead",
        "agent-dead 5",
        "agent-dead 5 bad x",
    ],
)
def test_anything_else_is_no_ask(text: str) -> None:
    assert fence_ask_of(text) is None
