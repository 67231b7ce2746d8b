# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the VMs of the registry share in one beat: the room of the hosts, the order, the plan.

The free memory of the hosts, the order in which VMs are served and the claims concern all VMs. They
are found once a beat, before any VM takes a step. If each VM found them itself, two VMs would both
use the same free memory.

Rules of this file:

1. Another host is described by its slot; this host by its own samples, which its slot publishes.
2. A VM is missing if it is wanted up and no live host, this one included, reports it up. While the
   whiteboard cannot be read, no VM counts as missing.
3. A VM that is not here, not missing and not acted on costs nothing: it takes no step.
4. The engine has its place in the order, and its memory is taken first. But a lack of room does not
   prevent its start: its own rules decide that (scoring/vm/start.py).
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import replace
from functools import lru_cache

from scoring.hosts.score import HostSamples, host_lacks
from scoring.hosts.turn import HostTurn, name_of
from scoring.observation import LocalHost, Outcome, PeerReport
from scoring.timing import START_RETRIES_MAX
from scoring.vm.claims import standing
from scoring.vm.placement import Candidate
from scoring.vm.plan import NO_PLAN, Host, Placing, Plan, place
from scoring.vm.seen import SPEAKS_SEVERAL, here
from scoring.vm.spec import Relations, relations
from scoring.vm.state import StateName, VmState
from scoring.vm_facts import ENGINE, Health, VmHere, VmSpec, VmStatus, Want

#: The engine's priority if the registry does not define it: it is served first.
ENGINE_PRIORITY = 100
#: The pause after a failed start on the same host; each further failure doubles it.
START_PAUSE_S = 10.0

_S = StateName
#: States in which a VM that is not here and not missing needs no step.
_STOPPING = frozenset({_S.ENGINE_STOP, _S.ENGINE_FORCE_STOP})
_IDLE = frozenset({_S.ENGINE_DOWN, _S.LOCAL_MAINTENANCE, _S.GLOBAL_MAINTENANCE})


def barred_until_s(state: VmState, retry_expiry_s: float, unexpected_down_s: float) -> float | None:
    """Until when this host must not start the VM, after failed starts or its sudden end here (None:
    it may)."""
    if state.name is _S.ENGINE_UNEXPECTEDLY_DOWN and state.since_s is not None:
        return state.since_s + unexpected_down_s
    if not state.retries:
        return None
    pause_s = START_PAUSE_S * 2.0 ** min(state.retries - 1, 10)
    return state.last_failure_s + min(pause_s, retry_expiry_s)


