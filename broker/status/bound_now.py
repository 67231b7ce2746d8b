# SPDX-License-Identifier: LGPL-2.1-or-later
"""Keeps the bound while nothing has changed: asking the decision costs more than all the rest of
the status."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import msgspec

from broker.config.in_force import InForce
from broker.exchange.view import Exchange
from broker.peers.table import Table
from broker.status.bound import NOT_RUNNING, Picture, bound_of, bound_of_vm, heirs_of
from broker.status.vms import Known
from broker.this_host.facts import ThisHost
from broker.this_host.slot import OwnSlot
from broker.vm.domain_facts import Differs
from broker.wire.status import Bound, FencePathStatus, HostStatus, MeasuredOnWire
from scoring.observation import PeerReport
from scoring.vm.plan import NO_PLAN
from scoring.vm.seen import SPEAKS_SEVERAL
from scoring.vm_facts import ENGINE, PeerVm

#: The bound is made anew after this time, even if nothing has changed.
BOUND_FRESH_S = 10.0
#: The bounds of the VMs beside the engine are made anew after this time, and so many in a status.
VMS_FRESH_S = 30.0
VMS_AT_ONCE = 4


class BoundNow:
    """The kept bound; bound.py has the rules."""

    def __init__(
        self,
        in_force: InForce,
        table: Table,
        this_host: ThisHost,
        own_slot: OwnSlot,
        exchange: Exchange,
    ) -> None:
        self._in_force, self._table, self._this_host = in_force, table, this_host
        self._own_slot, self._exchange = own_slot, exchange
        #: The bounds of VMs beside the engine, by number, alike.
        self._of_vms: dict[int, tuple[float, tuple[object, ...], Bound | None]] = {}
        #: The last one: when it was made, from what, and its value.
        self._made: tuple[float, tuple[object, ...], Bound | None] | None = None

    def of(
        self,
        dead: int,
        paths: Sequence[FencePathStatus],
        hosts: Mapping[int, HostStatus],
        now_s: float,
    ) -> Bound | None:
        """The present bound."""
        table, board = self._table, self._table.board
        heirs = heirs_of(dead, hosts.values())
        made_from = (
            dead,
            tuple((h.host_id, h.score, h.state, h.liveness) for h in hosts.values()),
            tuple((path.by, path.host, path.ok) for path in paths),
            board.global_maintenance,
            table.members.newer_versions,
            board.storage_good_since_s is None,
            heirs,
        )
        old = self._made
        if old is not None and old[1] == made_from and 0 <= now_s - old[0] < BOUND_FRESH_S:
            return old[2]
        report = self._this_host.agent.last
        found = bound_of(
            dead,
            paths,
            MeasuredOnWire() if report is None else report.measured,
            table.members.reports.values(),
            self._picture(hosts[self._in_force.host_id], now_s),
            heirs,
        )
        self._made = (now_s, made_from, found)
        return found

    def of_vms(
        self,
        known: Known,
        paths: Sequence[FencePathStatus],
        hosts: Mapping[int, HostStatus],
        now_s: float,
    ) -> dict[int, Bound]:
        """The bounds of the VMs beside the engine that are up, by number. VMS_AT_ONCE are made
        anew at a time: the others keep what was found last for where they are."""
        found, left = {}, VMS_AT_ONCE
        picture = None
        proven = tuple((path.by, path.host, path.ok) for path in paths)
        live = tuple((h.host_id, h.liveness, h.state) for h in hosts.values())
        for spec in known.specs:
            host_id = known.seen[spec.number].place.host
            if spec.number == ENGINE or host_id is None or not known.seen[spec.number].place.up:
                continue
            order = known.plans.get(host_id, NO_PLAN).order.get(spec.number, ())
            maintenance = self._table.board.global_maintenance
            boot_s = known.boot_s.get(spec.number)
            made_from = (host_id, order, spec, proven, live, maintenance, boot_s)
            old = self._of_vms.get(spec.number)
            is_fresh = old is not None and old[1] == made_from and now_s - old[0] < VMS_FRESH_S
            if not is_fresh and left:
                left -= 1
                picture = picture or self._picture(hosts[self._in_force.host_id], now_s)
                bound = bound_of_vm(spec, host_id, order, paths, picture, boot_s)
                old = self._of_vms[spec.number] = (now_s, made_from, bound)
            if old is not None and old[1][0] == host_id and old[2] is not None:
                codes = known.differs.get((host_id, spec.number), ())
                why = self._this_host.vms.without_lease.get(spec.number, "")
                found[spec.number] = _held_back(old[2], spec.name, codes, why)
        return found

    def _picture(self, own: HostStatus, now_s: float) -> Picture:
        seen = self._exchange.view(now_s).observed()
        local = seen.local
        here, *others = local.vms
        # As if the engine did not run here, and about one VM at a time.
        observation = replace(
            seen,
            local=replace(local, vms=(replace(here, report=NOT_RUNNING), *others)),
            order=None,
            announced=None,
            specs=(),
            own_claims=(),
        )
        engine = PeerVm(own.engine_status, own.state, self._this_host.agent.last_ran)
        itself = PeerReport(
            own.host_id,
            self._own_slot.timestamp,
            own.score,
            {ENGINE: engine, **self._vms_here(now_s)},
            own.hostname,
            speaks=SPEAKS_SEVERAL,
            total_mb=local.total_mb,
            free_mb=local.free_mb,
            free_huge_mb=local.free_huge_mb,
        )
        return Picture(self._in_force.rules, observation, self._table.seen, itself, now_s)

    def _vms_here(self, now_s: float) -> dict[int, PeerVm]:
        """The VMs of the registry on this host, as others see them."""
        here = self._this_host.vms.here(now_s)
        return {vm.number: PeerVm(vm.report, last_ran=vm.last_ran) for vm in here}


def _held_back(bound: Bound, name: str, differs: Sequence[str], held: str = "") -> Bound:
    """The bound of a VM by what it runs unlike its definition: one whose disks differ is started
    nowhere until a person has decided (docs/decisions/0095). `held`: another reason why no host can
    start it; "": there is none."""
    if held:
        return msgspec.structs.replace(bound, held=held, total_s=None, prove_s=0.0)
    if Differs.DISKS not in differs:
        return bound
    held = (
        "its disks are not as its definition says; merge the snapshot, or ha-agent vm define"
        f" {name} --from-running on its host"
    )
    return msgspec.structs.replace(bound, held=held, total_s=None, prove_s=0.0)
