# SPDX-License-Identifier: LGPL-2.1-or-later
"""`ha-agent why NAME`: why one of several VMs is where it is, which hosts may take it, and what is
tried next."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from agent.status.sentences import cannot, duration, if_it_dies, is_cut_off, last_word
from agent.status.vms_text import STARTS_NO_OTHER, differs, size
from agent.terminal.errors import CommandError
from broker.daemon.exit_codes import ExitCode
from broker.wire.status import HostStatus, Status
from broker.wire.vms import VmEntry, VmWord
from scoring.vm.better_place import SETTLED_S

#: Reasons of the agent that are about another host, whose death it has to prove.
_OF_A_HOST = frozenset(
    {
        "lease-asked",
        "lease-unknown",
        "lease-owner-live",
        "lease-wait",
        "takeover-turn",
        "takeover-paused",
        "power-asked",
        "power-on",
        "power-unknown",
        "power-off-once",
        "owner-answers",
        "owner-renews",
        "fence-waiting",
        "fence-forbidden",
        "fence-held-back",
        "fence-lease-asked",
        "fence-lease-elsewhere",
        "power-off-ordered",
        "proven-off",
    }
)


def found(status: Status, name: str) -> VmEntry:
    """The VM of that name or number; CommandError where there is none."""
    for vm in status.vms:
        if name in (vm.name, str(vm.number)):
            return vm
    known = ", ".join(vm.name for vm in status.vms)
    text = f"{name}: no such VM; there are: {known or 'none but the engine'}"
    raise CommandError(ExitCode.USAGE, text)


def explain(status: Status, vm: VmEntry) -> list[str]:
    """The sentences: where the VM is and why, its record in the registry, its hosts in order, and
    what comes next."""
    lines = [_where(vm), _wanted(status, vm), *_broken(status, vm)]
    if any(vm.number in host.unprotected for host in status.hosts.values()):
        lines.append(
            "It runs there without its lease: nothing keeps another host from starting it too."
            " Shut it down: it starts again under its lease."
        )
    for host in status.hosts.values():
        if vm.number in host.stuck:
            cause = "" if host.local else f" ({host.hostname} knows the cause: ha-agent why there)"
            lines.append(
                f"{host.hostname} is in local maintenance, and it cannot be migrated away{cause}."
            )
    if vm.differs:
        lines.append(f"It {differs(vm)}.")
    if vm.refused:
        lines.append(f"This host cannot start it: {vm.refused}.")
    if status.global_maintenance:
        return [*lines, "Nothing would change it while global maintenance lasts."]
    if vm.want == "down":
        so = "It" if vm.up is False else "Once it is down it"
        return [*lines, f"{so} stays so until somebody wants it: ha-agent vm start {vm.name}."]
    lines += _takeover(status, vm)
    lines.append(_title(status, vm))
    lines += [f"  {line}" for line in _hosts(status, vm)]
    return [*lines, *_next(status, vm)]


def _where(vm: VmEntry) -> str:
    since = "" if vm.for_s is None else f", for {'at least ' if vm.at_least else ''}"
    since += "" if vm.for_s is None else duration(vm.for_s)
    why = f": {vm.reason}" if vm.reason else ""
    match vm.state:
        case VmWord.UNKNOWN:
            return f"Whether {vm.name} is up is not known{since}{why}."
        case VmWord.UP:
            health = {True: "healthy", False: "not healthy", None: "its health is not known,"}
            return f"{vm.name} is up and {health[vm.healthy]} on {vm.hostname}{since}{why}."
        case VmWord.BOOTING:
            return f"{vm.name} boots on {vm.hostname}{since}{why}."
        case VmWord.MOVING:
            return f"{vm.name} is being migrated from {vm.hostname}{since}{why}."
        case VmWord.STOPPING:
            return f"{vm.name} is being stopped on {vm.hostname}{since}{why}."
        case VmWord.STARTING:
            return f"{vm.name} is down{since}; {vm.hostname} starts it{why}."
        case _:
            return f"{vm.name} is down{since}{why}."


def _wanted(status: Status, vm: VmEntry) -> str:
    """The VM's record in the registry, as sentences."""
    names = {each.number: each.name for each in status.vms}
    parts = [f"priority {vm.priority}", f"needs {size(vm.memory_mb)}"]
    rules = (("after", vm.after), ("apart from", _apart(status, vm)), ("with", _mates(status, vm)))
    for what, numbers in rules:
        if numbers:
            parts.append(f"{what} {_and(names.get(number, f'VM {number}') for number in numbers)}")
    for what, hosts in (("only on", vm.only), ("prefers", vm.prefer)):
        if hosts:
            parts.append(f"{what} {_and(_host_name(status, host_id) for host_id in hosts)}")
    return f"It is wanted {vm.want}: {', '.join(parts)}."


def _apart(status: Status, vm: VmEntry) -> list[int]:
    """The VMs with which it must not share a host, whichever record says so."""
    return sorted({*vm.apart, *(each.number for each in status.vms if vm.number in each.apart)})


def _mates(status: Status, vm: VmEntry) -> list[int]:
    """The VMs with which it must share its host, whichever record says so."""
    said = (each.number for each in status.vms if vm.number in each.together)
    return sorted({*vm.together, *said})


