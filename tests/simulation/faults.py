# SPDX-License-Identifier: LGPL-2.1-or-later
"""What goes wrong by chance: a schedule of faults drawn from one random source.

Each fault is a kind by name, begins at some time, lasts for some time, and is mended. Two
and more may overlap. A kind that leaves work behind (a hung guest must be noticed, shut
down, killed and started again) says how much longer than usual all may take.
"""

from __future__ import annotations

import contextlib
import functools
import random
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from broker.config.sections import ScoreSection
from broker.maintenance.host_shutdown import within_s
from broker.whiteboard.slot import EMPTY_SLOT
from scoring.timing import Timing
from scoring.vm_facts import PAUSED_ON_PURPOSE, Pause, VmStatus
from tests.simulation import earlier_decisions
from tests.simulation.earlier import Metadata
from tests.simulation.forger import ForgedSlot
from tests.simulation.host import NO_BRIDGE, PARTS, WRITES, Host
from tests.simulation.lockspace import Refused
from tests.simulation.orderly import GUESTS_S
from tests.simulation.world import World

_TIMING = Timing()
#: A sick guest is noticed, shut down, killed, and started elsewhere.
SICK_BOUND_S = _TIMING.bad_health + _TIMING.stop_grace + _TIMING.engine_starting
#: Starts that failed are tried again only when they are forgotten.
RETRY_BOUND_S = _TIMING.retry_expiry
#: A host whose VM died stands back for the others, which may all have failed.
STAND_BACK_BOUND_S = _TIMING.unexpected_down
#: A host that shuts down is drained, for so long at most, and libvirt-guests may come after that.
SHUTDOWN_BOUND_S = within_s(_TIMING) + GUESTS_S
#: A write that was held when the fault ended lands so much later at most, and who waits for it
#: waits for sanlock's time first.
LATE_BOUND_S = 300.0 + 8 * 10 + 60.0 + 10.0
#: A maintenance that ends by itself lasts so long at most.
MODE_LASTS_S = 200


@dataclass(frozen=True, slots=True)
class Fault:
    """One kind: `begin(world, host, chance)` breaks something and returns how to mend it.

    `lasts_s`: shortest and longest time until it is mended. `extra_bound_s`: see the head.
    `weight`: how often, compared with the others. `lies_still`: see World.fault_began.
    """

    name: str
    begin: Callable[[World, Host, random.Random], Callable[[], None]]
    lasts_s: tuple[float, float] = (0.0, 0.0)
    extra_bound_s: float = 0.0
    weight: float = 1.0
    lies_still: bool = False


def _nothing() -> None:
    """There is nothing to mend."""


def _power_cut(world: World, host: Host, chance: random.Random) -> Callable[[], None]:
    if chance.random() < 0.2 and host.power:
        # The BMC says "off" a little before it is: two readings a second apart still hold.
        host.bmc.early_off = True

        def off() -> None:
            host.bmc.early_off = False
            host.power_off("cut, seen early")

        world.timeline.after(chance.uniform(0.1, 0.9), off)
        return host.power_on
    host.power_off("cut")
    return host.power_on


def _site_power(world: World, _: Host, chance: random.Random) -> Callable[[], None]:
    for host in world.hosts.values():
        host.power_off("site")
        host.bmc_network_up = False

    def back() -> None:
        for host in world.hosts.values():
            host.bmc_network_up = True
        world.power_all_on(chance.choice([1.0, 60.0, 300.0]))

    return back


def _reset(world: World, host: Host, chance: random.Random) -> Callable[[], None]:
    host.reset("kernel panic")
    return _nothing


def _reboot(world: World, host: Host, chance: random.Random) -> Callable[[], None]:
    world.shut_down(host, reboots=True)
    return _nothing


def _shutdown(world: World, host: Host, chance: random.Random) -> Callable[[], None]:
    world.shut_down(host, reboots=False)

    def back() -> None:
        if host.going_down_since_s is None:
            host.power_on()
        else:
            world.timeline.after(5.0, back)

    return back


def _site_shutdown(world: World, _: Host, chance: random.Random) -> Callable[[], None]:
    """By the UPS; one after the other, or all at once."""
    apart_s = chance.choice([0.0, 0.0, 3.0, 20.0])
    hosts = [host for host in world.hosts.values() if host.up]
    backs: list[Callable[[], None]] = []

    def one(host: Host) -> None:
        backs.append(_shutdown(world, host, chance))

    for number, host in enumerate(hosts):
        world.timeline.after(number * apart_s, one, host)

    def back() -> None:
        for each in backs:
            each()

    return back


def _freeze(world: World, host: Host, chance: random.Random) -> Callable[[], None]:
    host.freeze(chance.choice([2.0, 4.5, 12.0, 40.0, 300.0]))
    return _nothing


