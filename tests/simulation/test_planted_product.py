# SPDX-License-Identifier: LGPL-2.1-or-later
"""The product is bent in one place so that it breaks a law, and a scenario sees it.

The breaches of test_planted.py are done in the product's name; here the product does them itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from agent.last_look import LastLook
from broker.status import vms as status_vms
from scoring.decision import DropFenceLease
from scoring.hosts import fencing, last_look, switch_on
from scoring.hosts.turn import HostTurn
from scoring.vm import (
    better_place,
    drain,
    gates,
    health,
    machine,
    missing,
    move,
    pause,
    plan,
    room,
    start,
    targets,
)
from scoring.vm import several as shared
from scoring.vm import turn as vm_turn
from scoring.vm.claims import Verdict
from scoring.vm.plan import Host, Placing
from scoring.vm.state import StateName
from scoring.vm.turn import VmTurn
from scoring.vm_facts import ENGINE, Health, Obstacle, Unfit, VmSpec
from tests.simulation.laws import Broken
from tests.simulation.scenario import Disappointed, Player, load, parse

SCENARIOS = Path(__file__).parents[1] / "scenarios"
Bend = Callable[[pytest.MonkeyPatch], None]


def only_the_engine_minds(gate: str) -> Bend:
    """One of the gates before each state is there for the engine alone."""
    asked: Callable[[VmTurn], StateName | None] = getattr(gates, gate)

    def bent(turn: VmTurn) -> StateName | None:
        return asked(turn) if turn.number == ENGINE else None

    return lambda patch: patch.setattr(gates, gate, bent)


def all_hosts_are_open(patch: pytest.MonkeyPatch) -> None:
    """Maintenance of a host does not count in the plan, nor on the host itself."""
    only_the_engine_minds("local_maintenance")(patch)
    own, other = shared.Several._own_host, shared.Several._host_of

    def own_host(self: shared.Several) -> Host:
        return replace(own(self), open=True)

    def host_of(self: shared.Several, peer: object) -> Host:
        return replace(other(self, peer), open=True)  # type: ignore[arg-type]

    patch.setattr(shared.Several, "_own_host", own_host)
    patch.setattr(shared.Several, "_host_of", host_of)


def unknown_health_is_bad(patch: pytest.MonkeyPatch) -> None:
    judge = health.judge

    def bent(turn: VmTurn) -> StateName:
        if turn.here.report.health is not Health.UNKNOWN:
            return judge(turn)
        is_up = turn.state.name is StateName.ENGINE_UP
        return StateName.ENGINE_UP_BAD_HEALTH if is_up else StateName.ENGINE_STOP

    patch.setattr(health, "judge", bent)


def disks_that_differ_are_started(patch: pytest.MonkeyPatch) -> None:
    asked, own = vm_turn.obstacles, shared.Several._own_host

    def is_other(unfit: Unfit) -> bool:
        return unfit.obstacle is not Obstacle.HELD_BACK

    def obstacles(turn: VmTurn) -> tuple[Unfit, ...]:
        return tuple(filter(is_other, asked(turn)))

    def own_host(self: shared.Several) -> Host:
        host = own(self)
        barred = (n for n in host.barred if any(map(is_other, self.here(n).unfit)))
        return replace(host, barred=frozenset(barred))

    patch.setattr(shared.Several, "_own_host", own_host)
    for module in (vm_turn, start):
        patch.setattr(module, "obstacles", obstacles)


def the_vms_are_stopped_with_their_host(patch: pytest.MonkeyPatch) -> None:
    leave = drain.leave

    def bent(turn: VmTurn) -> StateName | None:
        return leave(turn) if turn.number == ENGINE else drain._stop(turn, "planted")

    for module in (drain, machine):
        patch.setattr(module, "leave", bent, raising=False)


def moved_at_once_to_a_host_by_its_number(patch: pytest.MonkeyPatch) -> None:
    def liking(spec: VmSpec, host_id: int) -> int:
        return host_id * 7 % 3

    patch.setattr(better_place, "SETTLED_S", 0.0)
    patch.setattr(better_place, "liking", liking)


def only_is_ignored(patch: pytest.MonkeyPatch) -> None:
    able = Placing.able

    def bent(self: Placing, v: VmSpec) -> list[Host]:
        return able(self, replace(v, only=()))

    patch.setattr(plan.Placing, "able", bent)


def switched_on(orders: bool = False, boots: bool = False) -> Bend:
    """Who was found off counts as switched off by the cluster; who booted since does not count as
    back."""

    def bend(patch: pytest.MonkeyPatch) -> None:
        again = switch_on.again

        def bent(turn: HostTurn) -> None:
            seen = turn.observation
            log, peers = seen.fence_log or (), seen.peers
            if orders:
                log = tuple(replace(record, ordered=True) for record in log)
            if boots:
                peers = tuple(replace(peer, boot_id="") for peer in peers)
            turn.observation = replace(seen, fence_log=log, peers=peers)
            again(turn)
            turn.observation = seen

        patch.setattr(switch_on, "again", bent)

    return bend


def switched_on_in_global_maintenance(patch: pytest.MonkeyPatch) -> None:
    walk = machine.walk

    def bent(turn: VmTurn) -> None:
        walk(turn)
        turn.wants_hosts_back = turn.vm_up_here

    patch.setattr(machine, "walk", bent)
    patch.setattr(last_look, "_why_not_switch_on", lambda turn, host: "")


def who_stood_still_acts_all_the_same(patch: pytest.MonkeyPatch) -> None:
    """The last look does not ask how old the newest decision is."""

    def of_this_host(self: LastLook, known: object, under_lease: bool = True) -> str:
        return "the fence lease is not held" if under_lease and not self.fence_held() else ""

    patch.setattr(LastLook, "_of_this_host", of_this_host)


def the_fence_lease_is_kept(patch: pytest.MonkeyPatch) -> None:
    forget = fencing.forget

    def bent(turn: HostTurn) -> None:
        forget(turn)
        kept = (each for each in turn.actions if not isinstance(each, DropFenceLease))
        turn.actions[:] = kept

    patch.setattr(fencing, "forget", bent)


def whose_the_lease_is_does_not_count(patch: pytest.MonkeyPatch) -> None:
    for module in (machine, start):
        patch.setattr(module, "lease_allows", lambda turn: True)


def no_pause_after_a_failed_start(patch: pytest.MonkeyPatch) -> None:
    for module in (shared, missing):
        patch.setattr(module, "barred_until_s", lambda state, *times_s: None)


def together_is_ignored(patch: pytest.MonkeyPatch) -> None:
    able = Placing._allowed

    def bent(self: Placing, v: VmSpec, *, pausing: bool) -> list[Host]:
        self.together = {}
        return able(self, v, pausing=pausing)

    patch.setattr(plan.Placing, "_allowed", bent)


def is_now(module: object, name: str, value: object) -> Bend:
    return lambda patch: patch.setattr(module, name, value)


OUTSIDERS = is_now(health, "reached", lambda turn: ())
CLAIMS = is_now(room, "verdict", lambda *given: Verdict.BEGIN)
RECORDS = is_now(missing, "_is_known_to_all", lambda turn, spec: True)
#: Where a host in maintenance is the only one that has room.
NO_OTHER_ROOM = """# A host dies, and only one in maintenance would have room.
hosts 3 memory 10240 host-boot 10 guest-boot 5 chance room
wait 40
vm db memory 8000 prefer host1
expect vm db healthy on host1 within 60
expect engine healthy within 60
wait 20
maintenance local on host3
wait 40
power off host1
expect not vm db running on host3 for 60
"""


#: What no expectation of theirs would see: a law does.
DRAIN = """# A host is drained; nobody asks whether.
hosts 3 host-boot 10 guest-boot 5 chance drained
vm db memory 4096 prefer host1
expect vm db healthy within 100
wait 30
maintenance local on db
wait 150
expect vm db downtime below 2
"""
PAUSE = """# Somebody pauses the VM and resumes it later.
hosts 2 chance pause
expect engine healthy within 240
wait 30
guest paused user
wait 400
guest resumed
expect engine healthy within 30
"""
DAEMONS_DEAD = """# The daemons of the VM's host are dead, the VM runs on.
hosts 3 chance lease
expect engine healthy within 240
wait 30
set daemons off owner
wait 120
expect downtime below 2
"""
CANNOT_START = """# A VM cannot be started on the only host that it may run on, and can later.
hosts 2 host-boot 10 guest-boot 5 chance hasty
expect engine healthy within 240
vm db memory 2048 only host1
vm db starts no host1
wait 60
vm db starts yes host1
expect vm db healthy within 200
"""
HOME = """# Two VMs go home, one after the other.
hosts 3 host-boot 10 guest-boot 5 chance home
set base-score 4400 host3
expect engine healthy on host3 within 250
vm one memory 2048 prefer host1 failback
vm two memory 2048 prefer host1 failback
expect vm one healthy on host1 within 100
expect vm two healthy on host1 within 60
set migration-takes 30 all
power off host1
expect vm one healthy within 60
expect vm two healthy within 60
power on host1
expect vm one healthy on host1 within 900
expect vm two healthy on host1 within 900
"""
NO_MEMORY = """# The other host is better, and has no memory for the engine.
hosts 2 power off chance room
set base-score 5000 host2
set memory 100 host2
power on host1
expect engine healthy within 250
power on host2
wait 300
expect downtime below 1
"""
TOLD_HERE = (NO_OTHER_ROOM, DRAIN, PAUSE, DAEMONS_DEAD, CANNOT_START, HOME, NO_MEMORY)


@pytest.mark.parametrize(
    ("bend", "story", "law"),
    [
        (only_the_engine_minds("global_maintenance"), "vms_global_maintenance", "global"),
        (all_hosts_are_open, NO_OTHER_ROOM, "local"),
        (unknown_health_is_bad, "vms_guest_that_recovers", "healthy"),
        (OUTSIDERS, "sick_by_its_own_check_alone", "healthy"),
        (disks_that_differ_are_started, "vms_disks_differ", "disks"),
        (the_vms_are_stopped_with_their_host, "vms_each_host_rebooted", "planned"),
        (moved_at_once_to_a_host_by_its_number, "vms_failback", "still"),
        (only_is_ignored, "vms_only_and_none_lives", "rules"),
        (RECORDS, "vms_added_while_it_runs_unlocked", "one-vm"),
        (CLAIMS, "vms_room_is_claimed_by_two", "room"),
        (is_now(missing, "secure", lambda turn, target: True), "vms_claims_race", "claimed"),
        (is_now(missing, "_need_not_wait", lambda turn, v: True), "vms_after", ""),
        (is_now(move, "_drained_for", lambda turn: ""), DRAIN, "drained"),
        (is_now(pause, "is_paused_on_purpose", lambda turn: False), PAUSE, "left-alone"),
        (
            is_now(health, "is_over", lambda turn: ""),
            "sick_vm_recovers_during_the_stop",
            "healthy",
        ),
        (is_now(machine, "first_in_line", lambda turn: True), "equal_hosts", "first"),
        (whose_the_lease_is_does_not_count, DAEMONS_DEAD, "leased"),
        (
            is_now(move, "_has_no_place", lambda turn, peer: ""),
            "vms_order_to_where_it_must_not_run",
            "rules",
        ),
        (is_now(shared.Several, "between_hosts", lambda self, but: []), "vms_drain_restart", ""),
        (no_pause_after_a_failed_start, CANNOT_START, "hasty"),
        (together_is_ignored, "vms_together_against_its_preference", ""),
        (
            is_now(better_place, "_broken_rule", lambda turn, v: ""),
            "vms_apart_wanted_later",
            "",
        ),
        (
            is_now(machine, "_gone", lambda turn: StateName.ENGINE_UNEXPECTEDLY_DOWN),
            "guest_powers_off_and_is_waited_for",
            "",
        ),
        (is_now(VmTurn, "starting_s", property(lambda turn: 600.0)), "vms_own_starting_time", ""),
        (
            is_now(VmTurn, "bad_health_s", property(lambda turn: 0.0)),
            "sick_vm_recovers_in_its_time",
            "",
        ),
        (is_now(status_vms, "without_place", lambda *given: {}), "vms_n_plus_1", ""),
        (is_now(better_place, "_others_come_first", lambda turn: False), HOME, "still"),
        (is_now(targets, "is_short_of_memory", lambda turn, peer: False), NO_MEMORY, "room"),
        (is_now(missing, "STARTS_AT_ONCE", 99), "vms_many_starts_on_one_host", "at-once"),
        (is_now(move, "DRAINED_AT_ONCE", 99), "vms_drain", "at-once"),
        (switched_on(orders=True), "power_cut", "switched-on"),
        (switched_on(boots=True), "switched_off_by_hand_after_a_fence", "switched-on"),
        (switched_on_in_global_maintenance, "global_maintenance_forbids_to_switch_on", "global"),
        (the_fence_lease_is_kept, "fence_lease_comes_back", ""),
        (who_stood_still_acts_all_the_same, "fencer_does_not_look_around", ""),
    ],
)
def test_a_breach_of_the_product_is_seen(
    bend: Bend, story: str, law: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`law`: which checker sees it; where no law is broken, the scenario is disappointed."""
    bend(monkeypatch)
    is_text = story.startswith("#")
    player = Player(parse("x.txt", story) if is_text else load(SCENARIOS / f"{story}.txt"))
    with pytest.raises((Broken, Disappointed)) as caught:
        player.play()
    broken = caught.value.law if isinstance(caught.value, Broken) else ""
    assert broken == law, caught.value


@pytest.mark.parametrize("story", TOLD_HERE)
def test_a_story_that_is_told_here_holds(story: str) -> None:
    """What is not a file of its own is told as it is, too."""
    Player(parse("x.txt", story)).play()
