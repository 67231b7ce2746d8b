# SPDX-License-Identifier: LGPL-2.1-or-later
"""What must hold at every moment of every simulated run. Looks at the world, never at the
product's own word.

    disks           a VM that is started boots the image that was written to last
    one-vm          at most one QEMU executes the guest, over all hosts
    leased          a QEMU that executes the guest holds its lease; of one that somebody started
                    past the lock driver, and that never had it, its host says that it has none;
                    and no agent starts a VM while a host that renews runs it under its lease
    fresh           what executes was booted, or goes on with the memory of what ran last: never
                    an older memory over newer disks
    freed-off       a host id is freed only when its host was off at the proof read, and
                    nothing of that host uses the id; the proof is fresh, and was read while the
                    fence lease was held (fence_laws.py)
    fenced          nobody is switched off without the fence lease, nor a host that can be heard:
                    its broker by the storage or by the network, by the asker or a third host,
                    or its sanlock, while a healthy VM runs there; nor another machine than meant;
                    and all that was true for the whole window (fence_laws.py). But one whose VM is
                    sick and cannot be ended there may be heard, if its own slot asks for it and
                    that is true (sick.py)
    switched-on     nobody is switched on but under the fence lease, nor who was not meant to be
                    switched off by the cluster since it was last switched on
    global          global maintenance: nothing is started, stopped, moved, freed or switched by a
                    host that had two beats to read it
    local           a host in local maintenance does not start the VM, and gets it from nobody; what
                    it has leaves it: `drained` in vm_laws.py
                    (a mode that ends by itself may end early where a broker was started
                    meanwhile whose wall clock is wrong: nobody else may know better)
    healthy         a VM that is healthy, and that its users reach, is not shut down or ended by
                    an agent
    restarted       but for one on a host whose administrator drains it by a stop and a start: only
                    after a migration from there has failed, and while another host can start it
    first           of hosts on which nothing is wrong the engine is started by the best one; of
                    equal ones by the one that ran it last, then by the lowest id. Another one lets
                    them try first, for FIRST_S at least
    left-alone      a VM that somebody paused, or libvirt for him, is not shut down or ended by an
                    agent while no other host has run it since
    isolated        one that is healthy and that they do not reach is, only after they have not for
                    long, and only where they would reach it on another host
    planned         a host that shuts down stops its VM only where no other host can take it
    blameless       sanlock ends no VM on a host whose storage was fine
    two-up          no two agents that can read the storage call the same VM up for longer than
                    five seconds
    not-down        no host calls the VM down that has run for longer than TOLD_S: what it does not
                    see it does not know
    unanswered      nothing is done on a question that was not answered: no start, no switching off
                    without an answer of the storage, nothing with the VM without one of libvirt
    beat            no hung call keeps an agent from its next decision for longer than LATE_S
    quiet           without faults for longer than the bound nothing is started, stopped, moved or
                    ended; in a scenario: while all hosts were fit for that long
    up              that long after the last fault the VM is up and healthy and its users reach it,
                    if a host can run it; at any moment: never for IDLE_S do they not reach it and
                    nothing is done, while a host could run it all that time
    clean           no exception in a task or in a loop, no task left at the end

What is said of the VM holds for each VM. Laws on several VMs at once are in vm_laws.py.

Laws that came after the earlier version do not hold for a host that decides by it: `planned`,
`healthy`, `isolated`, and of `fenced` what a third host hears.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.peers.vm_place import VmPlace
from broker.wire.exchange import Report
from scoring.decision import Code, FreeHostId
from scoring.observation import OnHostShutdown, OrderKind
from scoring.vm.state import StateName
from scoring.vm_facts import ENGINE, PAUSED_ON_PURPOSE
from tests.simulation import fitness
from tests.simulation.fence_laws import FenceLaws
from tests.simulation.lockspace import Membership
from tests.simulation.sick import Sick
from tests.simulation.vm_laws import IDLE_S, VmLaws

if TYPE_CHECKING:
    from tests.simulation.host import Host, Qemu
    from tests.simulation.world import World

#: Beats a host has to notice what was written, and a second for the half beat and the call.
NOTICE_BEATS = 2
NOTICE_EXTRA_S = 1.0
TWO_UP_S = 5.0
WELL_S = 5.0
#: Until every host can have read that the VM runs: a slot that says so, a beat, a call.
TOLD_S = 6.0
#: The places of the VMs beside the engine are checked every so many seconds.
VMS_TOLD_EVERY = 3
#: What begins within so long after an order is taken for it.
ORDERED_S = 15.0
HEALTHY_FOR_S = 10.0
#: What was reached for less may be a cable that was put in a moment ago: not everybody knows yet.
REACHED_FOR_S = 5.0
#: Equal hosts let the one before them try for two seconds (tie_follow).
FIRST_S = 1.5
#: A storage or a libvirt that has not answered for longer is known not to answer.
UNANSWERED_S = 8.0
#: Faults of a storage that is not read.
_UNREAD = ("hang", "error", "unreadable")
#: What may be done without the storage: to the host's own VM, and what finishes a fence.
_WITHOUT_STORAGE = ("shut down", "power off", "migrate", "switch a host on")
_WITH_LIBVIRT = ("start", "shut down", "power off", "migrate")
#: The longest deadline of a call that a decision waits for, and the beats around it.
LATE_S = 10.0
#: Until the source has read what memory a host has free: a sample may be as old as ten seconds.
ROOM_KNOWN_S = 30.0
#: For so long a host must have been well before it counts as one that can start the VM.
FIT_BEFORE_S = 20.0
#: How a path by which a third host hears begins (World.heard_since_s).
THIRD_HOST = "network of "
#: The path of a host's renewals there.
RENEWALS = "renewals of its sanlock"
#: What an agent may do on each order.
_ORDERED = {
    OrderKind.MIGRATE: ("migrate",),
    OrderKind.CANCEL: (),
    OrderKind.START: ("start",),
    OrderKind.SHUTDOWN: ("shut down", "power off"),
    OrderKind.POWER_OFF: ("power off",),
}
_UP = (StateName.ENGINE_UP.value, StateName.ENGINE_UP_BAD_HEALTH.value)


class Broken(Exception):
    """A law does not hold: which, when, and what was seen."""

    def __init__(self, law: str, at_s: float, text: str) -> None:
        super().__init__(f"law {law!r} broken at {at_s:.3f}: {text}")
        self.law = law
        self.at_s = at_s
        self.text = text


class Laws:
    """The checkers of one world. The first breach is kept in `broken`, and time stops."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.broken: Broken | None = None
        self.fence = FenceLaws(world)
        #: The VMs that each agent calls up.
        self._up: dict[int, frozenset[int]] = {}
        #: The codes that each agent last gave for what it does with each VM.
        self._reasons: dict[int, dict[int, frozenset[str]]] = {}
        #: Since when a host does not say that a VM of its runs without its lease.
        self._unleased_since_s: dict[tuple[int, int], float] = {}
        #: Since when two agents have called each VM up.
        self._two_up_since_s: dict[int, float] = {}
        #: The process of each VM, and since when it is that one.
        self._runs: dict[int, tuple[Qemu | None, float]] = {}
        self._looks = 0
        #: The guests' memories that have run, and the one of each VM that ran last.
        self._memories: set[str] = set()
        self._memory: dict[int, str] = {}
        #: Since when each agent is in EngineDown (or was, before it began a start), and when each
        #: host last ran the engine.
        self._down_since_s: dict[int, float] = {}
        self._ran_s: dict[int, float] = {}
        #: When each agent last decided, in time that was not passed over.
        self._decided_s: dict[int, float] = {}
        self._beat: dict[int, int] = {}
        self._libvirt_silent_s: dict[int, float] = {}
        #: Since when each host could run the VM, and all of them are fit and it is reached.
        self._fit_since_s: dict[int, float] = {}
        self._all_fit_since_s: float | None = None
        #: Since when nobody reaches the VM and nobody does anything.
        self._idle_since_s: float | None = None
        self._sick = Sick(world)
        self.vms = VmLaws(world)

    def breach(self, law: str, text: str) -> None:
        """Keep the first one and stop time."""
        if self.broken is None:
            self.broken = Broken(law, self._world.timeline.now_s, text)
            self._world.tell("law", f"{law} is broken: {text}")
            self._world.timeline.halted = True

    # --- moments --------------------------------------------------------------------------

    def vm_changed(self, vm: int = ENGINE) -> None:
        """What runs of a VM has changed somewhere."""
        called = self._world.called(vm)
        running = [host for host in self._world.hosts.values() if host.runs(vm)]
        if len(running) > 1:
            self.breach("one-vm", f"{called} runs on " + " and ".join(h.name for h in running))
        for host in running:
            if vm == ENGINE:
                self._ran_s[host.number] = self._world.timeline.now_s
            qemu, newest = host.qemus[vm], self._world.newest_images(vm)
            if qemu.image not in newest:
                ran = " or ".join(sorted(newest))
                self.breach("disks", f"{host.name} boots {qemu.image}, {ran} ran last")
            if qemu.has_lease:
                qemu.by_hand = False
            elif not qemu.by_hand:
                self.breach("leased", f"{called} runs on {host.name} without its lease")
            memory = qemu.memory
            if memory != self._memory.get(vm) and memory in self._memories:
                self.breach("fresh", f"{called} runs on {host.name} with an older memory")
            self._memory[vm] = memory
            self._memories.add(memory)

    def vm_ended(self, host: Host, why: str, vm: int = ENGINE) -> None:
        """A QEMU is gone."""
        now_s = self._world.timeline.now_s
        # After the storage is back the next try to renew may come too late.
        retry_s = 0.5 * host.io_timeout_s
        bad_until_s = max(host.storage_bad_until_s, host.frozen_until_s, host.clock_jumped_s)
        if why.startswith("sanlock") and now_s - bad_until_s > retry_s:
            called = self._world.called(vm)
            self.breach("blameless", f"sanlock ended {called} on {host.name}, its storage is fine")
        # Whether a VM of the registry was rightly moved was judged when its move began.
        if self._world.is_quiet() and not (vm != ENGINE and why == "migrated"):
            called = self._world.called(vm)
            self.breach("quiet", f"{called} on {host.name} ended ({why}) though nothing is wrong")

    def began(self, host: Host, act: str | FreeHostId, vm: int = ENGINE) -> None:
        """An agent begins an action. What an operator orders by hand is his own."""
        if vm == ENGINE:
            self._idle_since_s = None
        self.vms.acts(vm)
        if self._is_ordered(host, act, vm):
            return
        if isinstance(act, str):
            self.vms.began(host, act, vm)
        world, now_s = self._world, self._world.timeline.now_s
        name = act if isinstance(act, str) else f"free host id {act.host_id}"
        if name == "power off":
            self._sick.ends(host, vm)
        notice_s = NOTICE_BEATS * world.beat_s + NOTICE_EXTRA_S
        since_s = world.global_maintenance_since_s
        if since_s is not None and not world.wall_is_in_doubt(since_s):
            known_s = max(since_s, host.storage_unread_until_s, host.daemons_since_s)
            # One call to read it, one to write its own slot, in each of the beats.
            slow_s = 2.0 * NOTICE_BEATS * host.storage.delay_s
            if now_s - max(known_s, host.frozen_until_s) > notice_s + slow_s:
                self.breach("global", f"{host.name} begins to {name} in global maintenance")
        local_s = host.local_maintenance_since_s
        if name == "start" and local_s is not None and host.wrong_start_s <= local_s:
            known_s = max(local_s, host.daemons_since_s, host.frozen_until_s)
            if now_s - known_s > notice_s:
                self.breach("local", f"{host.name} starts the VM in local maintenance")
        is_wanted = vm == ENGINE or world.vms.wanted(vm)
        if name in ("shut down", "power off") and is_wanted:
            self._left_alone(host, name, vm)
        self._unanswered(host, act)
        if name == "start":
            self._is_free(host, vm)
            self._comes_first(host, vm)
        if name in ("shut down", "power off") and host.is_healthy(vm) and is_wanted:
            well_s = now_s - max(host.qemus[vm].healthy_from_s, host.sick_until_s)
            if host.going_down_since_s is not None:
                self._planned(host, name, vm)
            elif host.may_restart and host.local_maintenance_since_s is not None:
                self._restarted(host, name, vm)
            else:
                self._reached(host, name, well_s, vm)
        # Whether a VM of the registry may go elsewhere is judged by where to (vm_laws.py).
        ends = (name != "power off" or host.runs(vm)) and (name != "migrate" or vm == ENGINE)
        if ends and (world.is_quiet() or self._all_fit_s() > world.bound_s()):
            self.breach("quiet", f"{host.name} begins to {name} though nothing is wrong")

    def _is_ordered(self, host: Host, act: str | FreeHostId, vm: int) -> bool:
        """Whether an operator has just ordered that, and was not refused."""
        at_s = self._world.ordered_s.get(host.number)
        kind = self._world.ordered.get(host.number)
        if at_s is None or kind is None or not isinstance(act, str):
            return False
        if self._world.ordered_vm.get(host.number, ENGINE) != vm:
            return False
        return act in _ORDERED[kind] and self._world.timeline.now_s - at_s < ORDERED_S

    def _unanswered(self, host: Host, act: str | FreeHostId) -> None:
        """An agent acts on what it cannot know."""
        now_s, storage = self._world.timeline.now_s, host.storage
        name = act if isinstance(act, str) else f"free host id {act.host_id}"
        parts = ("whiteboard", "leases")
        blind = [part for part in parts if storage.of(part)[0] in _UNREAD]
        if blind and now_s - storage.since_s > UNANSWERED_S and name not in _WITHOUT_STORAGE:
            what = " and ".join(blind)
            self.breach("unanswered", f"{host.name} begins to {name} without its storage: {what}")
        silent_s = now_s - self._libvirt_silent_s.get(host.number, now_s)
        if host.libvirt_hangs and silent_s > UNANSWERED_S and name in _WITH_LIBVIRT:
            self.breach("unanswered", f"{host.name} begins to {name}, libvirt is silent")

    def _has_no_room(self, target: Host) -> None:
        """The engine is moved to a host that has less memory free than it needs."""
        now_s = self._world.timeline.now_s
        changed_s = max(target.memory_changed_s, target.by_hand_s, target.storage_bad_until_s)
        if now_s - changed_s > ROOM_KNOWN_S:
            self.breach(
                "room", f"the VM is moved to {target.name}: {target.memory_mb:.0f} MiB free"
            )

    def _left_alone(self, host: Host, name: str, vm: int) -> None:
        """An agent ends a VM that stands still."""
        qemu = host.qemus.get(vm)
        if qemu is None or qemu.running or not qemu.has_run or qemu.crashed:
            return
        # A VM whose host has lost the storage is ended, however it stands (`storage_lost`).
        is_bad = host.storage.fault or host.storage.parts or host.decides_earlier
        newest = self._memory.get(vm) == qemu.memory
        if qemu.pause in PAUSED_ON_PURPOSE and newest and not is_bad:
            called = self._world.called(vm)
            self.breach("left-alone", f"{host.name}: {name} of {called}, paused for {qemu.pause}")

    def _comes_first(self, host: Host, vm: int) -> None:
        """An agent starts the engine: no host that comes before it could, and had no time to."""
        world, now_s = self._world, self._world.timeline.now_s
        waited_s = now_s - self._down_since_s.get(host.number, now_s)
        if vm != ENGINE or waited_s >= FIRST_S or world.cut_links or fitness.is_hindered(world):
            return
        fit = [
            each
            for each in world.hosts.values()
            if fitness.could_run(world, each)
            and world.well_for_s(each) > FIT_BEFORE_S
            and not each.decides_earlier
            and not each.wants_earlier
        ]
        if host not in fit:
            return

        def rank(each: Host) -> tuple[float, float, int]:
            ran_s = self._ran_s.get(each.number, float("-inf"))
            return -(world.score_of(each) or 0), -ran_s, each.host_id

        best = min(fit, key=rank)
        if best is not host:
            self.breach("first", f"{host.name} starts the VM, {best.name} comes before it")

    def _is_free(self, host: Host, vm: int) -> None:
        """An agent starts a VM: no host that renews may have run it under its lease for long."""
        owner = self._runs_for_long(vm)
        if owner is None or owner is host or not owner.qemus[vm].has_lease:
            return
        sees_it = all(
            each.is_on_shared
            and each.host_id == each.number
            and not each.storage.of("leases")[0]
            and not each.is_sanlock_stale
            and not each.frozen
            for each in (owner, host)
        )
        daemon = owner.sanlock
        renews = daemon is not None and daemon.running and daemon.membership is Membership.IN
        if sees_it and renews and not owner.sanlock_stopped:
            called = self._world.called(vm)
            self.breach("leased", f"{host.name} starts {called}, {owner.name} runs it")

    def moves(self, source: Host, target: Host, vm: int = ENGINE) -> None:
        """A host begins to hand a VM over to another one."""
        is_ordered = self._is_ordered(source, "migrate", vm)
        self.vms.moves(source, target, vm, is_ordered)
        if vm == ENGINE and not is_ordered and target.memory_mb < self._world.vm_memory_mb:
            self._has_no_room(target)
        since_s = target.local_maintenance_since_s
        if since_s is None or target.wrong_start_s > since_s:
            return
        # The target must tell it, the source must read it.
        notice_s = 2.0 * (NOTICE_BEATS * self._world.beat_s + NOTICE_EXTRA_S)
        known_s = max(
            since_s,
            *(host.storage_bad_until_s for host in (source, target)),
            *(host.daemons_since_s for host in (source, target)),
            *(host.frozen_until_s for host in (source, target)),
        )
        if self._world.timeline.now_s - known_s > notice_s:
            self.breach("local", f"{source.name} moves the VM to {target.name}, in maintenance")

    def _planned(self, host: Host, name: str, vm: int) -> None:
        """A host that shuts down stops its healthy VM."""
        # What else is wrong at the same time may well keep it from being moved.
        if self._world.open_faults > 1 or host.on_host_shutdown is OnHostShutdown.SHUTDOWN:
            return
        if host.decides_earlier:
            return
        if vm == ENGINE and not self._world.vms.several:
            target = self._world.could_take_the_vm(host)
        else:
            target = self.vms.could_take(host, vm)
        if target is not None and not host.move_failed:
            self.breach("planned", f"{host.name}: {name}, but {target.name} could take the VM")

    def _restarted(self, host: Host, name: str, vm: int) -> None:
        """A host that is drained by a stop and a start stops its healthy VM."""
        world = self._world
        if world.settings.migration and not host.move_failed:
            self.breach("restarted", f"{host.name}: {name}, but no migration from there has failed")
        # What was asked to shut down in time is ended later, whatever became of the others.
        if name == "shut down" and not any(
            other.power
            and other.local_maintenance_since_s is None
            and (world.score_of(other) or 0) > 0
            for other in world.hosts.values()
            if other is not host
        ):
            self.breach("restarted", f"{host.name}: {name}, but no other host can start the VM")

    def _reached(self, host: Host, act: str, well_s: float, vm: int) -> None:
        """An agent shuts down or ends a VM that has been well for so long."""
        world = self._world
        others = [other for other in world.hosts.values() if other is not host]
        if well_s <= HEALTHY_FOR_S or host.decides_earlier:
            return
        if world.reached_for_s(host, vm) > REACHED_FOR_S:
            of = world.vms.of(vm)
            self.breach("healthy", f"{host.name}: {act} of a healthy VM that is reached{of}")
        elif not any(other.is_way_open for other in others):
            self.breach("isolated", f"{host.name}: {act}, though no host has a better network")
        elif world.guest_closed_to and host.is_way_open:
            self.breach("isolated", f"{host.name}: {act}, it is as closed everywhere else")

    def freeing(self, host: Host, act: FreeHostId) -> None:
        """An agent writes "free" into another host's delta lease, now."""
        target = self._world.hosts[act.host_id]
        for why in self.fence.against_freeing(host, act):
            self.breach("freed-off", f"{host.name} frees the id of {target.name}: {why}")
        assert host.loop is not None
        read_s = host.loop.true_s(act.off_read_s)
        was_off = target.off_since_s <= read_s and (not target.power or target.on_since_s > read_s)
        if not was_off:
            self.breach(
                "freed-off",
                f"{host.name} frees the id of {target.name}, which was not off at {read_s:.2f}",
            )
        self.freed(host, act)

    def freed(self, host: Host, act: FreeHostId) -> None:
        """What an agent has written lands on the volume: now, or late."""
        target = self._world.hosts[act.host_id]
        daemon = target.sanlock
        if daemon is not None and daemon.running and daemon.membership is not Membership.OUT:
            self.breach("freed-off", f"{host.name} frees the id {target.name} uses")
        if target.qemus:
            self.breach("freed-off", f"{host.name} frees the id of {target.name}, a QEMU is there")

    def shoots(self, host: Host, target: Host) -> None:
        """A host is about to be switched off by another one."""
        now_s = self._world.timeline.now_s
        if not host.fence_held:
            self.breach("fenced", f"{host.name} shoots {target.name} without the fence lease")
        asks = self._sick.may_be_shot(target)
        for path, since_s in self._world.heard_since_s(host, target).items():
            # The earlier version does not ask what the others hear.
            known = not (host.decides_earlier and path.startswith(THIRD_HOST))
            if path == RENEWALS and self.fence.hangs(target, host):
                # Nobody has heard it since all of it fell silent at once: the next is due later.
                known = False
            if path != "storage" and path != RENEWALS and self.fence.gave_up(target):
                # The host lives, and says on the network that nothing runs on it any more.
                known = False
            if known and since_s is not None and now_s - since_s > WELL_S and not asks:
                self.breach(
                    "fenced",
                    f"{host.name} shoots {target.name}, which can be heard by the {path}",
                )

        for why in self.fence.against_shot(host, target, asks):
            self.breach("fenced", f"{host.name} shoots {target.name}: {why}")

    def switches_on(self, host: Host, target: Host) -> None:
        """A host that is off is switched on by another one."""
        for why in self.fence.against_switching_on(host, target):
            self.breach("switched-on", f"{host.name} switches {target.name} on: {why}")

    def switches_another(self, host: Host, target: Host) -> None:
        """Another machine takes an order that is meant for a host."""
        self.breach("fenced", f"{host.name} switches another machine, not {target.name}")

    def reported(self, host: Host, report: Report) -> None:
        """An agent tells its state."""
        if report.state not in (StateName.ENGINE_DOWN.value, StateName.ENGINE_START.value):
            self._down_since_s.pop(host.number, None)
        else:
            self._down_since_s.setdefault(host.number, self._world.timeline.now_s)
        states = {ENGINE: report.state, **{vm.number: vm.state for vm in report.vms}}
        self._up[host.number] = frozenset(vm for vm, state in states.items() if state in _UP)
        self._reasons[host.number] = {
            vm: frozenset(reason.code for reason in reasons)
            for vm, reasons in (
                (ENGINE, report.reasons),
                *((one.number, one.reasons) for one in report.vms),
            )
        }
        self.fence.told(host, report.stopped)
        if report.beat != self._beat.get(host.number):
            self._beat[host.number], self._decided_s[host.number] = report.beat, self._awake_s()
        self.two_up()

    def agent_gone(self, host: Host) -> None:
        """An agent has ended."""
        self._up.pop(host.number, None)
        self.two_up()

    def two_up(self) -> None:
        """Whether two agents call the same VM up on their host."""
        now_s = self._world.timeline.now_s
        hosts = self._world.hosts
        at: dict[int, list[int]] = {}
        for number, vms in self._up.items():
            host = hosts[number]
            if (
                not host.frozen
                and not host.is_stopped("agent")
                # Without storage an agent may hold still in the state it is in.
                and not host.storage.of("whiteboard")[0]
                and "agent" in host.processes
            ):
                for vm in vms:
                    at.setdefault(vm, []).append(number)
        twice = {vm: sorted(numbers) for vm, numbers in at.items() if len(numbers) > 1}
        for vm in self._two_up_since_s.keys() - twice.keys():
            del self._two_up_since_s[vm]
        for vm, numbers in twice.items():
            if now_s - self._two_up_since_s.setdefault(vm, now_s) > TWO_UP_S:
                called = self._world.called(vm)
                self.breach("two-up", f"the agents of hosts {numbers} both call {called} up")

    def not_down(self) -> None:
        """Whether a host calls a VM down while it runs."""
        world = self._world
        self._looks += 1
        owner = self._runs_for_long(ENGINE)
        if owner is not None:
            for host in world.hosts.values():
                self._must_not_say_down(host, ENGINE, world.told_place(host), owner)
        owners = {vm: at for vm in world.vms.numbers if (at := self._runs_for_long(vm)) is not None}
        if not owners or self._looks % VMS_TOLD_EVERY:
            return
        for host in world.hosts.values():
            for vm, place in world.told_places(host).items():
                if vm in owners:
                    self._must_not_say_down(host, vm, place, owners[vm])

    def _runs_for_long(self, vm: int) -> Host | None:
        """The host that runs a VM for so long that every host can have read it."""
        world, now_s = self._world, self._world.timeline.now_s
        owner = world.owner(vm)
        runs = None if owner is None else owner.qemus.get(vm)
        before, since_s = self._runs.get(vm, (None, 0.0))
        if runs is not before:
            # Another process, on another host or after a crash: it is news for all.
            since_s = now_s
        self._runs[vm] = runs, since_s
        return None if owner is None or now_s - since_s <= TOLD_S else owner

    def _must_not_say_down(self, host: Host, vm: int, place: VmPlace | None, owner: Host) -> None:
        if place is not None and place.up is False:
            why = place.known or "no host has it up"
            called = "it" if vm == ENGINE else self._world.called(vm)
            self.breach("not-down", f"{host.name} says DOWN ({why}), {called} runs on {owner.name}")

    # --- every second -----------------------------------------------------------------------

    def look(self) -> None:
        """All that is asked of each second."""
        self._sick.look()
        self.two_up()
        self.not_down()
        self.fence.look()
        self._unprotected()
        self._beats()
        self._look_at_fitness()
        self._stands_still()
        self.vms.look()

    def _unprotected(self) -> None:
        """Whether a host says so that runs a VM which somebody started past the lock driver."""
        now_s = self._world.timeline.now_s
        by_hand = {
            (host.number, vm): host
            for host in self._world.hosts.values()
            for vm, qemu in host.qemus.items()
            if qemu.running and qemu.by_hand and not qemu.has_lease and self._sees(host, vm)
        }
        for key in self._unleased_since_s.keys() - by_hand.keys():
            del self._unleased_since_s[key]
        for key, host in by_hand.items():
            if Code.VM_UNPROTECTED.value in self._reasons.get(host.number, {}).get(key[1], ()):
                self._unleased_since_s[key] = now_s
            elif now_s - self._unleased_since_s.setdefault(key, now_s) > TOLD_S:
                called = self._world.called(key[1])
                self.breach("leased", f"{called} runs on {host.name} without its lease, untold")

    def _sees(self, host: Host, vm: int) -> bool:
        """Whether its agent calls that VM up, and can know whether it holds its lease."""
        is_up = vm in self._up.get(host.number, ()) and self._world.both_run(host)
        if host.frozen or host.libvirt_hangs or host.sanlock_stopped:
            return False
        return is_up and host.sanlock is not None and host.sanlock.running

    def _awake_s(self) -> float:
        """Time without what was passed over."""
        return self._world.timeline.now_s - self._world.timeline.leapt_s

    def _beats(self) -> None:
        """Whether each agent decides."""
        world, now_s = self._world, self._world.timeline.now_s
        for host in world.hosts.values():
            if not host.libvirt_hangs:
                self._libvirt_silent_s.pop(host.number, None)
            else:
                self._libvirt_silent_s.setdefault(host.number, now_s)
            since_s = max(host.daemons_since_s, host.frozen_until_s)
            if not world.both_run(host) or host.frozen or now_s - since_s <= LATE_S:
                continue
            late_s = self._awake_s() - self._decided_s.get(host.number, 0.0)
            if late_s > LATE_S:
                self.breach("beat", f"the agent of {host.name} has not decided for {late_s:.1f} s")

    def _look_at_fitness(self) -> None:
        world, now_s = self._world, self._world.timeline.now_s
        for host in world.hosts.values():
            if fitness.could_run(world, host):
                self._fit_since_s.setdefault(host.number, now_s)
            else:
                self._fit_since_s.pop(host.number, None)
        if not fitness.is_all_well(world):
            self._all_fit_since_s = None
        elif self._all_fit_since_s is None:
            self._all_fit_since_s = now_s

    def _all_fit_s(self) -> float:
        """For how long all hosts have been fit and the VM was reached; 0: they are not."""
        since_s = self._all_fit_since_s
        if since_s is None or not fitness.is_all_well(self._world):
            return 0.0
        return self._world.timeline.now_s - since_s

    def _stands_still(self) -> None:
        """Whether nobody does anything for a VM that nobody reaches."""
        world, now_s = self._world, self._world.timeline.now_s
        if fitness.may_stand_still(world):
            self._idle_since_s = None
            return
        if self._idle_since_s is None:
            self._idle_since_s = now_s
        fit_s = min(self._fit_since_s.values(), default=now_s)
        idle_s = now_s - max(self._idle_since_s, fit_s)
        if idle_s > IDLE_S:
            self.breach("up", f"nobody reaches the VM, and nothing was done for {idle_s:.0f} s")

    # --- at rest --------------------------------------------------------------------------

    def must_be_up(self) -> None:
        """The bound is over: the VM must be healthy now."""
        world = self._world
        self.vms.must_be_placed()
        if world.may_be_down():
            return
        if not any(map(world.users_reach, world.hosts.values())):
            self.breach("up", f"nobody reaches the VM {world.bound_s():.0f} s after the last fault")

    def clean(self) -> None:
        """No daemon failed, nothing is left."""
        for problem in self._world.problems():
            self.breach("clean", problem)
