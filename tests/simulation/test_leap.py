# SPDX-License-Identifier: LGPL-2.1-or-later
"""Passing over quiet time changes nothing: the same states, at the same true times."""

from __future__ import annotations

import random

import pytest

from scoring.vm_facts import VmStatus
from tests.simulation.world import Settings, World

#: Between two beats anything may happen a beat sooner or later.
SAME_S = 5.0


def states(leaps: bool) -> tuple[list[tuple[float, str, str]], float]:
    """Three hosts, a crash of QEMU and a power cut in fifty minutes: (when, who, state)."""
    world = World(Settings(hosts=3, drift=0.0, host_boot_s=30.0), random.Random(3))
    world.fault_began("test", lies_still=True)
    world.power_all_on(1.0)

    def crash() -> None:
        owner = world.owner()
        assert owner is not None
        owner.end_qemu("crashed", VmStatus.DOWN_UNEXPECTED, "its process died")

    def cut() -> None:
        owner = world.owner()
        assert owner is not None
        owner.power_off("cut")
        world.timeline.plan(world.timeline.now_s + 300.0, owner.power_on)

    for at_s, what in ((300.0, crash), (1500.0, cut)):
        world.timeline.plan(at_s, what)
    world.run(3000.0, leaps)
    told = [(at_s, who, what.split(",")[0]) for at_s, who, what in world.trace if "score" in what]
    leapt_s = world.timeline.leapt_s
    world.stop()
    world.close()
    return told, leapt_s


def test_the_same_states_at_the_same_times() -> None:
    """Time leaps also in the middle of the 560 s of EngineUnexpectedlyDown."""
    stepped, none_s = states(leaps=False)
    leapt, leapt_s = states(leaps=True)
    assert none_s == 0 and leapt_s > 1500.0
    assert [line[1:] for line in leapt] == [line[1:] for line in stepped]
    assert any("EngineUnexpectedlyDown" in what for _, _, what in stepped)
    for one, other in zip(leapt, stepped, strict=True):
        assert one[0] == pytest.approx(other[0], abs=SAME_S), (one, other)