def _title(status: Status, vm: VmEntry) -> str:
    if vm.up:
        if not vm.order:
            return f"If {vm.hostname} died now, no host could take it:"
        return f"If {vm.hostname} died now, these hosts could take it, the first one first:"
    if not vm.order:
        return "No host may start it now:"
    return "These hosts may start it, the first one first:"


def _broken(status: Status, vm: VmEntry) -> Iterator[str]:
    """The rules that its present host does not keep, and what happens (scoring/vm/better_place.py):
    SETTLED_S after it came up there one of them moves by itself."""
    if not vm.up:
        return
    others = [each for each in status.vms if each.up and each.host is not None]
    apart = [m.name for m in others if m.number in _apart(status, vm) and m.host == vm.host]
    away = [m for m in others if m.number in _mates(status, vm) and m.host != vm.host]
    there = [f"{_and(apart)} {'are' if len(apart) > 1 else 'is'} there too"] if apart else []
    there += [f"{mate.name} is on {mate.hostname}" for mate in away]
    if there:
        yield f"A rule is not kept on {vm.hostname}: {_and(there)}."
    if there and status.global_maintenance is False:
        yield (
            f"A VM that has been up there for {duration(SETTLED_S)} is moved for it, where a host"
            f" can take it; at once: ha-agent migrate {vm.name}"
        )


def _takeover(status: Status, vm: VmEntry) -> Iterator[str]:
    """What this host does about a silent host that may have a VM, where this one is not up."""
    if not vm.up:
        for reason in status.reasons:
            if reason.code in _OF_A_HOST:
                yield f"{_host_name(status, status.host_id)}: {reason.text}."


def _hosts(status: Status, vm: VmEntry) -> Iterator[str]:
    """The hosts that may take the VM, in order; then the others, each with its obstacle."""
    by_id = {host.host_id: host for host in status.hosts.values()}
    for host_id in vm.order:
        if host_id in by_id:
            yield f"{by_id[host_id].hostname}: {fits(by_id[host_id])}"
    for host_id, host in by_id.items():
        if host_id not in vm.order and host_id != vm.host:
            yield f"{host.hostname}: no, {obstacle(status, vm, host)}"


def fits(host: HostStatus) -> str:
    """Why a host is fit for a VM that it may take."""
    room = "" if host.free_mb is None else f", {size(host.free_mb)} free"
    return f"{host.score} points{room}"


def obstacle(status: Status, vm: VmEntry, host: HostStatus) -> str:
    """Why a host may not take the VM; for a host that is not in the VM's order and does not run
    it."""
    if host.liveness != "live":
        return f"it {last_word(status, host)}"
    if host.host_shutdown:
        return "it is shutting down"
    if host.maintenance:
        return "it is in local maintenance"
    if host.stopped:
        return "its agent is stopped"
    if host.engine_only:
        return f"it {STARTS_NO_OTHER}"
    if host.host_id in vm.barred:
        return f"it failed to start it, and tries again in {duration(vm.barred[host.host_id])}"
    if vm.only and host.host_id not in vm.only:
        return "it is none of the hosts that may run it"
    here = {each.number: each.name for each in status.vms if each.host == host.host_id}
    if apart := [here[number] for number in _apart(status, vm) if number in here]:
        return f"{_and(apart)} {'are' if len(apart) > 1 else 'is'} there"
    mates = [each for each in status.vms if each.number in _mates(status, vm)]
    elsewhere = [m for m in mates if m.up and m.host not in (None, host.host_id, vm.host)]
    if elsewhere:
        return f"{elsewhere[0].name} is on {elsewhere[0].hostname}"
    if (host.score == 0 or is_cut_off(host)) and (why := cannot(host)):
        return "; ".join(why)
    if host.score == 0:
        return "its score is 0"
    if host.engine_status.vm == "unknown":
        return f"it does not know what runs there: {host.engine_status.reason or host.reason}"
    if host.free_mb is not None and host.free_mb < vm.memory_mb:
        return f"it has {size(host.free_mb)} free, and {size(vm.memory_mb)} are needed"
    return "its memory is promised to others, or a rule is in the way"


def _next(status: Status, vm: VmEntry) -> Iterator[str]:
    """What is tried next, and what would happen to the VM if its host died."""
    lacks = [each for each in (*status.short, *status.n_plus_1) if each.vm == vm.number]
    if vm.state is VmWord.WAITING and vm.order:
        yield f"Next: {_host_name(status, vm.order[0])} starts it as soon as nothing is in the way."
    for host_id, left_s in vm.barred.items():
        yield f"{_host_name(status, host_id)} tries again in {duration(left_s)}."
    for each in lacks:
        # Otherwise it begins with the VM's name.
        is_name = each.if_dies is None
        yield f"{each.text if is_name else each.text[0].upper() + each.text[1:]}."
    if vm.up and (bound := status.vm_bounds.get(vm.number)) is not None:
        sentence = if_it_dies(bound, vm.hostname or "its host", vm.name)
        yield f"{sentence[0].upper()}{sentence[1:]}."


def _host_name(status: Status, host_id: int) -> str:
    for host in status.hosts.values():
        if host.host_id == host_id:
            return host.hostname
    return f"host {host_id}"


def _and(names: Iterable[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last
