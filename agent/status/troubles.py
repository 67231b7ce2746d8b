# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is wrong, as far as one host's status shows it: a line for each, with its next step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from agent.status.sentences import (
    cannot,
    duration,
    if_it_dies,
    is_cut_off,
    outside,
    proven_off,
    switched_off,
    witnesses,
)
from agent.status.vms_text import has_several, of_engine
from broker.wire.limits import SOON_DAYS

if TYPE_CHECKING:
    from broker.wire.status import HostStatus, Status, WitnessStatus

#: Monitors that get a line when they are unknown; for the others that means little.
_MATTERS = frozenset({"engine", "memory", "definition", "what_runs"})
#: Monitors whose problems have lines of their own.
_SHOWN_ELSEWHERE = frozenset({"network", "what_runs"})
#: How long a fence device may be unproven before it gets a line.
FENCE_PATH_OLD_S = 86_400.0
#: What happens to a difference, by where it is.
_THEN = {
    "running": "a start takes the recorded one; ha-agent vm adopt, or vm keep",
    "libvirt": "a start puts the recorded one back; ha-agent vm adopt, or vm keep",
}
#: Reasons of this host's agent that are troubles by themselves (scoring/decision.py).
_SAID = {
    "vm-paused": "PAUSED",
    "vm-outdated": "OUTDATED",
    "autostart": "AUTOSTART",
    "leftover-vm": "LEFTOVER",
    "never-healthy": "NEVER HEALTHY",
    "drain-stuck": "NOT DRAINED",
}
_STUCK = "drain-stuck"
#: How long the VM may leave a host without an answer before that gets a line.
REACH_LOST_S = 30.0
CLUSTER_SLOT = "0"
#: Damaged slots of no host get a line each up to so many.
BAD_SLOTS_SHOWN = 3
#: The lease budget is low below this share.
LEASE_LOW = 0.5


def troubles(status: Status) -> list[str]:
    """The lines, the most urgent first; empty: nothing is wrong. A mode that was set is no
    trouble."""
    return [
        *_of_the_network(status),
        *_of_the_storage(status),
        *_unprotected(status),
        *_of_what_ran(status),
        *_on_one_host(status),
        *_of_what_is_left(status),
        *_of_the_hosts(status),
        *_never_given(status),
        *_certificates(status),
        *_of_this_host(status),
    ]


def _of_the_network(status: Status) -> Iterator[str]:
    if status.engine.up and status.engine.reached is False:
        text = f"NOT REACHED: no other host reaches the VM: {outside(status)} (ha-agent why)"
        yield of_engine(status, text)


def _of_the_storage(status: Status) -> Iterator[str]:
    storage = status.storage
    if storage.problem:
        since = "" if storage.trouble_s is None else f" for {storage.trouble_s:.0f} s"
        yield f"STORAGE {storage.state}{since}: {storage.problem}"
    elif storage.blind:
        yield f"STORAGE: the whiteboard was not read {_since(storage.last_read_age_s)}"
    if storage.unheard:
        yield "THIS HOST is silent for the others: its slot cannot be written, they count no score"
    budget_s = status.lockspace_budget_s
    if budget_s is not None:
        vms = _may_be_here(status)
        if budget_s < LEASE_LOW * status.lockspace_budget_max_s:
            what = f"ends {vms} here" if vms else "gives it up"
            why = f"this host's id was not renewed for long; sanlock {what}"
            yield f"LEASE: {why} {_within(budget_s)}"
        elif storage.unheard and vms:
            why = f"if its storage stays away as well, sanlock ends {vms} here"
            yield f"LEASE: {why} {_within(budget_s)}"
    if not storage.named:
        yield (
            "NO IDENTITY: the configuration does not say which volumes whiteboard and leases must"
            " be; others at the same paths would be taken (ha-agent init --identity)"
        )
    if not storage.signed:
        yield (
            "NO KEY: this host has no cluster-key: whoever can write to the shared storage is"
            " believed, and no host answers it over the network (how to give the cluster one:"
            " ha-agent config check)"
        )
    if status.lockspace != "joined":
        yield f"LOCKSPACE: {status.lockspace}"
    yield from (f"LEASE LOST: {sentence}" for sentence in status.lost_leases)
    yield from _bad_slots(status)
    if status.registry_problem and not storage.problem:
        copy = "; the VMs go on by this host's copy" if has_several(status) else ""
        yield f"REGISTRY: {status.registry_problem}{copy}"


