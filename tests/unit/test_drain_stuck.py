# SPDX-License-Identifier: LGPL-2.1-or-later
"""A drain that gets nowhere: what is said of it, and how rarely it is tried again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from agent.commands import drained as watch
from agent.commands.drained import drained as drained_answer
from agent.commands.maintenance import Asked, status_of
from agent.commands.maintenance import run as maintain
from agent.terminal.errors import CommandError
from broker.broker import Broker
from broker.daemon.exit_codes import ExitCode
from broker.maintenance.kept import load as load_mode
from broker.wire.status import EngineSummary, HostStatus, PenaltyOnWire, ReasonOnWire, Status
from broker.wire.vms import VmEntry, VmWord
from scoring.decide import Decision
from scoring.decision import Code, MigrateVm, ShutDownVm
from scoring.observation import (
    HostShutdown,
    Order,
    OrderKind,
    PeerReport,
    VmMigrationEnded,
)
from scoring.vm.move import LASTING_RETRY_S, NAMED_MAX, RETRY_MAX_S
from scoring.vm.state import MoveProblem
from scoring.vm.state import StateName as S
from tests.fakes.broker import report, served, up
from tests.fakes.statuses import host, status
from tests.unit.builders import DOWN, NOW_S, TIMING, UP, codes, in_state, local, peer

CPU = "libvirt: the CPU is incompatible"
RETRY = TIMING.migrate_retry


def drained(
    *peers: PeerReport,
    failed: dict[int, MoveProblem] | None = None,
    ago_s: float = 1.0,
    **observed: Any,
) -> Decision:
    """What host 1 decides, in local maintenance, when moves to hosts have failed `ago_s` ago."""
    failed = failed or {}
    return in_state(
        S.ENGINE_UP,
        local(UP, maintenance=True),
        live=peers or (peer(2), peer(3)),
        remembered={
            "move_problems": failed,
            "move_failed_s": dict.fromkeys(failed, NOW_S - ago_s),
        },
        **observed,
    )


LASTING = MoveProblem(CPU, lasting=True)


def test_what_cannot_go_away_is_said_of_each_host_with_what_to_do() -> None:
    decision = drained(failed={2: LASTING, 3: MoveProblem("two machines with one UUID", True)})
    assert decision.state.engine.name is S.ENGINE_UP and not decision.actions
    assert codes(decision) == [Code.DRAIN_STUCK, Code.ENGINE_HEALTHY]
    text = decision.reasons[0].text
    assert f"host2 (id 2): {CPU}; host3 (id 3): two machines with one UUID" in text
    assert "next try in 3599 s" in text
    assert "ha-agent maintenance local --restart, then host2 (id 2) can start it" in text


def test_a_host_that_was_not_tried_yet_is_tried_at_once() -> None:
    assert drained(failed={2: LASTING}).actions == (MigrateVm(3),)


@pytest.mark.parametrize(
    ("problem", "pause_s"),
    [
        (LASTING, LASTING_RETRY_S),
        (MoveProblem("no route"), RETRY),
        (MoveProblem("no route", tries=2), 2 * RETRY),
        (MoveProblem("no route", tries=4), 8 * RETRY),
        (MoveProblem("no route", tries=5), RETRY_MAX_S),
        (MoveProblem("no route", tries=10**9), RETRY_MAX_S),
    ],
)
def test_it_is_tried_again_more_and_more_rarely(problem: MoveProblem, pause_s: float) -> None:
    failed = {2: problem, 3: problem}
    assert not drained(failed=failed, ago_s=pause_s - 1).actions
    assert drained(failed=failed, ago_s=pause_s).actions == (MigrateVm(2),)


def test_what_may_pass_is_said_as_such_until_it_has_failed_three_times() -> None:
    for tries, code in ((1, Code.MOVE_DWELL), (2, Code.MOVE_DWELL), (3, Code.DRAIN_STUCK)):
        problem = MoveProblem("no route", tries=tries)
        decision = drained(failed={2: problem, 3: LASTING})
        assert codes(decision)[0] is code, tries
        assert "host2 (id 2): no route" in decision.reasons[0].text


def ended(ok: bool, **given: Any) -> VmMigrationEnded:
    return VmMigrationEnded(2, ok, **given)


def moved(outcome: VmMigrationEnded, **remembered: Any) -> Decision:
    return in_state(
        S.ENGINE_MIGRATING_AWAY,
        local(UP, maintenance=True),
        live=(peer(2),),
        outcomes=(outcome,),
        remembered={"acting": True, **remembered},
    )


def test_why_and_how_often_a_move_failed_is_remembered() -> None:
    once = moved(ended(False, detail="no route")).state.engine
    assert once.move_problems == {2: MoveProblem("no route")}
    twice = moved(
        ended(False, detail=CPU, lasting=True), move_problems=once.move_problems
    ).state.engine
    assert twice.move_problems == {2: MoveProblem(CPU, lasting=True, tries=2)}
    assert moved(ended(False)).state.engine.move_problems[2].why == "no reason"
    assert not moved(ended(True), move_problems=once.move_problems).state.engine.move_problems


def test_what_an_operator_ordered_counts_for_nothing() -> None:
    order = Order(1, OrderKind.MIGRATE)
    assert not moved(ended(False, detail="no"), order=order).state.engine.move_problems


UNSAFE = MoveProblem("no shared storage", lasting=True, everywhere=True)


def test_what_is_the_same_everywhere_is_tried_once_and_said_at_once() -> None:
    outcome = ended(False, detail="no shared storage", lasting=True, everywhere=True)
    assert moved(outcome).state.engine.move_problems == {2: UNSAFE}
    peers = tuple(peer(host) for host in range(2, 10))
    decision = drained(*peers, failed={2: UNSAFE})
    assert not decision.actions and codes(decision)[0] is Code.DRAIN_STUCK
    assert decision.reasons[0].text.endswith("can start it): to any host: no shared storage")
    assert drained(*peers, failed={2: UNSAFE}, ago_s=LASTING_RETRY_S).actions == (MigrateVm(2),)
    # A host has its own cause where it was tried.
    both = drained(peer(2), peer(3), failed={2: UNSAFE, 3: MoveProblem("no route")}, ago_s=RETRY)
    assert both.actions == (MigrateVm(3),)


def test_a_host_that_was_away_may_have_been_mended() -> None:
    known = {2: LASTING, 3: LASTING}
    decision = in_state(
        S.ENGINE_UP,
        local(UP),
        live=(peer(2),),
        silent=(peer(3),),
        remembered={"move_problems": known},
    )
    assert decision.state.engine.move_problems == {2: LASTING}


def test_where_no_host_can_take_it_each_is_named_with_its_reason() -> None:
    peers = (
        peer(2, maintenance=True),
        peer(3, score=0),
        peer(4, memory_short=True),
        peer(5, stopped=True),
    )
    decision = drained(*peers)
    assert codes(decision)[0] is Code.DRAIN_WAITING
    assert decision.reasons[0].text.endswith(
        "can take the VM: host2 (id 2) is in local maintenance; host3 (id 3) scores 0: it must not "
        "run the VM (ha-agent --status shows why); host4 (id 4) has less memory free than the VM "
        "needs"
    )
    many = tuple(peer(host, maintenance=True) for host in range(2, 202))
    text = drained(*many).reasons[0].text
    assert text.count("in local maintenance") == NAMED_MAX and text.endswith("; and 196 more")


def test_a_move_for_a_better_score_says_why_the_last_one_failed() -> None:
    decision = in_state(
        S.ENGINE_UP,
        local(UP, cpu_load=0.9, network=0.5),
        live=(peer(2),),
        remembered={
            "better_since_s": NOW_S - 100,
            "move_failed_s": {2: NOW_S - 10},
            "move_problems": {2: LASTING},
        },
    )
    assert codes(decision)[0] is Code.MOVE_DWELL
    assert decision.reasons[0].text == (
        f"the last migration failed, next try in 3590 s: host2 (id 2): {CPU}"
    )


def test_a_host_that_shuts_down_says_why_the_vm_could_not_leave() -> None:
    decision = in_state(
        S.ENGINE_UP,
        local(UP, maintenance=True, shutdown=HostShutdown(NOW_S - 5)),
        live=(peer(2), peer(3, engine=DOWN)),
        remembered={
            "move_failed_s": {2: NOW_S - 2, 3: NOW_S - 1},
            "move_problems": {2: LASTING, 3: MoveProblem("no route")},
        },
    )
    assert decision.state.engine.name is S.ENGINE_STOP
    assert decision.reasons[0].text.endswith(
        f"to each host that could take it: host2 (id 2): {CPU}; host3 (id 3): no route"
    )


# --- the answer of `ha-agent maintenance local` --------------------------------------------------


def answer(tmp_path: Path, reason: ReasonOnWire | None, *, is_here: bool = True) -> str:
    """What the command says of the VM, by a broker whose agent gives that reason."""
    said: list[str] = []

    async def test(broker: Broker, path: str, session: aiohttp.ClientSession) -> None:
        now_s = asyncio.get_running_loop().time()
        if is_here:
            up(broker, now_s)
        reasons = () if reason is None else (reason,)
        broker.take_report(msgspec.structs.replace(report(), reasons=reasons), now_s)
        await broker.beat(now_s)
        said.append((await asyncio.to_thread(drained_answer, status_of(path), 0.0))[1])

    served(tmp_path, test)
    return said[0]


@pytest.mark.parametrize(
    "code", ["drain-stuck", "drain-waiting", "move-impossible", "global-maintenance"]
)
def test_the_answer_says_why_the_vm_stays(tmp_path: Path, code: str) -> None:
    said = answer(tmp_path, ReasonOnWire(code, "no CPU"))
    assert said.startswith("NOT DRAINED: no CPU")
    # Where time may help, or nothing may be touched, nothing else is proposed.
    is_lasting = code in ("drain-stuck", "move-impossible")
    assert ("nor could another host start the VM now" in said) is is_lasting


def test_the_answer_does_not_wait_for_long(tmp_path: Path) -> None:
    said = answer(tmp_path, ReasonOnWire("migrating", "migrating for 3 s"))
    assert said == "the VM is still here; how far that is: ha-agent why"


def test_there_is_none_of_a_vm_that_is_not_here(tmp_path: Path) -> None:
    assert answer(tmp_path, ReasonOnWire("drain-stuck", "no CPU"), is_here=False) == ""
    assert drained_answer(status_of("/no/socket")) == (False, "")


def test_the_command_prints_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def test(broker: Broker, path: str, session: aiohttp.ClientSession) -> None:
        now_s = asyncio.get_running_loop().time()
        up(broker, now_s)
        stuck = (ReasonOnWire("drain-stuck", "no CPU"),)
        broker.take_report(msgspec.structs.replace(report(), reasons=stuck), now_s)
        await broker.beat(now_s)
        code = await asyncio.to_thread(maintain, path, Asked("local", "1h"))
        assert code == ExitCode.OK
        code = await asyncio.to_thread(maintain, path, Asked("local", "1h", wait=True))
        assert code == ExitCode.FAILED, "who waits learns by the exit code that it stays"

    served(tmp_path, test)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("NOT DRAINED: no CPU")


def test_between_two_hosts_it_is_up_on_neither_for_a_moment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watch, "LOOK_S", 0.0)
    here = EngineSummary(True, True, 1, "host1")
    between, there = EngineSummary(False, False), EngineSummary(True, False, 2, "host2")

    def looks(*seen: EngineSummary) -> Callable[[], Status]:
        steps = iter(seen)
        return lambda: status(host(1, local=True), host(2), engine=next(steps))

    assert drained_answer(looks(here, between, there)) == (
        True,
        "the VM has left, and is up on host2",
    )
    assert drained_answer(looks(between)) == (True, ""), "it was not here"
    monkeypatch.setattr(watch, "HANDED_OVER_S", 0.0)
    assert drained_answer(looks(here, between)) == (
        True,
        "the VM has left, and is up on no host",
    )


def some_vm(number: int, name: str, on: int | None, *, unknown: bool = False) -> VmEntry:
    return VmEntry(
        number,
        name,
        50,
        "up",
        128,
        VmWord.UNKNOWN if unknown else VmWord.UP,
        None if unknown else on is not None,
        None,
        on,
        None if on is None else f"host{on}",
    )


def test_a_host_is_drained_when_every_vm_has_left_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "LOOK_S", 0.0)

    def looks(*seen: tuple[VmEntry, ...]) -> Callable[[], Status]:
        steps = iter(seen)

        def look() -> Status:
            vms = next(steps)
            engine = EngineSummary(vms[0].up, None, vms[0].host, vms[0].hostname)
            return status(host(1, local=True), host(2), engine=engine, vms=vms)

        return look

    def at(engine: int, db: int, **changes: bool) -> tuple[VmEntry, ...]:
        return some_vm(1, "HostedEngine", engine), some_vm(2, "db", db, **changes)

    assert drained_answer(looks(at(1, 1), at(2, 1), at(2, 2))) == (
        True,
        "HostedEngine has left, and is up on host2; db has left, and is up on host2",
    )
    assert drained_answer(looks(at(2, 1)), 0.0) == (
        False,
        "db is still here; how far that is: ha-agent why",
    )
    assert drained_answer(looks(at(1, 1)), 0.0, "host1") == (
        False,
        "HostedEngine, db are still there; how far that is: ha-agent why",
    )
    assert drained_answer(looks(at(1, 2), at(2, 2, unknown=True))) == (
        False,
        "HostedEngine has left, and is up on host2; whether db runs here is not known",
    )
    assert drained_answer(looks(at(2, 2))) == (True, ""), "nothing was here"


STUCK = (ReasonOnWire("drain-stuck", "no CPU"),)


def said_of_a_stuck_drain(*hosts: HostStatus, typed: str | None = None, **changes: Any) -> str:
    """What the command says where the VM of host 1 cannot be migrated."""
    seen = status(host(1, local=True), *hosts, reasons=STUCK, **changes)
    return drained_answer(lambda: seen, 0.0, typed)[1]


def test_the_way_out_names_who_can_start_the_vm_and_where_to_type_it() -> None:
    assert said_of_a_stuck_drain(host(2), host(3)) == (
        "NOT DRAINED: no CPU; without a migration, with the outage of a boot: ha-agent maintenance "
        "local --restart stops what cannot be migrated, in order, and host2 or host3 can start the "
        "VM"
    )
    assert "local --restart --host kvm1 stops" in said_of_a_stuck_drain(host(2), typed="kvm1")


@pytest.mark.parametrize(
    "changes",
    [
        {"liveness": "silent"},
        {"score": 0},
        {"maintenance": True},
        {"stopped": True},
        {"penalties": (PenaltyOnWire("memory", 400, "4 GiB are short"),)},
        {"penalties": (PenaltyOnWire("cannot-start", 3400, "no image"),)},
    ],
)
def test_no_way_out_is_named_where_no_other_host_can_start_the_vm(changes: dict[str, Any]) -> None:
    said = said_of_a_stuck_drain(host(2, **changes))
    assert said == "NOT DRAINED: no CPU; nor could another host start the VM now (ha-agent why)"


def test_a_vm_of_the_registry_is_started_where_the_plan_says() -> None:
    def said(order: tuple[int, ...]) -> str:
        db = msgspec.structs.replace(some_vm(2, "db", 1), order=order)
        engine = EngineSummary(True, True, 2, "host2")
        vms = (some_vm(1, "HostedEngine", 2), db)
        return said_of_a_stuck_drain(host(2), host(3), vms=vms, engine=engine)

    assert "host3 can start db" in said((1, 3))
    assert "nor could another host start db" in said((1,))


def test_what_is_said_of_a_vm_that_stays_is_shown() -> None:
    db = msgspec.structs.replace(some_vm(2, "db", 1), reason="migrating for 3 s")
    seen = status(
        host(1, local=True),
        host(2),
        engine=EngineSummary(True, True, 2, "host2"),
        vms=(some_vm(1, "HostedEngine", 2), db),
    )
    assert drained_answer(lambda: seen, 0.0)[1] == (
        "db is still here (db: migrating for 3 s); how far that is: ha-agent why"
    )


def test_a_vm_of_the_registry_that_cannot_leave_ends_the_watch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With --wait it was watched for an hour, without a word of why it stays."""
    monkeypatch.setattr(watch, "LOOK_S", 0.0)
    monkeypatch.setattr(watch, "_STAYS_S", 0.0)
    why = "local maintenance: no other live host can take the VM: host2: sso is there"
    db = msgspec.structs.replace(some_vm(2, "db", 1), reason=why, stays=True)
    web = some_vm(3, "web", 1)
    engine = EngineSummary(True, True, 2, "host2")

    def seen(*vms: VmEntry) -> Status:
        vms = (some_vm(1, "HostedEngine", 2), *vms)
        return status(host(1, local=True), host(2), engine=engine, vms=vms)

    steps = iter([seen(db, web), seen(db)])
    assert drained_answer(lambda: next(steps, seen(db))) == (
        False,
        f"NOT DRAINED: db is here (db: {why})",
    )


