# SPDX-License-Identifier: LGPL-2.1-or-later
"""Keeps the bound while nothing has changed: asking the decision costs more than all the rest of
the status."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from broker.config.in_force import InForce
from broker.exchange.view import Exchange
from broker.peers.table import Table
from broker.status.bound import NOT_RUNNING, Picture, bound_of, heirs_of
from broker.this_host.facts import ThisHost
from broker.this_host.slot import OwnSlot
from broker.wire.status import Bound, FencePathStatus, HostStatus, MeasuredOnWire
from scoring.observation import Observation, PeerReport

#: The bound is made anew after this time, even if nothing has changed.
BOUND_FRESH_S = 10.0


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

    def _picture(self, own: HostStatus, now_s: float) -> Picture:
        view = self._exchange.view(now_s)
        observation = Observation(
            local=replace(view.local, engine=NOT_RUNNING),
            peers=view.peers,
            storage_good_since_s=view.storage_good_since_s,
            sweep=view.sweep,
            global_maintenance=view.global_maintenance,
            newer_versions=view.newer_versions,
            lockspace_joined=view.lockspace_joined,
            fence_log=view.fence_log,
            unsure=view.unsure,
        )
        itself = PeerReport(
            own.host_id,
            self._own_slot.timestamp,
            own.score,
            own.engine_status,
            own.hostname,
            state=own.state,
            last_ran=self._this_host.agent.last_ran,
        )
        return Picture(self._in_force.rules, observation, self._table.seen, itself, now_s)
