# SPDX-License-Identifier: LGPL-2.1-or-later
"""The protected VMs beside the engine on this host: their records, the monitors' samples, the
agent's report about them, and the lines about them in this host's slot."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from broker.config.in_force import InForce
from broker.lockspace.lost_leases import LostLeases
from broker.maintenance.host_shutdown import VmView, drain_waits
from broker.monitors.health_asked import health_of
from broker.monitors.watched import VmsSampler
from broker.peers.table import Table
from broker.registry.cache import RegistryCache
from broker.this_host.agent_report import AgentReport
from broker.this_host.vm_sample import SAMPLE_OLD_S
from broker.vm.domain_facts import Difference, Differs
from broker.vm.healthy_once import HealthyOnce
from broker.vm.in_the_way import in_the_way
from broker.whiteboard import vm_lines
from broker.whiteboard.vm_lines import Differing, Memory
from scoring.vm_facts import (
    ENGINE,
    MAY_BE_UP,
    Claim,
    EngineStatus,
    Health,
    Obstacle,
    Unfit,
    VmHere,
    VmStatus,
    Want,
)

log = logging.getLogger("ha-broker.vms")

_HELD = (
    "{name} runs, or ran last, with other disks than its definition says ({disks}): a start would"
    " boot the recorded ones. While it runs: ha-agent vm define {name} --from-running. Where it"
    " runs no more: put those that it ran with into its definition (ha-agent vm show {name} --xml,"
    " ha-agent vm define {name} FILE), or, to boot what the definition says all the same: ha-agent"
    " vm set {name} disks=recorded"
)


class VmsHere:
    """`own_claims`: the claims that stood in this host's slot when it was read last; only those
    that the storage had acknowledged."""

    def __init__(
        self,
        table: Table,
        registry: RegistryCache,
        sampler: VmsSampler | None,
        agent: AgentReport,
        in_force: InForce,
    ) -> None:
        self._in_force = in_force
        self._table, self._registry = table, registry
        self._sampler, self._agent = sampler, agent
        self.own_claims: tuple[Claim, ...] = ()
        self._last_ran: dict[int, int] = {}
        self._differing: dict[int, Differing] = {}
        self._held: dict[int, str] = {}
        self._healthy_once: dict[int, HealthyOnce] = {}
        #: What `here` said last of each VM, by the sample that it was made of.
        self._made: dict[int, tuple[VmHere, VmHere]] = {}
        #: The claims that an earlier broker left in the slot, until the agent reports its own.
        self._claims: tuple[Claim, ...] = ()

    def take_up(self, extra: Mapping[str, str], now_s: float) -> None:
        """Go on from this host's own slot as an earlier broker left it."""
        found = vm_lines.decode(extra, self._table.board.host_id, now_s, True)
        self._last_ran = {number: vm.last_ran for number, vm in found.vms.items()}
        self._differing = vm_lines.differing_in(extra)
        self._claims = found.claims

    @property
    def engine_generation(self) -> int:
        """The registry's generation in which the engine's definition was written, as this host
        knows it; 0: its definition is not in the registry."""
        engine = self._registry.cached.vms.get(ENGINE)
        return engine.definitions[0].generation if engine and engine.definitions else 0

    @property
    def lost_leases(self) -> LostLeases:
        """The leases that are lost, those of no VM among them."""
        return LostLeases(self._in_force.config.storage, self._table.lockspace.lost_leases)

    @property
    def without_lease(self) -> Mapping[int, str]:
        """By number, why no host can start a VM: its lease is lost."""
        return self.lost_leases.of_vms(self._registry.cached.vms)

    @property
    def damaged(self) -> Mapping[int, str]:
        """By number, why a VM cannot be started: its record, its definition or its lease."""
        known, lost = self._registry.cached.damaged, self.without_lease
        return {**lost, **known} if lost else known

    def here(self, now_s: float) -> tuple[VmHere, ...]:
        """Each VM of the registry on this host."""
        # What holds for all of them is looked at once: this is called several times a beat.
        common, damaged = self._table.same_storage.unfit, self.damaged
        return tuple(
            [
                self._here(number, now_s, (*common, *self._unfit(number, damaged)))
                for number in self._numbers
            ]
        )

    def samples(self, now_s: float) -> list[VmHere]:
        """The monitor's samples alone, without what `here` adds: for who asks how the VMs are. It
        costs a fraction."""
        return [self._sampled(number, now_s) for number in self._numbers]

    def may_be_up(self, now_s: float) -> bool:
        """Whether one of them may be up on this host."""
        return any(vm.report.vm in MAY_BE_UP for vm in self.samples(now_s))

    def wanted_here(self, now_s: float) -> tuple[VmHere, ...]:
        """The VMs here that an administrator wants up."""
        vms = self._registry.cached.vms
        return tuple(vm for vm in self.here(now_s) if vms[vm.number].want is Want.UP)

    def left(self, now_s: float) -> tuple[VmView, ...]:
        """The VMs that have not left this host: they run here, as far as is known, or the agent
        is about to act on them here."""
        report = self._agent.last
        said = {} if report is None else {vm.number: vm for vm in report.vms}
        found = []
        for vm in self.here(now_s):
            its = said.get(vm.number)
            reasons = () if its is None else its.reasons
            reason = drain_waits(reasons) or next((each.text for each in reasons), "")
            name = self._registry.cached.records[vm.number].name
            state, intent = ("", "") if its is None else (its.state, its.intent)
            view = VmView(vm.report.vm, vm.report.detail, state, reason, intent, name)
            if view.is_left:
                found.append(view)
        return tuple(found)

    @property
    def names(self) -> dict[int, str]:
        """The names of all VMs of the registry, by number."""
        return {number: record.name for number, record in self._registry.cached.vms.items()}

    @property
    def generation(self) -> int:
        """The generation of the registry that this host knows; 0: it knows none."""
        return self._registry.cached.generation

    def memory(self) -> Memory:
        """What VMs may take of this host."""
        return Memory() if self._sampler is None else self._sampler.memory

    def lines(self, now_s: float) -> dict[str, str]:
        """The lines of this host's slot about them."""
        generation = self._registry.cached.generation
        if generation == 0:
            return {}
        report = self._agent.last
        is_away = report is None or report.stopped or self._agent.silent_s(now_s) is not None
        said = {} if report is None or is_away else {vm.number: vm for vm in report.vms}
        claims = self._claims if report is None else report.claims
        here = self.here(now_s)
        elsewhere = self._ran_elsewhere()
        # The agent may have counted a start since the beat's look.
        self._take_in_disks(now_s)
        fit = None if report is None or is_away else report.host_score
        memory, differing = self.memory(), self._differing
        return vm_lines.lines(
            generation, memory, here, said, claims, elsewhere, now_s, fit, differing, self.unlike
        )

    @property
    def unlike(self) -> dict[int, tuple[Differs, ...]]:
        """In what the VMs that run here differ from their definitions, by number."""
        return {n: tuple({each.code for each in found}) for n, found in self.differences.items()}

    @property
    def differences(self) -> Mapping[int, tuple[Difference, ...]]:
        """Each such difference, by number."""
        return {} if self._sampler is None else self._sampler.unlike

    def read_back(self) -> None:
        """Take in this host's own slot after a good read of the whiteboard."""
        board = self._table.board
        own, written_s = board.own, board.last_write_s
        is_written = own is not None and own.extra_trusted and own.timestamp == board.written
        if own is None or not is_written:
            self.own_claims = ()
        else:
            # Takes the lines of the claims alone: the rest is this host's own word.
            self.own_claims = vm_lines.claims_in(own.extra, own.host_id, written_s)

    def look_at_disks(self, now_s: float) -> None:
        """Take in, once a beat, which VMs run here with other disks than their definitions have.
        For a VM that no longer runs here the last finding stays."""
        if self._sampler is None:
            return
        self._take_in_disks(now_s)
        self._find_held()

    def _take_in_disks(self, now_s: float) -> None:
        """A VM that runs here and was not looked at yet, for it has just come, or this broker has
        just started, runs with what was said of it last: its host may die before the look ends."""
        if self._sampler is None:
            return
        found, looked = self._sampler.differing, self._sampler.unlike
        for vm in self.samples(now_s):
            if vm.report.vm is not VmStatus.UP:
                continue
            number, before = vm.number, self._differing.get(vm.number)
            if (one := found.get(number)) is None and number not in looked:
                one = self._said_of_disks(number)
            if one is None:
                self._differing.pop(number, None)
                continue
            ran = max(one.last_ran, self.last_ran(number))
            self._differing[number] = one._replace(last_ran=ran)
            if before is None or before.text != one.text:
                name = self._registry.cached.vms[number].name
                log.warning("%s", _HELD.format(name=name, disks=one.text))

    def _said_of_disks(self, number: int) -> Differing | None:
        """What was said last of a VM's disks, by this host or by the one that it came from; None:
        nothing that still holds."""
        definitions = self._registry.cached.vms[number].definitions
        said = [vms[number] for vms in self._said_by_others() if number in vms]
        said += [self._differing[number]] if number in self._differing else []
        if not said or not definitions:
            return None
        newest = max(said, key=lambda one: one.last_ran)
        is_old = newest.last_ran < self._ran_elsewhere().get(number, 0)
        return None if is_old or newest.generation != definitions[0].generation else newest

    def _said_by_others(self) -> list[dict[int, Differing]]:
        """The VMs whose disks differ, as each slot has them."""
        return [
            vm_lines.differing_in(report.extra)
            for report in self._table.members.reports.values()
            if report.extra_trusted and vm_lines.DIFFER in report.extra
        ]

    def _find_held(self) -> None:
        """Find the VMs of which a start would boot other disks than those that they ran with last,
        on whichever host that was, unless an administrator has decided since."""
        said = self._said_by_others()
        if not said and not self._differing:
            self._held = {}
            return
        ran = self._ran_elsewhere()
        held = {}
        for number, record in self._registry.cached.vms.items():
            if number == ENGINE or not record.definitions:
                continue
            found = [vms[number] for vms in said if number in vms]
            found += [self._differing[number]] if number in self._differing else []
            newest = max(self.last_ran(number), ran.get(number, 0))
            generation = record.definitions[0].generation
            held_by = [o for o in found if o.generation == generation and o.last_ran >= newest]
            if held_by:
                texts = [one.text for one in held_by if one.text]
                disks = texts[0] if texts else "as its last host says"
                held[number] = _HELD.format(name=record.name, disks=disks)
        self._held = held

    def look_at_health(self, now_s: float) -> None:
        """Remember, once a beat, which VMs were seen healthy, here or by another host's word, under
        the check that their record has now."""
        vms = self._registry.cached.vms
        for number in self._healthy_once.keys() - vms.keys():
            del self._healthy_once[number]
        good = {
            number
            for peer in self._table.published()
            for number, vm in peer.vms.items()
            if vm.report.health is Health.GOOD
        }
        good |= {vm.number for vm in self.samples(now_s) if vm.report.health is Health.GOOD}
        config = self._in_force.config
        for number in self._numbers:
            check = health_of(vms[number], config.health)
            once = self._healthy_once.get(number)
            if once is None:
                path = Path(config.daemon.state_dir) / f"vm-{number}-healthy-once"
                once = self._healthy_once[number] = HealthyOnce(path, check)
            once.reconfigure(check)
            once.look(number in good, ())

    @property
    def _numbers(self) -> Sequence[int]:
        return [spec.number for spec in self._registry.cached.specs if spec.number != ENGINE]

    def _sampled(self, number: int, now_s: float) -> VmHere:
        """The monitor's sample; a VM without a fresh one is unknown."""
        vm = None if self._sampler is None else self._sampler.here.get(number)
        if vm is None:
            why = "not sampled yet"
        elif now_s - vm.taken_s > SAMPLE_OLD_S:
            why = f"the last sample is {now_s - vm.taken_s:.0f} s old"
        else:
            return vm
        report = EngineStatus(VmStatus.UNKNOWN, Health.UNKNOWN, "unknown", why)
        return VmHere(report, now_s, number=number)

    def _here(self, number: int, now_s: float, unfit: tuple[Unfit, ...]) -> VmHere:
        """`unfit`: the obstacles that the sample does not have."""
        vm, last_ran = self._sampled(number, now_s), self.last_ran(number)
        if vm.domain.leftover is not None:
            unfit = (*unfit, *in_the_way(vm.domain, vm.report, now_s))
        if vm.unfit:
            unfit = (*vm.unfit, *unfit)
        once = self._healthy_once.get(number)
        healthy_before = once is not None and once.known
        # An unchanged result is not made anew.
        old, made = self._made.get(number, (None, vm))
        if (
            old is not vm
            or made.last_ran != last_ran
            or made.healthy_before is not healthy_before
            or made.unfit != unfit
        ):
            made = replace(vm, last_ran=last_ran, unfit=unfit, healthy_before=healthy_before)
            self._made[number] = vm, made
        return made

    def last_ran(self, number: int) -> int:
        """How often the VM had been started when this host ran it last; 0: never."""
        return max(self._agent.vms_last_ran.get(number, 0), self._last_ran.get(number, 0))

    def _unfit(self, number: int, damaged: Mapping[int, str]) -> Iterator[Unfit]:
        if (why := damaged.get(number)) is not None:
            yield Unfit(Obstacle.CANNOT_START, why)
        if why := self._held.get(number):
            yield Unfit(Obstacle.HELD_BACK, why)

    def _ran_elsewhere(self) -> dict[int, int]:
        """By number, the largest `last_ran` that another host publishes."""
        most: dict[int, int] = {}
        for peer in self._table.published():
            for number, vm in peer.vms.items():
                most[number] = max(most.get(number, 0), vm.last_ran)
        return most