def _crash(name: str) -> Callable[[World, Host, random.Random], Callable[[], None]]:
    def begin(world: World, host: Host, chance: random.Random) -> Callable[[], None]:
        host.crash(name)
        return _nothing

    return begin


def _both_daemons(world: World, host: Host, chance: random.Random) -> Callable[[], None]:
    host.crash("agent")
    host.crash("broker")
    return _nothing


def _sanlock(world: World, host: Host, chance: random.Random) -> Callable[[], None]:
    host.crash_sanlock()
    return _nothing


def _libvirtd(world: World, host: Host, chance: random.Random) -> Callable[[], None]:
    host.libvirt_up = False
    world.tell(host.name, "libvirtd died")

    def back() -> None:
        if host.up:
            host.libvirt_up = True

    return back


def _libvirt_hangs(world: World, host: Host, chance: random.Random) -> Callable[[], None]:
    host.libvirt_hangs = True
    world.tell(host.name, "libvirtd hangs")

    def back() -> None:
        host.libvirt_hangs = False
        world.tell(host.name, "libvirtd answers")

    return back


def _qemu(world: World, host: Host, chance: random.Random) -> Callable[[], None]:
    owner = world.owner()
    if owner is not None:
        owner.end_qemu("crashed", VmStatus.DOWN_UNEXPECTED, "its process died")
    return _nothing


def _guest_hangs(world: World, host: Host, chance: random.Random) -> Callable[[], None]:
    owner = world.owner()
    if owner is not None and owner.qemu is not None:
        owner.qemu.is_hung = True
        world.tell(owner.name, "the guest hangs")
    return _nothing


def _guest_paused(world: World, host: Host, chance: random.Random) -> Callable[[], None]:
    """Somebody pauses the VM, or QEMU does for an error of its disk; and resumes it, unless the VM
    has run elsewhere since: then nobody may, and the product has to end it."""
    pause = chance.choice([*sorted(PAUSED_ON_PURPOSE), Pause.IO_ERROR])
    owner = world.owner()
    if owner is None or owner.qemu is None or owner.qemu.leaving:
        return _nothing
    qemu = owner.qemu
    qemu.pause = pause
    world.tell(owner.name, f"the VM is paused: {pause}")
    owner.pause_qemu()

    def resume() -> None:
        is_newest = world.leases.resources["engine"].last_owner == owner.host_id
        if owner.qemu is qemu and not qemu.running and is_newest:
            with contextlib.suppress(Refused):
                owner.resume_qemu(max(qemu.healthy_from_s, world.timeline.now_s))

    return resume


def _guest_saved(world: World, host: Host, chance: random.Random) -> Callable[[], None]:
    owner = world.owner()
    if owner is not None and owner.qemu is not None and not owner.qemu.leaving:
        owner.save_qemu()
    return _nothing


def _guest_panics(world: World, host: Host, chance: random.Random) -> Callable[[], None]:
    owner = world.owner()
    if owner is not None and owner.qemu is not None and not owner.qemu.leaving:
        world.tell(owner.name, "the guest panics, its process stays")
        owner.leave_qemu(crashed=True)
    return _nothing


def _guest_off(world: World, host: Host, chance: random.Random) -> Callable[[], None]:
    owner = world.owner()
    if owner is not None:
        owner.end_qemu("the guest powered itself off", VmStatus.DOWN, "shut down")
    return _nothing


def _storage(fault: str) -> Callable[[World, Host, random.Random], Callable[[], None]]:
    def begin(world: World, host: Host, chance: random.Random) -> Callable[[], None]:
        delay_s = chance.uniform(0.2, 3.0) if fault == "slow" else 0.0
        host.break_storage(fault, delay_s)
        return lambda: host.break_storage("")

    return begin


def _late(world: World, host: Host, chance: random.Random) -> Callable[[], None]:
    """Some or all of its writes are held by its kernel for up to minutes. Mended, no more are."""
    kinds = tuple(kind for kind in WRITES if chance.random() < 0.4) or WRITES
    host.make_late(chance.choice([1.0, 4.0, 30.0, 200.0]), kinds)
    return lambda: host.make_late(0.0)


def _held_by_the_storage(world: World, host: Host, chance: random.Random) -> Callable[[], None]:
    """The storage holds writes back: for less than an io_timeout, whatever becomes of the host."""
    kinds = tuple(kind for kind in WRITES if chance.random() < 0.4) or WRITES
    late_s = chance.choice([0.5, 1.0, 3.0]) * world.settings.io_timeout_s / 5.0
    host.make_late(late_s, kinds, outlives=True)
    return lambda: host.make_late(0.0)


