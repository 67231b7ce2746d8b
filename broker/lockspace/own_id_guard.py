# SPDX-License-Identifier: LGPL-2.1-or-later
"""Decides when this host joins the lockspace, stays out of it, and gives its id back.

Two hosts under one id would both get the VM's lease. So this host stays out while another one may
still free its id (own_id.py has the rules), and ends itself where another host writes its slot.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from broker.config.in_force import InForce
from broker.lockspace.own_id import OwnId
from broker.lockspace.port import Lockspace, LockspaceError
from broker.whiteboard import lines as slot_lines
from broker.whiteboard.board import Board
from broker.whiteboard.lines import Freeing
from broker.whiteboard.slot import SlotReport

log = logging.getLogger("ha-broker")

#: After this many changes of this host's slot by another writer, that writer has the same host id.
FOREIGN_WRITES_MAX = 2
#: Why the lockspace is not joined at first.
LOG_NOT_READ = "the fence log, where a freeing of this host's id would stand, was not read yet"


class OwnIdGuard:
    """`freed_by`: the host that may still free this host's id, None: none."""

    def __init__(self, in_force: InForce, board: Board, lockspace: Lockspace, boot_id: str) -> None:
        self._in_force, self._board, self._lockspace = in_force, board, lockspace
        self._boot_id = boot_id
        self._own_id = OwnId(in_force.io_timeout_s)
        self.freed_by: Freeing | None = None
        #: Whether the last good read of the fence log was complete, and began when this host was
        #: in the lockspace.
        self._log_read_joined = False
        self._gives_back = False
        self._foreign_writes = 0
        lockspace.hold = LOG_NOT_READ

    def look(self, reports: Mapping[int, SlotReport], joined: bool | None, now_s: float) -> bool:
        """Decide after a read of the whiteboard: stay out of the lockspace while another host may
        still free this host's id. `joined`: at the begin of that read. Returns whether it
        changed."""
        board, lockspace = self._board, self._lockspace
        if joined is not True:
            self._log_read_joined = False
        if board.last_read_s != now_s or not board.fence_log.known:
            return False
        self._log_read_joined = self._log_read_joined or (joined is True and not board.log_grew)
        acts = slot_lines.freeings_of(
            self._in_force.host_id, board.fence_log.under_way, reports.values()
        )
        boots = {
            host: report.extra.get("boot-id", "")
            for host, report in reports.items()
            if report.extra_trusted
        }
        owner, was = lockspace.fence_owner, self.freed_by
        self.freed_by = act = self._own_id.look(acts, owner, lockspace.renewals, boots, now_s)
        lockspace.hold = "" if act is None else f"{act.by_name} may still free this host's id"
        # Acts that are over for this host too: without an answer they would be under way again.
        lockspace.watch_fence = bool(acts)
        if not acts:
            lockspace.fence_owner = None
        if (act is None) == (was is None):
            return False
        if act is not None:
            log.warning("this host waits outside of the lockspace: %s", lockspace.hold)
        else:
            log.info("nobody frees this host's id any more")
        return True

    def give_back(self, asked_for: bool, is_empty: bool) -> None:
        """`asked_for`: do not join the id anew, and give it back once this host is empty for the
        first time."""
        self._lockspace.no_join = asked_for
        self._gives_back = asked_for and (is_empty or self._gives_back)
        self._lockspace.stay_out = self._gives_back or self.freed_by is not None

    @property
    def is_out(self) -> bool:
        """Whether this host is out of the lockspace on purpose."""
        return self._lockspace.no_join or self.freed_by is not None

    @property
    def is_joined(self) -> bool | None:
        """Whether this host is in the lockspace for good: no host began to free its id before it
        had joined. None: unknown yet."""
        if self.freed_by is not None:
            return False
        joined = self._lockspace.joined
        return None if joined and not self._log_read_joined else joined

    def check_slot(self, before: SlotReport | None, after: SlotReport | None) -> None:
        """Raise LockspaceError where another host writes the slot that this host does not write
        yet.

        sanlock comes to the same result, but watches the id for minutes before.
        One change may be a late write or a stale read; and the earlier broker of this boot of
        this machine is no other host.
        """
        if before is None or after is None or after.timestamp <= before.timestamp:
            return
        ours = {"boot-id": self._boot_id, "system-uuid": self._in_force.system_uuid}
        if after.extra_trusted and all(after.extra.get(key, "") == ours[key] for key in ours):
            return
        self._foreign_writes += 1
        if self._foreign_writes >= FOREIGN_WRITES_MAX:
            raise LockspaceError(
                f"host id {self._in_force.host_id} is in use by {after.hostname}, which writes its "
                f"slot on {self._in_force.config.storage.whiteboard}; give this host its own "
                "host.id"
            )
