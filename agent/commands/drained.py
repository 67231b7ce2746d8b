# SPDX-License-Identifier: LGPL-2.1-or-later
"""Watches how the VMs leave a host that is being drained, and reports the result.

A host is drained when every protected VM is known not to run on it. A VM whose state is unknown may
run there.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from agent.terminal.errors import CommandError
from agent.terminal.progress import progress
from broker.client.ask import BrokerError
from broker.wire.status import EngineSummary, Status
from broker.wire.vms import VmEntry
from scoring.vm_facts import Obstacle

#: How long the command watches the VMs leave; a live migration takes a few seconds.
PATIENCE_S = 5.0
LOOK_S = 0.25
#: Another host is asked over the network.
LOOK_OTHER_S = 1.0
#: After a move the VM shows up on its new host within this time.
HANDED_OVER_S = 10.0
#: After a stop it shows up on the host that starts it within this time.
RESTARTED_S = 60.0
#: Reasons of the agent that end the watch: a VM stays, at least for now.
_STAYS = frozenset({"drain-stuck", "drain-waiting", "move-impossible", "global-maintenance"})
#: How long a VM of the registry stays before that ends the watch: others may leave before it.
_STAYS_S = 5.0
#: The reasons among them that no time mends: the VM cannot be migrated.
_NO_MIGRATION = frozenset({"drain-stuck", "move-impossible"})
#: Penalties that forbid a host to start the VM, at any score.
_UNFIT = frozenset({"memory", "lock-driver", *Obstacle})
#: How many hosts that could start a VM are named.
NAMED_MAX = 3


def _way_out(status: Status, vms: list[str], host: str | None) -> str:
    """How a host is emptied of VMs that cannot be migrated; that it cannot be, where no other host
    could start one."""
    takers = {name: _could_start(status, name) for name in vms}
    kept = [name for name, found in takers.items() if not found]
    if kept:
        return f"; nor could another host start {', '.join(kept)} now (ha-agent why)"
    there = "" if host is None else f" --host {host}"
    starts = "; ".join(f"{' or '.join(found)} can start {name}" for name, found in takers.items())
    return (
        f"; without a migration, with the outage of a boot: ha-agent maintenance local --restart"
        f"{there} stops what cannot be migrated, in order, and {starts}"
    )


def _list(names: list[str], where: str) -> str:
    return f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} {where}"


def _none_migrates(status: Status, names: list[str]) -> bool:
    """Whether no time mends it: one of these VMs of the registry cannot be migrated."""
    own = status.hosts[status.host_id]
    return any(vm.number in own.stuck for vm in status.vms if vm.name in names)


def _why_here(status: Status, vms: list[str]) -> str:
    """The reasons of those VMs of the registry, to follow a sentence."""
    said = [f"{vm.name}: {vm.reason}" for vm in status.vms[1:] if vm.name in vms and vm.reason]
    return f" ({'; '.join(said)})" if said else ""


def _could_start(status: Status, name: str) -> list[str]:
    """The names of the other hosts that could start a VM now, by their own reports."""
    entry = next((vm for vm in status.vms[1:] if vm.name == name), None)
    others = (host for host in status.hosts.values() if host.host_id != status.host_id)
    if entry is not None:
        return [host.hostname for host in others if host.host_id in entry.order][:NAMED_MAX]
    able = (
        host.hostname
        for host in others
        if host.liveness == "live"
        and host.score > 0
        and not (host.maintenance or host.stopped)
        and not any(penalty.name in _UNFIT for penalty in host.penalties)
    )
    return list(able)[:NAMED_MAX]


@dataclass(slots=True)
class _Watched:
    """One VM. `handed_over_s`: how long it may be up nowhere on its way. `was_here`: it was seen on
    the host; `gone_s`: since when it is up nowhere."""

    handed_over_s: float = HANDED_OVER_S
    was_here: bool = False
    gone_s: float | None = None
    left: str = ""

    def look(self, vm: EngineSummary | VmEntry, host: int, now_s: float) -> bool | None:
        """Whether the VM may be on the host; None: unknown, and the VM was never seen there."""
        if vm.up is None:
            return True if self.was_here else None
        if vm.up and vm.host == host:
            self.was_here, self.gone_s = True, None
            return True
        if vm.up:
            self.left = f"is up on {vm.hostname}"
            return False
        # Between two hosts it is up on neither for a moment.
        self.gone_s = now_s if self.gone_s is None else self.gone_s
        self.left = "is up on no host"
        return self.was_here and now_s - self.gone_s < self.handed_over_s


@dataclass(slots=True)
class _Watch:
    handed_over_s: float
    vms: dict[str, _Watched] = field(default_factory=dict)
    #: The VMs that cannot leave, and since when these and no others are left.
    kept_names: list[str] = field(default_factory=list)
    kept_since_s: float = 0.0

    def look(self, status: Status, now_s: float) -> dict[str, bool | None]:
        """What `_Watched.look` says of each VM, by its name."""
        # A broker of an earlier version knows the engine alone.
        others = {vm.name: vm for vm in status.vms[1:]}
        alone = not others
        engine = "the VM" if alone else status.vms[0].name
        found: dict[str, EngineSummary | VmEntry] = {engine: status.engine, **others}
        return {
            name: self.vms.setdefault(name, _Watched(self.handed_over_s)).look(
                vm, status.host_id, now_s
            )
            for name, vm in found.items()
        }

    def kept(self, status: Status, here: list[str], now_s: float) -> list[str]:
        """The names of those VMs of the registry that cannot leave, where no other VM is on its
        way; empty while one may."""
        kept = [vm.name for vm in status.vms[1:] if vm.name in here and vm.stays]
        if kept != here or kept != self.kept_names:
            self.kept_names, self.kept_since_s = kept, now_s
        is_lasting = kept == here and now_s - self.kept_since_s >= _STAYS_S
        return kept if is_lasting else []

    def sentence(self, unknown: list[str], where: str) -> str:
        """Where each VM is that has left; where any has, the unknown ones are named too."""
        left = [f"{name} has left, and {vm.left}" for name, vm in self.vms.items() if vm.was_here]
        doubts = [f"whether {name} runs {where} is not known" for name in unknown]
        return "; ".join(left + doubts if left else [])


def drained(
    look: Callable[[], Status],
    patience_s: float = PATIENCE_S,
    host: str | None = None,
    restarts: bool = False,
) -> tuple[bool, str]:
    """Whether every VM has left the host whose status `look` gets, within `patience_s`, and a
    sentence; empty where none runs there, or that is unknown. A drain may take its time. `host`:
    its name as it was typed, None: this one; `restarts`: what cannot be migrated is stopped."""
    began_s = time.monotonic()
    where = "here" if host is None else "there"
    watch = _Watch(RESTARTED_S if restarts else HANDED_OVER_S)
    while True:
        try:
            status = look()
        except (BrokerError, CommandError):
            return False, ""
        found = watch.look(status, time.monotonic())
        here = [name for name, is_here in found.items() if is_here]
        if not here:
            unknown = [name for name, is_here in found.items() if is_here is None]
            return not unknown, watch.sentence(unknown, where)
        stays = next((reason for reason in status.reasons if reason.code in _STAYS), None)
        if stays is not None:
            out = _way_out(status, here, host) if stays.code in _NO_MIGRATION else ""
            return False, f"NOT DRAINED: {stays.text}{out}"
        now_s = time.monotonic()
        kept = watch.kept(status, here, now_s)
        if kept:
            out = _way_out(status, kept, host) if _none_migrates(status, kept) else ""
            return False, f"NOT DRAINED: {_list(kept, where)}{_why_here(status, kept)}{out}"
        waited_s = now_s - began_s
        names = ", ".join(here)
        if waited_s >= patience_s:
            still = _list(here, f"still {where}")
            return False, f"{still}{_why_here(status, here)}; how far that is: ha-agent why"
        sent = "" if status.migration is None else f", {status.migration.percent} % sent"
        progress(f"waiting for {names} to leave: {waited_s:.0f} s{sent}")
        time.sleep(LOOK_S if where == "here" else LOOK_OTHER_S)
