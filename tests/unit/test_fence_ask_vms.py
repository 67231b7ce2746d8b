# SPDX-License-Identifier: LGPL-2.1-or-later
"""A sick VM beside the engine that cannot be ended: its host asks to be switched off for it, once
nothing else is well there."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.report import report_of
from broker.this_host.facts import fence_ask_text
from broker.this_host.sick_vm import SickVm
from broker.whiteboard.lines import fence_ask_line, fence_ask_of
from broker.wire.exchange import Report
from scoring.decision import AskPower, Code, PowerOffHost
from scoring.hosts.evidence import Precondition, may_power_off
from scoring.hosts.fence_ask import in_words, is_asked, others_reached
from scoring.hosts.fencing import evidence_of
from scoring.hosts.look import look
from scoring.hosts.state import HostState, Takeover
from scoring.observation import FenceAsk, Power, PowerAnswer
from scoring.vm.state import StateName
from scoring.vm_facts import (
    DETAIL_PAUSED,
    ENGINE,
    EngineStatus,
    OutsideView,
    PeerVm,
    VmHere,
    VmSpec,
    VmStatus,
    Want,
)
from tests.fakes.hosts import Hosts, in_state
from tests.unit.builders import (
    DOWN,
    NOW_S,
    RULES,
    SICK,
    TIMING,
    UNKNOWN,
    UP,
    evidence,
    lease_of,
    observe,
    peer,
    seen,
)

DB, WEB, OWNER = 2, 3, 2
ROOM = {1: 16384, 2: 16384, 3: 16384}
PATIENCE_S = int(TIMING.force_stop_patience)
DEAD_S = TIMING.agent_dead_after
#: Until a sick VM is asked to shut down, is ended, and that has failed for long enough.
ASKS_S = int(TIMING.bad_health + TIMING.stop_grace) + PATIENCE_S + 10


def vm(number: int, **fields: object) -> VmSpec:
    return replace(VmSpec(number, f"vm{number}", 2048), **fields)  # type: ignore[arg-type]


def stuck(*specs: VmSpec, on: dict[int, int]) -> Hosts:
    """Three hosts, the VMs where `on` says; the database hangs, and cannot be ended."""
    hosts = Hosts((vm(DB), *specs), ROOM)
    hosts.devices = frozenset(ROOM)
    for number, host in on.items():
        hosts.put(number, host)
    hosts.run(10)
    hosts.sick.add(DB)
    hosts.unkillable.add(DB)
    return hosts


def asks(hosts: Hosts, host: int) -> FenceAsk | None:
    slot = hosts.hosts[host].slot
    assert slot is not None
    return slot.fence_ask


def said(hosts: Hosts, host: int) -> set[Code]:
    last = hosts.hosts[host].last
    assert last is not None
    return {reason.code for reason in last.reasons}


def power_asked(hosts: Hosts) -> set[int]:
    return {action.host_id for _, action in hosts.asked if isinstance(action, AskPower)}


# --- the host that asks ------------------------------------------------------------------------


def test_it_asks_for_a_vm_that_is_alone_there() -> None:
    hosts = stuck(on={ENGINE: 1, DB: 2})
    hosts.run(ASKS_S)
    found = asks(hosts, 2)
    assert found is not None and found.vm == DB and is_asked(found, RULES)
    assert Code.FENCE_ASKED in said(hosts, 2)
    hosts.run(5)
    assert power_asked(hosts) == {2} and hosts.starts == []


def test_the_engine_leaves_first() -> None:
    hosts = stuck(vm(WEB), on={ENGINE: 2, DB: 2, WEB: 2})
    hosts.run(ASKS_S - 20)
    assert hosts.moves == [] and asks(hosts, 2) is None
    hosts.run(30)
    assert {moved for _, moved, _, _ in hosts.moves} == {ENGINE, WEB}
    assert 2 not in {hosts.where()[ENGINE], hosts.where()[WEB]}
    hosts.run(5)
    assert asks(hosts, 2) is not None


def test_beside_one_that_is_not_known_to_be_sick_any_more_nothing_leaves() -> None:
    """One order to end it failed; whether it is well now is not known, which is not that it is
    sick: nobody asks for it, so nothing has to leave for it."""
    hosts = stuck(vm(WEB), on={ENGINE: 2, DB: 2, WEB: 2})
    while hosts.hosts[2].state.vms[DB].unstopped_since_s is None:
        hosts.run(1)
    hosts.unasked.add(DB)
    hosts.run(PATIENCE_S + 30)
    assert hosts.moves == [] and asks(hosts, 2) is None


def test_beside_a_vm_that_cannot_leave_it_does_not_ask() -> None:
    hosts = stuck(vm(WEB, only=(2,)), on={ENGINE: 1, DB: 2, WEB: 2})
    hosts.run(ASKS_S + 100)
    assert asks(hosts, 2) is None and hosts.where()[WEB] == 2
    assert Code.FENCE_HELD_BACK in said(hosts, 2)
    last = hosts.hosts[2].last
    assert last is not None and "vm3 must leave this host" in last.reasons[0].text


def test_for_a_vm_that_nobody_wants_up_nothing_leaves_and_nobody_asks() -> None:
    hosts = stuck(vm(WEB), on={ENGINE: 1, DB: 2, WEB: 2})
    hosts.specs[DB] = replace(hosts.specs[DB], want=Want.DOWN)
    hosts.run(ASKS_S)
    assert hosts.moves == [] and asks(hosts, 2) is None
    alone = stuck(on={ENGINE: 1, DB: 2})
    alone.specs[DB] = replace(alone.specs[DB], want=Want.DOWN)
    alone.run(ASKS_S)
    assert asks(alone, 2) is None and in_state(alone, 2, DB) is not StateName.ENGINE_DOWN


def test_of_two_it_asks_for_the_one_that_could_not_be_ended_for_longest() -> None:
    hosts = stuck(vm(WEB), on={ENGINE: 1, DB: 2, WEB: 2})
    hosts.sick.add(WEB)
    hosts.unkillable.add(WEB)
    hosts.run(ASKS_S)
    found = asks(hosts, 2)
    assert found is not None and found.vm == DB
    last = hosts.hosts[2].last
    assert last is not None
    state = last.state
    later = replace(state.vms[DB], unstopped_since_s=hosts.now_s - 1)
    report = report_of(replace(last, state=replace(state, vms={**state.vms, DB: later})))
    assert report.unstopped_vm == WEB


def test_what_is_well_beside_a_dead_agents_vm_is_not_missing() -> None:
    """The broker asks for the sick one; the other one runs there as before."""
    hosts = stuck(vm(WEB), on={ENGINE: 1, DB: 2, WEB: 2})
    hosts.fall_silent(2)
    slot = hosts.hosts[2].slot
    assert slot is not None
    word = FenceAsk(agent_dead_s=5000.0, bad_s=5000.0, vm=DB)
    for beat in range(5):
        vms = {DB: PeerVm(SICK, "EngineUp"), WEB: PeerVm(UP, "EngineUp")}
        hosts.hosts[2].slot = replace(
            slot, timestamp=slot.timestamp + 10 + beat, fence_ask=word, vms={**slot.vms, **vms}
        )
        hosts.run(1)
    said_of = {reason.vm for host in (1, 3) for reason in hosts.hosts[host].last.reasons}  # type: ignore[union-attr]
    assert WEB not in said_of and hosts.starts == []


# --- those that are asked ----------------------------------------------------------------------


def holds(ask: FenceAsk, vms: dict[int, EngineStatus], **changed: object) -> set[str]:
    """What is missing before a host that runs these is switched off by its own word."""
    there = {n: PeerVm(status) for n, status in vms.items() if n != ENGINE}
    slot = {"engine": vms.get(ENGINE, DOWN), "vms": there}
    on = PowerAnswer(OWNER, Power.ON, NOW_S - 1, identity_proven=True)
    step = Takeover(OWNER, NOW_S - 9, power=on, fence_since_s=NOW_S - 2)
    found = evidence(OWNER, ask=ask, peer=slot, **changed)
    conditions: tuple[Precondition, ...] = may_power_off(step, found, NOW_S, RULES)
    return {each.name for each in conditions if not each.holds}


def test_the_vm_that_is_named_must_be_sick_and_no_other_one_well() -> None:
    ask = FenceAsk(unstopped_s=75.0, vm=DB)
    assert holds(ask, {DB: SICK}) == set()
    assert holds(ask, {DB: SICK, WEB: SICK, ENGINE: SICK}) == set()
    assert holds(ask, {DB: UP}) == {"its-vm-is-sick"}
    assert holds(ask, {}) == {"its-vm-is-sick"}
    for engine in (UP, UNKNOWN):
        assert holds(ask, {DB: SICK, ENGINE: engine}) == {"no-other-vm-is-well-there"}
    assert holds(ask, {DB: SICK, WEB: UP}) == {"no-other-vm-is-well-there"}
    assert holds(FenceAsk(unstopped_s=75.0), {ENGINE: SICK, DB: UP}) == {
        "no-other-vm-is-well-there"
    }


def test_a_start_may_take_as_long_as_its_record_says() -> None:
    word = FenceAsk(None, 2000.0, 1999.0, DB)
    assert is_asked(word, RULES) and is_asked(word, RULES, vm(DB))
    assert not is_asked(word, RULES, vm(DB, starting_s=2000.0))
    assert not is_asked(word, RULES, vm(DB, bad_health_s=2000.0))
    assert is_asked(FenceAsk(None, 2000.0, 2000.0, DB), RULES, vm(DB, starting_s=2000.0))
    assert not is_asked(FenceAsk(None, 2000.0, DEAD_S - 1, DB), RULES, vm(DB, starting_s=1.0))


def test_one_that_others_reach_is_left_alone() -> None:
    """A VM that others reach is not stopped for its host's check; its host is not switched off."""
    hosts = stuck(on={ENGINE: 1, DB: 2})
    ran = hosts.hosts[2].state.vms[DB].last_ran
    for _ in range(int(TIMING.bad_health) + 20):
        slot = hosts.hosts[3].slot
        assert slot is not None
        view = OutsideView(2, ran, good_s=hosts.now_s)
        hosts.hosts[3].slot = replace(slot, reached={DB: view})
        hosts.run(1)
    assert in_state(hosts, 2, DB) is StateName.ENGINE_UP_BAD_HEALTH


