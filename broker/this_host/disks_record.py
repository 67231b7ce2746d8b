# SPDX-License-Identifier: LGPL-2.1-or-later
"""Keeps the record of what ran last for this host: written while it runs the VM, read before it
starts the VM, changed by a person's decision (`ha-agent vm adopt`, `vm keep`)."""

from __future__ import annotations

import logging
from collections.abc import Callable

import msgspec

from broker.daemon.errors import HaError
from broker.vm.domain_facts import Domain
from broker.vm.in_use import InUse
from broker.whiteboard import what_ran
from broker.whiteboard.board import Board
from broker.whiteboard.ran_places import fits
from broker.whiteboard.store import StorageTrouble
from broker.whiteboard.what_ran import OnDisk
from broker.wire.what_ran import WhatRan

log = logging.getLogger("ha-broker.what-ran")


class CannotDecide(HaError):
    """A decision is not possible now: the message says why, and what to do."""


class DisksRecord:
    """`in_use`: the monitor's last value, None: unknown. `problem`: why what runs here is not
    recorded, "": it is."""

    def __init__(
        self, board: Board, host_id: int, host_name: str, wall: Callable[[], float]
    ) -> None:
        self._board = board
        self._host_id = host_id
        self._host_name = host_name
        self._wall = wall
        self.in_use: Callable[[], InUse | None] = lambda: None
        self.problem = ""

    @property
    def on_disk(self) -> OnDisk | None:
        """The record as it was read last; None before the first read."""
        return self._board.what_ran

    @property
    def ran(self) -> dict[str, str]:
        """The disks that ran last in place of the definition's, by target."""
        record = None if self.on_disk is None else self.on_disk.record
        return {} if record is None else record.disks

    @property
    def held(self) -> str:
        """Why only the host that ran the VM last may start it; "": others may."""
        record = None if self.on_disk is None else self.on_disk.record
        return "" if record is None else record.held

    @property
    def held_back(self) -> str:
        """Why a start here would not boot what ran last, with what to do; "": it would."""
        return (
            ""
            if self.on_disk is None
            else what_ran.held_back(self.on_disk, self._recorded, self._host_id)
        )

    @property
    def _recorded(self) -> Domain | None:
        in_use = self.in_use()
        return None if in_use is None else in_use.recorded

    async def look(self, owns: bool, last_ran: int) -> None:
        """Write a record where what runs here is not recorded. `owns`: the VM is up here and
        holds its lease; `last_ran`: this host's count."""
        running, on_disk = self._running(), self.on_disk
        if not owns or running is None or on_disk is None:
            self.problem = ""
            return
        is_nothing = on_disk.record is None and not on_disk.problem and on_disk.is_whole
        if is_nothing and what_ran.says_the_same(what_ran.EMPTY, running):
            self.problem = ""
            return
        if (
            on_disk.record is not None
            and not on_disk.problem
            and on_disk.is_whole
            and what_ran.says_the_same(on_disk.record, running)
            and on_disk.record.last_ran >= last_ran
        ):
            self.problem = ""
            return
        try:
            written = await self._write(on_disk, running, last_ran)
        except StorageTrouble as error:
            if not self.problem:
                log.error("what runs here could not be recorded: %s", error)
            self.problem = f"what runs here could not be recorded: {error}"
            return
        self.problem = ""
        what = ", ".join(written.disks) or "as the definition says"
        log.warning("recorded for all hosts what runs here (%d): %s", written.generation, what)

    async def decide(self, adopt: bool, who: str, up_on: str | None, last_ran: int) -> WhatRan:
        """Decide that what runs, or ran last, is right (`adopt`), or the definition. `who`:
        decides; `up_on`: the other host that has the VM up. CannotDecide, StorageTrouble."""
        on_disk = self.on_disk
        if on_disk is None:
            raise CannotDecide("the whiteboard was not read yet: what ran last is not known")
        if up_on is not None:
            raise CannotDecide(f"the VM runs on {up_on}: type it there")
        in_use = self.in_use()
        if in_use is None:
            raise CannotDecide("the VM's definition here, or libvirt, cannot be read now")
        running = self._running()
        before = on_disk if running is None else msgspec.structs.replace(on_disk, record=running)
        if adopt:
            record = what_ran.adopted(before, who)
        else:
            record = what_ran.kept(before, in_use.running, who)
        if not self._fits(record):
            raise CannotDecide(
                "the record has no room for so many disks: put them into the definition"
            )
        return await self._write(on_disk, record, last_ran)

    def _running(self) -> WhatRan | None:
        """A record of what runs here; None where nothing does, or that is unknown."""
        in_use, on_disk = self.in_use(), self.on_disk
        if in_use is None or on_disk is None or in_use.running is None or in_use.root is None:
            return None
        running = what_ran.of_running(
            in_use.recorded,
            in_use.running,
            in_use.root,
            in_use.shared.__contains__,
            on_disk.record,
            self._host_id,
            self._host_name,
        )
        if self._fits(running):
            return running
        held = (
            f"what ran last on {self._host_name} has more disks of its own than the record has room"
            f" for: start the VM there, or put them into the definition and type {what_ran.KEEP}"
        )
        return msgspec.structs.replace(
            running, disks={}, instead_of={}, held=held, only=self._host_id
        )

    def _fits(self, record: WhatRan) -> bool:
        return fits(self._stamped(record), self._board.signatures)

    def _stamped(self, record: WhatRan) -> WhatRan:
        return msgspec.structs.replace(
            record, by=self._host_id, by_name=self._host_name, at=float(int(self._wall()))
        )

    async def _write(self, on_disk: OnDisk, record: WhatRan, last_ran: int) -> WhatRan:
        stamped = self._stamped(on_disk.next(record, last_ran))
        await self._board.write_what_ran(stamped)
        return stamped
