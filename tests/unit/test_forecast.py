# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the decision would do if a host lost its power now: promised is what it would do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from scoring.forecast import STEPS_MAX, Forecast, dead_time_s, if_it_loses_power
from scoring.hosts.state import Seen
from scoring.observation import Observation, PeerReport
from scoring.timing import Timing
from scoring.vm_facts import EngineStatus, Health, Obstacle, PeerVm, Unfit, VmHere, VmSpec, VmStatus
from tests.unit.builders import NOW_S, RULES, UP, local, peer


def forecast(
    *others: PeerReport,
    took_s: float | None = 0.25,
    rules: Any = RULES,
    here: Any = None,
    still: tuple[int, ...] = (),
    dead_is_there: bool = True,
    **observed: Any,
) -> Forecast:
    """The forecast of host 1, while the VM runs on host 2. `still`: hosts with an old slot."""
    peers = (*((peer(2, engine=UP, hears=frozenset({3})),) if dead_is_there else ()), *others)
    given: dict[str, Any] = {
        "storage_good_since_s": NOW_S - 1000.0,
        "global_maintenance": False,
        "lockspace_joined": True,
        "fence_log": (),
    }
    observation = Observation(local=here or local(), peers=peers, **{**given, **observed})
    seen = {
        each.host_id: Seen(
            each.timestamp, NOW_S - (500.0 if each.host_id in still else 0.5), changed=True
        )
        for each in peers
    }
    return if_it_loses_power(rules, observation, seen, 2, took_s, NOW_S)


def test_a_device_proves_it_and_the_vm_is_started_at_once() -> None:
    found = forecast(peer(3, 100))
    assert found.by_device and found.held == ""
    assert found.detect_s == Timing().suspect_after + Timing().beat / 2
    assert found.starts_s is not None and 5.0 < found.starts_s < 5.5


def test_without_a_device_it_is_sanlock_s_time() -> None:
    found = forecast(took_s=None)
    assert not found.by_device and found.starts_s is not None
    assert 0 <= found.starts_s - dead_time_s(RULES) < 1.0
    assert found.held == ""


def test_the_time_of_the_longest_io_timeout_is_reached_too() -> None:
    rules = replace(RULES, io_timeout_s=60.0)
    found = forecast(took_s=None, rules=rules)
    assert found.starts_s is not None and found.starts_s >= dead_time_s(rules) == 540.0


@pytest.mark.parametrize(
    ("observed", "why"),
    [
        ({"global_maintenance": True}, "global maintenance"),
        ({"global_maintenance": None}, "could not be read yet"),
        ({"newer_versions": (7,)}, "newer whiteboard"),
        ({"lockspace_joined": False}, "not joined the lockspace"),
        ({"global_maintenance": True}, "global maintenance"),
        ({"unsure": (3,)}, "not known yet whether host(s) 3"),
        ({"here": local(unfit=(Unfit(Obstacle.HELD_BACK, "it waits for you"),))}, "waits for you"),
        ({"here": local(maintenance=True)}, "local maintenance"),
    ],
)
def test_what_the_decision_forbids_is_not_promised(observed: dict[str, Any], why: str) -> None:
    found = forecast(**observed)
    assert found.starts_s is None and why in found.held


def test_a_better_host_comes_first_and_a_silent_one_is_waited_for_by_nobody() -> None:
    alone, behind = forecast(took_s=None), forecast(peer(3, 3500), took_s=None)
    silent = forecast(peer(3, 3500), took_s=None, still=(3,))
    assert alone.starts_s is not None and silent.starts_s is not None
    assert silent.starts_s == pytest.approx(alone.starts_s, abs=0.5)
    assert behind.starts_s is not None and behind.starts_s >= alone.starts_s


def test_a_host_in_the_middle_of_something_holds_the_start() -> None:
    busy = peer(3, state="EngineStarting")
    found = forecast(busy)
    assert found.starts_s is None and "host3 (id 3) is in EngineStarting" in found.held


def test_of_a_host_that_has_no_slot_the_lease_alone_tells() -> None:
    found = forecast(dead_is_there=False, took_s=None)
    assert found.starts_s is not None and found.starts_s >= dead_time_s(RULES)


def test_a_decision_without_a_reason_is_no_promise() -> None:
    assert Forecast(None, 1.0, by_device=False, reasons=()).held == "nothing is decided"


def test_the_number_of_decisions_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scoring.forecast.STEPS_MAX", 2)
    found = forecast()
    assert found.starts_s is None and STEPS_MAX > 2


# --- a VM of the registry -------------------------------------------------------------------------

DB = VmSpec(2, "db", 2048, after=(3,), apart=(4,))


def of_db(
    *others: PeerReport,
    took_s: float | None = 0.25,
    free_mb: float = 8192.0,
    unfit: tuple[Unfit, ...] = (),
    **observed: Any,
) -> Forecast:
    """The forecast of host 1, while db runs on host 2 and the engine on host 3."""
    db = EngineStatus(VmStatus.UP, Health.GOOD, "up")
    dead = peer(2, vms={2: PeerVm(db, "EngineUp", 7)}, speaks=2, total_mb=16384.0, free_mb=0.0)
    reaches = frozenset({2} if took_s is not None else ())
    down = EngineStatus(VmStatus.DOWN, Health.BAD)
    mine = (VmHere(down, NOW_S, number=2, unfit=unfit),)
    here = local(vms=mine, total_mb=16384.0, free_mb=free_mb, reaches=reaches)
    given: dict[str, Any] = {
        "storage_good_since_s": NOW_S - 1000.0,
        "global_maintenance": False,
        "lockspace_joined": True,
        "fence_log": (),
        "registry": 1,
    }
    observation = Observation(local=here, peers=(dead, *others), **{**given, **observed})
    seen = {p.host_id: Seen(p.timestamp, NOW_S - 0.5, changed=True) for p in (dead, *others)}
    return if_it_loses_power(RULES, observation, seen, 2, took_s, NOW_S, DB)


def test_the_decision_is_asked_for_a_vm_of_the_registry_too() -> None:
    engine_there = peer(3, engine=UP, speaks=2, total_mb=16384.0, free_mb=1024.0)
    found = of_db(engine_there)
    assert found.by_device and found.held == "" and found.starts_s is not None
    assert found.starts_s == pytest.approx(forecast(peer(3, 100)).starts_s, abs=2.5)
    without = of_db(engine_there, took_s=None)
    assert not without.by_device and without.starts_s is not None
    assert 0 <= without.starts_s - dead_time_s(RULES) < 3.0


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"free_mb": 1024.0}, "short"),
        ({"unfit": (Unfit(Obstacle.CANNOT_START, "its record is torn"),)}, "its record is torn"),
        ({"global_maintenance": True}, "global maintenance"),
    ],
)
def test_what_the_decision_forbids_of_it_is_not_promised(changed: dict[str, Any], why: str) -> None:
    found = of_db(**changed)
    assert found.starts_s is None and why in found.held
