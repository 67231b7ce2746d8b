# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a scenario says of VMs beside the engine: the verbs `vm`, `registry`, `start` and `migrate`,
and the conditions on one VM."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec

from broker.registry.record import NAME, VmRecord
from broker.registry.rules import contradictions
from scoring.observation import OrderKind
from scoring.vm_facts import Pause, VmStatus, Want
from tests.simulation.grammar import (
    Misfit,
    NotNow,
    WrongCount,
    lasts_of,
    seconds_of,
    whole_of,
    whole_within,
)
from tests.simulation.host import Host
from tests.simulation.lockspace import Refused
from tests.simulation.vms import ENGINE_NAME
from tests.simulation.world import World

#: What `vm` says of a VM: words with one value, with several names, and with none.
VALUES = (
    *("memory", "priority", "pages", "want", "disk", "disks", "starts", "boot"),
    *("starting", "bad-health", "stop-grace", "migration-timeout", "killable"),
)
NAMES = ("after", "apart", "together")
HOSTS = ("only", "prefer")
ALONE = ("failback", "overcommit", "removed")
WORDS = (*VALUES, *NAMES, *HOSTS, *ALONE)
#: The words of VALUES behind which a HOST may stand.
PLACED = ("starts", "killable")
#: What `guest NAME` does.
MOODS = (
    "hangs",
    "recovers",
    "reboots",
    "powers-off",
    "panics",
    "ignores-shutdown",
    "paused",
    "resumed",
    "snapshot",
)
#: What a HOST's copy of the registry may be.
REGISTRY = ("fine", "damaged", "old")
#: How a VM may be, beside its downtime.
STATES = ("running", "healthy", "reachable", "up", "down")

Who = Callable[[str], list[Host]]


def number_of_vm(world: World, name: str) -> int:
    """The VM of that name; ValueError."""
    number = world.vms.named(name)
    if number is None:
        known = (ENGINE_NAME, *(world.vms.name_of(n) for n in world.vms.numbers))
        raise Misfit(name, known)
    return number


def downtime_of(word: str) -> float:
    """A time that a downtime may be below: one that is below 0 there is none."""
    seconds = lasts_of(word)
    if not seconds:
        raise ValueError("no downtime is below 0 s")
    return seconds


def _flat(words: list[str]) -> list[str]:
    """Names that stand apart, or with commas between them."""
    names = [each for word in words for each in word.split(",")]
    if not all(names):
        raise ValueError(f"{' '.join(words)!r}: between two commas a name is missing")
    return names


def _check_name(name: str) -> None:
    """ValueError where the product refuses that name."""
    if not re.fullmatch(NAME, name) or name.isdecimal():
        raise ValueError(
            f"{name!r} is no name for a VM: letters, digits, dots, hyphens and underscores, up to"
            " 63, not digits alone"
        )


def _check_record(world: World, name: str) -> None:
    """ValueError where the product refuses what is wanted of that VM, alone or with the others."""
    record = world.vms.records[number_of_vm(world, name)]
    try:
        msgspec.convert(msgspec.to_builtins(record), VmRecord)
    except msgspec.ValidationError as error:
        raise ValueError(f"ha-agent vm refuses it: {error}") from None
    names = {host.host_id: host.name for host in world.hosts.values()}
    # A preference may be what a line before this one has said; the plan passes it over.
    specs = [replace(spec, prefer=()) for spec in world.vms.specs]
    for sentence in contradictions(specs, names):
        raise ValueError(f"ha-agent vm refuses it: {sentence}")


def _groups(words: tuple[str, ...]) -> list[tuple[str, list[str]]]:
    """Each of WORDS with what stands behind it."""
    found: list[tuple[str, list[str]]] = []
    for word in words:
        if word in WORDS and not (found and found[-1][0] in VALUES and not found[-1][1]):
            found.append((word, []))
        elif not found:
            raise Misfit(word, WORDS)
        else:
            found[-1][1].append(word)
    return found


