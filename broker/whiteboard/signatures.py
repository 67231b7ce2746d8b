# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who wrote what lies on the shared storage: a MAC by the cluster key, and a counter.

Everybody who can write to the volume can write a slot: an administrator of the storage, a machine
that mounts it by mistake, a program gone astray. What such a slot claims (a VM that is up, a score
of 10000, global maintenance) once kept the VM down for ever. So what counts is signed.

Rules of this file:

1. A MAC covers all that stands before it, the kind of record and its place: a slot shown in
   another place, or a fence record shown as a slot, is not signed.
2. Each host's slots carry a counter that only grows. What has a lower one than was seen is an
   older slot that somebody, or a late write, put back: it is REPLAYED, and the last good one stays.
3. The counter is milliseconds of the writer's wall clock, and one more than the last where the
   clock does not grow. So a host that has lost its state folder and its slot still goes on above
   what it wrote before. Where it does not (its clock went back too), its signed answer over the
   network that names the boot which the slot names lets it in.
4. `unsigned` says what becomes of a slot without a MAC: TRUST takes it as signed. SHOW shows it,
   and it counts only as broker/peers/members.py says, for a host of an earlier version; never of a
   host that was seen to sign. IGNORE refuses it.
5. Without a key nothing can be signed or refused: all is as under TRUST.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

from broker.config.cluster_key import ClusterKey
from broker.whiteboard.slot import SlotReport, signed_part

#: The lines of a slot that it is signed with, beside the MAC.
COUNTER_LINE = "count"


class Unsigned(StrEnum):
    """What becomes of what is not signed; values of `storage.unsigned`."""

    IGNORE = "ignore"
    SHOW = "show"
    TRUST = "trust"


class Signature(StrEnum):
    """What is found of a signature. The values are stable: they go into JSON.

    OTHER_KEY: good, by the key that is accepted besides the one that signs here."""

    GOOD = "good"
    OTHER_KEY = "accepted-key"
    NONE = "unsigned"
    WRONG = "wrong-mac"
    REPLAYED = "replayed"


GOOD = frozenset({Signature.GOOD, Signature.OTHER_KEY})

#: What kind of record it is.
SLOT = "ha-agent slot 1"
CLUSTER = "ha-agent cluster slot 1"
FENCE = "ha-agent fence record 1"
RAN = "ha-agent what ran 1"


class Signatures:
    """Signs for one host, and remembers the newest slot of each other one. `wanted`: what the
    configuration says of what is not signed.

    `boot_heard(host)`: the boot that the host itself named over the network, signed; "" where it
    did not.
    """

    def __init__(self, key: ClusterKey | None = None, unsigned: Unsigned = Unsigned.SHOW) -> None:
        self.key = key
        self.wanted = unsigned
        self.boot_heard: Callable[[int], str] = lambda host: ""
        #: Counter, boot and MAC.
        self._newest: dict[int, tuple[int, str, str]] = {}
        #: The boot of a host whose counter went back, which was let in by its word: what its
        #: earlier boots wrote has higher ones.
        self._let_in: dict[int, str] = {}

    @property
    def unsigned(self) -> Unsigned:
        """What becomes of what is not signed."""
        return Unsigned.TRUST if self.key is None else self.wanted

    def sign(self, kind: str, place: int, data: bytes) -> str:
        """The MAC of a record; "" without a key."""
        return "" if self.key is None else self.key.sign(_text(kind, place, data))

    def look(self, kind: str, place: int, part: tuple[bytes, str] | None) -> Signature:
        """The signature of a record. `part`: what is signed and the MAC, None: there is none."""
        if self.key is None or part is None:
            return Signature.NONE
        text = _text(kind, place, part[0])
        if self.key.is_written(text, part[1]):
            return Signature.GOOD
        return Signature.OTHER_KEY if self.key.accepts(text, part[1]) else Signature.WRONG

    def signs(self, host_id: int) -> bool:
        """Whether a good signature of that host was seen."""
        return host_id in self._newest

    def look_at_slot(self, report: SlotReport, data: bytes) -> Signature:
        """The signature of a host's slot that can be read, `data`; remembers the newest."""
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
