# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is measured of starts and boots, and the bound of a takeover that is made of it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.measured import KEPT, Measured
from agent.status_text import as_text
from broker.bound import START_S, bound, bound_of, heirs_of
from broker.fence_paths import paths_of
from broker.whiteboard import SlotReport
from broker.wire import Bound, FencePathOnWire, FencePathStatus, HostStatus, MeasuredOnWire
from scoring.decision import Decision, StartEngine
from scoring.score import Score
from scoring.state import AgentState, StateName
from scoring.timing import Timing
from tests.fakes.slot_store import MemoryVolume
from tests.unit.test_api import make_broker, report, up
from tests.unit.test_status_text import DOWN, host

S = StateName


def seen(measured: Measured, *steps: tuple[float, StateName]) -> MeasuredOnWire:
    """The states of an agent, each from that second on; a start is ordered with EngineStart."""
    before = S.ENGINE_DOWN
    for now_s, name in steps:
        actions = (StartEngine(),) if name is S.ENGINE_START else ()
        measured.look(before, Decision(AgentState(name=name), actions, (), Score(1)), now_s)
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


def test_the_median_of_the_last_ones_counts(tmp_path: Path) -> None:
    measured = Measured(tmp_path / "m")
    for number in range(30):
        took_s = 100.0 if number < 30 - KEPT else float(number)
        seen(measured, (0, S.ENGINE_START), (took_s, S.ENGINE_STARTING))
    assert measured.on_wire.start_s == 30 - KEPT + KEPT // 2


def test_the_bound_adds_up() -> None:
    found = bound(Timing(), 10.0, 0.4, [0.6, None], [7.0, 9.0])
    assert (found.detect_s, found.lease_s, found.boot_s) == (3.5, 0.6, 9.0)
    assert found.prove_s == pytest.approx(1.8)
    assert found.total_s == pytest.approx(14.9)
    slow = bound(Timing(), 10.0, 5.0, [], [1.0])
    assert slow.prove_s == 11.0, "the second question waits for the first answer"
    assert slow.lease_s == START_S


def test_without_a_proven_way_to_the_device_it_is_sanlock_s_time() -> None:
    found = bound(Timing(), 10.0, None, [], [])
    assert found.detect_s + found.prove_s == 140.0
    assert found.total_s is None and "sanlock" in found.by


@given(st.text(max_size=60))
def test_whatever_a_peer_publishes_of_its_ways_is_survived(text: str) -> None:
    paths_of({"paths": text, "fence-path-3": text, "path-3": text})


def test_what_one_host_proved_and_measured_the_others_show(tmp_path: Path) -> None:
    async def run() -> None:
        volume = MemoryVolume()
        one, two = make_broker(tmp_path, volume, 1), make_broker(tmp_path, volume, 2)
        for broker in (one, two):
            broker._wall = lambda: 2000.0
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
            status = broker.status(1.0)
            first, second = status.fence_paths
            assert (first.by, first.host, first.ok, first.proven_age_s) == (2, 1, True, 10.0)
            assert (second.host, second.ok, second.proven_age_s) == (3, False, None)
            assert status.bound is not None
            assert status.bound.total_s == pytest.approx(3.5 + 1.5 + 0.7 + 7.3)
            text = as_text(status)
            assert "if host1 dies now, the VM answers in about 13 s" in text
            assert "FENCE PATH of host 3 by host 2: last proven never: wrong password" in text
            assert "FENCE PATH of host 1" not in text

    asyncio.run(run())


def test_a_standby_that_could_not_take_the_vm_counts_for_nothing(tmp_path: Path) -> None:
    """Neither its fence paths nor its starts; without another one there is no bound."""
    timing = Timing()
    good = FencePathStatus(2, 1, True, 1.0, 1.0, 0.25, "")
    here = host(1)
    slots = [
        SlotReport(
            number,
            7,
            3400,
            DOWN,
            f"host{number}",
            extra={"start-s": f"{number}.00"},
            extra_trusted=True,
        )
        for number in (2, 3)
    ]

    def found(*others: HostStatus) -> Bound | None:
        heirs = heirs_of(1, (here, *others))
        return bound_of(1, [good], MeasuredOnWire(0.5, 7.0), slots, timing, 10.0, heirs)

    both = found(host(2), host(3))
    assert both is not None and (both.lease_s, both.by) == (3.0, "its fence device")
    without = found(host(2, score=0), host(3))
    assert without is not None and (without.lease_s, without.by) == (
        3.0,
        "sanlock's host-dead time",
    )
    other = found(host(2), host(3, maintenance=True))
    assert other is not None and other.lease_s == 2.0
    assert found(host(2, score=0), host(3, liveness="silent")) is None
    assert found(host(2, stopped=True)) is None
    assert found() is None


def test_this_host_s_own_device_is_part_of_the_view(tmp_path: Path) -> None:
    async def run() -> None:
        broker = make_broker(tmp_path, MemoryVolume())
        assert broker.view(1.0).local.fence_path_ok is None
        bad = {1: FencePathOnWire(False, None, 1.0, 1.0, "no answer")}
        broker.take_report(msgspec.structs.replace(report(), fence_paths=bad), 1.0)
        assert broker.view(1.0).local.fence_path_ok is False

    asyncio.run(run())
