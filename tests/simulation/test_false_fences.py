# SPDX-License-Identifier: LGPL-2.1-or-later
"""The count of false fences: what counts as one, that one is caught, and a few days of it."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from scoring.hosts import last_look, takeover
from scoring.hosts.evidence import Precondition, may_power_off
from tests.simulation.false_fences import Sum, is_false, is_race, run_day
from tests.simulation.world import Settings, Shot, World

#: A day on which a host that nobody could hear is switched off.
DAY_WITH_A_FENCE = 0


@pytest.mark.parametrize(
    ("storage_s", "network_s", "false", "race"),
    [
        (None, None, False, False),
        (40.0, None, True, False),
        (None, 40.0, True, False),
        (None, 1.0, False, True),
        (1.0, 40.0, True, False),
    ],
)
def test_whoever_could_be_heard_on_any_path_was_shot_for_nothing(
    storage_s: float | None, network_s: float | None, false: bool, race: bool
) -> None:
    shot = Shot(100.0, "host1", "host2", {"storage": storage_s, "network": network_s})
    assert (is_false(shot), is_race(shot)) == (false, race)


@pytest.mark.parametrize("path", ["storage", "network"])
def test_a_host_that_is_heard_by_one_path_must_not_be_shot(path: str) -> None:
    world = World(Settings(), random.Random(1))
    try:
        world.power_all_on()
        world.run(120.0)
        shooter, target = world.hosts[1], world.hosts[2]
        if path == "network":
            target.break_storage("hang")
        else:
            target.network_up = False
        # For storage-patience it may have a VM, and does not say that it has none.
        world.run(18.0)
        shooter.fence_held = True
        world.shoots(shooter, target)
        assert is_false(world.shots[-1])
        assert world.laws.broken is not None
        assert world.laws.broken.law == "fenced" and path in world.laws.broken.text
    finally:
        world.close()


def test_on_a_day_of_stalls_and_flaps_only_the_silent_are_switched_off() -> None:
    day = run_day(DAY_WITH_A_FENCE)
    assert day.broken == ""
    assert day.shots, "else the day proves nothing"
    total = Sum()
    total.add(day)
    assert total.false == 0
    assert list(total.lines())[-1] == "false fences: 0"


#: What keeps a host that the network hears from being switched off.
_BY_NETWORK = ("does-not-answer", "nobody-hears-it")


def test_without_the_network_as_a_witness_the_living_are_shot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def deaf(*given: Any) -> tuple[Precondition, ...]:
        return tuple(
            replace(one, holds=True) if one.name in _BY_NETWORK else one
            for one in may_power_off(*given)
        )

    for module in (takeover, last_look):
        monkeypatch.setattr(module, "may_power_off", deaf)
    day = run_day(DAY_WITH_A_FENCE)
    assert "law 'fenced' broken" in day.broken and "heard by the network" in day.broken
    assert any(map(is_false, day.shots))
