# SPDX-License-Identifier: LGPL-2.1-or-later
"""Joins the lockspace with this host's id, and gives the id back. Blocking, with progress."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection

import sanlock

from agent.storage.made import sanlock_errors
from agent.storage.watched import read_leases, read_names, watch
from agent.terminal.errors import CommandError
from agent.terminal.progress import progress
from broker.config.sections import StorageSection
from broker.daemon.errors import HaError
from broker.daemon.exit_codes import ExitCode
from scoring.lease_times import host_dead_s

#: sanlock watches an id that may still be in use for this time (its src/timeouts.h), and a reserve.
JOIN_EXTRA_S = 60 + 120
#: A free id is joined after 2.1 io_timeouts and little more. A host that waits longer, and sees the
#: id renewed meanwhile, has lost it: renewals come every 2 io_timeouts.
LOST_IO_TIMEOUTS, LOST_EXTRA_S = 3, 3.0


class IdTaken(HaError):
    """Another host has the host id, by sanlock."""


def own_id(storage: StorageSection) -> int | None:
    """The host id with which this host's sanlock is in the lockspace; None: it is not."""
    with sanlock_errors(storage.leases):
        for found in sanlock.get_lockspaces():
            if found["lockspace"] == storage.lockspace.encode() and not found["flags"]:
                return int(found["host_id"])
    return None


def join_lockspace(
    storage: StorageSection, host_id: int, names: Collection[str] = frozenset()
) -> None:
    """Take the host id; IdTaken where another host has it or was faster, else CommandError.
    `names`: the names under which this host's sanlock takes an id without waiting."""
    where = (storage.lockspace.encode(), host_id, storage.leases)
    lease = read_names(storage.leases).get(host_id)
    if lease is not None and lease.timestamp and lease.name in names:
        # As sanlock does for a lease of another name: a process may use the old lease, here or on
        # a copy of this machine.
        seconds = host_dead_s(max(storage.io_timeout, lease.io_timeout))
        if host_id in watch(None, storage.leases, seconds, progress).ids:
            raise IdTaken("it is renewed by a host of the same sanlock name")

    def add() -> None:
        sanlock.add_lockspace(*where, iotimeout=storage.io_timeout, wait=True)

    seen: set[tuple[int, int]] = set()

    def lost(passed_s: float) -> bool:
        """Whether another host renews the id: sanlock itself goes on trying for minutes."""
        renewal = read_leases(storage.leases)[1].get(host_id, (0, 0))
        seen.update({renewal} if renewal[1] else ())
        return passed_s > LOST_IO_TIMEOUTS * storage.io_timeout + LOST_EXTRA_S and len(seen) > 1

    text = f"joining the lockspace as host id {host_id}"
    try:
        if not _with_progress(text, add, 8 * storage.io_timeout + JOIN_EXTRA_S, lost):
            _end_join(where)
            raise IdTaken("it is renewed by another host")
    except KeyboardInterrupt:
        _end_join(where)
        raise
    except sanlock.SanlockException as error:
        if error.errno < -200:  # sanlock's own error codes, not the system's
            raise IdTaken(f"sanlock: {error.args[-1]} ({error.errno})") from None
        with sanlock_errors(storage.leases):
            raise


def _end_join(where: tuple[bytes, int, str]) -> None:
    """Cancel the join, which sanlock would otherwise continue."""
    with sanlock_errors(where[2]):
        sanlock.rem_lockspace(*where, unused=True)


def leave_lockspace(storage: StorageSection, host_id: int) -> None:
    """Give the host id back; CommandError where a process here holds a lease in it."""
    try:
        sanlock.rem_lockspace(storage.lockspace.encode(), host_id, storage.leases, unused=True)
    except sanlock.SanlockException as error:
        if error.errno == 16:
            raise CommandError(
                ExitCode.REFUSED,
                f"lockspace {storage.lockspace}: a process here holds a lease in it (the VM?):"
                " move it away first: ha-agent maintenance local",
            ) from None
        with sanlock_errors(storage.leases):
            raise


def _with_progress(
    text: str, act: Callable[[], None], seconds_max: float, is_lost: Callable[[float], bool]
) -> bool:
    """Run it in a thread and show how long it takes; its exception is raised. False: it is lost."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            act()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, name=text, daemon=True)
    began_s = time.monotonic()
    thread.start()
    while thread.is_alive():
        thread.join(1.0)
        passed_s = time.monotonic() - began_s
        progress(f"{text}: {passed_s:.0f} s")
        if thread.is_alive() and is_lost(passed_s):
            return False
        if passed_s > seconds_max:
            raise CommandError(ExitCode.LOCKSPACE, f"{text}: no end within {seconds_max:.0f} s")
    if failed:
        raise failed[0]
    return True
