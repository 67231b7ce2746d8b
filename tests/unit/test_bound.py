# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is measured of starts and boots, and the bound of a takeover that is made of it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.status.sentences import if_it_dies
from agent.status.text import as_text
from agent.vm.measured import KEPT, Measured
from broker.peers.fence_paths import paths_of
from broker.status.bound import Picture, bound_of, heirs_of
from broker.whiteboard.mode import Mode
from broker.whiteboard.slot import SlotReport
from broker.wire.status import (
    Bound,
    FencePathOnWire,
    FencePathStatus,
    HostStatus,
    MeasuredOnWire,
    PenaltyOnWire,
)
from scoring.decide import Decision
from scoring.decision import StartVm
from scoring.hosts.state import Seen
from scoring.observation import Observation
from scoring.vm.score import Score
from scoring.vm.state import StateName
from tests.fakes.broker import make_broker, report, up
from tests.fakes.slot_store import MemoryVolume
from tests.fakes.statuses import DOWN as DOWN_STATUS
from tests.fakes.statuses import host
from tests.unit.builders import NOW_S, RULES, UP, local, peer, state_of

S = StateName


def seen(measured: Measured, *steps: tuple[float, StateName]) -> MeasuredOnWire:
    """The states of an agent, each from that second on; a start is ordered with EngineStart."""
    before = S.ENGINE_DOWN
    for now_s, name in steps:
        actions = (StartVm(),) if name is S.ENGINE_START else ()
        measured.look(before, Decision(state_of(name=name), actions, (), Score(1)), now_s)
        before = name
    return measured.on_wire


def test_a_start_and_a_boot_are_measured_and_kept(tmp_path: Path) -> None:
    file = tmp_path / "measured.json"
    found = seen(Measured(file), (10, S.ENGINE_START), (10.7, S.ENGINE_STARTING), (18, S.ENGINE_UP))
    assert found == MeasuredOnWire(0.7, 7.3)
    assert Measured(file).on_wire == found


@pytest.mark.parametrize(
    "steps",
    [
        ((10, S.ENGINE_STARTING), (18, S.ENGINE_UP)),
        ((10, S.ENGINE_START), (11, S.ENGINE_DOWN), (12, S.ENGINE_STARTING), (18, S.ENGINE_UP)),
    ],
)
def test_a_vm_that_was_found_or_failed_to_start_measures_nothing(
    tmp_path: Path, steps: tuple[tuple[float, StateName], ...]
) -> None:
    assert seen(Measured(tmp_path / "m"), *steps) == MeasuredOnWire()


def test_a_boot_that_was_interrupted_measures_only_its_start(tmp_path: Path) -> None:
    steps = ((1, S.ENGINE_START), (2, S.ENGINE_STARTING), (3, S.GLOBAL_MAINTENANCE))
    found = seen(Measured(tmp_path / "m"), *steps, (9, S.ENGINE_STARTING), (10, S.ENGINE_UP))
    assert found == MeasuredOnWire(1.0, None)


def test_the_start_of_another_vm_is_not_the_engine_s(tmp_path: Path) -> None:
    measured = Measured(tmp_path / "m")
    steps = ((1.0, StartVm(), S.ENGINE_START), (5.0, StartVm(2), S.ENGINE_START))
    for now_s, action, name in steps:
        decided = Decision(state_of(name=name), (action,), (), Score(1))
        measured.look(S.ENGINE_START, decided, now_s)
    ran = Decision(state_of(name=S.ENGINE_STARTING), (), (), Score(1))
    measured.look(S.ENGINE_START, ran, 6.0)
    assert measured.on_wire.start_s == 5.0


def test_the_median_of_the_last_ones_counts(tmp_path: Path) -> None:
    measured = Measured(tmp_path / "m")
    for number in range(30):
        took_s = 100.0 if number < 30 - KEPT else float(number)
        seen(measured, (0, S.ENGINE_START), (took_s, S.ENGINE_STARTING))
    assert measured.on_wire.start_s == 30 - KEPT + KEPT // 2


