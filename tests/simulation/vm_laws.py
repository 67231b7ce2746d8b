# SPDX-License-Identifier: LGPL-2.1-or-later
"""What must hold of several VMs at once, at every moment. Looks at the world, never at the
product's own word; `place` of the product is only asked where each VM *could* be.

    order           a VM is started only where each VM that it comes after is healthy, is not wanted
                    up, has no place, or was waited for long enough
    room            what an agent starts or moves to a host fits into its memory, beside all that
                    is there or on its way (but for a VM with `overcommit`)
    at-once         of the VMs beside the engine an agent starts AT_ONCE at a time at most: each may
                    keep a thread of sanlock, and the fence lease needs one; and a host that is
                    drained moves DRAINED_AT_ONCE at a time
    hasty           where a start has failed, the same agent does not begin the next one of that VM
                    within HASTY_S
    rules           nor does it break `only`, `apart` or `together`; and nothing is started that is
                    wanted down
    claimed         who starts a VM, or moves one, has said so in its slot before
                    (a move that an operator orders passes these three, too)
    still           a VM that was moved, and is well, is not moved again by itself within STILL_S;
                    where nothing is wrong none is moved but to where a rule is kept that was
                    broken, or home (`failback`), or where memory is used more evenly (`balance`);
                    and one after the other: none begins while another one is under way for such a
                    reason
    placed          so long after the last fault (`bound_s`) each VM that has a place is healthy
    alone           where all hosts are well, a VM that could be started is begun within ALONE_S,
                    whatever becomes of the others
    drained         what is healthy on a host in local maintenance is moved, one after the other: so
                    long as it could go to a host on which nothing at all is wrong, and no move from
                    there has failed, a move from there begins within DRAIN_S
    up              at any moment, whatever is wrong elsewhere: never for IDLE_S is a VM not healthy
                    and nothing done with it, while a host could start it, or runs it and could act,
                    all that time

What a host cannot have read yet it need not know: a change of the registry, or of another host,
counts NOTICE_S later.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from scoring.vm.plan import NO_PLAN, Plan, place
from scoring.vm.plan import Host as Room
from scoring.vm.several import engine_spec
from scoring.vm.spec import apart_of, together_of
from scoring.vm_facts import ENGINE, Pause, VmSpec, Want
from tests.simulation import fitness
from tests.simulation.earlier import Metadata

if TYPE_CHECKING:
    from tests.simulation.host import Host
    from tests.simulation.world import World

#: Twice the time between two looks.
LOOK_S = 2.0
#: Until every host has read what was written: the registry's header (10 s) and a beat or two; a
#: sample of a host's memory is as old.
NOTICE_S = 14.0
#: So long a VM waits for one that it comes after.
AFTER_S = 180.0
#: Between two moves of a VM of which nobody was forced.
STILL_S = 600.0
#: From the moment at which a VM could be started until an agent begins to.
ALONE_S = 20.0
#: How long all hosts must have been well before that counts.
WELL_BEFORE_S = 45.0
#: So long the room of a VM that left its host is kept there: 40 s for it to show up elsewhere
#: (maybe_away), and a beat or two; as long between the third and the fourth start that fails.
ROOM_KEPT_S = 45.0
#: Longer than any wait that the product may have: a host that stands back (560 s), starts that
#: failed (600 s), a sick VM (300 s), a shutdown (300 s) and a start (600 s) one after the other.
IDLE_S = 2400.0
#: VMs that a host starts at a time, and the time of a start.
AT_ONCE, START_S = 4, 1.0
#: A host pauses for 10 s after a failed start, by its own clock, which may be a little fast.
HASTY_S = 9.0
#: For so long a move is under way before all hosts must have read of it.
MOVE_KNOWN_S = 4.0
#: VMs that a drain moves at a time.
DRAINED_AT_ONCE = 2
#: From the moment at which a VM could leave a host in maintenance until a move from there begins:
#: the samples, the claim and its answer, and a claim that has to end by itself before (30 s).
DRAIN_S = 60.0
#: A VM in the air counts on both hosts; what is started by hand is nobody's doing.
_ACTS_TO_BRING = ("start",)


class VmLaws:
    """The checkers for the VMs of one world; a breach is told to its laws."""

    def __init__(self, world: World) -> None:
        self._world = world
        #: When an agent last did anything with each VM.
        self._acted_s: dict[int, float] = {}
        #: Since when each VM could be started, and all hosts are well.
        self._ready_since_s: dict[int, float] = {}
        self._well_since_s: float | None = None
        #: When each host's memory, rules or VMs last changed, as far as others must read it.
        self._at: dict[int, frozenset[int]] = {}
        self._at_changed_s: dict[int, float] = {}
        #: Since when each VM is not healthy, somebody could help it, and nothing is done.
        self._idle_since_s: dict[int, float] = {}
        #: What each agent process is starting: by its host's number.
        self._starting: dict[int, tuple[object, set[int]]] = {}
        #: Since when each host could be drained of a VM, and no move from there has begun.
        self._drain_since_s: dict[int, float] = {}
        #: When a start last failed, and of which agent: by host and VM.
        self._failed_s: dict[tuple[int, int], tuple[object, float]] = {}
        #: The VMs that are moved for a better place.
        self._for_better: set[int] = set()
        #: When each VM last had no place.
        self._short_s: dict[int, float] = {}

    @property
    def _now_s(self) -> float:
        return self._world.timeline.now_s

    def _breach(self, law: str, text: str) -> None:
        self._world.laws.breach(law, text)

    # --- moments ----------------------------------------------------------------------------

    def acts(self, vm: int) -> None:
        """An agent, or an operator by it, does something with a VM."""
        self._acted_s[vm] = self._now_s
        self._ready_since_s.pop(vm, None)
        self._idle_since_s.pop(vm, None)

    def began(self, host: Host, act: str, vm: int) -> None:
        """An agent begins an action on a VM that nobody ordered."""
        vms = self._world.vms
        if not vms.several or act not in _ACTS_TO_BRING:
            return
        spec = vms.spec(vm)
        if spec is None:
            return
        agent, failed_s = self._failed_s.get((host.number, vm), (None, 0.0))
        if agent is not None and agent is host.processes.get("agent"):
            since_s = self._now_s - failed_s
            if since_s < HASTY_S and vm != ENGINE and host.clock_jumped_s < failed_s:
                text = f"{host.name} starts {spec.name} {since_s:.1f} s after a start failed"
                self._breach("hasty", text)
        knows = self._now_s - vms.changed_s > NOTICE_S
        if spec.want is Want.DOWN and knows:
            self._breach("rules", f"{host.name} starts {spec.name}, which is wanted down")
        if knows:
            self._in_order(host, spec)
        self._fits(host, spec)
        self._keeps_rules(host, host, spec)
        self._is_claimed(host, host, spec)

    def start_begins(self, host: Host, vm: int) -> None:
        """An agent's start of a VM beside the engine is under way."""
        agent = host.processes.get("agent")
        known, starting = self._starting.get(host.number, (None, set()))
        starting = {*starting, vm} if known is agent else {vm}
        self._starting[host.number] = agent, starting
        if len(starting) > AT_ONCE:
            self._breach("at-once", f"{host.name} starts {len(starting)} VMs at a time")

    def start_failed(self, host: Host, vm: int) -> None:
        """An agent's start of a VM has failed: not for its lease, nor for the lock of its image."""
        self._failed_s[host.number, vm] = host.processes.get("agent"), self._now_s

    def start_ends(self, host: Host, vm: int) -> None:
        """Such a start has ended, well or not."""
        self._starting.get(host.number, (None, set[int]()))[1].discard(vm)

    def moves(self, source: Host, target: Host, vm: int, is_ordered: bool) -> None:
        """An agent begins to migrate a VM. An order passes the checks of where it may go to."""
        vms = self._world.vms
        self._drain_since_s.pop(source.number, None)
        if not vms.several:
            return
        spec = vms.spec(vm)
        if spec is not None:
            self._fits(target, spec)
            self._keeps_rules(source, target, spec)
            self._is_claimed(source, target, spec)
        if is_ordered:
            return
        self._stays(source, vm)
        self._is_better(source, target, vm)
        self._moves_alone(source, vm)
        if source.local_maintenance_since_s is not None and source.going_down_since_s is None:
            moving = {n for n in source.qemus if n == vm or self._is_moving(n)}
            if len(moving) > DRAINED_AT_ONCE:
                self._breach("at-once", f"{source.name} moves {len(moving)} VMs at a time")

    def _is_better(self, source: Host, target: Host, vm: int) -> None:
        """Where nothing is wrong anywhere: whether it is better off where it goes."""
        vms = self._world.vms
        spec = vms.spec(vm)
        if vm == ENGINE or spec is None or not self._world.is_quiet():
            return
        liked = [*spec.prefer, *([source.host_id] if source.host_id not in spec.prefer else [])]
        is_home = spec.failback and target.host_id in liked[: liked.index(source.host_id)]
        if (
            not is_home
            and not self._is_pushed(source, vm)
            and not self._is_even(source, target, spec)
        ):
            self._breach(
                "still", f"{source.name} moves {spec.name} to {target.name} though nothing is wrong"
            )

    def _moves_alone(self, source: Host, vm: int) -> None:
        """Whether no other VM is under way for a better place, where this one moves for one."""
        if vm == ENGINE or self._must_leave_at_once(source, vm):
            return
        under_way = set(filter(self._is_moving, self._for_better))
        for number in under_way - {vm}:
            qemus = [h.qemus[number] for h in self._world.hosts.values() if number in h.qemus]
            since_s = max(qemu.leaving_since_s for qemu in qemus)
            if number in source.qemus or self._now_s - since_s > MOVE_KNOWN_S:
                name = self._world.vms.name_of
                self._breach("still", f"{source.name} moves {name(vm)} while {name(number)} moves")
        self._for_better = under_way | {vm}

    def _must_leave_at_once(self, source: Host, vm: int) -> bool:
        """Whether a VM does not wait for the moves of others: its host is drained or cut off."""
        stuck = any(source.is_unkillable(n) for n in source.qemus)
        return stuck or self._is_to_be_left(source)

    def _is_even(self, source: Host, target: Host, spec: VmSpec) -> bool:
        """Whether hosts are to be balanced, and the target has more free with it than the source
        without having given it away."""
        if not self._world.settings.balance or source.total_mb is None or target.total_mb is None:
            return False
        left_mb = self._free_mb(target) - spec.memory_mb
        return left_mb / target.total_mb > self._free_mb(source) / source.total_mb

    def _free_mb(self, host: Host) -> float:
        taken_mb = sum(host.takes_mb.get(n, 0.0) for n in host.qemus)
        return (host.total_mb or 0.0) - host.reserve_mb - taken_mb

    def _in_order(self, host: Host, spec: VmSpec) -> None:
        vms = self._world.vms
        for number in spec.after:
            first = vms.spec(number)
            if first is None or first.want is Want.DOWN or number == spec.number:
                continue
            if vms.down_for_s(spec.number) >= AFTER_S - NOTICE_S:
                continue
            healthy = vms.is_healthy(number) or self._was_healthy_lately(number)
            short_s = self._short_s.get(number, float("-inf"))
            if not healthy and self._now_s - short_s > NOTICE_S:
                self._breach(
                    "order", f"{host.name} starts {spec.name}, but {first.name} is not healthy"
                )

    def _was_healthy_lately(self, vm: int) -> bool:
        since_s = self._world.vms.unwell_since_s.get(vm)
        return since_s is None or self._now_s - since_s < NOTICE_S

    def _fits(self, target: Host, spec: VmSpec) -> None:
        if target.total_mb is None or spec.overcommit:
            return
        # What is on its way there takes room as well.
        there_mb = sum(target.takes_mb.get(n, 0.0) for n in target.qemus if n != spec.number)
        room_mb = min(target.total_mb - target.reserve_mb - there_mb, self._available_mb(target))
        if room_mb < spec.memory_mb and not self._changed_lately(target):
            self._breach(
                "room",
                f"{spec.name} ({spec.memory_mb} MiB) is brought to {target.name}, "
                f"which has {room_mb:.0f} MiB",
            )

    def _available_mb(self, target: Host) -> float:
        return target.memory_mb

    def _changed_lately(self, host: Host) -> bool:
        """Whether its memory was changed from outside, by hand or by a story, a moment ago."""
        vms = self._world.vms
        changed_s = max(host.memory_changed_s, host.by_hand_s)
        return self._now_s - max(changed_s, vms.changed_s) <= NOTICE_S

    def _keeps_rules(self, source: Host, target: Host, spec: VmSpec) -> None:
        vms = self._world.vms
        if self._now_s - vms.changed_s <= NOTICE_S:
            return
        if spec.only and target.host_id not in spec.only:
            self._breach("rules", f"{spec.name} is brought to {target.name}, not one of its own")
        for number in apart_of(vms.specs).get(spec.number, ()):
            if number in target.qemus and self._is_settled(target, number):
                self._breach(
                    "rules",
                    f"{spec.name} is brought to {target.name} beside {vms.name_of(number)}",
                )
        # A group that must leave a host leaves it one by one: what is still there binds nobody.
        left = source if self._is_pushed_out(source, spec) else None
        for number in together_of(vms.specs).get(spec.number, ()):
            there = self._world.owner(number)
            if there not in (None, target, left) and not self._is_moving(number):
                assert there is not None
                if self._is_settled(there, number):
                    self._breach(
                        "rules",
                        f"{spec.name} is brought to {target.name}, "
                        f"{vms.name_of(number)} is on {there.name}",
                    )

    def _is_settled(self, host: Host, vm: int) -> bool:
        """Whether a VM is where it is for so long that all know it."""
        return self._now_s - self._at_changed_s.get(vm, self._now_s) > NOTICE_S / 2

    def _is_moving(self, vm: int) -> bool:
        hosts = self._world.hosts.values()
        return sum(vm in host.qemus for host in hosts) > 1

    def _is_claimed(self, host: Host, target: Host, spec: VmSpec) -> None:
        if not self._world.vms.must_claim or host.metadata is not Metadata.THIS:
            return
        claims = self._world.claims_of(host)
        if (spec.number, target.host_id) not in claims:
            shown = ", ".join(f"{n}>{t}" for n, t in sorted(claims)) or "nothing"
            self._breach(
                "claimed",
                f"{host.name} brings {spec.name} to {target.name}; its slot claims {shown}",
            )

    def _stays(self, source: Host, vm: int) -> None:
        vms = self._world.vms
        moved_s = vms.moved_s.get(vm)
        if vm == ENGINE or moved_s is None or self._now_s - moved_s >= STILL_S:
            return
        if self._is_pushed(source, vm):
            return
        self._breach(
            "still",
            f"{source.name} moves {vms.name_of(vm)} again after {self._now_s - moved_s:.0f} s",
        )

    def _is_pushed(self, source: Host, vm: int) -> bool:
        """Whether a VM must leave its host: it is drained, cut off, or a rule says so."""
        vms = self._world.vms
        spec = vms.spec(vm)
        if spec is None or self._is_pushed_out(source, spec):
            return True
        if any(n in source.qemus for n in apart_of(vms.specs).get(vm, ())):
            return True
        return any(
            self._world.owner(n) not in (None, source) for n in together_of(vms.specs).get(vm, ())
        )

    def _is_pushed_out(self, source: Host, spec: VmSpec) -> bool:
        """Whether that is so whatever else runs there, or where its mates are."""
        is_foreign = bool(spec.only and source.host_id not in spec.only)
        return is_foreign or self._is_to_be_left(source)

    @staticmethod
    def _is_to_be_left(host: Host) -> bool:
        """Whether a host is drained, shuts down or is cut off: all VMs leave it."""
        return (
            host.local_maintenance_since_s is not None
            or host.going_down_since_s is not None
            or not host.is_way_open
            or not host.uplink_up
        )

    # --- every second -----------------------------------------------------------------------

    def look(self) -> None:
        """What is so now, and since when."""
        world, vms = self._world, self._world.vms
        self._look_at_drains()
        if not vms.several:
            return
        for vm in vms.records:
            at = frozenset(h.number for h in world.hosts.values() if vm in h.qemus)
            if at != self._at.get(vm):
                self._at[vm], self._at_changed_s[vm] = at, self._now_s
        missing = [vm for vm in vms.numbers if self._is_missing(vm)]
        plan = self.true_plan() if missing else NO_PLAN
        self._short_s.update(dict.fromkeys(plan.short, self._now_s))
        self._look_at_ready()
        self._look_at_idle(plan)

    def _look_at_drains(self) -> None:
        """Whether a VM stays on a host in maintenance although it could leave."""
        for host in self._world.hosts.values():
            vm = self._could_leave(host)
            if vm is None:
                self._drain_since_s.pop(host.number, None)
                continue
            idle_s = self._now_s - self._drain_since_s.setdefault(host.number, self._now_s)
            if idle_s > DRAIN_S:
                called = self._world.called(vm)
                self._breach(
                    "drained",
                    f"{called} could leave {host.name}, which is in local maintenance, for "
                    f"{idle_s:.0f} s, and nothing there is moved",
                )

    def _could_leave(self, host: Host) -> int | None:
        """A VM that nothing keeps on a host in maintenance, if none is on its way from there."""
        world, since_s = self._world, host.local_maintenance_since_s
        if since_s is None or host.wrong_start_s > since_s or host.decides_earlier:
            return None
        is_kept = host.going_down_since_s is not None or host.move_failed or host.own_check_fails
        is_alone = host.migrates_nothing or host.number in world.no_migration
        if is_kept or is_alone or fitness.is_hindered(world) or world.cut_links:
            return None
        if world.guest_closed_to or any(map(self._is_moving, host.qemus)):
            return None
        if not fitness.could_act(world, host) or not host.is_way_open:
            return None
        return next((vm for vm in sorted(host.qemus) if self._has_a_target(host, vm)), None)

    def _has_a_target(self, host: Host, vm: int) -> bool:
        """Whether a healthy VM could be moved to a host on which nothing is wrong."""
        world = self._world
        if not host.is_healthy(vm) or not world.vms.wanted(vm):
            return False
        target = self.could_take(host, vm) if world.vms.several else world.could_take_the_vm(host)
        return (
            target is not None
            and fitness.could_run(world, target)
            and target.number not in world.no_migration
            and target.metadata is Metadata.THIS
            and not target.decides_earlier
            and not target.registry
            and not target.damaged_vms
            and not target.keeps_orphans
            and self._world.vms.troubled_for_s(target, vm) is None
        )

    def is_short(self, vm: int) -> bool:
        """Whether at the last look no host had the room for it."""
        return self._now_s - self._short_s.get(vm, float("-inf")) < LOOK_S

    def _look_at_idle(self, plan: Plan) -> None:
        """Whether nobody does anything for a VM that somebody could help. `plan`: see true_plan."""
        idle = {vm for vm in self._world.vms.numbers if self._could_be_helped(vm, plan)}
        for vm in self._idle_since_s.keys() - idle:
            del self._idle_since_s[vm]
        for vm in idle:
            idle_s = self._now_s - self._idle_since_s.setdefault(vm, self._now_s)
            if idle_s > IDLE_S:
                called = self._world.vms.name_of(vm)
                self._breach("up", f"{called} is unwell, and nothing was done in {idle_s:.0f} s")

    def _could_be_helped(self, vm: int, plan: Plan) -> bool:
        """Whether it is wanted and not healthy, and a host could start it or end it."""
        world, vms = self._world, self._world.vms
        if not vms.wanted(vm) or vms.is_healthy(vm) or vms.is_held_back(vm):
            return False
        if fitness.is_hindered(world):
            return False
        runs = [host for host in world.hosts.values() if vm in host.qemus]
        if not runs:
            return vm in plan.order
        host, qemu = runs[0], runs[0].qemus[vm]
        is_its = len(runs) == 1 and qemu.pause is not Pause.USER and not host.own_check_fails
        return is_its and fitness.could_act(world, host)

    def _look_at_ready(self) -> None:
        world, vms = self._world, self._world.vms
        is_well = (
            world.global_maintenance_since_s is None
            and not world.cut_links
            and not world.cluster_slot_is_bad()
            and self._now_s - vms.changed_s > NOTICE_S
            and all(self._is_well(host) for host in world.hosts.values())
        )
        if not is_well:
            self._well_since_s = None
            self._ready_since_s.clear()
            return
        if self._well_since_s is None:
            self._well_since_s = self._now_s
        if self._now_s - self._well_since_s < WELL_BEFORE_S:
            return
        missing = [vm for vm in vms.numbers if self._is_missing(vm)]
        ready = set(self._ready(missing)) if missing else set()
        for vm in list(self._ready_since_s):
            if vm not in ready:
                del self._ready_since_s[vm]
        for vm in ready:
            since_s = self._ready_since_s.setdefault(vm, self._now_s)
            if self._now_s - since_s > ALONE_S:
                self._breach(
                    "alone",
                    f"{vms.name_of(vm)} could be started for {self._now_s - since_s:.0f} s, "
                    "and nobody does",
                )

    def _is_well(self, host: Host) -> bool:
        return host.power and fitness.could_act(self._world, host) and not host.registry

    def _is_missing(self, vm: int) -> bool:
        hosts = self._world.hosts.values()
        return self._world.vms.wanted(vm) and not any(vm in host.qemus for host in hosts)

    def _ready(self, missing: list[int]) -> Iterator[int]:
        """The missing VMs that some host can start at once: only other VMs delay them.

        Whether a host stands back from a VM that ended there, and gives its room away, depends on
        how it ended; while it may do either, only what has a place in both cases is ready.
        """
        vms = self._world.vms
        plans = [self.true_plan(troubled_for_s=so_long_s) for so_long_s in (0.0, ROOM_KEPT_S)]
        for vm in missing:
            spec = vms.spec(vm)
            if spec is None or vms.is_held_back(vm):
                continue
            if any(vm not in plan.order for plan in plans):
                continue
            waits = any(
                n != vm and vms.wanted(n) and vms.spec(n) is not None and not vms.is_healthy(n)
                for n in spec.after
            )
            if not waits:
                yield vm

    # --- at rest ----------------------------------------------------------------------------

    def bound_s(self) -> float:
        """How much later than one VM the last of several is healthy: each that waits in a row of
        `after` for AFTER_S at most and its guest's boot, and the waves of starts."""
        world, vms = self._world, self._world.vms
        if not vms.several:
            return 0.0
        deepest = _depth(vms.specs)
        waves = -(-len(vms.records) // AT_ONCE)
        # Each VM waits for the death of its host by itself at worst: one after the other.
        return deepest * (AFTER_S + world.settings.guest_boot_s) + waves * START_S + NOTICE_S

    def must_be_placed(self) -> None:
        """The bound is over: what has a place must be healthy."""
        world, vms = self._world, self._world.vms
        if not vms.several or world.global_maintenance_since_s is not None:
            return
        if self._now_s - vms.changed_s < world.bound_s():
            return
        missing = [
            vm
            for vm in vms.numbers
            if vms.wanted(vm) and not self._is_reached(vm) and not vms.is_held_back(vm)
        ]
        if not missing:
            return
        plan = self.true_plan()
        for vm in missing:
            runs = world.owner(vm)
            can = vm in plan.order or (runs is not None and fitness.could_act(world, runs))
            if can:
                self._breach(
                    "placed",
                    f"{vms.name_of(vm)} is not healthy {world.bound_s():.0f} s after all faults",
                )

    def _is_reached(self, vm: int) -> bool:
        world = self._world
        return any(world.users_reach(host, vm) for host in world.hosts.values())

    def could_take(self, source: Host, vm: int) -> Host | None:
        """A host that has room for all that runs on another one, and may run this VM."""
        world, vms = self._world, self._world.vms
        spec = vms.spec(vm) or VmSpec(ENGINE, "engine", int(world.vm_memory_mb))
        if not world.settings.migration or world.well_for_s(source) < 10.0:
            return None
        needs_mb = source.committed_mb
        for host in world.hosts.values():
            if host is source or not fitness.could_act(world, host):
                continue
            is_open = host.local_maintenance_since_s is None and host.going_down_since_s is None
            allowed = not spec.only or host.host_id in spec.only
            beside = [*apart_of(vms.specs).get(vm, ()), *together_of(vms.specs).get(vm, ())]
            is_free = allowed and not beside and host.metadata is Metadata.THIS
            fits = host.free_memory_mb >= needs_mb and self._now_s - vms.changed_s > NOTICE_S
            if is_open and is_free and fits and world.well_for_s(host) > 10.0:
                return host
        return None

    def true_plan(self, troubled_for_s: float | None = None) -> Plan:
        """Where each missing VM could be, by what is true of the hosts. `troubled_for_s`: not where
        a start of it failed, or it died, so long ago or longer: that host stands back. Until then
        it keeps the room also of a VM that it cannot start."""
        world, vms = self._world, self._world.vms
        missing = frozenset(
            vm for vm in vms.numbers if self._is_missing(vm) or not self._at.get(vm)
        )
        rooms = [
            Room(
                host.host_id,
                3400,
                int(host.total_mb or 0),
                int(host.free_memory_mb),
                vms=frozenset(host.qemus),
                open=host.local_maintenance_since_s is None and host.going_down_since_s is None,
                speaks=2 if host.metadata is Metadata.THIS and not host.decides_earlier else 1,
                barred=frozenset(
                    vm
                    for vm in vms.records
                    if vm in host.damaged_vms
                    or host.registry
                    or self._stands_back(host, vm, troubled_for_s)
                ),
            )
            for host in world.hosts.values()
            if fitness.could_act(world, host) and host.is_way_open and not host.refused
        ]
        engine = vms.spec(ENGINE) or engine_spec(world.vm_memory_mb)
        if not self._is_missing(ENGINE):
            return place(vms.specs, rooms, missing)
        # A missing engine takes its room before any other VM, even where it does not fit.
        specs = (replace(engine, overcommit=True), *(v for v in vms.specs if v.number != ENGINE))
        with_engine = place(specs, rooms, frozenset({ENGINE}))
        claims = {number: hosts[0] for number, hosts in with_engine.order.items()}
        return place(specs, rooms, missing | {ENGINE}, claims)

    def _stands_back(self, host: Host, vm: int, troubled_for_s: float | None) -> bool:
        """Whether a host leaves a VM to others; see true_plan."""
        fails = bool(self._world.start_fails(host, vm))
        if troubled_for_s is None:
            return fails
        troubled_s = self._world.vms.troubled_for_s(host, vm)
        if troubled_s is None:
            return fails
        return troubled_s >= troubled_for_s


def _depth(specs: tuple[VmSpec, ...]) -> int:
    """How many VMs stand in the longest row of `after`."""
    known = {spec.number: spec for spec in specs}

    def depth(number: int, way: tuple[int, ...]) -> int:
        after = [n for n in known[number].after if n in known and n not in (*way, number)]
        return max((1 + depth(n, (*way, number)) for n in after), default=0)

    return max((depth(number, ()) for number in known), default=0)
