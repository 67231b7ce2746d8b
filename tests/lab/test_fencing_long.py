# SPDX-License-Identifier: LGPL-2.1-or-later
"""What of fencing takes long: sanlock's own time, a fencer that dies at each step of its act, a
host that has only lost its storage. `make lab-test-long`."""

from __future__ import annotations

import time

import pytest

from scoring.hosts.takeover import ATTEMPTS_NOTED
from scoring.observation import FenceStep

from . import ask
from .cluster import Cluster
from .errors import law
from .fence_steps import (
    HEALTHY_S,
    STEPS,
    Fence,
    comes_back,
    fence_log,
    is_spared,
    others,
    somebody_says,
    wait_for,
)
from .layout import host_id_of

pytestmark = pytest.mark.long

#: 8 * io_timeout + 60 s at the lab's io_timeout of 2 s: sanlock calls a host dead.
HOST_DEAD_S = 76.0
#: To notice it, to start, to boot an emulated guest.
START_S = 40.0
#: From here on the host that fences is the one that starts the VM.
_ITS_OWN_VM = ("VM process there", "ordered on", "return logged")


@pytest.mark.parametrize("step", STEPS)
def test_a_fencer_that_dies_at_any_step_is_followed_by_another(fencing: Cluster, step: str) -> None:
    """The fencer's agent is killed a few milliseconds after the step was seen from outside, and
    stays away; where the fencer runs the VM already, the agent is restarted, as its unit does."""
    lab = fencing
    victim = lab.wait_healthy(HEALTHY_S)
    fence = Fence(lab, victim)
    lab.freeze(victim)
    froze_s = time.monotonic()
    wait_for(fence, step, 60)
    fencer = fence.fencer() or next(
        host for host in others(lab, victim) if lab.census().engines(host)
    )
    lab.kill(fencer, "agent")
    killed_s = time.monotonic()
    if step not in _ITS_OWN_VM:
        lab.stop(fencer, "agent")
    try:
        heir = lab.wait_healthy(HOST_DEAD_S + START_S)
        print(
            f"{step}: agent of {fencer} killed {killed_s - froze_s:.1f} s after {victim} hung, "
            f"healthy on {heir} {time.monotonic() - froze_s:.1f} s after it"
        )
        assert heir != victim
        with law(2):
            assert fence.shot() == [victim]
        comes_back(lab, victim)
    finally:
        lab.start(fencer, "agent")


@pytest.mark.parametrize("step", ["fence lease taken", "ordered off", "off read once"])
def test_a_fencer_whose_power_is_cut_is_proven_dead(fencing: Cluster, step: str) -> None:
    """The fence lease is gone with it; its own BMC says so, and its host id is freed for it."""
    lab = fencing
    victim = lab.wait_healthy(HEALTHY_S)
    fence = Fence(lab, victim)
    lab.freeze(victim)
    wait_for(fence, step, 60)
    fencer = fence.fencer()
    assert fencer is not None
    lab.cut(fencer)
    [third] = [host for host in others(lab, victim) if host != fencer]
    cut_s = time.monotonic()
    assert lab.wait_healthy(HOST_DEAD_S + START_S) == third
    print(f"{step}: healthy on {third} {time.monotonic() - cut_s:.1f} s after {fencer} was cut")
    dead = {record.target for record in fence_log(lab) if record.step is FenceStep.DEAD}
    assert host_id_of(fencer) in dead, "not sanlock's time"
    if fence.logged(FenceStep.INTENT):
        comes_back(lab, victim)
    else:
        # The host's own watchdog ended it, no other host did: only people switch it on again.
        assert not fence.told("ordered:on")


def test_without_a_bmc_sanlock_s_time_is_the_bound(fencing: Cluster) -> None:
    lab = fencing
    victim = lab.wait_healthy(HEALTHY_S)
    fence = Fence(lab, victim)
    lab.bmc(victim, "unreachable")
    cut_s = lab.cut(victim)
    ask.until("the countdown is shown", 30, lambda: somebody_says(lab, fence, "free in "))
    lab.wait_healthy(HOST_DEAD_S + START_S)
    print(f"healthy {time.monotonic() - cut_s:.1f} s after the cut")
    with law(2):
        assert fence.shot() == []


def test_a_bmc_that_never_switches_off_is_told_and_the_watchdog_ends_it(fencing: Cluster) -> None:
    lab = fencing
    victim = lab.wait_healthy(HEALTHY_S)
    fence = Fence(lab, victim)
    lab.bmc(victim, "off-ignored")
    lab.freeze(victim)
    assert lab.wait_healthy(HOST_DEAD_S + START_S) != victim
    # Ordered without end, with growing pauses, by each host in turn: the next one's order may be
    # taken. Who has given so many itself logs a failure; here the watchdog comes before that.
    assert fence.told("ordered:off") >= ATTEMPTS_NOTED


def test_a_host_that_has_only_lost_its_storage_answers_and_is_spared(fencing: Cluster) -> None:
    """The host's own sanlock ends its VM; then its host id is not renewed until sanlock's time is
    over, or until the host has its storage again."""
    lab = fencing
    victim = lab.wait_healthy(HEALTHY_S)
    fence = Fence(lab, victim)
    lab.storage(victim, "hang")
    ask.until("it is known to live", 20, lambda: somebody_says(lab, fence, "owner-answers"))
    ask.until("its sanlock has ended the VM", 40, lambda: not lab.census().engines(victim))
    with law(2):
        ask.during("nobody is shot", 5, lambda: is_spared(lab, fence))
    lab.storage(victim, "ok")
    lab.wait_healthy(HOST_DEAD_S + START_S)
    with law(2):
        assert fence.shot() == []


def test_a_host_without_network_hands_its_vm_over(fencing: Cluster) -> None:
    """Three windows of pings are lost, its score falls, and the VM moves, live."""
    lab = fencing
    victim = lab.wait_healthy(HEALTHY_S)
    fence = Fence(lab, victim)
    lab.partition(victim)
    ask.until("it has moved", 240, lambda: lab.engine_host() not in (victim, None))
    with law(2):
        assert fence.shot() == [] and not fence.freed()
    lab.heal(victim)
    lab.wait_healthy(HEALTHY_S)
