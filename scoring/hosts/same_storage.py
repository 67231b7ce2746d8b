# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whether the other hosts write to the very storage that this host reads.

The whiteboard and the leases prevent a second copy of a VM only if all hosts use the same ones. A
host may instead see an old copy below a mount point that is not mounted, a clone of the LUN, or
another replica. There every other host is silent, so it would wait for sanlock's host-dead time and
start the VM a second time. Reading that copy cannot show the mistake, but the network can: each
host answers, signed, which of its writes the storage last acknowledged. A write that was
acknowledged before a read began must be in that read.

    the answer                   the slot, read here after the answer     finding
    wrote 812                    812 or more                              the same storage
    wrote 812                    still 700                                doubt
    wrote 812, later 816         still 700, for patience_s                other storage
    wrote 812, and again 812     still 700                                doubt, for dead_s at most
    wrote 10**12                 700, 701, 702                            odd: shown, nothing more
    volumes with other ids       any                                      other storage, at once

The renewals of the host ids in the lease volume are compared in the same way. They are rare, so a
single renewal that is not seen here is enough.

Rules:

1. An answer is compared only with a read that began after the answer had come.
2. While there is doubt about any host, this host starts nothing. It also waits for a host whose
   slot was never seen to change here, until that host has answered or has been silent for
   suspect_after.
3. A finding stays until this host sees the write that the other host named. Once the other host
   does not answer any more, the finding stays for `dead_s`; or for ever, if its slot was never seen
   to change here, since then there is no evidence that this storage is the right one.
4. Two hosts that see different storage do not show which of them is wrong. This host is unfit if
   the hosts on other storage are at least as many as those on its own, itself included. A host is
   on its own storage if the answers match, and if its slot has changed here since the first of the
   others began to differ. Of two hosts both are unfit; of three, the one that is alone.
5. If a host on other storage says that the VM is up there, or cannot say whether it is, this host
   starts nothing, however many hosts are on its own storage; nor within `dead_s` after that answer.
6. A host whose configuration names no volumes may be on new, empty ones: there is no other slot, so
   there is nobody to ask. But the others know this host and ask it. While a member asks, signed,
   whose slot is not here, this host starts nothing, nor within `dead_s` after its last question: it
   is not known whether the VM is up there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum

#: How long after its acknowledgement a write may become visible to another host.
VISIBLE_WITHIN_S = 2.0

#: Larger than any timestamp of a renewal.
_RELEASED = 2**63
#: Nobody without a slot asks.
NOBODY: Mapping[int, Asking] = {}
#: A slot's timestamp is (timestamp, 0), a host id's renewal (generation, timestamp).
Count = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Ids:
    """The ids of a host's cluster and volumes; "" where it has none."""

    cluster: str = ""
    whiteboard: str = ""
    leases: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """A peer's signed answer, which came at `heard_s` of this host's clock.

    `written`: the timestamp of its last slot that the storage acknowledged. `renewal`: the renewal
    of its own host id, as it reads it. None: not in the answer. `vm_up`: a protected VM is up
    there, or it is not known whether one is.
    """

    heard_s: float
    written: int | None = None
    renewal: Count | None = None
    ids: Ids = Ids()
    vm_up: bool = False


@dataclass(frozen=True, slots=True)
class Here:
    """A peer as this host sees it on the storage.

    `slot`: its timestamp. `slot_read_s`: when the last good read began (None: there was none).
    `slot_changed_s`: when the timestamp was last seen to change (None: never). `renewal`,
    `renewal_read_s`, `renewal_changed_s`: the renewal of its host id, likewise. `askable`: it can
    be asked over the network. `unanswered_since_s`: see PeerReport.
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
    """Writes that a peer names and that the reads of this host do not show. `first`: the oldest of
    them, named at `since_s`. `latest`: the newest. `shown`: what a read that began at `read_s`
    showed."""

    first: Count
    since_s: float
    latest: Count
    shown: Count
    read_s: float


@dataclass(frozen=True, slots=True)
class Asking:
    """The questions of a member that has no slot here: the first one, and the last one so far."""

    since_s: float
    last_s: float


class Finding(IntEnum):
    """What is known about a peer's storage; a larger value is worse."""

    NOTHING = 0
    ODD = 1
    DOUBT = 2
    OTHER = 3


@dataclass(frozen=True, slots=True)
class Compared:
    """One peer's answers compared with the reads of this host, remembered from read to read.

    `differs_since_s`: since when the two differ (None: they do not). `text`: how they differ ("":
    they do not).
    """

    here: Here
    answer: Answer | None = None
    slot: Gap | None = None
    renewal: Gap | None = None
    finding: Finding = Finding.NOTHING
    differs_since_s: float | None = None
    text: str = ""


