# SPDX-License-Identifier: LGPL-2.1-or-later
"""Decides when sanlock may take this host's own id back at once. Pure, but for `own_name`.

sanlock takes an id back within 2 * io_timeout where the lease on disk carries its own name, and
watches it for the whole host-dead time where another name stands there (its src/delta_lease.c,
delta_lease_acquire). A name that it makes up itself is new at each start; a fixed one
(our_host_name in sanlock.conf) makes every boot quick. But the new generation of the id frees all
leases of the old one at that moment, and sanlock does not ask whether a process of this host still
uses them. So it is asked for the id at once only where none can.

Rules of this file:

1. After a boot no process of the earlier one lives: sanlock is asked at once.
2. Where this boot was, or may have been, in the lockspace before and the id was not given back,
   sanlock died: a QEMU may go on under the old lease. Then the id must have stood still for the
   host-dead time, as sanlock itself demands under a name that it made up. By then the watchdog has
   reset this host.
   Where the same sanlock that had the id still runs, it gave the id up by itself, which it does
   only once every process with a lease under it has ended (record 76): it is asked at once.
3. So too where the lease carries a fixed name that is not this machine's: a copy of the disk of
   another host would take the id of the living original.
4. If the lease is free, or carries a name that sanlock made up, sanlock decides alone.
5. A lease that cannot be read is unknown: sanlock is not asked.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from scoring.lease_times import host_dead_s

#: sanlock keeps 48 bytes with a NUL at the end; a longer name is cut, and never equals itself.
NAME_MAX = 47
MACHINE_ID = Path("/etc/machine-id")
#: The form of a name that sanlock makes up: a random UUID, a dot, the host's name (its src/main.c,
#: setup_host_name).
_MADE_UP = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\.")


@dataclass(frozen=True, slots=True)
class OwnLease:
    """The lease of a host id on disk. `name`: of the sanlock that wrote it; `timestamp` 0: free;
    `io_timeout`: seconds, 0: not given."""

    name: str
    generation: int
    timestamp: int
    io_timeout: int = 0


def name_of(machine_id: str, system_uuid: str) -> str:
    """A machine's name for its sanlock; "" where one of the two is unknown: a copy of its disk has
    the same machine-id, a cheap board the same UUID as all of its kind."""
    if not machine_id or not system_uuid:
        return ""
    both = f"{machine_id}\n{system_uuid}\n".encode()
    return f"ha-{hashlib.sha256(both).hexdigest()[:32]}"


def own_name(system_uuid: str) -> str:
    """This machine's name for its sanlock; "" where there is none."""
    try:
        return name_of(MACHINE_ID.read_text().strip(), system_uuid)
    except (OSError, UnicodeDecodeError):
        return ""


def own_names(system_uuid: str) -> frozenset[str]:
    """The fixed names that mark a lease as this machine's: the one that `init` and `join` give, and
    its UUID alone, which oVirt's VDSM gives."""
    return frozenset(filter(None, (own_name(system_uuid), system_uuid)))


def is_made_up(name: str) -> bool:
    """Whether sanlock made the name up, so that no later start has it again."""
    return _MADE_UP.match(name) is not None


class Mark(Protocol):
    """Whether this boot was, or may have been, in the lockspace
    (broker/lockspace/joined_mark.py). `process`: the sanlock that was asked for it, "": unknown."""

    is_set: bool
    process: str

    def set(self, process: str) -> None:
        """Note that it is so from now on, by that sanlock; called before it is asked."""

    def clear(self) -> None:
        """Note that it was not so after all, or that the id was given back."""


class Rejoin:
    """Decides whether sanlock may be asked for the id. `names`: this machine's."""

    def __init__(self, names: frozenset[str], io_timeout_s: float, mark: Mark) -> None:
        self.mark = mark
        self._names = names
        self._io_timeout_s = io_timeout_s
        self._since: tuple[OwnLease, float] | None = None

    def look(self, lease: OwnLease | None, now_s: float, process: str) -> str:
        """Why sanlock is not asked now; "": it may be. `lease`: of this host's id, None: it could
        not be read. `process`: the sanlock that has just said that the id is not in, "": unknown.
        """
        if lease is None:
            return "the lease of this host's id cannot be read"
        if lease.timestamp == 0 or is_made_up(lease.name):
            return ""
        gave_it_up = process != "" and process == self.mark.process
        if (not self.mark.is_set or gave_it_up) and lease.name in self._names:
            return ""
        if self._since is None or self._since[0] != lease:
            self._since = lease, now_s
        dead_s = host_dead_s(max(self._io_timeout_s, lease.io_timeout))
        wait_s = dead_s - (now_s - self._since[1])
        if wait_s <= 0:
            return ""
        why = (
            "sanlock was started anew on this boot, and a process may still use its old lease"
            if lease.name in self._names
            else f"its lease carries the name {lease.name!r}, which is not this machine's"
        )
        return f"this host's id must stand still for {wait_s:.0f} s more: {why}"