def _late_and_dark(world: World, host: Host, chance: random.Random) -> Callable[[], None]:
    """Every host's freeing of an id is held, and one loses its power: it is back before they
    land."""
    for each in world.hosts.values():
        each.make_late(chance.choice([20.0, 90.0, 300.0]), ("release",))
    host.power_off("cut")
    world.timeline.after(chance.choice([8.0, 20.0, 60.0]), host.power_on)

    def back() -> None:
        for each in world.hosts.values():
            each.make_late(0.0)
        host.power_on()

    return back


def _storage_of_all(world: World, _: Host, chance: random.Random) -> Callable[[], None]:
    fault = chance.choice(["hang", "error"])
    for host in world.hosts.values():
        host.break_storage(fault)

    def back() -> None:
        for host in world.hosts.values():
            host.break_storage("")

    return back


def _lies(
    lie: Callable[[World, Host, random.Random], Callable[[], None]],
) -> Callable[[World, Host, random.Random], Callable[[], None]]:
    """A storage that lies, beside no other fault that is open when it begins: who reads a lie and
    hears nobody cannot know better. It lasts for less than sanlock's time for a dead host."""

    def begin(world: World, host: Host, chance: random.Random) -> Callable[[], None]:
        return lie(world, host, chance) if world.open_faults == 1 else _nothing

    return begin


def _stale_reads(world: World, host: Host, chance: random.Random) -> Callable[[], None]:
    """What a host reads of the whiteboard, of the leases or of both stands still."""
    host.go_stale(chance.choice([("whiteboard",), ("leases",), ("whiteboard", "leases")]))
    return lambda: host.go_stale(())


def _storage_splits(world: World, host: Host, chance: random.Random) -> Callable[[], None]:
    """One host goes on with a half of its own, equal at first; which is lost in the end."""
    others = [each for each in world.hosts.values() if each is not host]
    world.split_storage([others, [host]])
    return world.join_storage


def _set_back(world: World, host: Host, chance: random.Random) -> Callable[[], None]:
    """A snapshot of the volumes is restored in the end, or of one of them."""
    snapshot = world.keep_storage()
    parts = chance.choice([("whiteboard",), ("leases",), ("whiteboard", "leases")])
    return lambda: world.set_storage_back(snapshot, parts)


def _part(world: World, host: Host, chance: random.Random) -> Callable[[], None]:
    """One part of the storage hangs, fails, is slow, full or replaced, or takes no writes."""
    kinds = ["hang", "error", "slow", "read-only", "full", "replaced"]
    fault, part = chance.choice(kinds), chance.choice(PARTS)
    host.break_storage(fault, chance.uniform(0.2, 9.0) if fault == "slow" else 0.0, (part,))
    return lambda: host.break_storage("", parts=(part,))


def _disk_error(world: World, host: Host, chance: random.Random) -> Callable[[], None]:
    """The VM's disk fails and QEMU pauses the guest; somebody lets it go on afterwards, or not."""
    resumes = chance.random() < 0.5
    host.pauses_on_disk_error = True
    host.break_storage(chance.choice(["error", "read-only"]), parts=("disk",))

    def back() -> None:
        host.break_storage("", parts=("disk",))
        host.pauses_on_disk_error = False
        qemu = host.qemu
        if resumes and qemu is not None and qemu.pause is Pause.IO_ERROR and qemu.has_run:
            with contextlib.suppress(Refused):
                host.resume_qemu(max(qemu.healthy_from_s, world.timeline.now_s))

    return back


def _clock_jumps(world: World, host: Host, chance: random.Random) -> Callable[[], None]:
    host.jump_clock(chance.choice([1.0, 5.0, 20.0, 70.0, 150.0]))
    return _nothing


def _suspended(world: World, host: Host, chance: random.Random) -> Callable[[], None]:
    """The host sleeps, for less than sanlock's time for a dead host; its watchdog sleeps too."""
    host.suspend(chance.choice([2.0, 12.0, 60.0]))
    return _nothing


def _stopped(world: World, host: Host, chance: random.Random) -> Callable[[], None]:
    """SIGSTOP of one process, and SIGCONT."""
    what = chance.choice(["agent", "broker", "libvirtd", "sanlock", "qemu"])
    if host.up:
        with contextlib.suppress(ValueError):
            host.stop_process(what, chance.choice([2.0, 12.0, 40.0, 150.0]))
    return _nothing


def _boot_hangs(world: World, host: Host, chance: random.Random) -> Callable[[], None]:
    """The host panics and does not come up; somebody resets it in the end."""
    boot_s, host.boot_s = host.boot_s, float("inf")
    host.reset("kernel panic, and its boot hangs")

    def back() -> None:
        host.boot_s = boot_s
        if not host.up:
            host.reset("by somebody, since its boot hung")
        host.power_on()

    return back