def _bad_slots(status: Status) -> Iterator[str]:
    """Each one that is the cluster's or a host's; where many others are damaged, they in one
    line."""
    others = [
        slot for slot in status.bad_slots if str(slot) != CLUSTER_SLOT and slot not in status.hosts
    ]
    if len(others) <= BAD_SLOTS_SHOWN:
        others = []
    for slot, cause in status.bad_slots.items():
        if str(slot) == CLUSTER_SLOT:
            step = "to write it anew: ha-agent maintenance none, or global"
            yield f"BAD SLOT {slot}, which holds the global maintenance: {cause}; {step}"
        elif slot not in others:
            yield f"BAD SLOT {slot}: {cause}"
    if others:
        shown = ", ".join(map(str, others[:BAD_SLOTS_SHOWN]))
        yield (
            f"BAD SLOTS {shown} and {len(others) - BAD_SLOTS_SHOWN} more: {len(others)} slots of no"
            " host that is known here cannot be read, and count for nothing; to empty one: ha-agent"
            " clean-metadata N"
        )


def _since(age_s: float | None) -> str:
    return "yet" if age_s is None else f"for {duration(age_s)}"


def _of_what_ran(status: Status) -> Iterator[str]:
    """Hosts on which a start would not boot what ran last, and how the VM differs from its
    record."""
    ran = status.what_ran
    if status.what_ran_problem:
        yield f"WHAT RAN: {status.what_ran_problem}"
    if ran is not None and ran.held:
        yield f"HELD BACK: {ran.held}"
    for each in status.differences:
        is_recorded = ran is not None and each.what in ran.disks and not ran.held
        then = "every host starts it so" if is_recorded else _THEN[each.where]
        yield f"VM DIFFERS ({each.code}): {each.where}: {each.text} ({then})"
    for host in status.hosts.values():
        if host.differs and not host.local and host.liveness == "live":
            codes = ", ".join(host.differs)
            yield f"VM DIFFERS on {host.hostname}: {codes} (ha-agent why there)"


def _unprotected(status: Status) -> Iterator[str]:
    """The VMs that another host could start a second time: every host says so."""
    for host in status.hosts.values():
        for number in host.unprotected if host.liveness == "live" else ():
            name, of_it = _called(status, number)
            yield (
                f"UNPROTECTED: {name} runs on {host.hostname} without its lease: nothing keeps"
                " another host from starting it too; shut it down, it starts again under its"
                f" lease (ha-agent why{of_it})"
            )


def _not_drained(status: Status) -> Iterator[str]:
    """The VMs that a host in local maintenance keeps: every host says so. The engine on this host
    has a line of its own (`_SAID`), with the cause."""
    is_said = any(reason.code == _STUCK for reason in status.reasons)
    for host in status.hosts.values():
        for number in host.stuck if host.liveness == "live" else ():
            if number == 1 and host.local and is_said:
                continue
            name, of_it = _called(status, number)
            there = "" if host.local else f" --host {host.hostname}"
            yield (
                f"NOT DRAINED: {name} stays on {host.hostname}, which is in local maintenance: it"
                f" cannot be migrated (why: ha-agent why{of_it}; with the outage of a boot:"
                f" ha-agent maintenance local --restart{there})"
            )


def _on_one_host(status: Status) -> Iterator[str]:
    """What a takeover would lose, as far as this host knows it of the host that runs the VM."""
    for text in status.one_host:
        yield f"ON ONE HOST ONLY: {text} (ha-agent config check)"