@dataclass(frozen=True, slots=True)
class Judgement:
    """The result of comparing all peers. `unfit`: why nothing may be started here ("": it may).
    `others`: each host on other storage, and how its answers differ. `odd`: each host whose answers
    differ but are not believed. `unsure`: the hosts about which nothing is known yet."""

    unfit: str = ""
    others: Mapping[int, str] = field(default_factory=dict)
    odd: Mapping[int, str] = field(default_factory=dict)
    unsure: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds. `suspect_after_s`: see Timing. `dead_s`: how long after the last renewal of a host
    id sanlock calls its host dead."""

    suspect_after_s: float
    dead_s: float

    @property
    def patience_s(self) -> float:
        """How long a write that a peer has named may stay unseen here."""
        return self.suspect_after_s + VISIBLE_WITHIN_S


def compare(
    old: Compared | None, answer: Answer | None, here: Here, own: Ids, limits: Limits
) -> Compared:
    """What is known about one peer after one more read of the storage. `answer`: its newest answer
    (None: it has given none)."""
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
        # The peer's counter began anew, and this host does not see that either: the finding stays.
        finding = Finding.OTHER
    differs_since_s = None
    if finding >= Finding.DOUBT:
        differs_since_s = answer.heard_s if was.differs_since_s is None else was.differs_since_s
    return Compared(here, answer, slot, renewal, finding, differs_since_s, text)


def _gap(
    old: Gap | None, said: Count | None, heard_s: float, shown: Count | None, read_s: float | None
) -> Gap | None:
    """The writes that are still unseen after a read that began at `read_s`; None: there are none.
    `said`: the peer's newest write by its answer at `heard_s`; `shown`: what the read showed."""
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
    """What a gap means. `is_lasting`: more than one named write is unseen."""
    is_over = gap.read_s - gap.since_s >= limits.patience_s
    if changed_s is not None and changed_s > gap.since_s:
        # The peer does write to this storage: the write is late, or its answer is wrong.
        return Finding.ODD if is_over else Finding.NOTHING
    if is_over and is_lasting:
        return Finding.OTHER
    is_recent = gap.read_s - gap.since_s < limits.dead_s
    return Finding.DOUBT if is_recent or answer.vm_up else Finding.ODD


def _in_order(renewal: Count | None) -> Count | None:
    """The renewal as a count that grows with each write of the delta lease: a release (timestamp 0)
    is the last write of its generation."""
    if renewal is None:
        return None
    return renewal[0], renewal[1] or _RELEASED


def _in_words(renewal: Count) -> str:
    when = "released" if renewal[1] == _RELEASED else str(renewal[1])
    return f"generation {renewal[0]}, {when}"


def _differing(theirs: Ids, own: Ids) -> str:
    """Which of another host's ids differs from this host's, in words; "": none."""
    for what, there, here in (
        ("cluster", theirs.cluster, own.cluster),
        ("whiteboard", theirs.whiteboard, own.whiteboard),
        ("lease volume", theirs.leases, own.leases),
    ):
        if there and here and there != here:
            return f"is of {what} {there}, and this host is of {here}"
    return ""


def judge(
    peers: Mapping[int, Compared],
    now_s: float,
    limits: Limits,
    asking: Mapping[int, Asking] = NOBODY,
    read_s: float | None = None,
) -> Judgement:
    """The result of comparing all peers (rules 2 to 6). `asking`: the members that ask this host
    and have no slot by the last good read, which began at `read_s` (None: there was none)."""
    ordered = sorted(peers.items())
    others = {host: peer for host, peer in ordered if _is_elsewhere(peer, now_s, limits)}
    texts = {host: peer.text for host, peer in others.items()}
    odd = {host: peer.text for host, peer in ordered if peer.finding is Finding.ODD}
    recent = {host: each for host, each in asking.items() if now_s - each.last_s < limits.dead_s}
    missing = sorted(
        host
        for host, each in recent.items()
        if read_s is not None and read_s - each.since_s >= limits.patience_s
    )
    doubted = [host for host, peer in ordered if _is_unsure(peer, now_s, limits)]
    unsure = tuple(sorted({*doubted, *recent} - {*missing}))
    unfit = _unfit(peers, others, now_s, limits) or _without_slots(missing)
    return Judgement(unfit, texts, odd, unsure)


def _without_slots(missing: list[int]) -> str:
    """Why this host may start nothing, where these members ask it; "": there are none."""
    if not missing:
        return ""
    hosts = "host id " if len(missing) == 1 else "host ids "
    hosts += " and ".join(map(str, missing))
    return (
        f"{hosts} asked over the network, signed with the cluster key, whether this host lives,"
        " without a slot on the whiteboard here, which is most likely another or a new one; look at"
        " what is mounted here"
    )


def _is_elsewhere(peer: Compared, now_s: float, limits: Limits) -> bool:
    """Whether the peer is on other storage, by a finding that still counts (rule 3)."""
    if peer.finding is not Finding.OTHER:
        return False
    assert peer.answer is not None
    return peer.here.slot_changed_s is None or now_s - peer.answer.heard_s < limits.dead_s


def _is_unsure(peer: Compared, now_s: float, limits: Limits) -> bool:
    """Whether there is doubt about the peer, or its first answer has not come yet or was not
    compared yet (rule 2)."""
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
    """Why this host may start nothing (rules 4 and 5); "": it may."""
    for peer in others.values():
        assert peer.answer is not None
        if peer.answer.vm_up and now_s - peer.answer.heard_s < limits.dead_s:
            return (
                f"a VM is, or may be, up on {peer.here.name}, which does not see the storage that"
                f" this host sees: it {peer.text}; look at what is mounted here and there"
            )
    if not others:
        return ""
    began_s = (peer.differs_since_s for peer in others.values())
    first_s = min(at_s for at_s in began_s if at_s is not None)
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
