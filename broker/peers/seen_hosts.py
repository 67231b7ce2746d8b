# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every host that may run the VM, with what each witness of its life says now: what vm_place.py
decides on. Reads what the broker knows already; asks nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from broker.lockspace.port import Lockspace
from broker.peers.asker import Heartbeats
from broker.peers.members import Members
from broker.peers.vm_place import SeenHost
from broker.whiteboard.board import Board
from broker.whiteboard.slot import SlotReport
from scoring.hosts.evidence import renews
from scoring.hosts.liveness import Liveness, liveness_known
from scoring.hosts.state import Seen
from scoring.rules import Rules
from scoring.vm.state import StateName

CLUSTER_SLOT = 0
MOVING = StateName.ENGINE_MIGRATING_AWAY.value


def seen_peers(
    board: Board,
    members: Members,
    seen: Mapping[int, Seen],
    lockspace: Lockspace,
    heartbeats: Heartbeats,
    rules: Rules,
    now_s: float,
) -> Iterator[SeenHost]:
    """All hosts but this one: those with a slot, those whose slot cannot be read, and those that
    are in the lockspace without one."""
    for report in members.reports.values():
        last = seen.get(report.host_id)
        yield _seen(report, last, board.last_read_s, lockspace, heartbeats, rules, now_s)
    unread = {slot for slot in board.bad if slot != CLUSTER_SLOT}
    unread |= {host for host, found in lockspace.witnesses.items() if found.state != "free"}
    for host in sorted(unread - board.reports.keys() - {board.host_id}):
        yield SeenHost(
            host_id=host,
            name=f"host {host}",
            vm=None,
            liveness=Liveness.UNCERTAIN,
            sanlock=standing(lockspace, host),
        )


def _seen(
    report: SlotReport,
    last: Seen | None,
    read_s: float | None,
    lockspace: Lockspace,
    heartbeats: Heartbeats,
    rules: Rules,
    now_s: float,
) -> SeenHost:
    host, suspect_after_s = report.host_id, rules.timing.suspect_after
    renewal_s = lockspace.renewals.renewal_s(host)
    _, unanswered_since_s = heartbeats.times(host)
    since_s = now_s if last is None else last.since_s
    kind = Liveness.UNCERTAIN
    if last is not None:
        kind = liveness_known(last, read_s, now_s, suspect_after_s)
    return SeenHost(
        host_id=host,
        name=report.hostname,
        vm=report.engine_status.vm,
        health=report.engine_status.health,
        reason=report.engine_status.reason or "",
        liveness=kind,
        age_s=now_s - since_s,
        moving=report.extra_trusted and report.extra.get("state", "") == MOVING,
        stopped=report.stopped,
        heard=heartbeats.heard(host, now_s, suspect_after_s),
        unanswered_s=None if unanswered_since_s is None else now_s - unanswered_since_s,
        renews=renews(renewal_s, since_s, now_s, rules),
        renewed_s=None if renewal_s is None else now_s - renewal_s,
        sanlock=standing(lockspace, host),
    )


def standing(lockspace: Lockspace, host: int) -> str:
    """How a host id stands in the lockspace: free, live, fail, dead or unknown.

    What lies on the volume is newer than sanlock's word. An id that sanlock does not name while
    it names others was never joined: it is free.
    """
    on_disk = lockspace.renewals.table.get(host)
    if on_disk is not None and on_disk.timestamp == 0:
        return "free"
    named = lockspace.witnesses.get(host)
    if named is not None:
        is_old = on_disk is not None and on_disk.generation > named.generation
        return "unknown" if is_old else named.state
    return "free" if on_disk is None and lockspace.witnesses else "unknown"
