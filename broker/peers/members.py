# SPDX-License-Identifier: LGPL-2.1-or-later
"""Decides which slots count: which of the hosts that have a slot are members of the cluster.

Without this check, one forged slot of a host that does not exist, which says that the VM is up
there, keeps the VM down for ever; another one with a score of 10000 has the healthy VM moved to it.
So a writer that is no member must neither cause nor prevent anything. A slot that does not count is
shown with the reason.

Rules of this file:

1. A host whose slot is signed is a member, unless its host id is free in the lockspace, read there
   since its slot is written, and it does not answer over the network: nothing can run there.
2. A host whose slot is not signed (an earlier version) is a member while its id is in use in the
   lockspace, or while it answers over the network. With `unsigned = "trust"`, or without a key, it
   is treated as if its slot were signed (rule 1).
3. A host that was a member once stays one, unless its slot is written after its id was seen free: a
   dead host that was fenced, whose id is free then, is still the host that had the VM.
4. A slot of a newer version cannot be read, nor can its signature; because of it this host does
   nothing. It counts only while its bytes change and its host's id is in use, or the host answers.
5. A slot that says that the VM is up there is not believed if the other witnesses contradict it:
   the engine lease is not known to be that host's, and either its newer answer over the network
   says the contrary, or it does not answer and its id is free or dead.
6. A score counts at most as much as that of a host without any penalty, by this host's
   configuration.
7. An unknown fact excludes no host: if the lockspace was not read, a signed host counts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from broker.config import agreement
from broker.lockspace.port import Lockspace
from broker.peers.asker import Heartbeats, Word
from broker.peers.vm_place import NOT_HERE
from broker.whiteboard.board import Board
from broker.whiteboard.signatures import GOOD, Unsigned
from broker.whiteboard.slot import SCORE_MAX, SlotReport
from scoring.vm_facts import VmStatus

#: At most so many ids that are not in use are read from disk, and asked over the network: strangers
#: cost no more, however many slots they write.
STRANGERS_MAX = 32
#: When a slot changes again after this time without a change, its host has come back.
BACK_S = 5.0
#: When a slot changes this long after its host id was seen free, its writer has not joined.
AFTER_FREE_S = 2.0
#: How long after its last change a slot of a newer version counts as a dead host's.
NEWER_STANDS_S = 10.0
#: sanlock looks at the others every 2 * io_timeout; an id that it does not list after this time is
#: not joined.
SANLOCK_LOOKS_S = 5.0

#: How long a claim is believed without support; by then the other witnesses must have seen it too.
CLAIM_S = 2.0
#: sanlock's states of a host id under which nothing can run.
_GONE = frozenset({"free", "dead"})

_NOT_SIGNED = (
    "it is not signed with the cluster key, its host id is not in use in the lockspace, and no host"
    " of that id answers over the network"
)
_NOT_JOINED = (
    "its host id is free in the lockspace, and no host of that id answers over the network: nothing"
    " can run there"
)


@dataclass(slots=True)
class _Slot:
    """When a slot was first seen, when it was last seen to change, since when it is written
    without a break, since when it says that the VM is up there, and since when its host denies
    that."""

    timestamp: int
    first_s: float
    changed_s: float
    alive_s: float
    up_s: float | None = None
    denied_s: float | None = None


class Members:
    """`reports`: the slots of the members. `why_not`: the hosts whose slots do not count, and
    why. `unsigned`: members whose slots are not signed. `strangers`: some of the ids that are not
    in use, to be checked more closely. `newer_versions`: members whose slots are of a newer version
    than this one reads.
    """

    def __init__(
        self,
        board: Board,
        lockspace: Lockspace,
        heartbeats: Heartbeats,
        io_timeout_s: float,
        base_score: int = SCORE_MAX,
    ) -> None:
        """`base_score`: the score of a host without fault, by this host's own configuration."""
        self._board = board
        self._lockspace = lockspace
        self._heartbeats = heartbeats
        self._looks_s = 2 * io_timeout_s + SANLOCK_LOOKS_S
        self.base_score = base_score
        #: The engine lease's owner as this host's agent found it just now, and when. None: unknown;
        #: an owner of None: nobody.
        self.lease_owner: Callable[[], tuple[int | None, float] | None] = lambda: None
        self._been: set[int] = set()
        self._slots: dict[int, _Slot] = {}
        self.reports: dict[int, SlotReport] = {}
        self.why_not: dict[int, str] = {}
        self.newer_versions: tuple[int, ...] = ()
        self.unsigned: frozenset[int] = frozenset()
        self.strangers: frozenset[int] = frozenset()
        board.has_earlier = lambda: bool(self.unsigned)
        board.fence_log.counts = lambda record: self.may_be_earlier(record.by)

    def may_be_earlier(self, host_id: int) -> bool:
        """Whether an earlier version, which signs nothing, may run on that host. Unknown: yes."""
        if self._board.signatures.signs(host_id):
            return False
        return not self._lockspace.witnesses or self._in_use(host_id) or self._answers(host_id)

    def look(self, now_s: float) -> None:
        """Judge all hosts anew, after a read of the whiteboard."""
        board = self._board
        for host in self._slots.keys() - board.reports.keys():
            del self._slots[host]
        why_not: dict[int, str] = {}
        unsigned: set[int] = set()
        strangers: set[int] = set()
        for host, report in board.reports.items():
            slot = self._slots.get(host)
            if slot is None:
                slot = self._slots[host] = _Slot(report.timestamp, now_s, now_s, now_s)
            elif slot.timestamp != report.timestamp:
                slot.alive_s = now_s if now_s - slot.changed_s >= BACK_S else slot.alive_s
                slot.timestamp, slot.changed_s = report.timestamp, now_s
            is_signed = board.signed.get(host) in GOOD
            is_up = report.engine_status.vm is VmStatus.UP
            slot.up_s = None if not is_up else now_s if slot.up_s is None else slot.up_s
            why = self._why_not(host, is_signed, slot, now_s) or self._contradicted(host, slot)
            if why:
                why_not[host] = why
            else:
                if is_signed or self._in_use(host) or self._answers(host):
                    self._been.add(host)
                if not is_signed:
                    unsigned.add(host)
            if not self._in_use(host) and len(strangers) < STRANGERS_MAX:
                strangers.add(host)
        self.reports = {
            host: self._within_base(report)
            for host, report in board.reports.items()
            if host not in why_not
        }
        self.why_not, self.unsigned = why_not, frozenset(unsigned)
        self.strangers = self._lockspace.renewals.strangers = frozenset(strangers)
        self.newer_versions = tuple(
            host
            for host, changed_s in board.newer_versions.items()
            if now_s - changed_s < NEWER_STANDS_S and self._may_be_newer(host)
        )

    def _within_base(self, report: SlotReport) -> SlotReport:
        """A host's report with a score of at most that of a host without fault there."""
        if report.score <= self.base_score:
            return report
        lines = report.extra if report.extra_trusted else {}
        most = max(self.base_score, agreement.base_score_of(lines, self.base_score))
        return replace(report, score=min(report.score, most))

    def _may_be_newer(self, host: int) -> bool:
        """Whether a host of a version that signs in another way may be a member."""
        is_known = bool(self._lockspace.witnesses) and self._board.signatures.key is not None
        return not is_known or self._in_use(host) or self._answers(host)

    def _why_not(self, host: int, is_signed: bool, slot: _Slot, now_s: float) -> str:
        """Why the host's slot does not count; "": it does."""
        if self._in_use(host) or self._answers(host):
            return ""
        is_trusted = is_signed or self._board.signatures.unsigned is Unsigned.TRUST
        if not is_trusted:
            return "" if host in self._been and not self._writes_on(host, slot) else _NOT_SIGNED
        if not self._is_free(host, slot, now_s):
            return ""
        return "" if host in self._been and not self._writes_on(host, slot) else _NOT_JOINED

    def _contradicted(self, host: int, slot: _Slot) -> str:
        """Why the host's claim that the VM is up there is false; "": it may be true, or there is
        none."""
        pulse = self._heartbeats.pulses.get(host)
        if slot.up_s is None:
            slot.denied_s = None
            return ""
        owned = self.lease_owner()
        if owned is not None and owned[0] == host:
            return ""
        if pulse is not None and self._answers(host):
            assert pulse.heartbeat_s is not None
            if pulse.heartbeat_s < slot.up_s + CLAIM_S or pulse.vm not in NOT_HERE:
                slot.denied_s = None
            elif slot.denied_s is None:
                slot.denied_s = pulse.heartbeat_s
            # The claim was written after that answer.
            if slot.denied_s is None or slot.changed_s < slot.denied_s + CLAIM_S:
                return ""
            said = "its host answers over the network that it is not"
        else:
            named = self._lockspace.witnesses.get(host)
            if named is None or named.state not in _GONE or not self._writes_on(host, slot):
                return ""
            said = f"its host does not answer over the network, and sanlock calls it {named.state}"
        if owned is not None:
            owner = "nobody" if owned[0] is None else f"host {owned[0]}"
            said += f"; {owner} owns the engine lease"
        return f"it says that the VM is up there, and {said}"

    def _answers(self, host: int) -> bool:
        return self._heartbeats.word(host) is Word.ANSWERED

    def _in_use(self, host: int) -> bool:
        """Whether some host has joined the lockspace under that id, alive or dead."""
        on_disk = self._lockspace.renewals.table.get(host)
        if on_disk is not None:
            return on_disk.timestamp != 0
        named = self._lockspace.witnesses.get(host)
        return named is not None and named.state != "free"

    def _is_free(self, host: int, slot: _Slot, now_s: float) -> bool:
        """Whether no host has joined under that id, by a look made since its slot is written."""
        renewals = self._lockspace.renewals
        if host in renewals.table:
            return renewals.read_s.get(host, float("-inf")) >= slot.alive_s
        since_s = slot.alive_s if host in self._been else slot.first_s
        return bool(self._lockspace.witnesses) and now_s - since_s >= self._looks_s

    def _writes_on(self, host: int, slot: _Slot) -> bool:
        """Whether the slot was written after its id was seen free."""
        on_disk = self._lockspace.renewals.table.get(host)
        free_s = float("-inf") if on_disk is None else on_disk.changed_s
        return slot.changed_s >= max(free_s, slot.alive_s) + AFTER_FREE_S