def _of_what_is_left(status: Status) -> Iterator[str]:
    """Leftovers of the VM on hosts, and reports of their agents about the VM's process."""
    for reason in status.reasons:
        if reason.code in _SAID:
            yield f"{_SAID[reason.code]}: {reason.text} (ha-agent why)"
    yield from _not_drained(status)
    for host in status.hosts.values():
        if host.memory_image and host.liveness == "live":
            text = (
                f"MEMORY IMAGE of the VM on {host.hostname}: it is never resumed, and"
                " discarded at the next start (who saves the VM there? libvirt-guests?"
                " ha-agent doctor there)"
            )
            yield of_engine(status, text)


def _of_the_hosts(status: Status) -> Iterator[str]:
    yield from _names_twice(status)
    for host in status.hosts.values():
        yield from _of_host(status, host)
    others = [host for host in status.hosts.values() if host.host_id != status.engine.host]
    if status.engine.up and not any(map(can_take_it, others)) and not status.storage.blind:
        yield of_engine(status, "NO STANDBY: no other host could take the VM now (see WHY below)")
    if status.bound is not None and status.bound.held and not status.global_maintenance:
        text = f"NO TAKEOVER: {if_it_dies(status.bound, status.engine.hostname or '')}"
        yield of_engine(status, text)
    yield from _of_the_fences(status)


def _names_twice(status: Status) -> Iterator[str]:
    names = Counter(host.hostname for host in status.hosts.values() if not host.not_counted)
    for name in sorted(name for name, count in names.items() if count > 1):
        ids = ", ".join(str(h.host_id) for h in status.hosts.values() if h.hostname == name)
        yield (f"NAME TWICE: hosts {ids} are all called {name}: give each a host.name of its own")


def _of_host(status: Status, host: HostStatus) -> Iterator[str]:
    """What is wrong with one host."""
    if host.liveness == "silent" and not host.stopped and host.witnesses is not None:
        found = (witnesses(host.witnesses), proven_off(status, host))
        yield f"{host.hostname} is silent: {'; '.join(filter(None, found))}"
    elif host.liveness == "live" and host.agent not in ("", "ok", "stopped"):
        yield (
            f"AGENT on {host.hostname} is {host.agent}: score 0 (systemctl status ha-agent there)"
        )
    if host.witnesses is not None and host.witnesses.heartbeat_trouble:
        yield _heartbeat(host.hostname, host.witnesses)
    yield from _of_its_slot(host)
    if host.fence_ask and host.liveness == "live" and host.agent == "ok":
        yield (f"ASKS TO BE SWITCHED OFF: {host.hostname}: {host.fence_ask} (ha-agent why)")
    if host.left_out:
        yield (
            f"SLOT of {host.hostname} has no room for {host.left_out} of its lines:"
            " what decides is whole, explanations are missing"
            " (ha-agent whiteboard dump FILE shows what is there)"
        )
    if host.liveness == "live":
        yield from (f"{host.hostname} {what}" for what in cannot(host))
        yield from _other_definition(host)
        yield from _reaches_it_not(status, host)
    if host.other_storage:
        yield (
            f"OTHER STORAGE: {host.hostname} {host.other_storage} (ha-agent doctor here and there)"
        )
    if host.storage_odd:
        yield (f"ODD WORD: {host.hostname} {host.storage_odd}; it is not believed")


def _of_its_slot(host: HostStatus) -> Iterator[str]:
    """Whether the host's slot is believed, and by which key it is signed."""
    if host.not_counted.startswith("it says that the VM is up"):
        yield (
            f"CONTRADICTED: {host.hostname} (slot {host.host_id}) is not believed:"
            f" {host.not_counted} (who writes this slot? ha-agent doctor there)"
        )
    elif host.not_counted:
        yield (
            f"NOT A MEMBER: what slot {host.host_id} ({host.hostname}) says does not"
            f" count: {host.not_counted} (who writes to this volume?"
            f" ha-agent clean-metadata {host.host_id} removes it)"
        )
    elif host.signature == "unsigned":
        yield (
            f"NOT SIGNED: the slot of {host.hostname} is not signed; it counts while"
            " that host is seen to live: an earlier version, or no cluster-key there"
        )
    elif host.signature == "accepted-key" and host.liveness == "live":
        yield (
            f"KEY: {host.hostname} signs with the key that is only accepted here"
            " (the change of the cluster key is not over)"
        )


