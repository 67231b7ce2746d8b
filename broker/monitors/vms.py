# SPDX-License-Identifier: LGPL-2.1-or-later
"""The protected VMs beside the engine on this host, as the registry has them.

Rules of this file:

1. libvirt is asked once for all domains; only of one that is there more is asked, by a monitor, a
   connection and threads of its own. So a VM that hangs costs its own sample, and no other's.
2. A sample waits WAIT_S for the looks that it has begun, and goes on without those that have not
   ended: such a VM keeps its last result until that is old, or until libvirt's deadline.
3. A VM is looked at again when libvirt's word on it or its health changes, and without that, where
   it is off as it was, after OFF_EVERY_S, where it is up and well, after UP_EVERY_S.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import libvirt
from msgspec import structs

from broker.config.errors import ConfigError
from broker.config.sections import Config, HealthSection
from broker.daemon.foreign import sentence
from broker.daemon.worker import Hung, Worker
from broker.monitors.all_domains import AllDomains, DomainSeen
from broker.monitors.bridge import BridgeMonitor, bridges_in
from broker.monitors.budget import memory_of, pools
from broker.monitors.health import HealthMonitor
from broker.monitors.health_asked import health_of
from broker.monitors.runner import LIBVIRT_DEADLINE_S, MonitorRunner, Unknown
from broker.monitors.vm import DomainMonitor
from broker.monitors.vm_disks import Asked, DisksLook
from broker.registry.cache import Cached
from broker.registry.record import VmRecord
from broker.vm.domain_facts import Difference
from broker.vm.libvirt_words import libvirt_sentence
from broker.whiteboard.vm_lines import Differing, Memory
from scoring.vm_facts import ENGINE, EngineStatus, Health, VmHere, VmStatus

log = logging.getLogger("ha-broker.monitors")

#: How long a sample waits for the looks that it has begun.
WAIT_S = 0.3
OFF_EVERY_S, UP_EVERY_S = 10.0, 1.9
#: The health of a VM is asked for no more often than this.
HEALTH_EVERY_S = 2.0


@dataclass(frozen=True, slots=True)
class VmsFound:
    """The value of the monitor: how each VM is, so that a change is seen."""

    standing: tuple[tuple[int, EngineStatus, bool | None], ...]

    def __str__(self) -> str:
        up = sum(report.vm is VmStatus.UP for _, report, _ in self.standing)
        return f"{up} of {len(self.standing)} up"


class VmWatch:
    """One VM: its monitors, and the last result. `wake`: called when its health has changed."""

    def __init__(self, config: Config, record: VmRecord, wake: Callable[[], None]) -> None:
        self.record = record
        mine = config_of(config, record)
        #: Why its health cannot be asked for; empty: it can.
        self._health_problem = ""
        try:
            health = HealthMonitor(mine, max(config.monitors.health, HEALTH_EVERY_S))
        except (ConfigError, ValueError) as error:
            self._health_problem = f"its health check cannot be used: {sentence(error)}"
            health = HealthMonitor(structs.replace(mine, health=HealthSection()))
        health.name = f"health of {record.name}"
        self._health_runner = MonitorRunner([health])
        self._health_runner.on_change = lambda name: wake()
        self._health_task: asyncio.Task[None] | None = None
        self.monitor = DomainMonitor(
            mine,
            health,
            config.monitors.engine,
            record.uuid,
            f"vm-{record.number}-process",
        )
        self.here: VmHere | None = None
        self._look: asyncio.Task[VmHere] | None = None
        self._looked_s = 0.0
        self._seen: DomainSeen | None = None

    def begin(self, seen: DomainSeen | None, taken_s: float) -> asyncio.Task[VmHere] | None:
        """Begin a look at it; None where one is under way, or none is due. `seen`: what the look at
        all domains, begun at `taken_s`, found of it; None: it is not there."""
        if self._look is not None:
            return None
        if self.here is not None and self._is_as_before(self.here, seen, taken_s):
            self.here = replace(self.here, taken_s=taken_s)
            return None
        self.monitor.is_known = seen is not None
        self._seen, self._looked_s = seen, taken_s
        self._look = asyncio.create_task(self._sample(taken_s))
        return self._look

    def _is_as_before(self, here: VmHere, seen: DomainSeen | None, taken_s: float) -> bool:
        """Whether nothing is to be found that was not there at the last look."""
        if seen != self._seen:
            return False
        since_s = taken_s - self._looked_s
        if seen is None or seen.committed is None:
            return here.report.vm is VmStatus.DOWN and since_s < OFF_EVERY_S
        is_well = here.report.detail == "up" and here.lease_held is True
        is_same_health = self._health_problem != "" or self.monitor.health.verdict[0] is (
            here.report.health
        )
        return is_well and is_same_health and since_s < UP_EVERY_S

    def end(self) -> None:
        """Take the result of a look that has ended."""
        if self._look is not None and self._look.done():
            self.here, self._look = self._look.result(), None
            self._ask_health(self.here.report.vm is VmStatus.UP)

    def close(self) -> None:
        """The VM is not watched any more."""
        self._ask_health(False)
        if self._look is not None:
            self._look.cancel()

    def _ask_health(self, on: bool) -> None:
        if on and self._health_task is None:
            self._health_task = asyncio.create_task(self._health_runner.run())
        elif not on and self._health_task is not None:
            self._health_task.cancel()
            self._health_task = None

    async def _sample(self, taken_s: float) -> VmHere:
        monitor, number = self.monitor, self.record.number
        try:
            async with asyncio.timeout(monitor.deadline_s):
                report = await monitor.sample()
        except Exception as error:  # whatever it is, it must cost no other VM its sample
            why = "no answer in time" if isinstance(error, TimeoutError) else sentence(error)
            return VmHere(_unknown(why), taken_s, number=number)
        if self._health_problem and report.vm is VmStatus.UP:
            report = replace(report, health=Health.UNKNOWN, reason=self._health_problem)
        migration = monitor.migration
        return VmHere(
            report,
            taken_s,
            lease_held=monitor.lease_held,
            migrating_s=None if migration is None else migration.elapsed_s,
            domain=monitor.facts,
            number=number,
        )


class VmsMonitor:
    """`here`, `memory`: of the last sample. `wake`: samples at once."""

    name = "vms"
    unit = ""
    deadline_s = 10.0

    def __init__(self, config: Config, wake: Callable[[], None] = lambda: None) -> None:
        self.interval_s = config.monitors.engine
        self._config, self._wake = config, wake
        self._all = AllDomains(config.libvirt.uri)
        self._libvirt = Worker("libvirt's domains")
        self._known = Cached()
        self._watches: dict[int, VmWatch] = {}
        self._bridges: dict[int, tuple[str, ...]] = {}
        self.here: dict[int, VmHere] = {}
        self.memory = Memory()
        self._disks = DisksLook(config.libvirt.uri)
        #: When this host's id was last renewed: see Lockspace. Set by the broker.
        self.renewed_s: Callable[[], float | None] = lambda: None

    @property
    def differing(self) -> Mapping[int, Differing]:
        """The VMs here that run with other disks than their definitions say, by number."""
        return self._disks.found

    @property
    def unlike(self) -> Mapping[int, tuple[Difference, ...]]:
        """In what each VM that runs here differs from its definition, by number."""
        return self._disks.unlike

    def judge(self, value: VmsFound) -> str:
        """No VM that is not here is a problem."""
        return ""

    def reload(self, config: Config) -> None:
        """Use another configuration; every VM is watched anew."""
        self._config, self.interval_s = config, config.monitors.engine
        self._close(set(self._watches))
        self.watch(self._known)

    def watch(self, known: Cached) -> None:
        """Watch the VMs of this registry from now on; one whose record has not changed goes on."""
        self._known = known
        wanted = {number: one for number, one in known.vms.items() if number != ENGINE}
        kept = {
            number
            for number, watch in self._watches.items()
            if number in wanted and _question(watch.record) == _question(wanted[number])
        }
        self._close(self._watches.keys() - kept)
        for number in wanted.keys() - kept:
            watch = VmWatch(self._config, wanted[number], self._wake)
            watch.monitor.renewed_s = lambda: self.renewed_s()
            self._watches[number] = watch
        texts = known.definitions
        self._bridges = {number: bridges_in(texts.get(number, "")) for number in wanted}
        self._wake()

    def happened(self, uuid: str, text: str, cause: str) -> None:
        """Take in an event of libvirt: log it, note why a VM ends, or is about to (`cause`), and
        sample; nothing of a foreign domain."""
        for watch in self._watches.values():
            if watch.record.uuid == uuid:
                log.info("libvirt: %s %s", watch.record.name, text)
                if cause:
                    watch.monitor.caused(cause)
                self._wake()

    async def sample(self) -> VmsFound:
        taken_s = asyncio.get_running_loop().time()
        try:
            what = "asking for all domains"
            found = await self._libvirt.call(what, LIBVIRT_DEADLINE_S, self._all.look)
        except (Hung, libvirt.libvirtError) as error:
            why = libvirt_sentence(error)
            self._all_unknown(why, taken_s)
            raise Unknown(why) from None
        self._count_memory(found)
        begun = [
            look
            for watch in self._watches.values()
            if (look := watch.begin(found.get(watch.record.uuid), taken_s)) is not None
        ]
        if begun:
            await asyncio.wait(begun, timeout=WAIT_S)
        leads_out: dict[str, bool | None] = {}
        here = {}
        for number, watch in sorted(self._watches.items()):
            watch.end()
            found_here = watch.here or VmHere(_unknown("not sampled yet"), taken_s, number=number)
            here[number] = replace(found_here, uplink_up=self._uplink_up(number, leads_out))
        self.here = here
        compared = self._disks.look(self._to_compare(), taken_s)
        if compared is not None:
            await asyncio.wait([compared], timeout=WAIT_S)
        return VmsFound(
            tuple((number, vm.report, vm.lease_held) for number, vm in self.here.items())
        )

    def _to_compare(self) -> dict[int, Asked]:
        """The VMs that are up here, and whose definitions are known."""
        known, asked = self._known, {}
        for number, vm in self.here.items():
            text, record = known.definitions.get(number), known.vms.get(number)
            if vm.report.vm is VmStatus.UP and text is not None and record is not None:
                generation = record.definitions[0].generation if record.definitions else 0
                asked[number] = Asked(record.uuid, text, generation)
        return asked

    def _all_unknown(self, why: str, taken_s: float) -> None:
        self.here = {
            number: VmHere(_unknown(why), taken_s, number=number) for number in self._watches
        }
        self.memory = Memory()

    def _count_memory(self, found: Mapping[str, DomainSeen]) -> None:
        try:
            ordinary, huge = pools()
        except Unknown:
            self.memory = Memory()
            return
        domains = [seen.committed for seen in found.values() if seen.committed is not None]
        reserve_mb = self._config.host.memory_reserve
        self.memory = memory_of(ordinary, huge, domains, reserve_mb)

    def _uplink_up(self, number: int, leads_out: dict[str, bool | None]) -> bool | None:
        """Whether a bridge of the VM leads out; None: it is on none that could. `leads_out`: what
        this sample has found of bridges so far."""
        for bridge in self._bridges.get(number, ()):
            if bridge not in leads_out:
                leads_out[bridge] = BridgeMonitor(bridge).leads_out()
        found = [leads_out[bridge] for bridge in self._bridges.get(number, ())]
        return any(found) if any(each is not None for each in found) else None

    def _close(self, numbers: set[int]) -> None:
        for number in numbers:
            self._watches.pop(number).close()


def _unknown(why: str) -> EngineStatus:
    return EngineStatus(VmStatus.UNKNOWN, Health.UNKNOWN, "unknown", why)


def _question(record: VmRecord) -> tuple[str, ...]:
    """What a watch is made of."""
    return record.uuid, record.name, record.health, record.expect


def config_of(config: Config, record: VmRecord) -> Config:
    """The configuration of this host, as that of a host with this VM alone."""
    return structs.replace(
        config,
        vm=structs.replace(config.vm, name=record.name),
        storage=structs.replace(config.storage, resource=record.resource),
        health=health_of(record, config.health),
    )