# --- a drain by a stop and a start ----------------------------------------------------------------


def restarting(*peers: PeerReport, failed: dict[int, MoveProblem], **observed: Any) -> Decision:
    """A decision as of `drained`, where the administrator said --restart."""
    return in_state(
        S.ENGINE_UP,
        local(UP, maintenance=True, may_restart=True),
        live=peers or (peer(2), peer(3)),
        remembered={"move_problems": failed, "move_failed_s": dict.fromkeys(failed, NOW_S - 1.0)},
        **observed,
    )


def test_with_restart_what_no_host_can_receive_is_stopped() -> None:
    decision = restarting(failed={2: LASTING, 3: MoveProblem("no route", tries=3)})
    assert decision.state.engine.name is S.ENGINE_STOP and decision.actions == (ShutDownVm(),)
    assert codes(decision)[0] is Code.DRAIN_RESTART
    text = decision.reasons[0].text
    assert f"host2 (id 2): {CPU}; host3 (id 3): no route" in text
    assert text.endswith("host2 (id 2) can start it")


def test_with_restart_what_may_be_migrated_is() -> None:
    assert restarting(failed={2: LASTING}).actions == (MigrateVm(3),)
    decision = restarting(failed={2: LASTING, 3: MoveProblem("no route", tries=2)})
    assert not decision.actions and codes(decision)[0] is Code.MOVE_DWELL