def _other_timing(world: World, host: Host, chance: random.Random) -> Callable[[], None]:
    """This host's durations differ; they are read when the daemons start."""

    def take_up(timing: dict[str, float]) -> None:
        host.timing = timing
        host.crash("broker")
        host.crash("agent")

    take_up({"fence_after": chance.choice([5.0, 30.0]), "move_dwell": chance.choice([5.0, 120.0])})
    return lambda: take_up({})


def _other_key(world: World, host: Host, chance: random.Random) -> Callable[[], None]:
    """This host has another cluster key, or none; it is read when the broker starts."""
    host.key = chance.choice(["other", "none"])
    host.crash("broker")

    def back() -> None:
        host.key = "cluster"
        host.crash("broker")

    return back


def _no_fence_devices(world: World, host: Host, chance: random.Random) -> Callable[[], None]:
    """This host has no fence devices configured; that is read when the agent starts."""
    host.has_fence = False
    host.crash("agent")

    def back() -> None:
        host.has_fence = True
        host.crash("agent")

    return back


def _bmc_for_one(world: World, host: Host, chance: random.Random) -> Callable[[], None]:
    """One host has a wrong address for this one's BMC: nobody answers there, or another machine."""
    asker = chance.choice(sorted(world.hosts))
    host.bmc.fault_for[asker] = chance.choice(["silent", "foreign", "refuses"])

    def back() -> None:
        host.bmc.fault_for.pop(asker, None)

    return back


def _network_splits(world: World, host: Host, chance: random.Random) -> Callable[[], None]:
    """No packet goes between two parts of the cluster."""
    numbers = sorted(world.hosts)
    side = set(chance.sample(numbers, chance.randint(1, max(1, len(numbers) - 1))))
    other = set(numbers) - side
    ways = {way for a in side for b in other for way in ((a, b), (b, a))}
    world.cut_links |= ways

    def back() -> None:
        world.cut_links -= ways

    return back


def _migration_network(world: World, host: Host, chance: random.Random) -> Callable[[], None]:
    world.no_migration.add(host.number)
    return lambda: world.no_migration.discard(host.number)


def _libvirtd_dies(world: World, host: Host, chance: random.Random) -> Callable[[], None]:
    if host.up:
        world.libvirtd_dies(host)
    return _nothing


def _watchdog(world: World, host: Host, chance: random.Random) -> Callable[[], None]:
    host.reset("watchdog: it fires for no reason")
    return _nothing


def _bad_slot(world: World, host: Host, chance: random.Random) -> Callable[[], None]:
    """Flip bits of any slot, the cluster's too, or put another host's report there."""
    board = world.board
    used = sorted(board.slots)
    if not used:
        return _nothing
    slot = chance.choice(used)
    if chance.random() < 0.3 and slot != 0:
        board.put(slot, board.slots[chance.choice(used)])
    elif slot != 0 or world.global_maintenance_since_s is not None:
        data = bytearray(board.slots[slot])
        for _ in range(chance.randint(1, 8)):
            data[chance.randrange(600)] ^= 1 << chance.randrange(8)
        # A first digit turned into a higher one is a newer version, a fault of its own.
        data[0] = board.slots[slot][0]
        board.put(slot, bytes(data))
    if slot == 0:
        before = world.board.before[0]

        def mend() -> None:
            if world.cluster_slot_is_bad():
                board.put(0, before)

        return mend
    return _nothing


def _newer_version(world: World, host: Host, chance: random.Random) -> Callable[[], None]:
    """A host that was upgraded writes a newer version into a slot of its own."""
    slot = 1 + max(world.hosts)
    world.forger.newer_host(slot)
    world.tell("board", f"slot {slot} is of a newer version")
    return lambda: world.forger.ends(slot)


def _older_version(world: World, host: Host, chance: random.Random) -> Callable[[], None]:
    """A host of a time before metadata version 1 comes into the cluster."""
    slot = 1 + max(world.hosts)
    before = world.board.slots.get(slot, EMPTY_SLOT)
    fields = [b"0", b"0", b"77", b"%d" % slot, b"3400", b'{"vm": "up", "health": "good"}']
    fields += [b"an-old-one", b"0", b"0", b"00000000"]
    fields[-1] = b"%08x" % zlib.crc32(b"|".join(fields))
    world.board.put(slot, b"|".join(fields).ljust(4096, b"\0"))
    world.tell("board", f"slot {slot} is of an older version")
    return lambda: world.board.put(slot, before)


def _torn(world: World, host: Host, chance: random.Random) -> Callable[[], None]:
    host.storage.torn_writes += chance.randint(1, 3)
    return _nothing


