# SPDX-License-Identifier: LGPL-2.1-or-later
"""Proof of death on real parts: who is dead, hung or only cut off, and what is done about it.

The fixtures watch law 1 twice: by every QEMU process at 20 ms, and by the journal that the
guest keeps on its own disk. What takes longer: test_fencing_long.py.
"""

from __future__ import annotations

import time
from functools import partial

from scoring.observation import FenceStep

from . import ask
from .cluster import Cluster
from .errors import law
from .fence_steps import (
    HEALTHY_S,
    Fence,
    comes_back,
    host_id_lease,
    is_spared,
    others,
    polls,
    somebody_says,
    wait_for,
)
from .layout import host_id_of

#: Not shot in so long: not shot at all. fence-after is 10 s.
NOT_SHOT_S = 14.0


def test_a_hung_host_whose_bmc_says_off_too_early_is_switched_off(fencing: Cluster) -> None:
    lab = fencing
    victim = lab.wait_healthy(HEALTHY_S)
    fence = Fence(lab, victim)
    lab.freeze(victim)
    address = lab.layout.host(host_id_of(victim)).address
    ping = lab.sh(others(lab, victim)[0], ["ping", "-c", "1", "-W", "1", address])
    assert ping.returncode != 0, f"a kernel that hangs answers: {ping.stdout}"
    lab.bmc(victim, "says-off 1")
    heir = lab.wait_healthy(HEALTHY_S)
    assert heir != victim
    calls = [what for _, what in fence.calls()]
    order = calls.index("ordered:off")
    assert "power:0" in calls[:order], "it did say off while the host was on"
    assert calls[order - 1] == "power:1", "on is read before anybody is switched off"
    offs = [at_s for at_s, what in fence.calls()[order:] if what == "power:0"]
    assert len(offs) >= 2 and offs[-1] - offs[0] >= 1.0
    with law(2):
        assert fence.shot() == [victim]
    comes_back(lab, victim)
    ask.until("its return is logged", 20, lambda: fence.logged(FenceStep.BACK))
    assert [one.step for one in fence.records()] == [
        FenceStep.INTENT,
        FenceStep.DEAD,
        FenceStep.BACK,
    ]
    ask.until("it has read of it", 20, lambda: ask.status(lab, victim)["switched_off"])
    told = ask.status(lab, victim)["switched_off"]
    assert told["by_name"] == heir and told["ordered"]


def test_two_bmcs_with_each_other_s_address_shoot_and_prove_nothing(fencing: Cluster) -> None:
    """The owner hangs, and what the configuration calls its BMC is that of a host that is off."""
    lab = fencing
    victim = lab.wait_healthy(HEALTHY_S)
    witness, dead = others(lab, victim)
    fence = Fence(lab, victim)
    lab.bmc(victim, f"swapped {dead}")
    lab.cut(dead)
    lab.freeze(victim)
    both = [f"host {host_id_of(host)}" for host in (victim, dead)]
    ask.until("both are named", 20, lambda: somebody_says(lab, fence, "swapped", *both))
    with law(2):
        ask.during("nobody is shot", NOT_SHOT_S, lambda: is_spared(lab, fence))
    assert lab.is_on(victim)
    assert host_id_lease(lab, dead).timestamp != 0
    lab.bmc(victim, "ok")
    lab.reload(witness)
    assert lab.wait_healthy(HEALTHY_S) == witness
    comes_back(lab, victim)


def test_a_bmc_that_does_not_help_is_waited_out_and_blocks_nothing(fencing: Cluster) -> None:
    lab = fencing
    victim = lab.wait_healthy(HEALTHY_S)
    fence = Fence(lab, victim)
    lab.bmc(victim, "wrong-password")
    lab.cut(victim)
    for words in (("assword",), ("no answer",)):
        wanted = ("lease-wait", "free in ", "power-unknown", *words)
        ask.until(
            f"{words} and the countdown are shown",
            30,
            partial(somebody_says, lab, fence, *wanted),
        )
        lab.bmc(victim, "unreachable")
    with law(2):
        ask.during("nothing is freed", 3, lambda: is_spared(lab, fence))
    lab.bmc(victim, "ok")
    lab.wait_healthy(HEALTHY_S)
    with law(2):
        assert fence.shot() == []


def test_a_host_without_network_and_storage_is_switched_off(fencing: Cluster) -> None:
    lab = fencing
    victim = lab.wait_healthy(HEALTHY_S)
    fence = Fence(lab, victim)
    lab.isolate(victim)
    assert lab.wait_healthy(HEALTHY_S) != victim
    with law(2):
        assert fence.shot() == [victim]
    lab.end_faults()
    comes_back(lab, victim)


def test_a_host_that_has_only_lost_its_network_is_left_alone(fencing: Cluster) -> None:
    lab = fencing
    victim = lab.wait_healthy(HEALTHY_S)
    before = lab.status()["engine"]["boots"]
    fence = Fence(lab, victim)
    lab.partition(victim)
    with law(2):
        ask.during("nobody is shot", NOT_SHOT_S, lambda: is_spared(lab, fence))
    lab.heal(victim)
    lab.wait_healthy(HEALTHY_S)
    # Nobody reached it for long: it may have been moved, live, on a machine that is slow.
    with law(2):
        assert fence.shot() == [] and lab.status()["engine"]["boots"] == before


def test_a_power_off_that_fails_frees_nothing_and_is_tried_again(fencing: Cluster) -> None:
    lab = fencing
    victim = lab.wait_healthy(HEALTHY_S)
    fence = Fence(lab, victim)
    lab.bmc(victim, "off-fails")
    lab.freeze(victim)
    wait_for(fence, "ordered off", 40)
    with law(3):
        ask.during("nothing is freed", 3, lambda: not fence.freed() and lab.is_on(victim))
    lab.bmc(victim, "ok")
    assert lab.wait_healthy(HEALTHY_S) != victim
    assert fence.told("ordered:off") >= 2
    comes_back(lab, victim)


def test_two_hosts_that_die_at_once(fencing: Cluster) -> None:
    lab = fencing
    victim = lab.wait_healthy(HEALTHY_S)
    second, third = others(lab, victim)
    lab.cut(victim)
    lab.cut(second)
    assert lab.wait_healthy(HEALTHY_S) == third


def test_a_host_that_returns_between_two_readings(fencing: Cluster) -> None:
    lab = fencing
    victim = lab.wait_healthy(HEALTHY_S)
    fence = Fence(lab, victim)
    lab.cut(victim)
    for _ in polls(20, "off is read once"):
        if fence.told("power:0"):
            break
    lab.power_on(victim)
    lab.wait_healthy(HEALTHY_S)
    assert not fence.logged(FenceStep.DEAD), "one reading of off frees nothing"


def test_another_host_finishes_what_a_fencer_began(fencing: Cluster) -> None:
    lab = fencing
    victim = lab.wait_healthy(HEALTHY_S)
    fence = Fence(lab, victim)
    cut_s = lab.cut(victim)
    wait_for(fence, "fence lease taken", 20)
    fencer = fence.fencer()
    assert fencer is not None and fencer != victim
    lab.kill(fencer, "agent")
    lab.stop(fencer, "agent")
    try:
        heir = lab.wait_healthy(HEALTHY_S)
        assert heir not in (victim, fencer)
        print(f"the other host finished {time.monotonic() - cut_s:.1f} s after the cut")
    finally:
        lab.start(fencer, "agent")
