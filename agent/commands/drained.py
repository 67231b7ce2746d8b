# SPDX-License-Identifier: LGPL-2.1-or-later
"""Watches the VMs leave a host that is drained, and says what became of it.

A host is drained when each protected VM is known to be elsewhere, or nowhere. One that is unknown
may run here.
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

#: How long the command watches the VMs leave; a live migration takes a few seconds.
PATIENCE_S = 5.0
LOOK_S = 0.25
#: Another host is asked over the network.
LOOK_OTHER_S = 1.0
#: After a move the VM shows up on its new host within this time.
HANDED_OVER_S = 10.0
#: Reasons of the agent that end the watch: a VM stays, at least for now.
_STAYS = frozenset({"drain-stuck", "drain-waiting", "move-impossible", "global-maintenance"})
#: Those of them that no time mends: the VM cannot be migrated.
_NO_MIGRATION = frozenset({"drain-stuck", "move-impossible"})


def _way_out(vms: list[str], is_alone: bool, where: str) -> str:
    """How a host is emptied of VMs that cannot be migrated."""
    typed = [f"ha-agent vm shutdown{'' if is_alone else f' {name}'}" for name in vms]
    place = " (on this host)" if where == "here" else " (on that host)"
    return (
        f"; without a migration, with the outage of a boot: {', '.join(typed)}{place} shuts it down"
        " in order, and another host starts it"
    )


@dataclass(slots=True)
class _Watched:
    """One VM. `was_here`: it was seen on the host; `gone_s`: since when it is up nowhere."""

    was_here: bool = False
    gone_s: float | None = None
    left: str = ""

    def look(self, vm: EngineSummary | VmEntry, host: int, now_s: float) -> bool | None:
        """Whether the VM may be on the host; None: it is unknown, and was never seen there."""
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
        return self.was_here and now_s - self.gone_s < HANDED_OVER_S


@dataclass(slots=True)
class _Watch:
    vms: dict[str, _Watched] = field(default_factory=dict)

    def look(self, status: Status, now_s: float) -> dict[str, bool | None]:
        """What `_Watched.look` says of each VM, by its name."""
        # A broker of an earlier version knows the engine alone.
        others = {vm.name: vm for vm in status.vms[1:]}
        alone = not others
        engine = "the VM" if alone else status.vms[0].name
        found: dict[str, EngineSummary | VmEntry] = {engine: status.engine, **others}
        return {
            name: self.vms.setdefault(name, _Watched()).look(vm, status.host_id, now_s)
            for name, vm in found.items()
        }

    def sentence(self, unknown: list[str], where: str) -> str:
        """Where each VM is that has left; where any has, the unknown ones are named too."""
        left = [f"{name} has left, and {vm.left}" for name, vm in self.vms.items() if vm.was_here]
        doubts = [f"whether {name} runs {where} is not known" for name in unknown]
        return "; ".join(left + doubts if left else [])


def drained(
    look: Callable[[], Status], patience_s: float = PATIENCE_S, where: str = "here"
) -> tuple[bool, str]:
    """Whether every VM has left the host whose status `look` gets, within `patience_s`, and a
    sentence; empty where none runs there, or that is unknown. A drain may take its time."""
    began_s = time.monotonic()
    watch = _Watch()
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
            out = _way_out(here, len(found) == 1, where) if stays.code in _NO_MIGRATION else ""
            return False, f"NOT DRAINED: {stays.text}{out}"
        waited_s = time.monotonic() - began_s
        names = ", ".join(here)
        if waited_s >= patience_s:
            are = "is" if len(here) == 1 else "are"
            return False, f"{names} {are} still {where}; how far that is: ha-agent why"
        sent = "" if status.migration is None else f", {status.migration.percent} % sent"
        progress(f"waiting for {names} to leave: {waited_s:.0f} s{sent}")
        time.sleep(LOOK_S if where == "here" else LOOK_OTHER_S)
