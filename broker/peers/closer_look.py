# SPDX-License-Identifier: LGPL-2.1-or-later
"""Asks the other witnesses about a host whose slot stands still, before the host is suspected.
Asking harms nobody, so it may be early."""

from __future__ import annotations

from broker.config.in_force import InForce
from broker.peers.question_gate import QuestionGate
from broker.peers.table import Table
from broker.whiteboard import lines as slot_lines
from broker.whiteboard.lines import Freeing
from scoring.vm_facts import VmStatus

#: A slot that stands still for so long causes the questions.
QUIET_BEATS = 1.5
#: A host whose slot has stood still for longer is asked over the network no more often than others.
QUIET_MAX_S = 600.0


class CloserLook:
    """`gate`: admits the questions of the hosts that are asked."""

    def __init__(self, in_force: InForce, table: Table, gate: QuestionGate) -> None:
        self._in_force, self._table, self._gate = in_force, table, gate

    def look(self, freed_by: Freeing | None, second_look: bool, now_s: float) -> None:
        """Decide after a read of the whiteboard whom to ask. `freed_by`: the host that may free
        this host's id is asked too. `second_look`: only changes cause questions."""
        quiet = self._table.still(now_s - QUIET_BEATS * self._in_force.timing.beat)
        if freed_by is not None:
            quiet.add(freed_by.by)
        if quiet != self._table.lockspace.renewals.watch or not second_look:
            self._look(frozenset(quiet), now_s)

    def _look(self, quiet: frozenset[int], now_s: float) -> None:
        table, members = self._table, self._table.members
        table.lockspace.renewals.watch = quiet
        asked = {
            host: slot_lines.ways_of(report)
            for host, report in table.board.reports.items()
            if host not in members.why_not or host in members.strangers
        }
        self._gate.members(
            {
                host: ways.ports + ways.listeners
                for host, ways in asked.items()
                if ways is not None and host in members.reports
            }
        )
        quick = {
            host
            for host in quiet
            if host in table.seen and now_s - table.seen[host].since_s < QUIET_MAX_S
        }
        table.heartbeats.look(asked, quick, self._in_force.timing.beat, now_s)
        host = self._with_the_engine(quiet)
        ways = None if host is None else asked.get(host)
        addresses = () if ways is None else ways.ports + ways.listeners
        table.machine.look(host, addresses, quick, table.watched, self._in_force.timing.beat)

    def _with_the_engine(self, quiet: frozenset[int]) -> int | None:
        """The other host that runs the engine by its slot, one that is written before one that
        stands still; None: none does."""
        up = [
            host
            for host, report in self._table.members.reports.items()
            if report.engine_status.vm is VmStatus.UP and host != self._in_force.host_id
        ]
        return min(up, key=lambda host: (host in quiet, host), default=None)