def _of_the_fences(status: Status) -> Iterator[str]:
    for path in status.fence_paths:
        if path.ok and path.proven_age_s is not None and path.proven_age_s < FENCE_PATH_OLD_S:
            continue
        since = "never" if path.proven_age_s is None else f"{duration(path.proven_age_s)} ago"
        who = "itself" if path.by == path.host else f"by {_title(status, path.by)}"
        yield (
            f"FENCE PATH of {_title(status, path.host)} {who}: last proven {since}: "
            f"{path.detail or 'not tried for long'} (ha-agent fence test {path.host})"
        )
    fence = status.storage_fence
    if fence is not None and not (
        fence.ok and fence.proven_age_s is not None and fence.proven_age_s < FENCE_PATH_OLD_S
    ):
        since = "never" if fence.proven_age_s is None else f"{duration(fence.proven_age_s)} ago"
        yield (
            f"STORAGE FENCE of this host: last proven {since}: "
            f"{fence.detail or 'not tried for long'} (ha-agent fence test all)"
        )


def _within(budget_s: float) -> str:
    """When sanlock acts. That the budget is used up is all that is known after that."""
    return f"in {budget_s:.0f} s" if budget_s >= 0.5 else "now, if it has not yet"


def _may_be_here(status: Status) -> str:
    """What a sentence calls the VMs that run on this host, or may: by its own libvirt, unless they
    are known to be up elsewhere. "": surely none."""
    if status.may_run is None:
        return _the_vms(status)
    elsewhere = {vm.number for vm in status.vms if vm.up and vm.host != status.host_id}
    if status.engine.up and status.engine.host != status.host_id:
        elsewhere.add(1)
    match [number for number in status.may_run if number not in elsewhere]:
        case []:
            return ""
        case [only]:
            return _called(status, only)[0]
        case _:
            return _the_vms(status)


def _other_definition(host: HostStatus) -> Iterator[str]:
    why = next((each.why for each in host.penalties if each.name == "config"), "")
    if why and not host.local:
        yield f"DEFINITION on {host.hostname}: {why} (ha-agent doctor there)"


def _reaches_it_not(status: Status, host: HostStatus) -> Iterator[str]:
    """A host from which the VM's page is bad while it is good elsewhere: the users behind it miss
    the VM. Where no host reaches it, there is a line for all."""
    seen = host.outside
    if seen is None or seen.bad_s is None or seen.good_age_s is None or not status.engine.up:
        return
    if seen.bad_s < REACH_LOST_S:
        return
    if seen.owner == status.engine.host and status.engine.reached is not False:
        network = " and its own network is bad" if host.way_out is False else ""
        text = (
            f"NOT REACHED from {host.hostname} for {duration(seen.bad_s)}: the VM does not answer"
            f" it{network} (ha-agent why)"
        )
        yield of_engine(status, text)


def _never_given(status: Status) -> Iterator[str]:
    """What makes a takeover or a drain worse than it could be, on every host."""
    lacking = status.lacking
    several = has_several(status)
    waits = "its VMs wait" if several else "the VM waits"
    if lacking.fence_device:
        yield (
            f"NO FENCE DEVICE of {_names(status, lacking.fence_device)}: nobody could prove it"
            f" dead, so after its death {waits} until sanlock calls it dead, minutes instead of"
            " seconds ([[fence.device]] in the configuration of all hosts; ha-agent fence test all;"
            " who knowingly has none sets fence.expected = false)"
        )
    if lacking.heartbeat:
        yield (
            f"NO HEARTBEAT of {_names(status, lacking.heartbeat)}: it publishes no address; were"
            " its storage to hang, nothing would speak for it (api.heartbeat-listen or api.listen"
            " there)"
        )
    if lacking.migration:
        yield (
            f"NO MIGRATION: {'a' if several else 'the'} VM can leave this host only by a shutdown"
            " (libvirt.migration-uri here; ha-agent doctor tries it)"
        )


