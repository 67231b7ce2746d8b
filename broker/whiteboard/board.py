# SPDX-License-Identifier: LGPL-2.1-or-later
"""The whiteboard as this host uses it: it publishes, reads, remembers, and never gives up.

Rules of this file:

1. A bad slot costs that slot: its last good report stays, with a timestamp that stands
   still, so that its host falls silent by itself if it does not write a good one again.
2. An unreadable cluster slot keeps its last good value and says so.
3. A slot without the signature that it should have is such a bad slot too
   (broker/whiteboard/signatures.py). An unsigned cluster slot counts only while a host of an
   earlier version may have written it.
4. A read or write that fails or is late resets `storage_good_since_s`, is reported, and is
   tried again at the next beat. It ends nothing.
5. A read may show an older slot of the same boot of a host, without a signature that proves it
   replayed: then the storage was set back (a snapshot was restored), or the read was stale. What
   it says about the VM may be out of date, so it resets `storage_good_since_s` as well: hosts
   that live write again before that time is over.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping

from broker.daemon.histogram import Histogram
from broker.whiteboard.cluster_slot import ClusterMode
from broker.whiteboard.errors import BadSlot, SlotFault
from broker.whiteboard.extra import signed_part
from broker.whiteboard.fence_log import AHEAD, FenceLog, LogRecord, encode, slot_of
from broker.whiteboard.layout import WHAT_RAN_SLOTS
from broker.whiteboard.mode import Mode
from broker.whiteboard.plan import SlotPlan
from broker.whiteboard.ran_places import RanPlaces
from broker.whiteboard.ran_places import encode as encode_what_ran
from broker.whiteboard.signatures import (
    FAULTS,
    GOOD,
    SENTENCES,
    SLOT,
    Signature,
    Signatures,
    Unsigned,
)
from broker.whiteboard.slot import (
    EMPTY_SLOT,
    SlotReport,
    decode_slot,
    decode_sweep,
    encode_slot,
)
from broker.whiteboard.store import SlotStore, StorageTrouble
from broker.whiteboard.what_ran import OnDisk
from broker.wire.limits import HOST_ID_MAX
from broker.wire.what_ran import WhatRan

log = logging.getLogger("ha-broker")

#: Older slots reset `storage_good_since_s` at most so often: one host that writes in disorder must
#: not keep all others from starting the VM.
SET_BACK_AGAIN_S = 60.0
#: For so long after older slots were read the place of the VM counts as unknown.
SET_BACK_SETTLES_S = 5.0
#: That the whiteboard is well again is said after so long without a failure: trouble that comes
#: and goes fills no journal.
WELL_AGAIN_S = 5.0
#: A record of the fence log that misses its deadline is looked for so often, 2 s in all;
#: the agent waits a little longer for the answer (link.LINK_TIMEOUT_S).
LATE_RECORD_LOOKS = 20
#: At most so many slots are looked at that no host writes, under ids that no host has joined.
STILL_MAX = 128
LATE_RECORD_LOOK_S = 0.1


def _goes_back(before: SlotReport | None, after: SlotReport) -> bool:
    """Whether the later slot is an older one of the same boot: its timestamp only ever grows."""
    if before is None or not (before.extra_trusted and after.extra_trusted):
        return False
    boot_id = after.extra.get("boot-id", "")
    is_same_boot = boot_id != "" and before.extra.get("boot-id") == boot_id
    return is_same_boot and after.timestamp < before.timestamp


class Board:
    """What this host knows from the whiteboard, brought up to date by `beat`.

    `reports`: the last good report of every other host. `own`: this host's slot as read.
    `bad`: slot -> why it cannot be read now. Times are of the monotonic clock that is passed in.
    """

    def __init__(
        self,
        store: SlotStore,
        host_id: int,
        wall: Callable[[], float] = time.time,
        signatures: Signatures | None = None,
    ) -> None:
        """`wall`: UTC seconds since 1970. `signatures`: None: nothing is signed."""
        self._store = store
        self._wall = wall
        self.signatures = signatures or Signatures()
        self.fence_log = FenceLog(self.signatures)
        #: The state of the signature of each of `reports`.
        self.signed: dict[int, Signature] = {}
        #: Whether a host of an earlier version, which signs nothing, is a member.
        self.has_earlier: Callable[[], bool] = lambda: False
        #: Called with each record that any host adds to the fence log.
        self.on_fence_record: Callable[[LogRecord], None] = lambda record: None
        self.host_id = host_id
        self._plan = SlotPlan({host_id})
        self._ran = RanPlaces(self.signatures, lambda: self.has_earlier())
        self._cluster = ClusterMode(store, host_id, self.signatures, lambda: self.has_earlier())
        self.reports: dict[int, SlotReport] = {}
        self.own: SlotReport | None = None
        self.bad: dict[int, BadSlot] = {}
        self._raw: dict[int, bytes] = {}
        #: Slots in which a write was seen.
        self._written: set[int] = set()
        self._has_set_aside = False
        #: Host ids under which some host has joined the lockspace, alive or dead.
        self.in_use: frozenset[int] = frozenset()
        #: The hosts whose slots are of a newer version, and when each of them last changed.
        self.newer_versions: dict[int, float] = {}
        self.storage_good_since_s: float | None = None
        self.sweep = 0
        self._appending = self._may_land = False
        #: Whether the last read brought records of the fence log: there may be more.
        self.log_grew = False
        #: When a read last showed older slots than the read before it.
        self._set_back_s: float | None = None
        self.last_read_s: float | None = None
        self.last_write_s: float | None = None
        #: The timestamp of the last slot of this host that the storage acknowledged; 0: none yet.
        self.written = 0
        self.read_problem = ""
        self.write_problem = ""
        self.read_times, self.write_times = Histogram(), Histogram()
        self.errors = 0
        self.trouble_since_s: float | None = None
        self.is_hung = False
        #: When the trouble in the journal began, None: there is none, and when it was last there.
        self._journaled_s: float | None = None
        self._ill_s = 0.0

    def journal(self, now_s: float) -> None:
        """Write to the journal once that the whiteboard fails, and once that it does no more."""
        if self.problem:
            self._ill_s = now_s
            if self._journaled_s is None:
                self._journaled_s = now_s
                log.error("the whiteboard fails on this host: %s", self.problem)
        elif self._journaled_s is not None and now_s - self._ill_s >= WELL_AGAIN_S:
            log.warning(
                "the whiteboard is read and written again; its trouble lasted for %.0f s",
                self._ill_s - self._journaled_s,
            )
            self._journaled_s = None

    def _failed(self, error: StorageTrouble, began_s: float) -> None:
        """Count the failure; the trouble began with the first call that failed."""
        self.errors += 1
        self.is_hung = error.hung
        if self.trouble_since_s is None:
            self.trouble_since_s = began_s

    @property
    def log_is_written(self) -> bool:
        """Whether a record of the fence log is being written, or one that was given up may land."""
        return self._appending or self._may_land

    @property
    def problem(self) -> str:
        """What is wrong with the storage now; empty when nothing is."""
        return self.write_problem or self.read_problem

    @property
    def state(self) -> str:
        """ok, error or hung."""
        return "ok" if not self.problem else "hung" if self.is_hung else "error"

    @property
    def all_read(self) -> bool:
        """Whether every slot was read at least once."""
        return self._plan.all_read

    async def read_own(self) -> SlotReport | None:
        """This host's slot as it was left, None when it is empty or not readable as ours."""
        data = (await self._store.read([self.host_id])).get(self.host_id, EMPTY_SLOT)
        try:
            own = decode_slot(self.host_id, data)
        except BadSlot:
            return None
        part = signed_part(data)
        self._cluster.was_earlier = own is not None and part is None
        return own

    async def read_slot(self, host_id: int) -> bytes:
        """A host's slot at this moment, unchecked; StorageTrouble."""
        return (await self._store.read([host_id])).get(host_id, EMPTY_SLOT)

    async def write(self, report: SlotReport, now_s: float) -> None:
        """Publish this host's report; a failure is kept in `problem`, not raised."""
        clock = asyncio.get_running_loop().time
        began_s = clock()
        try:
            await self._store.write(self.host_id, encode_slot(report, self._sign_slot))
        except StorageTrouble as error:
            self.write_problem = str(error)
            self._failed(error, began_s)
        else:
            self.write_problem = ""
            self.last_write_s, self.written = now_s, report.timestamp
            self.write_times.add(clock() - began_s)

    async def read(self, now_s: float, second_look: bool = False) -> None:
        """Read the slots of this beat; a failure is kept in `problem`, not raised.

        `second_look`: within the same beat; new hosts are not looked for.
        """
        wanted = self._plan.in_use() if second_look else self._plan.next_beat()
        wanted += [*self.fence_log.slots_to_read(), *WHAT_RAN_SLOTS]
        clock = asyncio.get_running_loop().time
        began_s = clock()
        self._may_land = self._may_land and not self._store.at_rest()
        try:
            slots = await self._store.read(wanted)
        except StorageTrouble as error:
            self.read_problem = str(error)
            self.storage_good_since_s = None
            self._failed(error, began_s)
            return
        self.read_times.add(clock() - began_s)
        if not self.write_problem:
            self.trouble_since_s, self.is_hung = None, False
        self._learn_log(slots, now_s)
        self._ran.learn(slots)
        older = self._learn(
            {slot: data for slot, data in slots.items() if slot <= HOST_ID_MAX}, now_s
        )
        self.sweep += 1
        if 0 not in slots:
            self.read_problem = "the whiteboard is empty or was cut off: slot 0 is not there"
            self.storage_good_since_s = None
            return
        self.last_read_s = now_s
        self._plan.windows_read += not second_look
        self.read_problem = ""
        if self.storage_good_since_s is None:
            self.storage_good_since_s = now_s
        if older:
            self._was_set_back(older, now_s)

    def _was_set_back(self, hosts: list[int], now_s: float) -> None:
        if self._set_back_s is not None and now_s - self._set_back_s < SET_BACK_AGAIN_S:
            return
        log.warning(
            "the whiteboard shows older slots of host(s) %s than before: it was set back (was a "
            "snapshot of the storage restored?), or a read was stale; nothing is started until "
            "they write again",
            ", ".join(map(str, hosts)),
        )
        self._set_back_s = self.storage_good_since_s = now_s

    def set_back_unfit(self, now_s: float) -> str:
        """Why the slots must not be believed yet about the VM; empty: they may."""
        if self._set_back_s is None or now_s - self._set_back_s >= SET_BACK_SETTLES_S:
            return ""
        return "the whiteboard shows older slots than before, the hosts have yet to write again"

    @property
    def global_maintenance(self) -> bool | None:
        """Whether global maintenance is set; None until slot 0 was readable once."""
        return self._cluster.maintenance

    @property
    def global_mode(self) -> Mode | None:
        """The details of the global maintenance while it is set."""
        return self._cluster.mode

    @property
    def mode_began_after_s(self) -> float | None:
        """`global_mode` was set after this moment; None: when is not known."""
        return self._cluster.began_after_s

    async def set_global_maintenance(self, mode: Mode | None) -> None:
        """Write slot 0, None: no maintenance; StorageTrouble when that fails."""
        await self._cluster.set(mode)

    async def end_global_maintenance(self, mode: Mode) -> bool:
        """End the given mode; False where another one, or none, is set by now. StorageTrouble."""
        return await self._cluster.end(mode)

    async def put_cluster_right(self, now_s: float) -> None:
        """Write slot 0 again where its content has been wrong for long enough."""
        await self._cluster.put_right(now_s)

    def _sign_slot(self, data: bytes) -> str:
        return self.signatures.sign(SLOT, self.host_id, data)

    def _learn_log(self, slots: Mapping[int, bytes], now_s: float) -> None:
        new = self.fence_log.learn(slots, now_s, self._wall())
        self.log_grew = bool(new)
        for record in new:
            self.on_fence_record(record)

    async def append_to_log(self, make: Callable[[int], LogRecord], now_s: float) -> LogRecord:
        """Add a record to the fence log; `make`: the record of a number.

        Only the holder of the fence lease may call it. StorageTrouble where the record cannot be
        read back; while `log_is_written` it may still land, and the fence lease must be kept.
        """
        self._appending = True
        try:
            return await self._append(make, now_s)
        except StorageTrouble:
            for _ in range(LATE_RECORD_LOOKS):
                if self._store.at_rest():
                    break
                await asyncio.sleep(LATE_RECORD_LOOK_S)
            self._may_land = not self._store.at_rest()
            raise
        finally:
            self._appending = False

    async def _append(self, make: Callable[[int], LogRecord], now_s: float) -> LogRecord:
        ahead = self.fence_log.slots_to_read(AHEAD)
        self._learn_log(await self._store.read(ahead), now_s)
        record = make(self.fence_log.next_number)
        slot, data = slot_of(record.number), encode(record, self.signatures)
        await self._store.write(slot, data)
        slots = await self._store.read([slot])
        if slots.get(slot) != data:
            raise StorageTrouble("the fence log does not show what was written to it")
        self._learn_log(slots, now_s)
        return record

    @property
    def what_ran(self) -> OnDisk | None:
        """The record of what ran last; None before the first read."""
        return self._ran.on_disk

    async def write_what_ran(self, record: WhatRan) -> None:
        """Write the record to both places, one after the other, and read each back; StorageTrouble
        where it cannot be read back."""
        data = encode_what_ran(record, self.signatures)
        if data is None:
            raise StorageTrouble(
                "the record of what ran last has no room for what was to be written"
            )
        for slot in WHAT_RAN_SLOTS:
            await self._store.write(slot, data)
            if (await self._store.read([slot])).get(slot) != data:
                raise StorageTrouble("the record of what ran last does not show what was written")
        self._ran.learn(dict.fromkeys(WHAT_RAN_SLOTS, data))

    def _learn(self, slots: Mapping[int, bytes], now_s: float) -> list[int]:
        """Remember the slots of a read; returns the hosts whose slot is older than before."""
        # Most slots are the same as half a beat ago: only changed ones are decoded.
        changed = {slot: data for slot, data in slots.items() if self._raw.get(slot) != data}
        self._written |= {slot for slot in changed if self._raw.get(slot, EMPTY_SLOT) != EMPTY_SLOT}
        for slot, data in changed.items():
            self._raw[slot] = EMPTY_SLOT if data == EMPTY_SLOT else data
        self._plan.learn(changed)
        sweep = decode_sweep(changed)
        older = []
        for slot in changed:
            self.bad.pop(slot, None)
            if slot not in sweep.reports and slot not in sweep.bad:
                self.reports.pop(slot, None)
                self.signed.pop(slot, None)
        self.bad.update(sweep.bad)
        for slot, report in sweep.reports.items():
            before = self.own if slot == self.host_id else self.reports.get(slot)
            self._learn_report(report, changed[slot])
            # A replayed slot was refused above, so what counts here is not older.
            if self.reports.get(slot) is report and _goes_back(before, report):
                older.append(slot)
        if self.host_id in changed:
            self.own = self.reports.pop(self.host_id, None)
        self._set_aside()
        self.newer_versions = {
            host: now_s if host in changed else self.newer_versions[host]
            for host, bad in sorted(self.bad.items())
            if bad.fault is SlotFault.NEWER_VERSION and host != self.host_id
        }
        bad, again = self._cluster.learn(
            sweep.cluster or sweep.cluster_fault, changed.get(0), now_s
        )
        if bad is not None:
            self.bad[0] = bad
        if again:
            del self._raw[0]
        return older

    def _set_aside(self) -> None:
        """Limit the slots that no host writes, under ids that no host has joined, to the lowest
        STILL_MAX: a program that once wrote into all two thousand must not cost each host time at
        each beat. A slot that changes is found by the window, and counts from then on."""
        still = [
            slot
            for slot in (*self.reports, *self.bad)
            if slot not in self._written
            and slot not in self.in_use
            and slot not in (0, self.host_id)
            and self.signed.get(slot) not in GOOD
        ]
        aside = sorted(still)[STILL_MAX:]
        for slot in aside:
            self.bad.pop(slot, None)
            self.reports.pop(slot, None)
            self.signed.pop(slot, None)
        self._plan.known.difference_update(aside)
        if aside and not self._has_set_aside:
            log.warning(
                "more than %d slots are written by nobody, under ids that nobody has joined: the"
                " others of them are not looked at (who wrote to this volume?)",
                STILL_MAX,
            )
        self._has_set_aside = self._has_set_aside or bool(aside)

    def _learn_report(self, report: SlotReport, data: bytes) -> None:
        """Take the report of a readable slot, unless its signature forbids it: then the last good
        report stays."""
        host, signatures = report.host_id, self.signatures
        found = signatures.look_at_slot(report, data)
        is_taken = found in GOOD or signatures.unsigned is Unsigned.TRUST
        if found is Signature.NONE and signatures.unsigned is Unsigned.SHOW:
            is_taken = not signatures.signs(host)
        if is_taken:
            self.reports[host], self.signed[host] = report, found
        else:
            self.bad[host] = BadSlot(host, FAULTS[found], SENTENCES[found])