def tell(
    world: World, who: Who, reserved: tuple[str, ...], name: str, words: tuple[str, ...]
) -> None:
    """`vm NAME …`."""
    if name in reserved or world.named(name) is not None:
        raise ValueError(f"{name!r} means something else: call the VM otherwise")
    _check_name(name)
    if not words and world.vms.named(name) is not None:
        raise WrongCount
    fields: dict[str, Any] = {}
    later: list[Callable[[int], None]] = []
    groups = _groups(words)
    keys = [key for key, _ in groups]
    for key, given in groups:
        if keys.count(key) > 1:
            raise ValueError(f"{key!r} is said twice")
        takes_one, takes_none = key in VALUES and key not in PLACED, key in ALONE
        if (
            (takes_one and len(given) != 1)
            or (takes_none and given)
            or (not takes_none and not given)
        ):
            raise ValueError(f"{key}: words are missing behind it, or there are too many")
        match key:
            case "memory":
                fields["memory_mb"] = whole_within(given[0], 1)
            case "pages":
                fields["pages_kb"] = whole_within(given[0], 1)
            case "priority":
                fields["priority"] = whole_of(given[0])
            case "want":
                fields["want"] = _wanted(given[0])
            case "disk" if given == ["own"]:
                later.append(functools.partial(_own_disk, world))
            case "disk":
                raise Misfit(given[0], ("own",))
            case "disks" if given == ["recorded"]:
                later.append(world.vms.use_recorded_disks)
            case "disks" if given == ["running"]:
                later.append(world.vms.define_from_running)
            case "disks":
                raise Misfit(given[0], ("recorded", "running"))
            case "boot":
                world.vms.boot_s[name] = seconds_of(given[0])
            case "starting" | "bad-health" | "stop-grace" | "migration-timeout":
                fields[f"{key.replace('-', '_')}_s"] = seconds_of(given[0])
            case "killable":
                later.append(functools.partial(_killable, world, who, given))
            case "starts":
                later.append(functools.partial(_starts, world, who, given))
            case "after" | "apart" | "together":
                fields[key] = tuple(number_of_vm(world, each) for each in _flat(given))
            case "only" | "prefer":
                hosts = [host for word in _flat(given) for host in who(word)]
                fields[key] = tuple(dict.fromkeys(host.host_id for host in hosts))
            case "failback" | "overcommit" | "removed":
                fields[key] = True
    if fields or world.vms.named(name) is None:
        world.vms.change(name, **fields)
        if "removed" not in fields:
            _check_record(world, name)
    number = world.vms.named(name)
    for act in later:
        assert number is not None
        act(number)


def _wanted(word: str) -> Want:
    if word not in tuple(Want):
        raise Misfit(word, tuple(Want))
    return Want(word)


def _own_disk(world: World, vm: int) -> None:
    for host in world.hosts.values():
        host.own_disks.add(vm)


def _killable(world: World, who: Who, given: list[str], vm: int) -> None:
    how, *words = given
    if how not in ("yes", "no"):
        raise Misfit(how, ("yes", "no"))
    for host in who(*words or ("all",)):
        if how == "no":
            host.unkillable_vms.add(vm)
        else:
            host.unkillable_vms.discard(vm)


def _starts(world: World, who: Who, given: list[str], vm: int) -> None:
    how, *words = given
    if how not in ("yes", "no", "hangs"):
        raise Misfit(how, ("yes", "no", "hangs"))
    for host in who(*words or ("all",)):
        key = host.number, vm
        world.vms.start_fails.pop(key, None)
        world.vms.start_hangs.discard(key)
        if how == "no":
            world.vms.start_fails[key] = "internal error: its disk is not here"
        elif how == "hangs":
            world.vms.start_hangs.add(key)


def registry(world: World, who: Who, how: str, words: tuple[str, ...]) -> None:
    """`registry damaged|old|fine HOST [NAME…]`."""
    if how not in REGISTRY:
        raise Misfit(how, REGISTRY)
    if not words or (how == "old" and len(words) > 1):
        raise WrongCount
    vms = frozenset(number_of_vm(world, name) for name in _flat(list(words[1:])))
    for host in who(words[0]):
        if how == "damaged" and vms:
            host.damaged_vms |= vms
        elif how == "fine" and vms:
            host.damaged_vms -= vms
        elif how == "fine":
            host.registry, host.damaged_vms = "", frozenset()
        else:
            host.registry = how
        world.vms.changed_s = world.timeline.now_s
        world.tell(host.name, f"the registry is {how} there")


def wants(world: World, name: str, want: Want) -> None:
    """`start NAME`, `stop NAME`: as `ha-agent vm start|stop` does it, from any host."""
    number_of_vm(world, name)
    world.vms.change(name, want=want)


def migrate(world: World, who: Who, name: str, words: tuple[str, ...]) -> None:
    """`migrate NAME [HOST]`: an operator's order on the host that runs it."""
    vm = number_of_vm(world, name)
    words = tuple(word for word in words if word != "to")
    if len(words) > 1:
        raise WrongCount
    targets = who(words[0]) if words else []
    if len(targets) > 1 and words[0] != "others":
        raise ValueError(f"{words[0]!r} are {len(targets)} hosts, one is needed here")
    target = targets[0].host_id if targets else None
    owner = world.owner(vm)
    if owner is None:
        raise NotNow(f"{name} runs nowhere, so it cannot be migrated")
    world.order(owner, OrderKind.MIGRATE, target, vm)