def reach(hosts: Hosts, number: int, seconds: int) -> None:
    """Host 3 reaches that VM on host 2, beat after beat."""
    for _ in range(seconds):
        slot, ran = hosts.hosts[3].slot, hosts.hosts[2].state.vms[number].last_ran
        assert slot is not None
        view = OutsideView(2, ran, good_s=hosts.now_s)
        hosts.hosts[3].slot = replace(slot, reached={number: view})
        hosts.run(1)


def test_what_others_reach_is_not_switched_off_for_the_one_beside_it() -> None:
    """A VM that is sick by its own host's check alone: its users have it still."""
    hosts = stuck(vm(WEB, only=(2,)), on={ENGINE: 1, DB: 2, WEB: 2})
    hosts.sick.add(WEB)
    reach(hosts, WEB, ASKS_S + 30)
    assert in_state(hosts, 2, WEB) is StateName.ENGINE_UP_BAD_HEALTH
    assert asks(hosts, 2) is None and power_asked(hosts) == set()
    assert Code.FENCE_HELD_BACK in said(hosts, 2)


def test_those_that_are_asked_see_what_is_reached_there() -> None:
    ask = FenceAsk(unstopped_s=75.0, vm=DB)
    both = {DB: SICK, WEB: SICK}
    assert holds(ask, both, others_reached=(WEB,)) == {"no-other-vm-is-well-there"}
    sick = {n: PeerVm(SICK, last_ran=4) for n in (DB, WEB)}
    there = peer(OWNER, fence_ask=ask, vms={ENGINE: PeerVm(DOWN), **sick})
    view = OutsideView(OWNER, 4, good_s=NOW_S - 1)

    def reached(**changed: object) -> tuple[int, ...]:
        seen_by = peer(3, reached={WEB: replace(view, **changed)})  # type: ignore[arg-type]
        host = look(
            HostState(seen(live=(there, seen_by))), RULES, observe(peers=(there, seen_by)), NOW_S
        )
        return evidence_of(host, OWNER, lease_of(OWNER)).others_reached

    assert reached() == (WEB,)
    assert reached(stay=3) == () == reached(good_s=None)
    by = peer(3, reached={WEB: view})
    host = look(HostState(seen(live=(there, by))), RULES, observe(peers=(there, by)), NOW_S)
    assert others_reached(host, there, DB) == (WEB,)
    gone = replace(there, vms={**there.vms, WEB: PeerVm(DOWN, last_ran=4)})
    assert others_reached(host, gone, DB) == ()


