# SPDX-License-Identifier: LGPL-2.1-or-later
"""How long the VM is away when its host loses its power, in virtual time, at each phase of the
beats: what is known early must not wait for a beat."""

from __future__ import annotations

import statistics

import pytest

from tests.simulation.dead_host import started_s
from tests.simulation.scenario import Player, parse

#: What the simulated libvirt and sanlock need for a start.
START_S = 0.35
PHASES = 10


def away_s(phase: int) -> float:
    """From the power cut until a QEMU runs elsewhere; one step is looked at each 10 ms."""
    wait_s = 30.0 + phase / PHASES
    text = (
        "# A power cut at one moment of a beat.\n"
        "hosts 3 guest-boot 5 chance power_cut_phases.txt\n"
        "expect engine healthy within 150\n"
        f"wait {wait_s}\n"
        "power off owner\n"
        "expect not engine running\n"
    )
    player = Player(parse("phases.txt", text))
    found: list[float] = []
    world = player.world
    stop = world.stop

    def watch() -> None:
        cut_s = world.timeline.now_s
        while world.owner() is None and world.timeline.now_s - cut_s < 20.0:
            world.run(0.01)
        found.append(world.timeline.now_s - cut_s)
        stop()

    world.stop = watch  # type: ignore[method-assign]
    player.play()
    return found[0]


def test_the_vm_is_away_no_longer_than_suspicion_and_start_take() -> None:
    times_s = [away_s(phase) for phase in range(PHASES)]
    assert statistics.median(times_s) <= 2.6 + START_S, times_s
    assert max(times_s) <= 3.3 + START_S, times_s


@pytest.mark.parametrize("phase", [3])
def test_it_is_not_away_for_less_than_suspicion_takes(phase: int) -> None:
    """Two beats at least: what others see of a silent host, and what the start needs, stay."""
    assert away_s(phase) >= 2.0 + START_S


def test_six_vms_of_a_dead_host_are_hardly_later_than_one() -> None:
    (one_s,), six_s = started_s(1), started_s(6)
    assert len(six_s) == 6
    assert six_s[0] <= one_s + 1.0 and six_s[-1] <= one_s + 3.0, (one_s, six_s)
