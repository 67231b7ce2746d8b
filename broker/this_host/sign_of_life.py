# SPDX-License-Identifier: LGPL-2.1-or-later
"""This host's answers to members that ask over the network whether it lives."""

from __future__ import annotations

from broker.config.in_force import InForce
from broker.peers.datagram import answer_bytes
from broker.peers.heartbeat import Heartbeat, signed
from broker.peers.question_gate import QuestionGate, Refusal
from broker.peers.refusal_log import RefusalLog
from broker.peers.table import Table
from broker.this_host.facts import ThisHost
from broker.this_host.slot import OwnSlot
from broker.whiteboard.lost import lost_since_s


class SignOfLife:
    """`gate`: admits the questions."""

    def __init__(
        self,
        in_force: InForce,
        table: Table,
        this_host: ThisHost,
        own_slot: OwnSlot,
        gate: QuestionGate,
    ) -> None:
        self._in_force, self._table = in_force, table
        self._this_host, self._own_slot = this_host, own_slot
        self._gate = gate
        self._refusals = RefusalLog()

    def at_listener(self, nonce: str, now_s: float) -> bytes | None:
        """The answer to a question at the listener; None: there is no key to sign it with."""
        key = self._table.heartbeats.key
        return None if key is None else signed(key, self._made(nonce, now_s))

    def answer(self, datagram: bytes, source: str, now_s: float) -> bytes | None:
        """The answer to a datagram that came from that address to the port for heartbeats;
        None: there is none."""
        key = self._table.heartbeats.key
        if key is None:
            return None
        question = self._gate.admit(key, datagram, source, now_s)
        if isinstance(question, Refusal):
            self._refusals.refused(source, self._gate.host_at(source), question)
            return None
        self._table.same_storage.asked(question.asker, now_s)
        return answer_bytes(key, question, self._made(question.nonce, now_s))

    def _made(self, nonce: str, now_s: float) -> Heartbeat:
        table, host_id = self._table, self._in_force.host_id
        ids, renewal = table.same_storage.ids, table.lockspace.renewals.table.get(host_id)
        lost_s = lost_since_s(table.board)
        return Heartbeat(
            host_id,
            self._this_host.boot_id,
            self._own_slot.timestamp,
            self._this_host.vm.status(now_s)[0].vm,
            nonce,
            cluster=ids.cluster,
            whiteboard=ids.whiteboard,
            leases=ids.leases,
            written=table.board.written,
            generation=0 if renewal is None else renewal.generation,
            renewed=0 if renewal is None else renewal.timestamp,
            written_ago_ms=self._own_slot.written_ago_ms(now_s),
            lost_ms=None if lost_s is None else max(0, int((now_s - lost_s) * 1000.0)),
            empty=lost_s is not None and self._this_host.is_empty(now_s),
            global_maintenance=table.board.global_maintenance if lost_s is None else None,
            others_up=self._this_host.vms.may_be_up(now_s),
        )
