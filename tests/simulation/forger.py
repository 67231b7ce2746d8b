# SPDX-License-Identifier: LGPL-2.1-or-later
"""Somebody who can write to the whiteboard's volume, and is no member of the cluster.

Rules of this file:

1. What is forged is written again each second, over whatever stands there, and reads as well as a
   host's own: checksums fit, the timestamp grows, all lines are there.
2. It has no cluster key, unless it is said that it has: then it is a member gone mad, or somebody
   who found the key.
3. It writes to the shared volume alone. The lockspace knows nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from broker.config.cluster_key import ClusterKey
from broker.whiteboard.fence_log import RECORDS, LogRecord, decode, encode, slot_of
from broker.whiteboard.layout import FENCE_LOG_FIRST
from broker.whiteboard.signatures import COUNTER_LINE, SLOT, Signatures
from broker.whiteboard.sizes import SLOT_BYTES
from broker.whiteboard.slot import EMPTY_SLOT, SlotReport, encode_cluster, encode_slot
from scoring.observation import FenceStep
from scoring.vm_facts import EngineStatus, Health, VmStatus
from tests.simulation.lockspace import DeltaLease, LeaseVolume
from tests.simulation.timeline import Timeline
from tests.simulation.whiteboard import Whiteboard

EVERY_S = 1.0
#: Records that a forger writes into the fence log: as many as may be fenced in an hour.
INTENTS = 3


@dataclass(frozen=True, slots=True)
class ForgedSlot:
    """What a forged slot says. `lines`: more lines of text, by key. `once`: it is written once."""

    host_id: int
    name: str = ""
    vm: VmStatus = VmStatus.UP
    score: int = 3400
    version: int = 1
    maintenance: bool = False
    lines: dict[str, str] = field(default_factory=dict)
    signed: bool = False
    once: bool = False


class Forger:
    """What is forged at the moment. `wall_s`: UTC seconds since 1970."""

    def __init__(
        self,
        timeline: Timeline,
        board: Whiteboard,
        leases: LeaseVolume,
        key: ClusterKey | None,
        wall_s: Callable[[], float],
    ) -> None:
        self._timeline = timeline
        self._board = board
        self._leases = leases
        self._key = key
        self._wall_s = wall_s
        self._written: dict[int, Callable[[], bytes]] = {}
        self._runs = False
        self._newer: int | None = None

    def slot(self, forged: ForgedSlot) -> None:
        """Write such a slot from now on."""
        self._again(forged.host_id, lambda: self._slot(forged), forged.once)

    def cluster(self, on: bool) -> None:
        """Set global maintenance, or end it, from now on."""
        self._again(0, lambda: encode_cluster(on, {"serial": "900", "owner": "forger"}))

    def replay(self, host_id: int) -> None:
        """Write that slot again and again as it is at this moment."""
        data = self._board.slots.get(host_id, EMPTY_SLOT)
        self._again(host_id, lambda: data)

    def intents(self, target: int, by: int) -> None:
        """Write INTENTS records to the fence log, behind its newest."""
        slots = range(FENCE_LOG_FIRST, FENCE_LOG_FIRST + RECORDS)
        records = (decode(self._board.slots[slot]) for slot in slots if slot in self._board.slots)
        newest = max((one.number for one in records if one is not None), default=0)
        for number in range(newest + 1, newest + 1 + INTENTS):
            name, at_s = f"host{by}", self._wall_s()
            record = LogRecord(
                number, FenceStep.INTENT, by, name, target, f"host{target}", "", at_s, True
            )
            self._board.put(slot_of(number), encode(record))

    def newer_host(self, number: int) -> None:
        """A member of a version whose slots nobody here can read lives from now on."""
        self._newer = number
        self._again(number, lambda: b"2|1|%d|" % self._now())

    def ends(self, number: int | None = None) -> None:
        """Nothing is written any more (there); what stands there is taken away."""
        for slot in [number] if number is not None else list(self._written):
            if self._written.pop(slot, None) is not None and slot != 0:
                self._board.put(slot, EMPTY_SLOT)
        if self._newer not in self._written and self._newer is not None:
            self._leases.deltas[self._newer] = DeltaLease(generation=1, timestamp=0)
            self._newer = None

    def _again(self, slot: int, make: Callable[[], bytes], once: bool = False) -> None:
        self._board.put(slot, make().ljust(SLOT_BYTES, b"\0"))
        if once:
            return
        self._written[slot] = make
        if not self._runs:
            self._runs = True
            self._write()

    def _write(self) -> None:
        for slot, make in self._written.items():
            self._board.put(slot, make().ljust(SLOT_BYTES, b"\0"))
        if self._newer is not None:
            self._leases.deltas[self._newer] = DeltaLease(generation=1, timestamp=self._now())
        self._runs = bool(self._written)
        if self._runs:
            self._timeline.after(EVERY_S, self._write)

    def _now(self) -> int:
        return 1_000_000 + int(self._timeline.now_s)

    def _slot(self, forged: ForgedSlot) -> bytes:
        if forged.version != 1:
            return b"%d|1|%d|" % (forged.version, self._now())
        health = Health.GOOD if forged.vm is VmStatus.UP else Health.BAD
        lines = {
            "state": "EngineUp" if forged.vm is VmStatus.UP else "EngineDown",
            "agent": "ok",
            "boot-id": f"forged-{forged.host_id}",
            "last-ran": "900000",
            "mem-free": "100000",
            COUNTER_LINE: str(int(self._wall_s() * 1000)),
            **forged.lines,
        }
        report = SlotReport(
            host_id=forged.host_id,
            timestamp=self._now(),
            score=forged.score,
            engine_status=EngineStatus(forged.vm, health, forged.vm.value),
            hostname=forged.name or f"host{forged.host_id}",
            maintenance=forged.maintenance,
            extra=lines,
        )
        signatures = Signatures(self._key if forged.signed else None)
        return encode_slot(report, lambda data: signatures.sign(SLOT, forged.host_id, data))
