# SPDX-License-Identifier: LGPL-2.1-or-later
"""The VM's place, by this host's own sample and by its knowledge of all others."""

from __future__ import annotations

from typing import NamedTuple

from broker.config.in_force import InForce
from broker.peers.seen_hosts import MOVING
from broker.peers.table import Table
from broker.peers.vm_place import OwnReads, SeenHost, VmPlace, vm_place
from broker.this_host.facts import ThisHost


class Looked(NamedTuple):
    """What there is to see at one moment. `hosts`: this one first, and all others that may run the
    VM; `reads`: how this host reads the whiteboard; `place`: the verdict."""

    hosts: list[SeenHost]
    reads: OwnReads
    place: VmPlace


class PlaceSeen:
    """Makes the verdict; broker/peers/vm_place.py has the rules."""

    def __init__(self, in_force: InForce, table: Table, this_host: ThisHost) -> None:
        self._in_force, self._table, self._this_host = in_force, table, this_host

    def look(self, now_s: float) -> Looked:
        """All hosts, and the verdict on them, at this moment."""
        here, reads = self._seen_here(now_s), self.reads(now_s)
        hosts = [here, *self._table.seen_hosts(now_s)]
        assert here.vm is not None, "this host always says something"
        owner = self._this_host.agent.lease_owner(here.vm, now_s)
        return Looked(hosts, reads, vm_place(hosts, reads, owner))

    def now(self, now_s: float) -> VmPlace:
        """The verdict at this moment."""
        return self.look(now_s).place

    def reads(self, now_s: float) -> OwnReads:
        """How this host reads the whiteboard at this moment."""
        table, board = self._table, self._table.board
        return OwnReads(
            blind=table.is_blind(now_s),
            age_s=None if board.last_read_s is None else now_s - board.last_read_s,
            state=board.state,
            all_known=board.all_read or bool(table.lockspace.witnesses),
            elsewhere=table.same_storage.judgement.unfit or board.set_back_unfit(now_s),
        )

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
