# SPDX-License-Identifier: LGPL-2.1-or-later
"""Collects the other hosts' words about their storage, and what this host reads of it.

The rules are in scoring/hosts/same_storage.py; this file collects their input after each read of
the whiteboard, and remembers it.
"""

from __future__ import annotations

from collections.abc import Mapping

from broker.config.sections import Config
from broker.lockspace.port import Lockspace
from broker.peers.asker import Heartbeats, Pulse
from broker.peers.heartbeat import Heartbeat
from broker.whiteboard.board import Board
from scoring.hosts.same_storage import (
    Answer,
    Asking,
    Compared,
    Here,
    Ids,
    Judgement,
    Limits,
    compare,
    judge,
)
from scoring.hosts.state import Seen
from scoring.lease_times import host_dead_s
from scoring.vm_facts import MAY_BE_UP, Obstacle, Unfit


class SameStorage:
    """`judgement`: the conclusion from all peers at the last look."""

    def __init__(
        self, config: Config, board: Board, heartbeats: Heartbeats, lockspace: Lockspace
    ) -> None:
        self._board, self._heartbeats, self._lockspace = board, heartbeats, lockspace
        self._peers: dict[int, Compared] = {}
        #: Each host's newest answer, by the words that it is made of.
        self._answers: dict[int, tuple[Heartbeat, Answer]] = {}
        self._asking: dict[int, Asking] = {}
        self.judgement = Judgement()
        self.reconfigure(config)

    def reconfigure(self, config: Config) -> None:
        """Use another configuration from the next look on."""
        self._host_id = config.host.id
        self.ids = ids_of(config)
        dead_s = host_dead_s(config.storage.io_timeout)
        self._limits = Limits(config.timing_rules().suspect_after, dead_s)

    def asked(self, host: int, now_s: float) -> None:
        """Take in that a member has asked whether this host lives."""
        was = self._asking.get(host)
        if was is None or now_s - was.last_s >= self._limits.dead_s:
            self._asking[host] = Asking(now_s, now_s)
        else:
            self._asking[host] = Asking(was.since_s, now_s)

    def look(self, seen: Mapping[int, Seen], now_s: float) -> None:
        """Compare, after a read of the whiteboard."""
        old, self._peers = self._peers, {}
        for host, report in self._board.reports.items():
            if (its := seen.get(host)) is None:
                continue
            pulse = self._heartbeats.pulses.get(host)
            here = self._here(host, report.hostname, its, pulse)
            answer = None
            if pulse is not None and pulse.said is not None:
                answer = self._answer(host, pulse.said, pulse.heard_s)
            self._peers[host] = compare(old.get(host), answer, here, self.ids, self._limits)
        without = {} if self.ids.whiteboard else self._without_slots()
        read_s = self._board.last_read_s
        self.judgement = judge(self._peers, now_s, self._limits, without, read_s)
        self._lockspace.renewals.also = self._next_to_read()

    def _without_slots(self) -> dict[int, Asking]:
        """The members that ask and have no slot here, readable or not."""
        here = {*self._board.reports, *self._board.bad}
        # One that has a slot counts anew if that is ever gone.
        self._asking = {host: each for host, each in self._asking.items() if host not in here}
        return self._asking

    def _answer(self, host: int, said: Heartbeat, heard_s: float) -> Answer:
        known = self._answers.get(host)
        if known is None or known[0] is not said or known[1].heard_s != heard_s:
            known = self._answers[host] = said, _answer(said, heard_s)
        return known[1]

    def _here(self, host: int, name: str, seen: Seen, pulse: Pulse | None) -> Here:
        renewals = self._lockspace.renewals
        renewal = renewals.table.get(host)
        is_asked = self._heartbeats.key is not None and pulse is not None and pulse.ways
        return Here(
            name=f"{name or 'host'} (id {host})",
            slot=seen.timestamp,
            # The last good report of an unreadable slot is kept, but it shows nothing new.
            slot_read_s=None if host in self._board.bad else self._board.last_read_s,
            slot_changed_s=seen.since_s if seen.changed else None,
            renewal=None if renewal is None else (renewal.generation, renewal.timestamp),
            renewal_read_s=renewals.read_s.get(host),
            renewal_changed_s=renewals.changed_s.get(host),
            askable=bool(is_asked),
            unanswered_since_s=None if pulse is None else pulse.unanswered_since_s,
        )

    def _next_to_read(self) -> frozenset[int]:
        """The host whose renewals were compared longest ago: each is read from disk in turn, even
        one whose slot does not stand still."""
        read_s = self._lockspace.renewals.read_s
        oldest = min(self._peers, key=lambda host: read_s.get(host, float("-inf")), default=None)
        return frozenset() if oldest is None else frozenset({oldest})

    @property
    def unfit(self) -> tuple[Unfit, ...]:
        """The obstacle, where this host must not start the VM."""
        text = self.judgement.unfit
        return (Unfit(Obstacle.OTHER_STORAGE, text),) if text else ()


def ids_of(config: Config) -> Ids:
    """The names of this host's cluster and volumes."""
    return Ids(config.cluster.id, config.storage.whiteboard_id, config.storage.leases_id)


def _answer(said: Heartbeat, heard_s: float) -> Answer:
    return Answer(
        heard_s=heard_s,
        written=said.written or None,
        renewal=(said.generation, said.renewed) if said.renewed else None,
        ids=Ids(said.cluster, said.whiteboard, said.leases),
        vm_up=said.vm in MAY_BE_UP or said.others_up,
    )