def test_a_check_that_never_passed_is_no_reason_to_switch_its_vm_off() -> None:
    hosts = stuck(vm(WEB, only=(2,)), on={ENGINE: 1, DB: 2, WEB: 2})
    hosts.sick.add(WEB)
    hosts.never_healthy.add(WEB)
    hosts.run(ASKS_S + 30)
    assert asks(hosts, 2) is None and Code.FENCE_HELD_BACK in said(hosts, 2)
    sick = SickVm()
    sick.look_at_vms((here(DB, SICK), here(WEB, SICK, healthy_before=False)), 10.0)
    assert sick.ask(report(), 70.0, 100.0) is None
    paused = replace(SICK, detail=DETAIL_PAUSED)
    sick.look_at_vms((here(DB, SICK), here(WEB, paused, healthy_before=False)), 20.0)
    assert sick.ask(report(), 70.0, 100.0) is not None
    sick.look_at_vms((here(DB, SICK), here(WEB, SICK, healthy_before=False)), 30.0)
    sick.look_at_vms((here(DB, SICK),), 40.0)
    assert sick.ask(report(), 70.0, 100.0) is not None


# --- the words ---------------------------------------------------------------------------------


@pytest.mark.parametrize("ask", [FenceAsk(75.0, vm=5), FenceAsk(None, 1200.0, 1180.0, 128)])
def test_it_is_read_as_it_was_written(ask: FenceAsk) -> None:
    assert fence_ask_of(fence_ask_line(ask)) == ask