def _stale(world: World, host: Host, chance: random.Random) -> Callable[[], None]:
    host.storage.stale_reads = 1
    return _nothing


def _forged(world: World, _: Host, chance: random.Random) -> Callable[[], None]:
    """Somebody without the cluster key writes the slot of a host that does not exist."""
    host_id = max(world.hosts) + chance.randint(2, 4)
    vm = chance.choice([VmStatus.UP, VmStatus.DOWN])
    version = chance.choice([1, 1, 2])
    world.forger.slot(ForgedSlot(host_id, vm=vm, score=10_000, version=version))
    world.tell("board", f"slot {host_id} is forged: {vm}, version {version}")
    return lambda: world.forger.ends(host_id)


def _stray(world: World, host: Host, chance: random.Random) -> Callable[[], None]:
    """A broken path puts a write of this host where another host's slot is."""
    host.storage.stray_writes.append(chance.choice(sorted(world.hosts)))
    return _nothing


def _network(world: World, host: Host, chance: random.Random) -> Callable[[], None]:
    host.network_up = False
    host.gateway_answers = 0.0
    world.tell(host.name, "network down")

    def back() -> None:
        host.network_up = True
        host.gateway_answers = 1.0
        world.tell(host.name, "network up")

    return back


def _cable(world: World, host: Host, chance: random.Random) -> Callable[[], None]:
    """Out, and in again: no network, no carrier."""
    host.unplug(True)
    return lambda: host.unplug(False)


def _guest_network(world: World, host: Host, chance: random.Random) -> Callable[[], None]:
    """The cable of the VM's own bridge is out; the host's own network is fine."""
    host.guest_network_up = host.uplink_up = False
    world.tell(host.name, "its guests' network is down")

    def back() -> None:
        host.guest_network_up = host.uplink_up = True

    return back


def _guest_closed(world: World, host: Host, chance: random.Random) -> Callable[[], None]:
    """A firewall: nobody gets through to the guest, or only its users do."""
    world.guest_closed_to = chance.choice(["users", "hosts"])
    world.tell("guest", f"closed to {world.guest_closed_to}")

    def back() -> None:
        world.guest_closed_to = ""

    return back


def _link(world: World, host: Host, chance: random.Random) -> Callable[[], None]:
    """One way between two hosts is cut."""
    other = chance.choice(sorted(world.hosts))
    world.cut_links.add((host.number, other))
    return lambda: world.cut_links.discard((host.number, other))


def _loss(world: World, host: Host, chance: random.Random) -> Callable[[], None]:
    """Packets of this host get lost: a part of what it asks or is asked has no answer."""
    host.packet_loss = chance.choice([0.1, 0.3, 0.7])
    host.gateway_answers = 1.0 - host.packet_loss
    world.tell(host.name, f"loses {100 * host.packet_loss:.0f} % of its packets")

    def back() -> None:
        host.packet_loss = 0.0
        host.gateway_answers = 1.0 if host.network_up else 0.0

    return back


def _delay(world: World, host: Host, chance: random.Random) -> Callable[[], None]:
    """Packets of this host are slow."""
    host.packet_delay_s = chance.choice([0.3, 2.0, 7.0])

    def back() -> None:
        host.packet_delay_s = 0.0

    return back


def _gateway(world: World, host: Host, chance: random.Random) -> Callable[[], None]:
    hosts = list(world.hosts.values()) if chance.random() < 0.3 else [host]
    part = chance.choice([0.0, 0.2, 0.6])
    for each in hosts:
        each.gateway_answers = part

    def back() -> None:
        for each in hosts:
            each.gateway_answers = 1.0 if each.network_up else 0.0

    return back


def _load(world: World, host: Host, chance: random.Random) -> Callable[[], None]:
    host.load = chance.uniform(0.3, 1.0)

    def back() -> None:
        host.load = 0.1

    return back


def _memory(world: World, host: Host, chance: random.Random) -> Callable[[], None]:
    host.memory_mb = 1000.0

    def back() -> None:
        host.memory_mb = 16_384.0

    return back


def _weights(world: World, host: Host, chance: random.Random) -> Callable[[], None]:
    """This host's configuration differs; it is read when the daemons start."""
    world.score[host.number] = ScoreSection(base_score=chance.choice([2400, 3000, 4400]))
    host.crash("agent")

    def back() -> None:
        world.score.pop(host.number, None)
        host.crash("agent")

    return back


def _bmc(fault: str) -> Callable[[World, Host, random.Random], Callable[[], None]]:
    def begin(world: World, host: Host, chance: random.Random) -> Callable[[], None]:
        host.bmc.fault = fault

        def back() -> None:
            host.bmc.fault = ""

        return back

    return begin