@given(st.text(max_size=60))
def test_whatever_a_peer_publishes_of_its_ways_is_survived(text: str) -> None:
    paths_of({"paths": text, "fence-path-3": text, "path-3": text})


def test_what_one_host_proved_and_measured_the_others_show(tmp_path: Path) -> None:
    async def run() -> None:
        volume = MemoryVolume()
        one, two = make_broker(tmp_path, volume, 1), make_broker(tmp_path, volume, 2)
        for broker in (one, two):
            broker.this_host.wall = lambda: 2000.0
        good = FencePathOnWire(True, 1990.0, 1990.0, 0.25)
        bad = FencePathOnWire(False, None, 1800.0, 8.0, "wrong password")
        one.take_report(report(), 1.0)
        two.take_report(
            msgspec.structs.replace(
                report("EngineDown"),
                fence_paths={1: good, 3: bad},
                measured=MeasuredOnWire(0.7, 7.3),
            ),
            1.0,
        )
        up(one, 1.0)
        for broker in (one, two, one, two, one):
            await broker.beat(1.0)
        for broker in (one, two):
            broker.board.storage_good_since_s = -100.0
            status = broker.status(1.0)
            first, second = status.fence_paths
            assert (first.by, first.host, first.ok, first.proven_age_s) == (2, 1, True, 10.0)
            assert (second.host, second.ok, second.proven_age_s) == (3, False, None)
            assert status.bound is not None
            assert status.bound.total_s == pytest.approx(3.5 + 1.7 + 0.7 + 7.3)
            text = as_text(status)
            assert "if host1 dies now, the VM answers in about 13 s" in text
            assert "FENCE PATH of host 3 by host2 (id 2): last proven never: wrong password" in text
            assert "FENCE PATH of host1" not in text

    asyncio.run(run())


def seen_by_2(*hosts: int, **observed: Any) -> Picture:
    """What host 2 sees: the VM on host 1, and further hosts."""
    peers = [peer(1, engine=UP), *map(peer, hosts)]
    observation = Observation(
        local=local(host_id=2),
        peers=tuple(peers),
        storage_good_since_s=NOW_S - 1000.0,
        global_maintenance=observed.pop("global_maintenance", False),
        lockspace_joined=True,
        fence_log=(),
        **observed,
    )
    seen = {each.host_id: Seen(each.timestamp, NOW_S - 0.5, changed=True) for each in peers}
    return Picture(RULES, observation, seen, peer(2), NOW_S)


GOOD = FencePathStatus(2, 1, True, 1.0, 1.0, 0.25, "")


def found(
    *others: HostStatus, paths: tuple[FencePathStatus, ...] = (GOOD,), **observed: Any
) -> Bound | None:
    slots = [
        SlotReport(
            number,
            7,
            3400,
            DOWN_STATUS,
            f"host{number}",
            extra={"start-s": f"{number}.00"},
            extra_trusted=True,
        )
        for number in (2, 3)
    ]
    heirs = heirs_of(1, (host(1), *others))
    picture = seen_by_2(*(h.host_id for h in others if h.host_id != 2), **observed)
    return bound_of(1, paths, MeasuredOnWire(0.5, 7.0), slots, picture, heirs)


def test_a_standby_that_could_not_take_the_vm_counts_for_nothing() -> None:
    """Fence paths and starts of such a standby do not count; without another there is no bound."""
    both = found(host(2), host(3))
    assert both is not None and (both.lease_s, both.by) == (3.0, "its fence device")
    without = found(host(2, score=0), host(3))
    assert without is not None and (without.lease_s, without.by) == (
        3.0,
        "sanlock's host-dead time",
    )
    assert without.detect_s + without.prove_s == pytest.approx(142.0, abs=2.0), "and host 2 first"
    other = found(host(2), host(3, maintenance=True))
    assert other is not None and other.lease_s == 2.0
    assert found(host(2, score=0), host(3, liveness="silent")) is None
    assert found(host(2, stopped=True)) is None
    assert found(host(3, not_counted="it is forged")) is None
    cut_off = PenaltyOnWire("cut-off", 0, "nobody would reach the VM here")
    assert found(host(2, score=2800, penalties=(cut_off,))) is None
    assert found() is None
    assert found(host(9, score=5)) is not None, "a peer's own samples are its own affair"