class Several:
    """What all VMs share in one call of `decide`.

    `specs`: the VMs in the order in which they are served, including the engine. `behind`: the live
    hosts that have not read the registry as this host knows it. `hosts`: this host and the live
    ones. `claims`: all claims that have not ended, including this host's own. `moving`: how many
    VMs are being migrated away from here, or are about to be. `starting`: how many starts are under
    way here. `stopping`: the VMs that are being stopped here.
    `unstopped_since_s`: since when ending a VM has failed here that is sick now, by its number.
    """

    def __init__(self, turn: HostTurn, states: Mapping[int, VmState]) -> None:
        observation, now_s = turn.observation, turn.now_s
        self.own_id = observation.local.host_id
        self.relations = _relations(observation.specs, int(turn.rules.vm_memory_mb))
        self.specs = {v.number: v for v in self.relations.order}
        self.own_claims = tuple(s.held.claim for s in states.values() if s.held is not None)
        others = (claim for peer in observation.peers for claim in peer.claims)
        self.claims = standing((*self.own_claims, *others), now_s)
        self._here = {vm.number: vm for vm in observation.local.vms}
        peers = tuple(peer for peer in turn.live if peer is not turn.asking)
        self._names = {peer.host_id: name_of(peer) for peer in observation.peers}
        self.behind = tuple(p for p in turn.live if p.registry < observation.registry)
        self._hostnames = {peer.host_id: peer.hostname for peer in peers}
        self.up_at: dict[int, int] = {}
        #: For each VM the live hosts whose slots list it; on all other hosts it is down.
        self.said: dict[int, list[PeerReport]] = {}
        self.ended: dict[int, list[Outcome]] = {}
        for outcome in observation.outcomes:
            self.ended.setdefault(getattr(outcome, "vm", ENGINE), []).append(outcome)
        self._find_where_each_is_up(turn)
        self.missing: frozenset[int] = frozenset()
        if observation.storage_good_since_s is not None:
            self.missing = frozenset(
                n for n, v in self.specs.items() if v.want is Want.UP and n not in self.up_at
            )
        self._hosts: dict[int, Host] = {}
        self._turn, self._states, self._peers = turn, states, peers
        self._lower = [peer for peer in peers if peer.host_id < self.own_id]
        self.moving = sum(_is_leaving(state, self.own_id) for state in states.values())
        self.starting = sum(s.name is _S.ENGINE_START and s.acting for s in states.values())
        self.stopping = {number for number, state in states.items() if state.name in _STOPPING}
        self.unstopped_since_s = {
            number: state.unstopped_since_s
            for number, state in states.items()
            if state.unstopped_since_s is not None and self._is_wanted_and_sick(number)
        }
        self.plan: Plan = NO_PLAN
        if self.missing - {ENGINE}:
            pins = self._pins()
            hosts = self._on_the_way(pins)
            self.plan = place(self.relations.order, hosts, self.missing, pins)

    def _is_wanted_and_sick(self, number: int) -> bool:
        """Whether it is to be up, and known to be sick here: unknown is not sick."""
        vm, spec = self._here.get(number), self.specs.get(number)
        is_up = vm is not None and vm.report.vm is VmStatus.UP
        is_sick = vm is not None and is_up and vm.report.health is Health.BAD
        return is_sick and spec is not None and spec.want is Want.UP

    def _find_where_each_is_up(self, turn: HostTurn) -> None:
        """Fill `up_at` and `said`. A VM that is up here counts as being here."""
        for number, vm in self._here.items():
            if vm.report.vm is VmStatus.UP:
                self.up_at[number] = self.own_id
        for peer in turn.live:
            for number, its in peer.vms.items():
                self.said.setdefault(number, []).append(peer)
                if its.report.vm is VmStatus.UP and not turn.is_given_up(peer, its.report):
                    self.up_at.setdefault(number, peer.host_id)

    @property
    def hosts(self) -> Mapping[int, Host]:
        """This host and the live ones. Made at the first use, since at rest there is none."""
        if not self._hosts:
            self._hosts = {peer.host_id: self._host_of(peer) for peer in self._peers}
            self._hosts[self.own_id] = self._own_host()
        return self._hosts

    def _less_claims(self, but_of: Container[int]) -> dict[int, Host]:
        """The hosts without the memory of claimed VMs that they do not show yet; the claims of the
        VMs in `but_of` are not subtracted."""
        hosts = dict(self.hosts)
        for claim in self.claims:
            host, v = hosts.get(claim.host_id), self.specs.get(claim.number)
            if claim.number in but_of or host is None or v is None or claim.number in host.vms:
                continue
            if v.huge:
                host = replace(host, free_huge_mb=host.free_huge_mb - v.memory_mb)
            else:
                host = replace(host, free_mb=host.free_mb - v.memory_mb)
            hosts[claim.host_id] = replace(host, vms=host.vms | {claim.number})
        return hosts

    def between_hosts(self, but: int) -> list[str]:
        """The names of the other VMs, without `but`, that are being stopped here, or that have a
        place but do not run yet."""
        placed = {
            number for number in self.missing if number == ENGINE or number in self.plan.order
        }
        return [self.specs[n].name for n in sorted(self.stopping | placed) if n != but]

    def title(self, host_id: int) -> str:
        """A host for people."""
        return "this host" if host_id == self.own_id else self._names.get(host_id, f"id {host_id}")

    def here(self, number: int) -> VmHere:
        """A VM on this host; unknown if there is no sample."""
        found = self._here.get(number)
        return here(self._turn.observation.local, number) if found is None else found

    def state_of(self, number: int) -> VmState:
        """This host's memory about a VM at the beginning of the beat."""
        return self._states.get(number, VmState())

    def active(self) -> list[int]:
        """The VMs beside the engine that take a step, in the order in which they are served."""
        return [number for number in self.specs if number != ENGINE and self._is_active(number)]

    def _is_active(self, number: int) -> bool:
        seen, state = self._here.get(number), self._states.get(number)
        if number in self.missing:
            return True
        if seen is not None and seen.report.vm not in (VmStatus.DOWN, VmStatus.UNKNOWN):
            return True
        if seen is not None and seen.domain.leftover is not None:
            return True
        if number in self.ended:
            return True
        order = self._turn.observation.order
        if order is not None and order.vm == number:
            return True
        return state is not None and not is_idle(state)

    def is_remembered(self, number: int, state: VmState) -> bool:
        """Whether the memory about a VM is of use after this beat."""
        if number in self.missing or not is_idle(state) or state.retries or state.answers:
            return True
        ran_last = max((p.vms[number].last_ran for p in self._peers if number in p.vms), default=0)
        return state.last_ran > ran_last

    def takers(self, v: VmSpec) -> list[Candidate]:
        """The other hosts that may run the VM now and have the memory, the best first. A host on
        which this VM has a claim is included: scoring/vm/room.py judges the claim."""
        placing, able = self._elsewhere(v)
        free_mb = placing.free_mb(v)
        state = self._states.get(v.number)
        held = None if state is None or state.held is None else state.held.claim.host_id
        if held is not None and all(host.host_id != held for host in able):
            # What is claimed is kept against the claims of others (scoring/vm/claims.py, rule 4).
            peers = [host for host in self.hosts.values() if host.host_id != self.own_id]
            able += [h for h in Placing(self.relations, peers).able(v) if h.host_id == held]
        fits = [h for h in able if free_mb[h.host_id] >= v.memory_mb or h.host_id == held]
        if not fits and v.overcommit:
            fits = able
        if not fits:
            return []
        found = {host.host_id: host for host in fits}
        return [self._candidate(v, found[host_id]) for host_id in placing.ranked(v, fits, held)]

    def able(self, v: VmSpec) -> list[Candidate]:
        """The other hosts that may run the VM, with enough memory or without."""
        return [self._candidate(v, host) for host in self._elsewhere(v)[1]]

    def _elsewhere(self, v: VmSpec) -> tuple[Placing, list[Host]]:
        """The other hosts for a placing, and those of them that may run the VM."""
        # This host is left out, and with it its VMs: a group that must be together leaves one by
        # one.
        hosts = self._less_claims((v.number,))
        del hosts[self.own_id]
        placing = Placing(self.relations, hosts.values())
        return placing, placing.able(v)

    def _candidate(self, v: VmSpec, host: Host) -> Candidate:
        points = host.score - host.lacks.get(v.number, 0)
        last_ran = host.last_ran.get(v.number, 0)
        return Candidate(host.host_id, points, last_ran, self._hostnames.get(host.host_id, ""))

    def fencers_ahead(self, dead: int) -> tuple[int, ...]:
        """The live hosts that come before this one in pursuing a dead host. Hosts that have reached
        the dead host's fence device come first; then the lower host id."""
        local = self._turn.observation.local
        own = (dead not in local.reaches, local.host_id)
        may = (p for p in self._peers if not p.maintenance and not p.stopped)
        return tuple(p.host_id for p in may if (dead not in p.reaches, p.host_id) < own)

    def fences_first(self, host_id: int) -> bool:
        """Whether this host would come first in pursuing that host if it died."""
        local = self._turn.observation.local
        reaches = host_id in local.reaches
        return not any(
            (host_id in p.reaches) if reaches else (p.host_id < self.own_id or host_id in p.reaches)
            for p in (self._lower if reaches else self._peers)
            if p.host_id != host_id and not p.maintenance and not p.stopped
        )

    def _pins(self) -> dict[int, int]:
        """VM number -> the host that has claimed the missing VM. If several hosts have claimed it,
        the lowest id counts, so that all hosts decide alike."""
        pins: dict[int, int] = {}
        for claim in self.claims:
            if claim.number in self.missing and claim.host_id in self.hosts:
                pins[claim.number] = min(claim.host_id, pins.get(claim.number, claim.host_id))
        if ENGINE in self.missing and ENGINE not in pins:
            # The engine's own machine follows the reference's order (scoring/vm/placement.py).
            able = (host for host in self.hosts.values() if host.open)
            best = min(
                able, key=lambda h: (-h.score, -h.last_ran.get(ENGINE, 0), h.host_id), default=None
            )
            if best is not None:
                pins[ENGINE] = best.host_id
        return pins

    def _on_the_way(self, pins: Mapping[int, int]) -> list[Host]:
        """The hosts without the memory of VMs that are being moved there. The memory of missing VMs
        is not subtracted here: the plan reserves it (`pins`)."""
        left = self._less_claims(pins)
        return [
            host if left[n] is host else replace(left[n], vms=host.vms)
            for n, host in self.hosts.items()
        ]

    def _own_host(self) -> Host:
        observation, rules = self._turn.observation, self._turn.rules
        local = observation.local
        timing, now_s = rules.timing, self._turn.now_s
        barred = {n for n, vm in self._here.items() if vm.unfit or vm.report.vm is VmStatus.UNKNOWN}
        pausing: set[int] = set()
        for number, state in self._states.items():
            until_s = barred_until_s(state, timing.retry_expiry, timing.unexpected_down)
            if until_s is not None and now_s < until_s:
                (pausing if _keeps_room(state) else barred).add(number)
        uplinks = {n: vm.uplink_up for n, vm in self._here.items()}
        barred |= self._cut_off(local.host_id, local.way_out, uplinks)
        lacks = rules.weights.not_uptodate_config_penalty
        outdated = (n for n, vm in self._here.items() if vm.config_up_to_date is False)
        return Host(
            local.host_id,
            host_score(local, self._turn),
            int(local.total_mb or 0),
            int(local.free_mb or 0),
            int(local.free_huge_mb or 0),
            frozenset(n for n, vm in self._here.items() if vm.report.vm is VmStatus.UP),
            not local.maintenance
            and local.shutdown is None
            and not observation.stopping
            and observation.lockspace_joined is True,
            SPEAKS_SEVERAL,
            frozenset(barred),
            frozenset(pausing),
            {n: max(vm.last_ran, self._ran(n)) for n, vm in self._here.items()},
            dict.fromkeys(outdated, lacks),
        )

    def _cut_off(
        self, host_id: int, way_out: bool | None, uplinks: Mapping[int, bool | None]
    ) -> set[int]:
        """The VMs that nobody would reach on a host that says that its own network is bad, while
        another live host says that its network is good. Without the engine, which has its own rules
        for this (scoring/vm/turn.py)."""
        cut = {n for n, up in uplinks.items() if up is False}
        if way_out is False:
            cut = set(self.specs)
        cut -= {ENGINE}
        if not cut:
            return cut  # the usual case, for each host
        others = [peer for peer in self._peers if peer.host_id != host_id]
        is_other, local = host_id != self.own_id, self._turn.observation.local
        if any(peer.way_out for peer in others) or (is_other and local.way_out):
            return cut
        lead_out = {n for peer in others for n, its in peer.vms.items() if its.uplink_up}
        lead_out |= {n for n, vm in self._here.items() if is_other and vm.uplink_up}
        return cut & lead_out

    def _ran(self, number: int) -> int:
        state = self._states.get(number)
        return 0 if state is None else state.last_ran

    def _host_of(self, peer: PeerReport) -> Host:
        now_s = self._turn.now_s
        up = {number for number, its in peer.vms.items() if its.report.vm is VmStatus.UP}
        pausing = {
            number
            for number, its in peer.vms.items()
            if its.barred_until_s is not None and now_s < its.barred_until_s
        }
        uplinks = {number: its.uplink_up for number, its in peer.vms.items()}
        barred = self._cut_off(peer.host_id, peer.way_out, uplinks)
        return Host(
            peer.host_id,
            peer.score if peer.host_score is None else peer.host_score,
            int(peer.total_mb or 0),
            int(peer.free_mb or 0),
            int(peer.free_huge_mb or 0),
            frozenset(up),
            not peer.maintenance and not peer.stopped,
            peer.speaks,
            frozenset(barred),
            frozenset(pausing),
            {number: its.last_ran for number, its in peer.vms.items()},
        )


