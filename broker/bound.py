# SPDX-License-Identifier: LGPL-2.1-or-later
"""How long the VM would be away if its host lost power now, from measured figures. Pure.

detect   its slot stands still for suspect_after, seen at the next look half a beat later
prove    its fence device is asked twice, power_reread apart; without a proven way to it
         sanlock's host-dead time, 8 * io_timeout + 60 s (src/timeouts.h)
lease    its host id is freed and the VM started under its lease
boot     the guest boots until the engine is healthy
"""

from __future__ import annotations

from collections.abc import Iterable

from broker import slot_lines
from broker.whiteboard import SlotReport
from broker.wire import Bound, FencePathStatus, HostStatus, MeasuredOnWire
from scoring.liveness import Liveness
from scoring.timing import Timing

#: sanlock's host-dead time.
_DEAD_IO_TIMEOUTS, _WATCHDOG_FIRE_S = 8, 60
#: Where nothing was measured yet: a start under libvirt.
START_S = 1.0


def bound(
    timing: Timing,
    io_timeout_s: float,
    read_s: float | None,
    starts_s: Iterable[float | None],
    boots_s: Iterable[float | None],
) -> Bound:
    """`read_s`: how long its fence device takes to answer, None: the way to it is not proven.
    `starts_s`, `boots_s`: what the other hosts measured; the slowest counts."""
    detect_s = timing.suspect_after + timing.beat / 2
    if read_s is not None:
        # The second question is asked power_reread after the first one was answered.
        prove_s = read_s + timing.power_reread + read_s
        by = "its fence device"
    else:
        prove_s = _DEAD_IO_TIMEOUTS * io_timeout_s + _WATCHDOG_FIRE_S - detect_s
        by = "sanlock's host-dead time"
    lease_s = max((s for s in starts_s if s is not None), default=START_S)
    boot_s = max((s for s in boots_s if s is not None), default=None)
    total_s = None if boot_s is None else detect_s + prove_s + lease_s + boot_s
    return Bound(total_s, detect_s, prove_s, lease_s, boot_s, by)


def heirs_of(host_id: int, hosts: Iterable[HostStatus]) -> frozenset[int]:
    """The hosts that could take the VM from `host_id` now; a silent one is none, one that is not
    known yet is."""
    return frozenset(
        host.host_id
        for host in hosts
        if host.host_id != host_id
        and host.liveness != Liveness.SILENT.value
        and host.score > 0
        and not (host.maintenance or host.stopped)
    )


def bound_of(
    host_id: int,
    paths: Iterable[FencePathStatus],
    own: MeasuredOnWire,
    reports: Iterable[SlotReport],
    timing: Timing,
    io_timeout_s: float,
    heirs: frozenset[int],
) -> Bound | None:
    """The bound of the host that has the VM, from what all hosts say of themselves. `own`: what
    this one measured. None: no other host could take the VM. What a host can do that could not
    take it counts for nothing."""
    if not heirs:
        return None
    proven = [p.took_s for p in paths if p.host == host_id and p.by in heirs and p.ok]
    extras = [
        report.extra
        for report in reports
        if report.extra_trusted and report.host_id in heirs | {host_id}
    ]
    return bound(
        timing,
        io_timeout_s,
        max(proven, default=None),
        [own.start_s, *(slot_lines.seconds(extra.get("start-s")) for extra in extras)],
        [own.boot_s, *(slot_lines.seconds(extra.get("boot-s")) for extra in extras)],
    )