def _certificates(status: Status) -> Iterator[str]:
    """The certificates of this host that end soon, which means that no renewal has worked."""
    for each in status.certificates:
        if each.days is not None and each.days >= SOON_DAYS:
            continue
        if each.days is None:
            what = each.problem
        elif each.days < 0:
            what = f"has ended {-each.days} days ago: no VM can be migrated from or to this host"
        else:
            what = f"ends in {each.days} days, and was not renewed"
        yield f"CERTIFICATE: {each.file} {what} (ha-agent certificates renew; ha-agent doctor)"


def _title(status: Status, host_id: int) -> str:
    """A host with its name, where it is known."""
    name = _names(status, (host_id,))
    return f"{name} (id {host_id})" if name else f"host {host_id}"


def _called(status: Status, number: int) -> tuple[str, str]:
    """What a VM is called, and what names it behind `ha-agent why`: nothing where it is alone, or
    not known here."""
    if has_several(status):
        for vm in status.vms:
            if vm.number == number:
                return vm.name, f" {vm.name}"
    return "the VM" if number == 1 else f"VM {number}", ""


def _the_vms(status: Status) -> str:
    """The VMs that run on a host."""
    return "the VMs" if has_several(status) else "the VM"


def _names(status: Status, host_ids: Sequence[int]) -> str:
    return ", ".join(one.hostname for one in status.hosts.values() if one.host_id in host_ids)


def _heartbeat(name: str, seen: WitnessStatus) -> str:
    """A host that writes its slot but does not answer over the network."""
    if seen.heartbeat_trouble == "heartbeat-port-silent":
        return (
            f"HEARTBEAT: {name} answers at its listener alone, not at its port for heartbeats:"
            f" {seen.port_problem} (open that port, udp, in the firewalls there and"
            " between the hosts)"
        )
    return (
        f"HEARTBEAT: {name} does not answer over the network for"
        f" {duration(seen.unanswered_s or 0.0)}, though its slot is written; were its storage to"
        f" hang, nothing would speak for it: {seen.heartbeat_problem} (ha-agent doctor)"
    )


def can_take_it(host: HostStatus) -> bool:
    """Whether a host could start the VM now, as far as it publishes."""
    is_able = host.liveness == "live" and host.score > 0 and not host.maintenance
    return is_able and not is_cut_off(host)


def _of_this_host(status: Status) -> Iterator[str]:
    if status.switched_off is not None:
        yield (
            f"SWITCHED OFF: {switched_off(status.switched_off)} (ha-agent why; once that is read:"
            " ha-agent acknowledge)"
        )
    if status.config_problem:
        yield f"CONFIGURATION: an older one is in force: {status.config_problem}"
    if status.state_problem:
        yield f"STATE FOLDER: {status.state_problem}"
    for host in status.hosts.values():
        if host.config_drift and host.liveness == "live":
            drift = "; ".join(host.config_drift)
            yield (f"CONFIG DRIFT: {host.hostname}: {drift} (ha-agent config diff {host.host_id})")
    if status.network:
        yield f"NETWORK: {status.network}"
    for name, monitor in status.monitors.items():
        if name in _SHOWN_ELSEWHERE and monitor.verdict != "unknown":
            continue  # it has lines of its own above
        if name == "outside" and not status.engine.healthy:
            continue  # a VM that boots, or is not well, is not reached either
        if monitor.verdict == "bad" or (monitor.verdict == "unknown" and name in _MATTERS):
            yield f"MONITOR {name} is {monitor.verdict}: {monitor.problem}"
    notify = status.notify
    if notify.problem:
        yield f"NOTIFICATIONS: {notify.problem}"
    for name, out in notify.transports.items():
        if out.last_error:
            yield f"NOTIFICATIONS by {name}: {out.last_error} (ha-agent notify test)"
