# SPDX-License-Identifier: LGPL-2.1-or-later
"""The other hosts as this one sees them now: which live, what each published, what the network
says.

A host lives while its slot changes. `look` updates everything here after each read of the
whiteboard; nothing is asked here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from broker.config.in_force import InForce
from broker.lockspace.port import Lockspace
from broker.monitors.network_verdict import NetworkVerdict, TargetResult, published, verdict
from broker.monitors.outside import address_of
from broker.peers.asker import Heartbeats
from broker.peers.fence_paths import reached_of
from broker.peers.machine import MachineWatch, Reach
from broker.peers.members import Members
from broker.peers.same_storage import SameStorage
from broker.peers.seen_hosts import seen_peers
from broker.peers.vm_place import SeenHost
from broker.whiteboard import lines as slot_lines
from broker.whiteboard.board import Board
from broker.whiteboard.lost import lost_since_s
from broker.whiteboard.signatures import GOOD
from broker.whiteboard.slot import SlotReport
from scoring.hosts.liveness import Liveness, is_blind, last_changes, liveness_known
from scoring.hosts.state import Seen
from scoring.observation import PeerReport
from scoring.storage_word import StorageWord
from scoring.vm_facts import VmStatus

#: A slot that is watched closely is overdue once its change is so many beats late.
OVERDUE_BEATS = 0.2


class Table:
    """`seen`: when each peer's slot last changed. `silent`: the peers that are silent."""

    def __init__(
        self,
        in_force: InForce,
        board: Board,
        lockspace: Lockspace,
        heartbeats: Heartbeats,
        reach: Reach | None = None,
    ) -> None:
        self._in_force = in_force
        #: The machine that runs the engine, asked beside its broker.
        self.machine = MachineWatch(reach, lambda: address_of(in_force.config.health))
        self.board, self.lockspace, self.heartbeats = board, lockspace, heartbeats
        heartbeats.on_missed = self.machine.hurry
        #: Which hosts' slots count.
        self.members = Members(
            board,
            lockspace,
            heartbeats,
            in_force.io_timeout_s,
            in_force.config.score.base_score,
        )
        #: Whether the others write to the storage that this host reads.
        self.same_storage = SameStorage(in_force.config, board, heartbeats, lockspace)
        self.seen: dict[int, Seen] = {}
        self.silent: frozenset[int] = frozenset()
        #: Peers that are watched closely.
        self.watched: frozenset[int] = frozenset()
        self._known: dict[int, tuple[SlotReport, Seen | None, slot_lines.Others, PeerReport]] = {}
        #: What the peers publish, since the last read; None: not asked yet.
        self._published: tuple[PeerReport, ...] | None = None

    def look(self, now_s: float) -> bool:
        """Update after a read of the whiteboard; returns whether a peer fell silent or came
        back."""
        self._published = None
        reports = sorted(self.members.reports.items())
        self.seen = last_changes(self.seen, ((h, r.timestamp, now_s) for h, r in reports))
        for host in self.watched & self.seen.keys():
            self.seen[host] = self._since_its_write(host, self.seen[host])
        silent = frozenset(
            host
            for host, seen in self.seen.items()
            if self.liveness(seen, now_s) is Liveness.SILENT
        )
        changed, self.silent = silent != self.silent, silent
        return changed

    def _since_its_write(self, host: int, seen: Seen) -> Seen:
        """A slot stands still since it was written. This host's read saw that later, by at most a
        beat; where the peer itself has said when it was, that counts."""
        written_s = self.heartbeats.written_s(host, seen.timestamp)
        if written_s is None or not seen.changed or seen.by_word or written_s >= seen.since_s:
            return seen
        since_s = max(written_s, seen.since_s - self._in_force.timing.beat)
        return replace(seen, since_s=since_s, by_word=True)

    def is_blind(self, now_s: float) -> bool:
        """Whether this host cannot say what the others do, since it does not read them."""
        return is_blind(self.board.last_read_s, now_s, self._in_force.timing.suspect_after)

    def liveness(self, seen: Seen, now_s: float) -> Liveness:
        """The liveness of a peer whose slot was last seen to change then."""
        read_s = self.board.last_read_s
        return liveness_known(seen, read_s, now_s, self._in_force.timing.suspect_after)

    def still(self, since_s: float) -> set[int]:
        """The peers whose slots have not changed since then."""
        return {host for host, seen in self.seen.items() if seen.since_s < since_s}

    def watch(self, hosts: Sequence[int]) -> None:
        """Set which peers are watched closely."""
        self.watched = frozenset(hosts)
        self.heartbeats.watch(hosts)

    def overdue_since_s(self, host: int) -> float | None:
        """Since when a peer that is watched closely is overdue with a sign of life, over the
        network or in its slot; None: it is not."""
        if host not in self.watched:
            return None
        since_s, seen = self.heartbeats.overdue_since_s(host), self.seen.get(host)
        read_s, beat_s = self.board.last_read_s, self._in_force.timing.beat
        if seen is not None and seen.changed and read_s is not None:
            due_s = seen.since_s + beat_s
            if read_s >= due_s + OVERDUE_BEATS * beat_s:
                since_s = due_s if since_s is None else min(since_s, due_s)
        return since_s

    def _machine_heard_s(self, host: int) -> float | None:
        """When the last question was asked that the machine there answered, whatever became of its
        broker."""
        both = self.machine.heard_s(host), self.heartbeats.refused_s(host)
        return max((at_s for at_s in both if at_s is not None), default=None)

    def _storage_word(self, host: int) -> StorageWord | None:
        """What a peer says of the storage where it, or this host, has lost it."""
        word = self.heartbeats.storage_word(host)
        if word is None or (word.lost_s is None and lost_since_s(self.board) is None):
            return None
        return word

    def overdue(self) -> frozenset[int]:
        """The peers that are overdue with a sign of life."""
        return frozenset(host for host in self.watched if self.overdue_since_s(host) is not None)

    def peers(self) -> tuple[PeerReport, ...]:
        """Every other host's report; an unchanged one is not made anew."""
        return self._made(are_others_new=True)

    def published(self) -> tuple[PeerReport, ...]:
        """Every other host's report, for what its slot says: the other witnesses of its life in it
        may be older than the slot. Costs nothing when it is asked again."""
        return self._made(are_others_new=False) if self._published is None else self._published

    def _made(self, are_others_new: bool) -> tuple[PeerReport, ...]:
        """`are_others_new`: what the other witnesses say is taken in of unchanged slots too."""
        known, self._known = self._known, {}
        for host, report in sorted(self.members.reports.items()):
            seen, old = self.seen.get(host), known.get(host)
            if old is None or old[0] is not report or old[1] is not seen:
                others, is_signed = self._others(host), self.board.signed.get(host) in GOOD
                made = slot_lines.peer_report(report, seen, others, is_signed, reached_of)
                old = (report, seen, others, made)
            elif are_others_new and old[2] != (others := self._others(host)):
                old = (report, seen, others, slot_lines.with_others(old[3], others))
            self._known[host] = old
        self._published = tuple(old[3] for old in self._known.values())
        return self._published

    def _others(self, host: int) -> slot_lines.Others:
        """What the other witnesses say of a host now."""
        renewal = self.lockspace.renewals.table.get(host)
        return slot_lines.Others(
            *self.heartbeats.times(host),
            self.lockspace.renewals.renewal_s(host),
            0 if renewal is None else renewal.timestamp,
            self.overdue_since_s(host),
            self.machine.silent_since_s(host),
            self._machine_heard_s(host),
            self._storage_word(host),
        )

    def live(self) -> list[PeerReport]:
        """The reports of the hosts that live."""
        return [
            peer
            for peer in self.published()
            if (seen := self.seen.get(peer.host_id)) is not None
            and seen.changed
            and peer.host_id not in self.silent
        ]

    def hands(self) -> frozenset[tuple[int, str, VmStatus]]:
        """What the other hosts do with the VM: host id, its agent's state, the VM there."""
        return frozenset(
            (host, slot_lines.state_of(report), report.engine_status.vm)
            for host, report in self.members.reports.items()
        )

    def speaking(self) -> Iterator[SlotReport]:
        """The slots of hosts that are not silent, as far as their lines are trusted."""
        for host, report in self.members.reports.items():
            if report.extra_trusted and host in self.seen and host not in self.silent:
                yield report

    def seen_hosts(self, now_s: float) -> Iterator[SeenHost]:
        """Every other host that may run the VM, with all witnesses of its life."""
        return seen_peers(
            self.board,
            self.members,
            self.seen,
            self.lockspace,
            self.heartbeats,
            self._in_force.rules,
            now_s,
        )

    def network(self, results: Sequence[TargetResult], now_s: float) -> NetworkVerdict:
        """The verdict of the network tests here (`results`) and on the live peers together."""
        if self.is_blind(now_s) or not any(result.fails for result in results):
            return verdict(results, ())
        peers = [
            published(report.extra.get("network", "") if report.extra_trusted else "")
            for host, report in self.members.reports.items()
            if host in self.seen and self.seen[host].changed and host not in self.silent
        ]
        return verdict(results, peers)

    def arriving(self, now_s: float) -> str:
        """The live host that is migrating a VM to this one; empty: none is."""
        for report in self.speaking():
            host = report.host_id
            age_s = now_s - self.seen[host].since_s
            _, move = slot_lines.intent_of(report.extra.get("intent", ""), host, age_s)
            if move is not None and move.target == self._in_force.host_id and move.left_s != 0:
                return report.hostname
        own_id, live = self._in_force.host_id, {report.host_id for report in self.speaking()}
        for peer in self.published():
            ends_s = [vm.moving_until_s for vm in peer.vms.values() if vm.target == own_id]
            if peer.host_id in live and any(end_s is None or end_s > now_s for end_s in ends_s):
                return peer.hostname
        return ""

    def sees_global_over(self) -> bool:
        """Whether no live host counts the global mode longer: a single wrong wall clock must not
        end it early."""
        return not any(
            slot_lines.count_of(report.extra.get("global-left", "")) > 0
            for report in self.speaking()
        )

    def name_of(self, host: int | None) -> str:
        """A host's name; "" where it has no slot."""
        report = self.members.reports.get(host or 0)
        if report is None:
            return self._in_force.host_name if host == self._in_force.host_id else ""
        return report.hostname

    def up_elsewhere(self) -> str | None:
        """The name of a host that has the VM up and is not silent; None: none has."""
        return next(
            (
                report.hostname
                for host, report in self.members.reports.items()
                if report.engine_status.vm is VmStatus.UP and host not in self.silent
            ),
            None,
        )