def test_the_bound_adds_up() -> None:
    bound = found(host(2))
    assert bound is not None
    assert (bound.detect_s, bound.lease_s, bound.boot_s, bound.held) == (3.5, 2.0, 7.0, "")
    assert 1.5 <= bound.prove_s < 2.0, "two readings, a second apart"
    assert bound.total_s == pytest.approx(3.5 + bound.prove_s + 2.0 + 7.0)
    slow = found(host(2), paths=(FencePathStatus(2, 1, True, 1.0, 1.0, 5.0, ""),))
    assert slow is not None and slow.prove_s > 11.0, "the second question waits for the first"


@pytest.mark.parametrize(
    ("observed", "why"),
    [
        ({"global_maintenance": True}, "global maintenance"),
        ({"global_maintenance": None}, "could not be read"),
        ({"newer_versions": (9,)}, "newer whiteboard"),
        ({"unsure": (3,)}, "not known yet"),
    ],
)
def test_what_the_decision_forbids_is_not_promised(observed: dict[str, Any], why: str) -> None:
    bound = found(host(2), **observed)
    assert bound is not None and bound.total_s is None and why in bound.held
    text = if_it_dies(bound, "host1")
    assert text.startswith("if host1 dies now, the VM is NOT started: ") and why in text


def test_another_host_is_asked_where_the_best_would_not_start_it() -> None:
    """This one is not in the lockspace; host 3 is taken to be, as it has a score."""
    picture = seen_by_2(3)
    picture = replace(picture, observation=replace(picture.observation, lockspace_joined=False))
    heirs = frozenset({2, 3})
    bound = bound_of(1, (GOOD,), MeasuredOnWire(), (), picture, heirs)
    assert bound is not None and not bound.held and bound.by == "sanlock's host-dead time"
    alone = bound_of(1, (GOOD,), MeasuredOnWire(), (), picture, frozenset({2}))
    assert alone is not None and "lockspace" in alone.held


def test_the_status_says_that_nobody_would_start_it(tmp_path: Path) -> None:
    async def run() -> None:
        volume = MemoryVolume()
        one, two = make_broker(tmp_path, volume, 1), make_broker(tmp_path, volume, 2)
        one.take_report(report(), 1.0)
        two.take_report(report("EngineDown"), 1.0)
        up(one, 1.0)
        for broker in (one, two, one, two, one):
            await broker.beat(1.0)
        fine = two.status(1.0).bound
        assert fine is not None and not fine.held
        two.board.newer_versions[9] = 1.0
        two.members.look(1.0)
        status = two.status(1.0)
        assert status.bound is not None and "newer" in status.bound.held
        assert "NO TAKEOVER" in as_text(status)
        await two.keeper.set_global(Mode())
        assert "NO TAKEOVER" not in as_text(two.status(1.0)), "a mode that is set is no trouble"

    asyncio.run(run())


def test_this_host_s_own_device_is_part_of_the_view(tmp_path: Path) -> None:
    async def run() -> None:
        broker = make_broker(tmp_path, MemoryVolume())
        assert broker.view(1.0).local.fence_path_ok is None
        bad = {1: FencePathOnWire(False, None, 1.0, 1.0, "no answer")}
        broker.take_report(msgspec.structs.replace(report(), fence_paths=bad), 1.0)
        assert broker.view(1.0).local.fence_path_ok is False

    asyncio.run(run())