def test_with_restart_nothing_is_stopped_where_nobody_can_start_it() -> None:
    unfit = (peer(2, score=0), peer(3, memory_short=True), peer(4, maintenance=True))
    decision = restarting(*unfit, failed=dict.fromkeys((2, 3, 4), LASTING))
    assert not decision.actions and codes(decision)[0] is Code.DRAIN_WAITING
    # In global maintenance nothing is stopped, whoever could take it.
    decision = restarting(failed={2: LASTING, 3: LASTING}, global_maintenance=True)
    assert not decision.actions


def test_with_restart_migration_need_not_be_set_up() -> None:
    decision = restarting(failed={}, migration_possible=False)
    assert decision.state.engine.name is S.ENGINE_STOP
    assert "libvirt.migration-uri is not set" in decision.reasons[0].text


def test_restart_is_of_a_drain_alone() -> None:
    """A host that is not in local maintenance stops nothing for it, whatever its file says."""
    decision = in_state(
        S.ENGINE_UP,
        local(UP, may_restart=True, cpu_load=0.9, network=0.5),
        live=(peer(2),),
        remembered={
            "better_since_s": NOW_S - 100,
            "move_failed_s": {2: NOW_S - 10},
            "move_problems": {2: LASTING},
        },
    )
    assert not decision.actions and codes(decision)[0] is Code.MOVE_DWELL


def test_restart_is_asked_for_with_local_alone() -> None:
    for mode in ("global", "none"):
        with pytest.raises(CommandError, match="--restart belongs to: maintenance local"):
            maintain("/no/socket", Asked(mode, restart=True))


def test_that_restart_was_asked_for_reaches_the_agent_and_survives_the_broker(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def test(broker: Broker, path: str, session: aiohttp.ClientSession) -> None:
        await asyncio.to_thread(maintain, path, Asked("local", "1h", restart=True))
        now_s = asyncio.get_running_loop().time()
        assert broker.view(now_s).local.may_restart
        mode = load_mode(next(tmp_path.rglob("local-maintenance.json")))
        assert mode is not None and mode.restart and mode.lasts_s == 3600
        await asyncio.to_thread(maintain, path, Asked("local", "1h"))
        assert not broker.view(now_s).local.may_restart

    served(tmp_path, test)
    assert "what cannot be migrated is stopped here in order" in capsys.readouterr().out