def test_the_line_is_none_to_an_earlier_version() -> None:
    assert fence_ask_line(FenceAsk(75.0, vm=5)) == "unstopped 75 vm 5"
    assert fence_ask_line(FenceAsk(75.0)) == "unstopped 75"
    assert fence_ask_of("unstopped 75 vm") is None and fence_ask_of("unstopped 75 vm x") is None


def test_it_is_called_by_its_name_where_that_is_known() -> None:
    ask = FenceAsk(75.0, vm=5)
    assert in_words(ask) == "its VM 5 is sick, and could not be ended for 75 s"
    assert fence_ask_text(ask, {5: "db"}) == "its VM db is sick, and could not be ended for 75 s"
    dead = FenceAsk(None, 70.0, 90.0, 5)
    assert in_words(dead, "db") == "its agent is dead for 70 s, its VM db sick for 90 s"


# --- the broker of a dead agent ----------------------------------------------------------------


def report() -> Report:
    return Report(score=3400, state="EngineDown", penalties=(), reasons=(), last_ran=7)


def here(number: int, status: EngineStatus, healthy_before: bool = True) -> VmHere:
    return VmHere(status, NOW_S, number=number, healthy_before=healthy_before)


def test_the_broker_says_it_of_the_vm_that_is_sick_for_longest() -> None:
    sick = SickVm()
    sick.look(UP, True, 5.0)
    sick.look_at_vms((here(DB, SICK), here(WEB, UP)), 10.0)
    sick.look_at_vms((here(DB, SICK), here(WEB, SICK)), 20.0)
    sick.look(SICK, True, 30.0)
    assert sick.ask(report(), 70.0, 100.0) == FenceAsk(agent_dead_s=70.0, bad_s=90.0, vm=DB)
    sick.look_at_vms((here(WEB, SICK),), 40.0)
    assert sick.ask(report(), 70.0, 100.0) == FenceAsk(agent_dead_s=70.0, bad_s=80.0, vm=WEB)
    sick.look_at_vms((here(WEB, EngineStatus(VmStatus.UP, UNKNOWN.health)),), 50.0)
    assert sick.ask(report(), 70.0, 100.0) == FenceAsk(agent_dead_s=70.0, bad_s=70.0)


def test_one_that_was_never_healthy_says_nothing() -> None:
    sick = SickVm()
    sick.look_at_vms((here(DB, SICK, healthy_before=False),), 10.0)
    assert sick.ask(report(), 70.0, 100.0) is None


def test_nobody_orders_for_a_well_vm() -> None:
    hosts = stuck(vm(WEB), on={ENGINE: 1, DB: 2, WEB: 2})
    hosts.run(ASKS_S + 30)
    assert not [a for _, a in hosts.asked if isinstance(a, PowerOffHost)]
