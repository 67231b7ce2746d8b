# SPDX-License-Identifier: LGPL-2.1-or-later
"""How long the VM would be away if its host lost power now. Pure.

detect   its slot stands still for suspect_after, seen at the next look half a beat later
prove    until the VM is started: what the decision itself does from then on (scoring/forecast.py)
lease    the VM is started under its lease, as long as that was measured to take
boot     the guest boots until the engine is healthy, as measured

The decision is asked of the hosts that could take the VM, the best first: the first of them that
would start it sets the bound. Where none would, the bound is none, and says why.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from broker.whiteboard import lines as slot_lines
from broker.whiteboard.slot import SlotReport
from broker.wire.status import Bound, FencePathStatus, HostStatus, MeasuredOnWire
from scoring.forecast import Forecast, if_it_loses_power
from scoring.hosts.liveness import Liveness
from scoring.hosts.state import Seen
from scoring.observation import LocalHost, Observation, PeerReport
from scoring.rules import Rules
from scoring.vm import placement
from scoring.vm_facts import EngineStatus, Health, Obstacle, VmHere, VmSpec, VmStatus

#: Where nothing was measured yet: a start under libvirt.
START_S = 1.0
#: How many hosts the forecast is made for, and how many other hosts each of them sees: those with
#: the best scores.
ASKED_MAX = 3
PEERS_MAX = 16
#: A host that could take the VM does not run it.
NOT_RUNNING = EngineStatus(VmStatus.DOWN, Health.BAD)


@dataclass(frozen=True, slots=True)
class Picture:
    """What this host sees now. `observation`: its own. `itself`: this host as the others see it."""

    rules: Rules
    observation: Observation
    seen: Mapping[int, Seen]
    itself: PeerReport
    now_s: float

    def asked(
        self, host: int, dead: int, took_s: float | None, spec: VmSpec | None = None
    ) -> Forecast:
        """What the decision would do on that host, which is this one or a peer. `spec`: about this
        VM of the registry (None: about the engine)."""
        peers = {peer.host_id: peer for peer in self.observation.peers}
        seen = dict(self.seen)
        observation, rules = self.observation, self.rules
        if host != self.itself.host_id:
            other = peers.pop(host)
            seen.pop(host, None)
            peers[self.itself.host_id] = self.itself
            seen[self.itself.host_id] = Seen(self.itself.timestamp, self.now_s, changed=True)
            # That host alone knows its samples; its score is what it makes of them.
            fit = other.score if spec is None or other.host_score is None else other.host_score
            rules = replace(rules, weights=replace(rules.weights, base_score=fit))
            observation = replace(
                observation, local=_fine(other, self.now_s), lockspace_joined=True
            )
        rest = sorted((p for p in peers.values() if p.host_id != dead), key=lambda p: -p.score)
        kept = [peers[dead], *rest[:PEERS_MAX]] if dead in peers else rest[:PEERS_MAX]
        observation = replace(observation, peers=tuple(kept))
        if spec is not None:
            reaches = frozenset({dead} if took_s is not None else ())
            observation = replace(observation, local=replace(observation.local, reaches=reaches))
        return if_it_loses_power(rules, observation, seen, dead, took_s, self.now_s, spec)


def _fine(peer: PeerReport, now_s: float) -> LocalHost:
    engine = VmHere(
        NOT_RUNNING,
        now_s,
        last_ran=peer.engine.last_ran,
        config_up_to_date=True,
        uplink_up=peer.engine.uplink_up,
    )
    return LocalHost(
        host_id=peer.host_id,
        vms=(engine,),
        network=1.0,
        bridge_up=True,
        mem_free_mb=peer.mem_free_mb,
        cpu_load=0.0,
        lock_driver=True,
        total_mb=peer.total_mb,
        free_mb=peer.free_mb,
        free_huge_mb=peer.free_huge_mb,
    )


def heirs_of(host_id: int, hosts: Iterable[HostStatus]) -> frozenset[int]:
    """The hosts that could take the VM from `host_id` now; silent hosts do not count, hosts that
    are not known yet do."""
    return frozenset(
        host.host_id
        for host in hosts
        if host.host_id != host_id
        and host.liveness != Liveness.SILENT.value
        and host.score > 0
        and not (host.maintenance or host.stopped or host.not_counted)
        and not any(penalty.name == Obstacle.CUT_OFF.value for penalty in host.penalties)
    )


def bound_of(
    host_id: int,
    paths: Iterable[FencePathStatus],
    own: MeasuredOnWire,
    reports: Iterable[SlotReport],
    picture: Picture,
    heirs: frozenset[int],
) -> Bound | None:
    """The bound of the host that has the VM, from what all hosts say of themselves. `own`: what
    this one measured. None: no other host could take the VM. What a host can do that could not
    take it counts for nothing."""
    known = {peer.host_id: peer for peer in (*picture.observation.peers, picture.itself)}
    asked = placement.ranked(
        [
            placement.Candidate(heir, known[heir].score, known[heir].engine.last_ran)
            for heir in heirs
            if heir in known
        ]
    )[:ASKED_MAX]
    if not asked:
        return None
    proven = {p.by: p.took_s for p in paths if p.host == host_id and p.by in heirs and p.ok}
    first = _first(picture, [one.host_id for one in asked], host_id, proven)
    extras = [
        report.extra
        for report in reports
        if report.extra_trusted and report.host_id in heirs | {host_id}
    ]
    starts = [own.start_s, *(slot_lines.seconds(extra.get("start-s")) for extra in extras)]
    boots = [own.boot_s, *(slot_lines.seconds(extra.get("boot-s")) for extra in extras)]
    lease_s = max((s for s in starts if s is not None), default=START_S)
    boot_s = max((s for s in boots if s is not None), default=None)
    return _bound(first, lease_s, boot_s)


def bound_of_vm(
    spec: VmSpec,
    host_id: int,
    order: Iterable[int],
    paths: Iterable[FencePathStatus],
    picture: Picture,
    boot_s: float | None = None,
) -> Bound | None:
    """The bound of a VM of the registry on `host_id`, without the time in which it waits for other
    VMs. `order`: the hosts that the plan has for it after that host's death. None: there are none,
    which the status says as `n_plus_1`. `boot_s`: how long its guest booted last (None: not
    seen)."""
    asked = tuple(order)[:ASKED_MAX]
    if not asked:
        return None
    proven = {p.by: p.took_s for p in paths if p.host == host_id and p.ok}
    return _bound(_first(picture, asked, host_id, proven, spec), START_S, boot_s)


def _first(
    picture: Picture,
    asked: Iterable[int],
    dead: int,
    proven: Mapping[int, float | None],
    spec: VmSpec | None = None,
) -> Forecast:
    """What the first of these hosts would do that would start the VM."""
    found: list[Forecast] = []
    for host_id in asked:
        found.append(picture.asked(host_id, dead, proven.get(host_id), spec))
        if found[-1].by_device:
            break  # nobody behind it is quicker
    return min(found, key=lambda f: float("inf") if f.starts_s is None else f.starts_s)


def _bound(first: Forecast, lease_s: float, boot_s: float | None) -> Bound:
    total_s = None
    if first.starts_s is not None and boot_s is not None:
        total_s = first.starts_s + lease_s + boot_s
    return Bound(
        total_s,
        first.detect_s,
        0.0 if first.starts_s is None else first.starts_s - first.detect_s,
        lease_s,
        boot_s,
        "its fence device" if first.by_device else "sanlock's host-dead time",
        first.held,
    )
