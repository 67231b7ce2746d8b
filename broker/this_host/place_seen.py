# SPDX-License-Identifier: LGPL-2.1-or-later
"""The VM's place, by this host's own sample and by its knowledge of all others."""

from __future__ import annotations

from broker.config.in_force import InForce
from broker.peers.seen_hosts import MOVING
from broker.peers.table import Table
from broker.peers.vm_place import OwnReads, SeenHost, VmPlace, vm_place
from broker.this_host.facts import ThisHost


class PlaceSeen:
    """Makes the verdict; broker/peers/vm_place.py has the rules."""

    def __init__(self, in_force: InForce, table: Table, this_host: ThisHost) -> None:
        self._in_force, self._table, self._this_host = in_force, table, this_host

    def now(self, now_s: float) -> VmPlace:
        """The verdict at this moment."""
        return self.of(*self.hosts(now_s), now_s)

    def of(self, hosts: list[SeenHost], reads: OwnReads, now_s: float) -> VmPlace:
        """The verdict on what `hosts` returned at this moment."""
        here = hosts[0]
        assert here.vm is not None, "this host always says something"
        return vm_place(hosts, reads, self._this_host.agent.lease_owner(here.vm, now_s))

    def hosts(self, now_s: float) -> tuple[list[SeenHost], OwnReads]:
        """This host and all others that may run the VM, and how this host reads the whiteboard."""
        table, board = self._table, self._table.board
        reads = OwnReads(
            blind=table.is_blind(now_s),
            age_s=None if board.last_read_s is None else now_s - board.last_read_s,
            state=board.state,
            all_known=board.all_read or bool(table.lockspace.witnesses),
            elsewhere=table.same_storage.judgement.unfit or board.set_back_unfit(now_s),
        )
        return [self._seen_here(now_s), *table.seen_hosts(now_s)], reads

    def _seen_here(self, now_s: float) -> SeenHost:
        engine, _ = self._this_host.vm.status(now_s)
        return SeenHost(
            host_id=self._in_force.host_id,
            name=self._in_force.host_name,
            vm=engine.vm,
            health=engine.health,
            reason=engine.reason or "",
            local=True,
            moving=self._this_host.agent.state == MOVING,
        )
