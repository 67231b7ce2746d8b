# SPDX-License-Identifier: LGPL-2.1-or-later
"""Signatures of the records on the shared storage: a MAC by the cluster key, and a counter.

Everybody who can write to the volume can write a slot: an administrator of the storage, a machine
that mounts it by mistake, a program gone astray. What such a slot claims (a VM that is up, a score
of 10000, global maintenance) once kept the VM down for ever. So what counts is signed.

Rules of this file:

1. A MAC covers all bytes before it, the kind of record and its place: a slot copied to another
   place, or a fence record shown as a slot, has no valid signature.
2. Each host's slots carry a counter that only grows. A slot with a lower counter than was seen is
   an older one that somebody, or a late write, put back: it is REPLAYED, and the last good one
   stays.
3. The counter is milliseconds of the writer's wall clock, and one more than the last where the
   clock does not grow. So a host that has lost its state folder and its slot still continues above
   its earlier counters. Where it does not (its clock went back too), the others accept its slot
   once its signed answer over the network names the same boot as the slot.
4. `unsigned` decides about a slot without a MAC: TRUST takes it as signed. SHOW shows it, and it
   counts only as broker/peers/members.py allows, for a host of an earlier version; never for a
   host that was seen to sign. IGNORE refuses it.
5. Without a key nothing can be signed or refused: everything is as under TRUST.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

from broker.config.cluster_key import ClusterKey
from broker.whiteboard.errors import SlotFault
from broker.whiteboard.extra import signed_part
from broker.whiteboard.slot import SlotReport

#: The line of a slot that holds the counter.
COUNTER_LINE = "count"


class Unsigned(StrEnum):
    """How unsigned records are treated; values of `storage.unsigned`."""

    IGNORE = "ignore"
    SHOW = "show"
    TRUST = "trust"


class Signature(StrEnum):
    """The state of a signature. The values are stable: they go into JSON.

    OTHER_KEY: good, but made with the second accepted key, not with the one that signs here."""

    GOOD = "good"
    OTHER_KEY = "accepted-key"
    NONE = "unsigned"
    WRONG = "wrong-mac"
    REPLAYED = "replayed"


GOOD = frozenset({Signature.GOOD, Signature.OTHER_KEY})

#: The kinds of records, as the MAC covers them.
SLOT = "ha-agent slot 1"
CLUSTER = "ha-agent cluster slot 1"
FENCE = "ha-agent fence record 1"
RAN = "ha-agent what ran 1"


NOT_SIGNED = (
    "was not signed by a host of this cluster, and does not count; the last one that was does (who"
    " else writes to this volume?)"
)
#: What a slot with such a signature is taken for, and the sentence that says so.
FAULTS = {
    Signature.NONE: SlotFault.UNSIGNED,
    Signature.WRONG: SlotFault.WRONG_MAC,
    Signature.REPLAYED: SlotFault.REPLAYED,
}
SENTENCES = {
    Signature.NONE: NOT_SIGNED,
    Signature.WRONG: "is signed with a key that is not this cluster's, and does not count; has that"
    " host another cluster-key than this one?",
    Signature.REPLAYED: "is older than one that was read before, and does not count: a late write,"
    " or somebody has put it back",
}


class Signatures:
    """Signs for one host, and remembers the newest slot of each other one. `wanted`: how the
    configuration treats unsigned records.

    `boot_heard(host)`: the boot that the host itself named in a signed answer over the network; ""
    where it named none.
    """

    def __init__(self, key: ClusterKey | None = None, unsigned: Unsigned = Unsigned.SHOW) -> None:
        self.key = key
        self.wanted = unsigned
        self.boot_heard: Callable[[int], str] = lambda host: ""
        #: Counter, boot and MAC of each host's newest slot.
        self._newest: dict[int, tuple[int, str, str]] = {}
        #: The accepted boot of a host whose counter went back: slots of its earlier boots have
        #: higher counters.
        self._let_in: dict[int, str] = {}

    @property
    def unsigned(self) -> Unsigned:
        """How unsigned records are treated."""
        return Unsigned.TRUST if self.key is None else self.wanted

    def sign(self, kind: str, place: int, data: bytes) -> str:
        """The MAC of a record; "" without a key."""
        return "" if self.key is None else self.key.sign(_text(kind, place, data))

    def look(self, kind: str, place: int, part: tuple[bytes, str] | None) -> Signature:
        """The state of a record's signature. `part`: the signed bytes and the MAC, None: no MAC."""
        if self.key is None or part is None:
            return Signature.NONE
        text = _text(kind, place, part[0])
        if self.key.is_written(text, part[1]):
            return Signature.GOOD
        return Signature.OTHER_KEY if self.key.accepts(text, part[1]) else Signature.WRONG

    def signs(self, host_id: int) -> bool:
        """Whether a valid signature of that host was seen."""
        return host_id in self._newest

    def look_at_slot(self, report: SlotReport, data: bytes) -> Signature:
        """The state of the signature of a readable slot, `data`; remembers the newest slot."""
        part = signed_part(data)
        found = self.look(SLOT, report.host_id, part)
        if found not in GOOD:
            return found
        assert part is not None
        this = (counter_of(report), report.extra.get("boot-id", ""), part[1])
        newest = self._newest.get(report.host_id)
        if newest is not None and not self._is_newer(report.host_id, this, newest):
            return found if this == newest else Signature.REPLAYED
        self._newest[report.host_id] = this
        return found

    def _is_newer(
        self, host_id: int, this: tuple[int, str, str], newest: tuple[int, str, str]
    ) -> bool:
        is_same_boot = this[1] == newest[1]
        if this[0] > newest[0] and (is_same_boot or self._let_in.get(host_id) != newest[1]):
            return True
        if is_same_boot or not this[1] or self.boot_heard(host_id) != this[1]:
            return False
        self._let_in[host_id] = this[1]
        return True


def next_counter(last: int, wall_s: float) -> int:
    """The counter of the next slot of a host whose last one had `last`. `wall_s`: UTC seconds
    since 1970 by its clock."""
    return max(last + 1, min(int(wall_s * 1000), COUNTER_WALL_MAX))


#: A wall clock beyond the year 5000 is wrong; a counter has 15 digits at most.
COUNTER_WALL_MAX = 10**14
COUNTER_DIGITS_MAX = 15


def counter_of(report: SlotReport) -> int:
    """The counter of a slot; 0 where it has none."""
    text = report.extra.get(COUNTER_LINE, "") if report.extra_trusted else ""
    is_number = text.isascii() and text.isdigit() and len(text) <= COUNTER_DIGITS_MAX
    return int(text) if is_number else 0


def _text(kind: str, place: int, data: bytes) -> bytes:
    return b"%s\n%d\n" % (kind.encode(), place) + data
