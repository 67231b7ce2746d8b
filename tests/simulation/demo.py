# SPDX-License-Identifier: LGPL-2.1-or-later
"""The story of `make demo` in virtual time: start on the best host, power cut, proof,
takeover, return. The daemons are the product's own; everything around them is simulated."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable

from tests.simulation.host import Host
from tests.simulation.laws import Broken
from tests.simulation.world import Settings, World

SHOWN = ("power", "QEMU", "reads power", "took the fence", "frees host id", "started", "Engine")


class _Untrue(Exception):
    """A step of the story did not hold."""


def tell(say: Callable[[str], None]) -> int:
    """Tell it; 0 when every step held."""
    logging.disable(logging.CRITICAL)
    world = World(Settings(hosts=3), random.Random(1))
    try:
        _story(world, say)
        world.stop()
    except (_Untrue, Broken) as error:
        say(f"FAILED: {error}")
        return 1
    finally:
        world.close()
    say("all steps held, and no law was broken at any moment of them")
    return 0


def _story(world: World, say: Callable[[str], None]) -> None:
    hosts = world.hosts
    say("three hosts, one shared volume; host1 is busy (load 0.8); global maintenance is on")
    hosts[1].load = 0.8
    world.set_global_maintenance(True)
    world.power_all_on(3.0)
    world.run(120.0)
    _check(world.owner() is None, "all hosts are up, and none started the VM", say)
    say("global maintenance ends")
    world.set_global_maintenance(False)
    _until(world, 180, lambda: any(host.vm_healthy for host in hosts.values()))
    victim = _owner(world)
    _check(victim is not hosts[1], f"the VM came up on {victim.name}, not on the busy host", say)
    world.run(30.0)

    say(f"pulling the plug of {victim.name}")
    began_s, shown_from = world.timeline.now_s, len(world.trace)
    victim.power_off("the plug is pulled")
    _until(world, 120, lambda: any(host.vm_healthy for host in hosts.values()))
    heir = _owner(world)
    say("")
    for at_s, who, what in world.trace[shown_from:]:
        if any(word in what for word in SHOWN) or who == "guest":
            say(f"  {at_s - began_s:7.2f} s  {who:6} {what}")
    say("")
    _check(heir is not victim, f"{heir.name} took over from {victim.name}", say)
    _check(
        world.leases.delta(victim.host_id).timestamp == 0,
        f"the id of {victim.name} was freed under proof of power off",
        say,
    )

    say(f"switching {victim.name} on again")
    victim.power_on()
    _until(world, 300, lambda: world.state(victim) == "EngineDown" and bool(world.score_of(victim)))
    _check(True, f"{victim.name} is back: in EngineDown, score {world.score_of(victim)}", say)
    world.run(60.0)
    _check(heir.vm_healthy, f"the VM stayed on {heir.name} all the while", say)


def _until(world: World, within_s: float, holds: Callable[[], bool]) -> None:
    until_s = world.timeline.now_s + within_s
    while not holds():
        if world.timeline.now_s >= until_s:
            raise _Untrue(f"what should be so within {within_s} s is not")
        world.run(0.25)


def _owner(world: World) -> Host:
    owner = world.owner()
    if owner is None:
        raise _Untrue("nobody runs the VM")
    return owner


def _check(holds: bool, what: str, say: Callable[[str], None]) -> None:
    if not holds:
        raise _Untrue(what)
    say(f"ok: {what}")
