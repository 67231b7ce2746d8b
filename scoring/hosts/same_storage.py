# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whether the other hosts write to the very storage that this host reads.

Whiteboard and leases keep a VM single only while there is one of each. A host whose storage is
not mounted, with an old copy below the mount point, or a clone of the LUN, or another replica,
sees a cluster in which everybody is silent: it waits for sanlock's time and starts the VM a
second time. No look at the copy itself shows it. The network does: each host says, signed, what
it last wrote and the storage acknowledged, and what was acknowledged before a read began must be
in that read.

    it says                      its slot, read here after the answer     finding
    wrote 812                    812 or more                              the same storage
    wrote 812                    stands at 700                            doubt
    wrote 812, later 816         stands at 700, for patience_s            other storage
    wrote 812, and again 812     stands at 700                            doubt, for dead_s at most
    wrote 10**12                 700, 701, 702                            odd: it is named, no more
    volumes with other ids       whatever                                 other storage, at once

The renewals of its host id in the lease volume are compared in the same way; they come seldom,
so one that is not seen here is enough.

Rules:

1. Only a read that began after the answer had come is held against that answer.
2. While there is doubt about any host nothing is started here. A host that was never seen to
   change here is also waited for until it was asked: it answered, or was silent for
   suspect_after.
3. A finding stands until what the host said is seen here. Once the host does not answer any more
   it stands for `dead_s`; for ever where the host was never seen to change here, since then
   nothing speaks for this storage.
4. One pair does not show who of the two is wrong. This host is unfit where those on other
   storage are at least as many as this host and those that are with it: whose words do not
   differ, and whose slots changed here later than the first of the others went away. Of two hosts
   both are unfit; of three the one that is alone.
5. Where a host on other storage says that the VM is up there nothing is started here, however
   many are with this host; and not within `dead_s` after it said so last.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum

#: How much later than acknowledged a write may be seen by another host.
VISIBLE_WITHIN_S = 2.0

#: Larger than any timestamp of a renewal.
_RELEASED = 2**63
#: A slot's timestamp is (timestamp, 0), a host id's renewal (generation, timestamp).
Count = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Ids:
    """What a host calls its cluster and volumes; "" where it has no name for it."""

    cluster: str = ""
    whiteboard: str = ""
    leases: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """A peer's signed answer, which had come at `heard_s` of this host's clock.

    `written`: the timestamp of its last slot that the storage acknowledged. `renewal`: of its own
    host id, as it reads it. None: it does not say.
    """

    heard_s: float
    written: int | None = None
    renewal: Count | None = None
    ids: Ids = Ids()
    vm_up: bool = False


@dataclass(frozen=True, slots=True)
class Here:
    """What this host sees of a peer.

    `slot`: its timestamp; `slot_read_s`: when the last good read began (None: there was none);
    `slot_changed_s`: when it was last seen to change, None: never. The same of its host id's
    renewal. `askable`: it can be asked over the network; `unanswered_since_s`: see PeerReport.
    """

    name: str
    slot: int
    slot_read_s: float | None
    slot_changed_s: float | None
    renewal: Count | None = None
    renewal_read_s: float | None = None
    renewal_changed_s: float | None = None
    askable: bool = False
    unanswered_since_s: float | None = None


@dataclass(frozen=True, slots=True)
class Gap:
    """What a peer said and the reads here do not show. `first`: the oldest such count, said at
    `since_s`; `latest`: the newest; `shown`: what a read that began at `read_s` showed."""

    first: Count
    since_s: float
    latest: Count
    shown: Count
    read_s: float


class Finding(IntEnum):
    """What is known of a peer's storage, the worse the larger."""

    NOTHING = 0
    ODD = 1
    DOUBT = 2
    OTHER = 3


@dataclass(frozen=True, slots=True)
class Compared:
    """One peer's words beside what is seen here, remembered from read to read.

    `went_s`: since when its words differ from what is seen here, None where they do not. `text`:
    how they differ, "" where they do not.
    """

    here: Here
    answer: Answer | None = None
    slot: Gap | None = None
    renewal: Gap | None = None
    finding: Finding = Finding.NOTHING
    went_s: float | None = None
    text: str = ""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What follows from all peers. `unfit`: why nothing may be started here, "" where it may.
    `others`: how the words of each host on other storage differ; `odd`: the same of those whose
    words are not believed. `unsure`: hosts of which it is not known yet."""

    unfit: str = ""
    others: Mapping[int, str] = field(default_factory=dict)
    odd: Mapping[int, str] = field(default_factory=dict)
    unsure: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds. `suspect_after`: see Timing. `dead_s`: after so long without a renewal sanlock calls
    a host dead."""

    suspect_after_s: float
    dead_s: float

    @property
    def patience_s(self) -> float:
        """How long what was said may stay unseen."""
        return self.suspect_after_s + VISIBLE_WITHIN_S


