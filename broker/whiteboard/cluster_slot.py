# SPDX-License-Identifier: LGPL-2.1-or-later
"""Slot 0, the cluster's own slot: whether global maintenance is set, as this host knows it.

Every host may write slot 0, and global maintenance forbids every start. So neither a read that is
stale, nor a write that lands late, nor a slot that no member has signed may set or end it; and
while the mode is not known, no host may assume that there is none.

Rules of this file:

1. Each write has a serial that is higher than every one seen before. A lower one is believed only
   after OLD_SERIAL_S, when it must be another volume; a signed one never, since no member writes a
   lower one.
2. An older content that stays for PUT_RIGHT_S is overwritten with the newest. All hosts write the
   same bytes.
3. Where the cluster has a key, an unsigned slot counts only while a host of an earlier version may
   have written it. After PUT_RIGHT_S it is signed, or written again as it was.
4. An emptied slot does not end a maintenance: to end one, a host writes a 0.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping

from broker.whiteboard.errors import BadSlot, SlotFault
from broker.whiteboard.extra import signed_part_of_cluster
from broker.whiteboard.mode import Mode, count, from_lines, to_lines
from broker.whiteboard.signatures import (
    CLUSTER,
    GOOD,
    NOT_SIGNED,
    Signature,
    Signatures,
    Unsigned,
)
from broker.whiteboard.slot import EMPTY_SLOT, ClusterSlot, decode_cluster, encode_cluster
from broker.whiteboard.store import SlotStore, StorageTrouble

log = logging.getLogger("ha-broker")

#: An older serial that is still there after this time is not a stale read.
OLD_SERIAL_S = 60.0
#: How long slot 0 must have had the wrong content before it is corrected; a stale read would have
#: ended by then.
PUT_RIGHT_S = 5.0


class ClusterMode:
    """What this host knows from slot 0. `maintenance`: None until the slot was readable once.
    `mode`: the details of the maintenance while it is set. `began_after_s`: it was set after this
    moment, when slot 0 was read without it; None: when is not known. `has_earlier`: whether a host
    of an earlier version, which signs nothing, is a member. `was_earlier`: one ran on this host
    until now. Times are of the monotonic clock that is passed in."""

    def __init__(
        self,
        store: SlotStore,
        host_id: int,
        signatures: Signatures,
        has_earlier: Callable[[], bool],
    ) -> None:
        self._store, self._host_id = store, host_id
        self._signatures, self._has_earlier = signatures, has_earlier
        self.was_earlier = False
        self.maintenance: bool | None = None
        self.mode: Mode | None = None
        self.began_after_s: float | None = None
        self._read_s: float | None = None
        self._serial = 0
        #: Slot 0 as it was at the highest serial, and since when an older one is there.
        self._data = EMPTY_SLOT
        self._old_since_s: float | None = None
        #: Whether a good signature of slot 0 was seen, and since when slot 0 is without one.
        self._was_signed = False
        self._unsigned_since_s: float | None = None

    async def set(self, mode: Mode | None) -> None:
        """Write slot 0, None: no maintenance; StorageTrouble when that fails."""
        await self._read()
        serial = self._serial + 1
        lines = {"serial": str(serial)} | ({} if mode is None else to_lines(mode))
        data = self._encoded(mode is not None, lines)
        await self._store.write(0, data)
        self._serial, self._data = serial, data
        self._was_signed = self._signatures.key is not None
        self.maintenance, self.mode = mode is not None, mode
        self.began_after_s = None

    async def end(self, mode: Mode) -> bool:
        """End the given mode; False where another one, or none, is set by now.

        StorageTrouble where the slot cannot be read or written.
        """
        slot = await self._read()
        if isinstance(slot, BadSlot):
            raise StorageTrouble(str(slot))
        if not slot.maintenance or from_lines(slot.extra) != mode:
            return False
        await self.set(None)
        return True

    async def put_right(self, now_s: float) -> None:
        """Write slot 0 again where its content has been wrong for PUT_RIGHT_S (rules 2 and 3);
        after StorageTrouble the next beat tries again."""
        if self._unsigned_since_s is not None and now_s - self._unsigned_since_s >= PUT_RIGHT_S:
            with contextlib.suppress(StorageTrouble):
                await self._sign()
        if self._old_since_s is None or now_s - self._old_since_s < PUT_RIGHT_S:
            return
        with contextlib.suppress(StorageTrouble):
            slot = await self._read()
            if isinstance(slot, BadSlot) or not self._is_older(slot):
                return
            log.warning("slot 0 is older than what was set (a late write?): writing it again")
            await self._store.write(0, self._data)

    async def _sign(self) -> None:
        """Sign slot 0 where it has no good signature: as it is, if it counts (a host of an earlier
        version wrote it), else as it was before."""
        data = (await self._store.read([0])).get(0, EMPTY_SLOT)
        with contextlib.suppress(BadSlot):
            slot = decode_cluster(data)
            if self._look(data) in GOOD:
                return
            if not self._counts(data):
                if self.maintenance is None:
                    return  # this host does not know the earlier content
                log.warning("slot 0 is not signed by this cluster: writing it again as it was")
                await self._store.write(0, self._data)
            elif data != EMPTY_SLOT:
                serial = count(slot.extra.get("serial", "")) or 0
                self._serial = max(self._serial, serial, 1)
                lines = {"serial": str(self._serial)}
                lines |= to_lines(from_lines(slot.extra)) if slot.maintenance else {}
                await self._store.write(0, self._encoded(slot.maintenance, lines))

    def learn(
        self, slot: ClusterSlot | BadSlot | None, data: bytes | None, now_s: float
    ) -> tuple[BadSlot | None, bool]:
        """Take in a read of slot 0: why it cannot be believed (None: it can, or has not changed),
        and whether the same bytes must be judged again after the next read.

        `slot`: the decoded slot, its fault, or None: it has not changed or is empty. `data`: its
        bytes; None: it has not changed.
        """
        serial, read_s, self._read_s = self._serial, self._read_s, now_s
        if isinstance(slot, ClusterSlot):
            assert data is not None
            if not self._is_valid(data, now_s):
                return BadSlot(0, SlotFault.UNSIGNED, NOT_SIGNED), True
        elif slot is not None:
            return slot, False
        if self.maintenance and data == EMPTY_SLOT:
            why = "was emptied while global maintenance was set"
            return BadSlot(0, SlotFault.MAINTENANCE_MISSING, why), False
        if not isinstance(slot, ClusterSlot):
            return None, False
        if self._may_be_old(slot, now_s):
            return None, True
        assert data is not None
        self._data, self.maintenance = data, slot.maintenance
        mode = from_lines(slot.extra) if slot.maintenance else None
        if mode != self.mode:
            self.mode, self.began_after_s = mode, read_s if self._serial > serial else None
        return None, False

    def _encoded(self, maintenance: bool, lines: Mapping[str, str]) -> bytes:
        by = {"by": str(self._host_id)}
        return encode_cluster(
            maintenance, {**lines, **by}, lambda data: self._signatures.sign(CLUSTER, 0, data)
        )

    def _look(self, data: bytes) -> Signature:
        return self._signatures.look(CLUSTER, 0, signed_part_of_cluster(data))

    def _counts(self, data: bytes) -> bool:
        """Whether slot 0 is valid: it is signed, or a host of an earlier version may have written
        it, or it was never set."""
        found = self._look(data)
        if found in GOOD or self._signatures.unsigned is Unsigned.TRUST:
            return True
        if data == EMPTY_SLOT and not self._was_signed:
            return True
        if found is not Signature.NONE or self._signatures.unsigned is Unsigned.IGNORE:
            return False
        return self._has_earlier() or (self.was_earlier and not self._was_signed)

    async def _read(self) -> ClusterSlot | BadSlot:
        """Slot 0 at this moment; this host never uses a serial again that it has seen."""
        data = (await self._store.read([0])).get(0, EMPTY_SLOT)
        try:
            slot = decode_cluster(data)
        except BadSlot as error:
            return error
        if not self._counts(data):
            return BadSlot(0, SlotFault.UNSIGNED, NOT_SIGNED)
        if (serial := count(slot.extra.get("serial", "")) or 0) > self._serial:
            self._serial, self._data = serial, data
        return slot

    def _is_older(self, slot: ClusterSlot) -> bool:
        serial = count(slot.extra.get("serial", ""))
        return serial is not None and serial < self._serial

    def _is_valid(self, data: bytes, now_s: float) -> bool:
        """Whether slot 0 is valid by its signature. Remembers since when it has none (rule 3)."""
        is_signed = self._look(data) in GOOD
        self._was_signed = self._was_signed or is_signed
        never_set = data == EMPTY_SLOT and not self._was_signed
        if is_signed or never_set or self._signatures.unsigned is Unsigned.TRUST:
            self._unsigned_since_s = None
        elif self._unsigned_since_s is None:
            self._unsigned_since_s = now_s
        return self._counts(data)

    def _may_be_old(self, slot: ClusterSlot, now_s: float) -> bool:
        """Whether the slot may be older than what is known, by a stale read or by a late write over
        a newer one (rule 1). One read is not enough to end a maintenance."""
        is_older = self._is_older(slot)
        if not is_older and (not self.maintenance or slot.maintenance):
            self._old_since_s = None
        elif (
            self._old_since_s is None
            or (is_older and self._was_signed)
            or (is_older and now_s - self._old_since_s < OLD_SERIAL_S)
        ):
            if self._old_since_s is None:
                self._old_since_s = now_s
            return True
        else:
            self._old_since_s = None
            self._serial = 0
        self._serial = max(self._serial, count(slot.extra.get("serial", "")) or 0)
        return False