def kill(world: World, vm: int) -> None:
    """`kill qemu NAME`: its process dies, wherever it is."""
    for host in world.hosts.values():
        host.end_qemu("crashed", VmStatus.DOWN_UNEXPECTED, "its process died", vm=vm)


def guest(world: World, vm: int, how: str, words: tuple[str, ...]) -> None:
    """`guest NAME …`: what it does where it runs."""
    if how not in MOODS:
        raise Misfit(how, MOODS)
    if len(words) > (how == "paused"):
        raise WrongCount
    if how == "resumed":
        resume(world, vm)
        return
    pauses = {each.value: each for each in Pause if each is not Pause.NEVER_RAN}
    pause = words[0] if words else "user"
    if pause not in pauses:
        raise Misfit(pause, pauses)
    host = world.owner(vm)
    if host is None:
        raise NotNow(f"{world.vms.name_of(vm)} runs nowhere")
    qemu, now_s = host.qemus[vm], world.timeline.now_s
    world.tell(host.name, f"guest of {world.vms.name_of(vm)}: {how}")
    match how:
        case "hangs":
            qemu.is_hung = True
        case "recovers":
            qemu.is_hung, host.sick_until_s = False, now_s
        case "ignores-shutdown":
            qemu.ignores_shutdown = True
        case "reboots":
            qemu.is_hung, qemu.healthy_from_s = False, now_s + host.guest_boot_s
            host.sick_until_s = qemu.healthy_from_s
        case "powers-off":
            host.end_qemu("the guest powered itself off", VmStatus.DOWN, "shut down", vm=vm)
        case "panics":
            host.leave_qemu(crashed=True, vm=vm)
        case "snapshot":
            world.vms.snapshot(host, vm)
        case "paused":
            qemu.pause = pauses[pause]
            host.pause_qemu(vm)


def resume(world: World, vm: int) -> None:
    """Resume a VM on each host where its process stands still, as an operator does."""
    for host in world.hosts.values():
        qemu = host.qemus.get(vm)
        if qemu is not None and qemu.has_run and not qemu.running and not qemu.crashed:
            try:
                host.resume_qemu(qemu.healthy_from_s, vm)
            except Refused as error:
                world.tell(host.name, f"not resumed: {error}")


def condition(world: World, who: Who, words: tuple[str, ...]) -> Callable[[], bool]:
    """What `expect vm NAME …` and `expect short NAME N` ask."""
    match words:
        case ("short", name, number):
            vm, wanted = number_of_vm(world, name), whole_within(number, 1)
            return lambda: world.short_of(vm) == wanted
        case ("vm", name, "downtime", "below", number):
            vm, below_s = number_of_vm(world, name), downtime_of(number)
            return lambda: world.vms.longest_downtime_s(vm) < below_s
        case ("vm", name, "moves", number):
            vm, wanted = number_of_vm(world, name), whole_within(number, 0)
            return lambda: world.vms.moves[vm] == wanted
        case ("vm", name, state, "on", at) if state in STATES:
            vm, hosts = number_of_vm(world, name), who(at)
            return lambda: any(_is(world, host, vm, state) for host in hosts)
        case ("vm", name, "down"):
            vm = number_of_vm(world, name)
            return lambda: not any(vm in host.qemus for host in world.hosts.values())
        case ("vm", name, state) if state in STATES:
            vm = number_of_vm(world, name)
            return lambda: any(_is(world, host, vm, state) for host in world.hosts.values())
        case ("vm", name, state, *_):
            number_of_vm(world, name)
            raise Misfit(state, (*STATES, "downtime", "moves"))
        case _:
            raise WrongCount


def _is(world: World, host: Host, vm: int, state: str) -> bool:
    match state:
        case "healthy":
            return host.is_healthy(vm)
        case "reachable":
            return world.users_reach(host, vm)
        case "down":
            return vm not in host.qemus
        case _:
            return host.runs(vm)


def situation(world: World) -> str:
    """Where each VM beside the engine is, for who is disappointed."""
    parts = []
    for vm in world.vms.numbers:
        owner = world.owner(vm)
        how = "nowhere" if owner is None else f"on {owner.name}"
        is_sick = owner is not None and not owner.is_healthy(vm)
        parts.append(f"{world.vms.name_of(vm)} {how}{', not healthy' if is_sick else ''}")
    return "; ".join(parts)
