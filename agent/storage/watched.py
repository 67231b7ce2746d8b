# SPDX-License-Identifier: LGPL-2.1-or-later
"""Finds out who uses whiteboard and lease volume, by watching what changes on them."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from agent.terminal.errors import CommandError
from broker.daemon.exit_codes import ExitCode
from broker.lockspace.delta_leases import (
    LeaseVolume,
    read_delta_leases,
    read_lease_volume,
    read_named_leases,
)
from broker.lockspace.rejoin import OwnLease
from broker.whiteboard.slot import Sweep, decode_sweep
from broker.whiteboard.volume import Volume, VolumeError, volume_error
from broker.wire.limits import HOST_ID_MAX
from scoring.lease_times import host_dead_s

#: A host writes its slot each beat, 1 s unless configured: this is three beats.
SLOT_WATCH_S = 3.0
#: sanlock renews a host id every 2 * io_timeout (its src/timeouts.h); half of one is added.
RENEWAL_IO_TIMEOUTS = 2.5
_POLL_S = 0.5
IDS = range(1, HOST_ID_MAX + 1)


@dataclass(frozen=True, slots=True)
class Users:
    """The hosts that were seen to be active. `hosts`: names by host id, of changing slots. `ids`:
    renewed host ids. `stale`: host ids that were neither given back nor renewed."""

    hosts: dict[int, str] = field(default_factory=dict)
    ids: tuple[int, ...] = ()
    stale: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.hosts or self.ids)

    def __str__(self) -> str:
        found = [f"host {i} ({name}) writes its slot" for i, name in sorted(self.hosts.items())]
        found += [f"host {i} renews its id" for i in self.ids if i not in self.hosts]
        return ", ".join(found) or "nobody"


def storage_error(error: VolumeError) -> CommandError:
    """An error of the storage as the error of a command."""
    return CommandError(ExitCode.STORAGE, str(error).removeprefix("volume "))


def os_error(path: str, doing: str, error: OSError) -> CommandError:
    """An OSError of a volume as the error of a command, with what to do."""
    return storage_error(volume_error(path, doing, error))


def read_slots(path: str) -> Sweep:
    """All slots of a whiteboard, decoded; CommandError where it cannot be read."""
    try:
        with Volume(path, read_only=True) as volume:
            return decode_sweep(volume.read_slots(range(HOST_ID_MAX + 1)))
    except VolumeError as error:
        raise storage_error(error) from None


def read_leases(path: str) -> tuple[LeaseVolume | None, dict[int, tuple[int, int]]]:
    """The head of the lease volume, None: it has no lockspace; and (generation, timestamp) of each
    host id that was ever used. CommandError where it cannot be read."""
    try:
        with Volume(path, read_only=True) as volume:
            try:
                head = read_lease_volume(volume)
                return head, read_delta_leases(volume, IDS) if head is not None else {}
            except (KeyError, struct.error):
                return None, {}
    except VolumeError as error:
        raise storage_error(error) from None


def read_names(path: str) -> dict[int, OwnLease]:
    """The lease of each host id that was ever used, with the name of the sanlock that wrote it;
    none where there is no lockspace; CommandError where it cannot be read."""
    try:
        with Volume(path, read_only=True) as volume:
            try:
                return read_named_leases(volume, IDS)
            except (KeyError, struct.error):
                return {}
    except VolumeError as error:
        raise storage_error(error) from None


def used_slots(sweep: Sweep) -> dict[int, int]:
    """The timestamp of each readable slot."""
    return {host: report.timestamp for host, report in sweep.reports.items()}


def watch(
    whiteboard: str | None,
    leases: str | None,
    seconds: float,
    say: Callable[[str], None] | None = None,
    but: int | None = None,
) -> Users:
    """Watch both for this time, or until an active host was seen. `but`: ignore this host id."""
    first = read_slots(whiteboard) if whiteboard else None
    slots = used_slots(first) if first is not None else {}
    renewals = read_leases(leases)[1] if leases else {}
    until_s = time.monotonic() + seconds
    while True:
        left_s = until_s - time.monotonic()
        if left_s <= 0:
            stale = tuple(i for i, (_, at) in sorted(renewals.items()) if at and i != but)
            return Users(stale=stale)
        if say is not None:
            say(f"watching for {left_s:.0f} s more whether anybody uses it")
        time.sleep(min(_POLL_S, left_s))
        hosts = {}
        if whiteboard:
            now = read_slots(whiteboard).reports
            hosts = {
                host: report.hostname
                for host, report in now.items()
                if report.timestamp != slots.get(host) and host != but
            }
        found = read_leases(leases)[1] if leases else {}
        ids = tuple(
            host
            for host, (generation, at) in sorted(found.items())
            if host != but and at and (generation, at) != renewals.get(host)
        )
        if hosts or ids:
            return Users(hosts, ids)


def lease_watch_s(
    head: LeaseVolume | None,
    used: Mapping[int, tuple[int, int]],
    io_timeout: int,
    own: int | None = None,
) -> float:
    """How long to watch a lease volume until no host can be using it any more.

    Where every id was given back: until a host that has just joined must have renewed its id.
    Where one was not (or nothing can be read): sanlock's host-dead time, since until then its VM
    may run. `own`: ignore this host id.
    """
    timeout = (head.io_timeout if head is not None else 0) or io_timeout
    if head is None or any(at and i != own for i, (_, at) in used.items()):
        return host_dead_s(timeout)
    return RENEWAL_IO_TIMEOUTS * timeout