def _bmc_takes_its_time(world: World, host: Host, chance: random.Random) -> Callable[[], None]:
    """The power goes only a while after the order."""
    host.bmc.off_takes_s = chance.choice([3.0, 8.0, 20.0])

    def back() -> None:
        host.bmc.off_takes_s = 1.0

    return back


def _both_ways(world: World, host: Host, chance: random.Random) -> Callable[[], None]:
    """Network and storage are gone at once: nobody hears of it any more."""
    mend = _network(world, host, chance)
    host.break_storage(chance.choice(["hang", "error"]))

    def back() -> None:
        mend()
        host.break_storage("")

    return back


def _daemons_away(world: World, host: Host, chance: random.Random) -> Callable[[], None]:
    """Broker and agent are killed and stay away; the VM runs on under its lease."""
    world.wish_daemons(host, False)
    return lambda: world.wish_daemons(host, True)


def _starts_fail(world: World, host: Host, chance: random.Random) -> Callable[[], None]:
    hosts = list(world.hosts.values()) if chance.random() < 0.3 else [host]
    is_told = chance.random() < 0.5
    for each in hosts:
        each.starts_fail, each.is_told = NO_BRIDGE, is_told

    def back() -> None:
        for each in hosts:
            each.starts_fail, each.is_told = "", False

    return back


def _unkillable(world: World, host: Host, chance: random.Random) -> Callable[[], None]:
    """QEMU cannot be ended (its disk hangs): the watchdog must do it."""
    host.qemu_unkillable = True
    host.break_storage("hang")

    def back() -> None:
        host.qemu_unkillable = False
        host.break_storage("")

    return back


def _global(world: World, host: Host, chance: random.Random) -> Callable[[], None]:
    world.set_global_maintenance(True)
    return lambda: world.set_global_maintenance(False)


def _local(world: World, host: Host, chance: random.Random) -> Callable[[], None]:
    # No draw of chance: the seeds of today stay what they are.
    world.set_local_maintenance(host, True, restart=world.timeline.now_s % 2 < 1)

    def back() -> None:
        if host.local_maintenance_since_s is not None:
            world.set_local_maintenance(host, False)
            if host.local_maintenance_since_s is not None:
                world.timeline.after(10.0, back)

    return back


def _global_expiring(world: World, host: Host, chance: random.Random) -> Callable[[], None]:
    """Set and forgotten."""
    world.set_global_maintenance(True, chance.randint(20, MODE_LASTS_S))
    return _nothing


def _local_expiring(world: World, host: Host, chance: random.Random) -> Callable[[], None]:
    world.set_local_maintenance(host, True, chance.randint(20, MODE_LASTS_S))
    return _nothing


def _wall_clock(world: World, host: Host, chance: random.Random) -> Callable[[], None]:
    """The wall clock jumps, and is set right later; the monotonic clock does not care."""
    host.wall_offset_s = chance.choice([-86_400.0, -600.0, -30.0, 30.0, 600.0, 86_400.0])
    world.tell(host.name, f"its wall clock jumps by {host.wall_offset_s:.0f} s")

    def back() -> None:
        host.wall_offset_s = 0.0

    return back


def _previous_version(world: World, host: Host, chance: random.Random) -> Callable[[], None]:
    """The earlier version is installed on a host, and this one again: what it writes, and how it
    decides. Where git's history does not have it: what it writes alone."""

    def install(earlier: bool) -> None:
        host.metadata = Metadata.PREVIOUS if earlier else Metadata.THIS
        host.wants_earlier = earlier and _has_earlier_decisions()
        host.crash("broker")
        host.crash("agent")

    install(True)
    if not host.wants_earlier:
        world.tell(host.name, "the earlier version's decisions are not to be had")
    return lambda: install(False)


@functools.cache
def _has_earlier_decisions() -> bool:
    try:
        earlier_decisions.must_be_had()
    except earlier_decisions.NotToBeHad as error:
        warnings.warn(
            f"hosts of the earlier version decide as this one does: {error}", stacklevel=1
        )
        return False
    return True


