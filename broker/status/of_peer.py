# SPDX-License-Identifier: LGPL-2.1-or-later
"""Another host in the status: what it published, and what each witness shows of it."""

from __future__ import annotations

from broker.config import agreement
from broker.config.addresses import advertised
from broker.config.in_force import InForce
from broker.daemon.since import age_s
from broker.lockspace.hosts import standing_fields
from broker.peers.question_gate import QuestionGate
from broker.peers.table import Table
from broker.this_host.facts import fence_ask_text, outside_status
from broker.this_host.vms import VmsHere
from broker.whiteboard import lines as slot_lines
from broker.whiteboard import vm_lines
from broker.whiteboard.extra import LEFT_OUT_KEY
from broker.whiteboard.slot import SlotReport
from broker.wire.status import HostStatus, WitnessStatus
from scoring.hosts.liveness import Liveness


class PeerStatus:
    """Makes that part. `gate`: the gate for questions at this host's port."""

    def __init__(self, in_force: InForce, table: Table, gate: QuestionGate, vms: VmsHere) -> None:
        self._in_force, self._table, self._gate, self._vms = in_force, table, gate, vms

    def status(self, report: SlotReport, now_s: float) -> HostStatus:
        """The status of the host with this report."""
        table, in_force, host_id = self._table, self._in_force, report.host_id
        seen = table.seen.get(host_id)
        kind = Liveness.UNCERTAIN if seen is None else table.liveness(seen, now_s)
        extra = report.extra if report.extra_trusted else {}
        still_s = now_s - seen.since_s if seen is not None else 0.0
        intent, move = slot_lines.intent_of(extra.get("intent", ""), host_id, still_s)
        outside = slot_lines.outside_of(extra.get("outside", ""), now_s - still_s)
        judgement = table.same_storage.judgement
        return HostStatus(
            host_id=host_id,
            hostname=report.hostname,
            liveness=kind.value,
            score=report.score,
            state=extra.get("state", ""),
            penalties=tuple(slot_lines.penalties_of(extra)),
            reason=extra.get("reason", ""),
            engine_status=report.engine_status,
            age_s=now_s - seen.since_s if seen is not None and seen.changed else None,
            maintenance=report.maintenance,
            mode=slot_lines.mode_of(report),
            **standing_fields(table.lockspace.witnesses.get(host_id), now_s),
            witnesses=self._witnesses(host_id, now_s),
            stopped=report.stopped,
            agent=extra.get("agent", ""),
            domain_type=extra.get("domain-type", ""),
            unknown=tuple(filter(None, extra.get("unknown", "").split(","))),
            intent=intent,
            move=move,
            left_out=slot_lines.count_of(extra.get(LEFT_OUT_KEY, "")),
            differs=tuple(filter(None, extra.get("differs", "").split(","))),
            memory_image=bool(extra.get("memory-image", "")),
            outside=outside_status(outside, now_s),
            way_out=slot_lines.way_out_of(extra.get("way-out", "")),
            uplink_up=slot_lines.uplink_of(extra.get("uplink", "")),
            fence_ask=fence_ask_text(
                slot_lines.fence_ask_of(extra.get("fence-ask", "")), self._vms.names
            ),
            config_drift=tuple(
                map(str, agreement.differences(in_force.agreed, in_force.agreed_lines, extra))
            ),
            host_shutdown=slot_lines.host_shutdown_of(report),
            other_storage=judgement.others.get(host_id, ""),
            storage_odd=judgement.odd.get(host_id, ""),
            signature=self._signature(host_id),
            not_counted=table.members.why_not.get(host_id, ""),
            api=advertised(extra.get("api", "")),
            unprotected=vm_lines.numbers_in(extra, vm_lines.UNPROTECTED),
            stuck=vm_lines.numbers_in(extra, vm_lines.STUCK),
        )

    def _signature(self, host_id: int) -> str:
        if self._table.board.signatures.key is None:
            return ""
        return self._table.board.signed[host_id].value

    def _witnesses(self, host_id: int, now_s: float) -> WitnessStatus:
        """The witnesses of a peer's life, as this host sees them."""
        table, heartbeats, lockspace = self._table, self._table.heartbeats, self._table.lockspace
        seen, pulse = table.seen.get(host_id), heartbeats.pulses.get(host_id)
        known = lockspace.witnesses.get(host_id)
        renewal = lockspace.renewals.table.get(host_id)
        is_live = seen is not None and table.liveness(seen, now_s) is Liveness.LIVE
        trouble = heartbeats.trouble(host_id, now_s) if is_live else None
        return WitnessStatus(
            whiteboard_age_s=now_s - seen.since_s if seen is not None and seen.changed else None,
            heartbeat=heartbeats.word(host_id).value,
            heartbeat_age_s=age_s(pulse.heartbeat_s, now_s) if pulse is not None else None,
            unanswered_s=age_s(pulse.unanswered_since_s, now_s) if pulse is not None else None,
            heartbeat_problem=pulse.problem if pulse is not None else "",
            bad_answers=pulse.bad_answers if pulse is not None else {},
            renewal_age_s=age_s(lockspace.renewals.renewal_s(host_id), now_s),
            sanlock_state=known.state if known is not None else "unknown",
            generation=renewal.generation if renewal is not None else None,
            heartbeat_trouble="" if trouble is None else trouble.value,
            port_silent_s=age_s(pulse.port_silent_since_s, now_s) if pulse is not None else None,
            port_problem=pulse.port_problem if pulse is not None else "",
            refused=self._gate.refusals_of(host_id),
        )
