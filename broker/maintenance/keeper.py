# SPDX-License-Identifier: LGPL-2.1-or-later
"""Sets and ends the maintenance modes, and gives this host's id back with them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from broker.config.in_force import InForce
from broker.daemon.news import News
from broker.lockspace.own_id_guard import OwnIdGuard
from broker.maintenance.host_shutdown import ShuttingDown
from broker.maintenance.modes import Modes
from broker.peers.table import Table
from broker.whiteboard.mode import Mode
from broker.whiteboard.store import StorageTrouble
from broker.wire.status import Maintenance

log = logging.getLogger("ha-broker")


class Announcer(Protocol):
    """Sends notices of it."""

    def maintenance_ends_soon(self, mode: str, left_s: float | None, reason: str) -> None:
        """`mode`: local or global."""

    def maintenance_over(self, mode: str) -> None:
        """The mode has ended by itself."""


class Keeper:
    """`is_drained`: whether this host's agent reported, by then, that it is in local maintenance,
    and no VM is left here."""

    def __init__(
        self,
        in_force: InForce,
        table: Table,
        own_id: OwnIdGuard,
        modes: Modes,
        shutdown: ShuttingDown,
        is_drained: Callable[[float], bool],
        announcer: Announcer,
        news: News,
    ) -> None:
        self._in_force, self._table, self._own_id = in_force, table, own_id
        self._modes, self._shutdown = modes, shutdown
        self._is_drained, self._announcer, self._news = is_drained, announcer, news
        # This comes before the lockspace's first look: a host that has given its id back must not
        # join because its broker is started.
        self.give_back_id()

    async def set(self, kind: str, wanted: Maintenance, owner: str, at: str | None = None) -> None:
        """Set or end a mode. `kind`: global or local; `owner`: who asks; `at`: on which host, None:
        on this one, "": `owner` says it. StorageTrouble or OSError where it cannot be written."""
        at = self._in_force.host_name if at is None else at
        mode = self.mode(wanted, f"{owner}@{at}" if at else owner)
        if kind == "global":
            await self.set_global(mode)
        else:
            self.set_local(mode)

    async def set_global(self, mode: Mode | None) -> None:
        """Set or end the global mode; StorageTrouble where it cannot be written."""
        await self._table.board.set_global_maintenance(mode)
        self._modes.look(mode, asyncio.get_running_loop().time())

    def set_local(self, mode: Mode | None) -> None:
        """Set or end the local mode, kept over restarts; OSError where it cannot be written."""
        self._modes.set_local(mode, asyncio.get_running_loop().time())
        self._news.publish()

    def mode(self, wanted: Maintenance, owner: str) -> Mode | None:
        """The wanted mode, beginning now."""
        if not wanted.on:
            return None
        return self._modes.new(owner, wanted)

    def give_back_id(self, now_s: float = 0.0) -> None:
        """Give the host id back once the agent reports this host as empty. In the middle of a
        migration, even of one to here, no process holds the lease, but the id may be needed again.
        It is not joined anew meanwhile."""
        local = self._modes.in_force
        is_empty = (
            self._is_drained(now_s)
            and self._shutdown.is_published(now_s)
            and not self._table.arriving(now_s)
        )
        self._own_id.give_back(local is not None and local.release_id, is_empty)

    async def end_what_is_over(self, now_s: float) -> None:
        """End modes whose time is over. A mode whose end cannot be written stays set."""
        modes, board = self._modes, self._table.board
        if self._shutdown.lapses(now_s):
            log.warning("this host does not shut down after all")
            modes.set_shutdown(None, now_s)
        modes.look(board.global_mode, now_s, board.mode_began_after_s)
        self.give_back_id(now_s)
        for name, countdown in modes.end_soon(now_s):
            left_s = countdown.left_s(now_s)
            log.warning("%s maintenance ends in %.0f s", name, left_s)
            reason = countdown.mode.reason if countdown.mode is not None else ""
            self._announcer.maintenance_ends_soon(name, left_s, reason)
        try:
            if modes.local_countdown.is_over(now_s):
                self.set_local(None)
                log.warning("local maintenance has ended by itself")
                self._announcer.maintenance_over("local")
            mode = modes.global_countdown.mode
            if (
                mode is not None
                and modes.global_countdown.is_over(now_s)
                and self._table.sees_global_over()
                and await board.end_global_maintenance(mode)
            ):
                modes.look(None, now_s)
                log.warning("global maintenance has ended by itself")
                self._announcer.maintenance_over("global")
        except (StorageTrouble, OSError) as error:
            log.error("maintenance is over and could not be ended: %s", error)