#: Every kind. What a schedule draws from.
FAULTS: tuple[Fault, ...] = (
    Fault("power cut", _power_cut, (3.0, 400.0), weight=4, lies_still=True),
    Fault("site power", _site_power, (10.0, 300.0), 300.0, weight=0.7),
    Fault("reset", _reset),
    Fault("host reboot", _reboot, extra_bound_s=SHUTDOWN_BOUND_S, weight=1.5),
    Fault("host shutdown", _shutdown, (30.0, 600.0), SHUTDOWN_BOUND_S, weight=1.5),
    Fault("site shutdown", _site_shutdown, (30.0, 600.0), SHUTDOWN_BOUND_S, weight=0.5),
    Fault("frozen host", _freeze, (300.0, 301.0), STAND_BACK_BOUND_S),
    Fault("agent crash", _crash("agent"), weight=2),
    Fault("broker crash", _crash("broker"), weight=2),
    Fault("agent and broker crash", _both_daemons),
    Fault("sanlock crash", _sanlock, (140.0, 141.0), weight=0.5),
    Fault("libvirtd crash", _libvirtd, (1.0, 3.0)),
    Fault("libvirtd hangs", _libvirt_hangs, (5.0, 120.0)),
    Fault("QEMU crash", _qemu, extra_bound_s=STAND_BACK_BOUND_S, weight=2),
    Fault("hung guest", _guest_hangs, extra_bound_s=SICK_BOUND_S, weight=0.7),
    Fault("paused VM", _guest_paused, (1.0, 400.0), SICK_BOUND_S, weight=0.7),
    Fault("saved VM", _guest_saved, extra_bound_s=STAND_BACK_BOUND_S, weight=0.7),
    Fault("panic, process kept", _guest_panics, extra_bound_s=STAND_BACK_BOUND_S, weight=0.7),
    Fault("guest power off", _guest_off, extra_bound_s=STAND_BACK_BOUND_S),
    Fault("storage hangs", _storage("hang"), (3.0, 200.0), SICK_BOUND_S, weight=2),
    Fault("storage errors", _storage("error"), (3.0, 200.0), SICK_BOUND_S, weight=2),
    Fault("storage slow", _storage("slow"), (3.0, 200.0), SICK_BOUND_S),
    Fault("storage of all", _storage_of_all, (3.0, 200.0), SICK_BOUND_S),
    Fault("late writes", _late, (3.0, 200.0), SICK_BOUND_S + LATE_BOUND_S, weight=1.5),
    Fault("writes held by the storage", _held_by_the_storage, (3.0, 200.0), SICK_BOUND_S),
    Fault("late freeing", _late_and_dark, (60.0, 200.0), LATE_BOUND_S, weight=0.7),
    Fault("stale reads", _lies(_stale_reads), (3.0, 60.0), SICK_BOUND_S, weight=1.5),
    Fault("storage splits", _lies(_storage_splits), (3.0, 60.0), SICK_BOUND_S, weight=1.5),
    Fault("storage set back", _lies(_set_back), (3.0, 200.0), SICK_BOUND_S, weight=1.5),
    Fault("part of the storage", _part, (3.0, 200.0), SICK_BOUND_S, weight=1.5),
    Fault("disk error pauses", _disk_error, (3.0, 200.0), SICK_BOUND_S),
    Fault("clock jumps", _clock_jumps, extra_bound_s=STAND_BACK_BOUND_S),
    Fault("suspended host", _suspended, (60.0, 61.0), STAND_BACK_BOUND_S),
    Fault("stopped process", _stopped, (150.0, 151.0), SICK_BOUND_S, weight=2),
    Fault("boot hangs", _boot_hangs, (60.0, 400.0)),
    Fault("other timing", _other_timing, (60.0, 300.0)),
    Fault("another key", _other_key, (30.0, 300.0), SICK_BOUND_S),
    Fault("no fence devices", _no_fence_devices, (30.0, 300.0)),
    Fault("network splits", _network_splits, (5.0, 200.0), SICK_BOUND_S, lies_still=True),
    Fault("migration network", _migration_network, (5.0, 200.0), lies_still=True),
    Fault("libvirtd killed", _libvirtd_dies, (2.0, 3.0)),
    Fault("watchdog fires", _watchdog),
    Fault("BMC of one asker", _bmc_for_one, (30.0, 300.0), lies_still=True),
    Fault("BMC every other", _bmc("every-other"), (30.0, 300.0), lies_still=True),
    Fault("BMC caches", _bmc("caches"), (30.0, 300.0), lies_still=True),
    Fault("BMC loses its power", _bmc("own-power"), (30.0, 300.0), lies_still=True),
    Fault("BMC on fails", _bmc("on-fails"), (30.0, 300.0), lies_still=True),
    Fault("BMC on ignored", _bmc("on-ignored"), (30.0, 300.0), lies_still=True),
    Fault("previous version", _previous_version, (60.0, 600.0), SICK_BOUND_S, weight=2),
    Fault("bad slot", _bad_slot, (5.0, 20.0)),
    Fault("newer version", _newer_version, (10.0, 120.0), 40.0, weight=0.5, lies_still=True),
    Fault("older version", _older_version, (10.0, 120.0), weight=0.5, lies_still=True),
    Fault("torn write", _torn),
    Fault("stale read", _stale),
    Fault("stray write", _stray),
    Fault("forged slot", _forged, (10.0, 200.0), lies_still=True),
    Fault("network", _network, (5.0, 200.0), SICK_BOUND_S),
    Fault("cable out", _cable, (5.0, 200.0), SICK_BOUND_S),
    Fault("guests' network", _guest_network, (5.0, 200.0), SICK_BOUND_S),
    Fault("guest closed", _guest_closed, (5.0, 200.0)),
    Fault("cut link", _link, (5.0, 200.0), SICK_BOUND_S, lies_still=True),
    Fault("packet loss", _loss, (5.0, 200.0), SICK_BOUND_S),
    Fault("packet delay", _delay, (5.0, 200.0), SICK_BOUND_S, lies_still=True),
    Fault("gateway", _gateway, (5.0, 200.0)),
    Fault("load", _load, (30.0, 300.0)),
    Fault("low memory", _memory, (30.0, 300.0), lies_still=True),
    Fault("other weights", _weights, (60.0, 300.0)),
    Fault("network and storage", _both_ways, (5.0, 200.0), SICK_BOUND_S),
    Fault("daemons away", _daemons_away, (10.0, 300.0), STAND_BACK_BOUND_S),
    Fault("BMC off fails", _bmc("off-fails"), (30.0, 300.0), lies_still=True),
    Fault("BMC off ignored", _bmc("off-ignored"), (30.0, 300.0), lies_still=True),
    Fault("BMC off slow", _bmc_takes_its_time, (30.0, 300.0), lies_still=True),
    Fault("BMC silent", _bmc("silent"), (30.0, 300.0), lies_still=True),
    Fault("BMC slow", _bmc("slow"), (30.0, 300.0), lies_still=True),
    Fault("BMC refuses", _bmc("refuses"), (30.0, 300.0), lies_still=True),
    Fault("BMC says on", _bmc("says-on"), (30.0, 300.0), lies_still=True),
    Fault("BMC of another", _bmc("foreign"), (30.0, 300.0), lies_still=True),
    Fault("BMC of another, which is off", _bmc("foreign-off"), (30.0, 300.0), lies_still=True),
    Fault("BMC hangs", _bmc("hangs"), (30.0, 300.0), lies_still=True),
    Fault(
        "starts fail",
        _starts_fail,
        (30.0, 300.0),
        RETRY_BOUND_S + STAND_BACK_BOUND_S,
        lies_still=True,
    ),
    Fault("unkillable QEMU", _unkillable, (100.0, 200.0), SICK_BOUND_S, weight=0.5),
    Fault("global maintenance", _global, (5.0, 300.0), SICK_BOUND_S, weight=1.5, lies_still=True),
    Fault("global maintenance expiring", _global_expiring, (200.0, 201.0), SICK_BOUND_S),
    Fault("local maintenance expiring", _local_expiring, (200.0, 201.0), SICK_BOUND_S),
    Fault("wall clock", _wall_clock, (30.0, 600.0), 2.0 * MODE_LASTS_S, lies_still=True),
    Fault("local maintenance", _local, (5.0, 300.0), SICK_BOUND_S, weight=1.5, lies_still=True),
)