def compare(
    old: Compared | None, answer: Answer | None, here: Here, own: Ids, limits: Limits
) -> Compared:
    """What is known of one peer after one more read of the storage. `answer`: its newest; None:
    it has given none."""
    was = old or Compared(here)
    if answer is None:
        return replace(was, here=here)
    written = None if answer.written is None else (answer.written, 0)
    slot = _gap(was.slot, written, answer.heard_s, (here.slot, 0), here.slot_read_s)
    renewal = _gap(
        was.renewal,
        _in_order(answer.renewal),
        answer.heard_s,
        _in_order(here.renewal),
        here.renewal_read_s,
    )
    found = [(Finding.NOTHING, "")]
    if slot is not None:
        text = f"wrote {slot.latest[0]} to its slot, which is at {slot.shown[0]} here"
        is_lasting = slot.latest > slot.first
        found.append((_finding(slot, is_lasting, answer, here.slot_changed_s, limits), text))
    if renewal is not None:
        said, shown = _in_words(renewal.latest), _in_words(renewal.shown)
        text = f"renewed its host id ({said}; here it is {shown})"
        found.append((_finding(renewal, True, answer, here.renewal_changed_s, limits), text))
    if ids := _differing(answer.ids, own):
        found.append((Finding.OTHER, ids))
    finding, text = max(found, key=lambda each: each[0])
    text = text and f"says that it {text}"
    if finding is Finding.DOUBT and was.finding is Finding.OTHER:
        # It counts anew, and that is not seen here either: what was found stands.
        finding = Finding.OTHER
    went_s = None
    if finding >= Finding.DOUBT:
        went_s = answer.heard_s if was.went_s is None else was.went_s
    return Compared(here, answer, slot, renewal, finding, went_s, text)


def _gap(
    old: Gap | None, said: Count | None, heard_s: float, shown: Count | None, read_s: float | None
) -> Gap | None:
    """What is still unseen of what was said, after a read that began at `read_s`."""
    if read_s is None or shown is None:
        return old
    if old is not None and shown >= old.first:
        old = None
    if said is None or read_s < heard_s:
        return old
    if shown >= said:
        return None
    if old is None:
        return Gap(said, heard_s, said, shown, read_s)
    if said < old.first:
        return Gap(said, old.since_s, said, shown, read_s)
    return replace(old, latest=max(old.latest, said), shown=shown, read_s=read_s)


def _finding(
    gap: Gap, is_lasting: bool, answer: Answer, changed_s: float | None, limits: Limits
) -> Finding:
    """What a gap means. `is_lasting`: what is unseen is no single word."""
    is_over = gap.read_s - gap.since_s >= limits.patience_s
    if changed_s is not None and changed_s > gap.since_s:
        # It is written here: late, or its word is a mistake.
        return Finding.ODD if is_over else Finding.NOTHING
    if is_over and is_lasting:
        return Finding.OTHER
    is_recent = gap.read_s - gap.since_s < limits.dead_s
    return Finding.DOUBT if is_recent or answer.vm_up else Finding.ODD


def _in_order(renewal: Count | None) -> Count | None:
    """A count that grows with each write of a delta lease: a release (timestamp 0) is the last of
    its generation."""
    if renewal is None:
        return None
    return renewal[0], renewal[1] or _RELEASED


def _in_words(renewal: Count) -> str:
    when = "released" if renewal[1] == _RELEASED else str(renewal[1])
    return f"generation {renewal[0]}, {when}"


def _differing(theirs: Ids, own: Ids) -> str:
    """Where another host has other volumes than this one, in words."""
    for what, there, here in (
        ("cluster", theirs.cluster, own.cluster),
        ("whiteboard", theirs.whiteboard, own.whiteboard),
        ("lease volume", theirs.leases, own.leases),
    ):
        if there and here and there != here:
            return f"is of {what} {there}, and this host is of {here}"
    return ""


def judge(peers: Mapping[int, Compared], now_s: float, limits: Limits) -> Judgement:
    """What follows from all peers together (rules 2 to 5)."""
    others = {
        host: peer for host, peer in sorted(peers.items()) if _is_elsewhere(peer, now_s, limits)
    }
    texts = {host: peer.text for host, peer in others.items()}
    odd = {host: peer.text for host, peer in sorted(peers.items()) if peer.finding is Finding.ODD}
    unsure = tuple(host for host, peer in sorted(peers.items()) if _is_unsure(peer, now_s, limits))
    return Judgement(_unfit(peers, others, now_s, limits), texts, odd, unsure)


def _is_elsewhere(peer: Compared, now_s: float, limits: Limits) -> bool:
    if peer.finding is not Finding.OTHER:
        return False
    assert peer.answer is not None
    return peer.here.slot_changed_s is None or now_s - peer.answer.heard_s < limits.dead_s


def _is_unsure(peer: Compared, now_s: float, limits: Limits) -> bool:
    """Whether there is doubt about it, or its first answer is still to come or to be compared."""
    here, answer = peer.here, peer.answer
    if answer is not None and peer.finding is Finding.DOUBT:
        return now_s - answer.heard_s < limits.dead_s
    if not here.askable or here.slot_changed_s is not None:
        return False
    if answer is not None:
        return here.slot_read_s is None or here.slot_read_s < answer.heard_s
    silent_s = None if here.unanswered_since_s is None else now_s - here.unanswered_since_s
    return silent_s is None or silent_s < limits.suspect_after_s


def _unfit(
    peers: Mapping[int, Compared], others: Mapping[int, Compared], now_s: float, limits: Limits
) -> str:
    for peer in others.values():
        assert peer.answer is not None
        if peer.answer.vm_up and now_s - peer.answer.heard_s < limits.dead_s:
            return (
                f"the VM is up on {peer.here.name}, which does not see the storage that this host"
                f" sees: it {peer.text}; look at what is mounted here and there"
            )
    if not others:
        return ""
    first_s = min(peer.went_s for peer in others.values() if peer.went_s is not None)
    with_us = [
        host
        for host, peer in peers.items()
        if peer.finding < Finding.DOUBT
        and peer.here.slot_changed_s is not None
        and peer.here.slot_changed_s > first_s
    ]
    if len(others) < len(with_us) + 1:
        return ""
    names = " and ".join(peer.here.name for peer in others.values())
    one = next(iter(others.values()))
    return (
        f"this host and {names} do not see the same storage: {one.here.name} {one.text}; look at"
        " what is mounted here and there"
    )