def host_score(local: LocalHost, turn: HostTurn) -> int:
    """This host's score before the penalties of a particular VM; 0: it must run no VM."""
    if local.lock_driver is False or turn.observation.lockspace_joined is False:
        return 0
    samples = HostSamples(local.network, local.bridge_up, local.cpu_load, local.fence_path_ok)
    weights = turn.rules.weights
    lost = sum(part.points for part in host_lacks(samples, weights).parts)
    return max(0, weights.base_score - lost)


def _keeps_room(state: VmState) -> bool:
    """Whether a host that pauses before it starts the VM again keeps the room for it, if no other
    host has any: not after many failed starts, since another VM may start there at once."""
    is_dead = state.name is _S.ENGINE_UNEXPECTEDLY_DOWN
    return is_dead or state.retries <= START_RETRIES_MAX


def _is_leaving(state: VmState, own_id: int) -> bool:
    """Whether the VM is being migrated away, or has a claim on another host for that."""
    claimed = state.held is not None and state.held.claim.host_id != own_id
    arrived = state.held is not None and state.held.shown_s is not None
    return state.moving_to is not None or (claimed and not arrived)


def is_idle(state: VmState) -> bool:
    """Whether the VM's machine has nothing under way here."""
    return (
        state.name in _IDLE
        and not state.acting
        and not state.asking_lease
        and state.held is None
        and state.order is None
    )


@lru_cache(maxsize=4)
def _relations(specs: tuple[VmSpec, ...], engine_mb: int) -> Relations:
    """The relations of the registry's VMs, and of the engine even if it is not defined there."""
    known = {spec.number: spec for spec in specs}
    engine = known.get(ENGINE, VmSpec(ENGINE, "engine", engine_mb, priority=ENGINE_PRIORITY))
    # As in the reference, missing memory costs the engine points but does not prevent its start.
    known[ENGINE] = replace(engine, overcommit=True)
    return relations(tuple(known.values()))


def engine_spec(memory_mb: float) -> VmSpec:
    """The engine's spec if the registry does not define it."""
    return VmSpec(ENGINE, "engine", int(memory_mb), priority=ENGINE_PRIORITY)