def schedule(
    world: World,
    chance: random.Random,
    first_s: float,
    last_s: float,
    apart_s: float,
    faults: tuple[Fault, ...] = FAULTS,
) -> None:
    """Queue faults between two true times, sometimes two or three together."""
    at_s = first_s
    weights = [fault.weight for fault in faults]
    while at_s < last_s:
        for _ in range(chance.choice([1, 1, 1, 2, 3])):
            fault = chance.choices(faults, weights)[0]
            host_id = chance.randint(1, world.settings.hosts)
            lasts_s = chance.uniform(*fault.lasts_s)
            began_s = at_s + chance.uniform(0.0, 5.0)
            world.timeline.plan(began_s, begin, world, fault, host_id, chance.random(), lasts_s)
        at_s += chance.expovariate(1 / apart_s)


def begin(world: World, fault: Fault, host_id: int, draw: float, lasts_s: float) -> None:
    """A fault begins now, on that host or on the VM's, and is mended so long after."""
    # A random source of its own: what a fault draws must not depend on what happened before.
    chance = random.Random(draw)
    owner = world.owner()
    host = world.hosts[host_id]
    if owner is not None and chance.random() < 0.4:
        host = owner
    if not host.power:
        return
    world.fault_began(fault.name, fault.lies_still)
    world.tell("fault", f"{fault.name} ({host.name}) for {lasts_s:.0f} s")
    mend = fault.begin(world, host, chance)
    world.timeline.plan(world.timeline.now_s + lasts_s, _end, world, fault, host, mend)


def _end(world: World, fault: Fault, host: Host, mend: Callable[[], None]) -> None:
    world.tell("mended", f"{fault.name} ({host.name})")
    mend()
    world.fault_ended(fault.extra_bound_s, fault.lies_still)
