# SPDX-License-Identifier: LGPL-2.1-or-later
"""The protected VMs of a simulated cluster beside the engine: the registry that names them, what
each host knows of it, and how each VM is.

The registry is a value with a generation. A host knows what it read last: it reads every ten
seconds, and at once when another host's slot shows a larger generation, as in life
(broker/registry/cache.py).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from broker.registry.cache import HEADER_EVERY_S, PAUSE_S, Cached, RegistryCache
from broker.registry.record import Definition, VmRecord
from broker.whiteboard.signatures import Signatures
from scoring.vm_facts import ENGINE, VmSpec, Want
from tests.simulation.disks import BASE, SHARED
from tests.simulation.earlier import Metadata
from tests.simulation.grammar import NotNow
from tests.simulation.host import CLUSTER, MEMORY_MB, Host

if TYPE_CHECKING:
    from tests.simulation.world import World

#: The name of VM 1.
ENGINE_NAME = "engine"
#: What of a host's memory no VM may have, MiB.
RESERVE_MB = 1024.0
#: The memory of a host where nothing is said of it, MiB.
TOTAL_MB = 65_536.0


#: A host stands back for so long from a VM that failed there, and a while until others know.
TROUBLE_S = 620.0
#: Until all hosts have read a change of the registry and done what it asks for.
REST_S = 30.0
#: A VM that no host has room for is waited for so long before time with it down is passed over: a
#: start that failed, or a host that stands back, has made room by then, or never does.
NO_PLACE_S = 120.0


class Vms:
    """`records`: the registry's volume. `numbers`: the VMs 2.. that are protected."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.records: dict[int, VmRecord] = {}
        self.generation = 0
        #: When the registry was last changed, and when anything about the VM was.
        self.changed_s = 0.0
        #: Why libvirt cannot start a VM on a host, by host and VM.
        self.start_fails: dict[tuple[int, int], str] = {}
        #: Hosts on which libvirt never comes back from starting a VM; and how long a guest boots,
        #: by name, where that is not the cluster's.
        self.start_hangs: set[tuple[int, int]] = set()
        self.boot_s: dict[str, float] = {}
        #: Live migrations that went well, by VM; and when the last one of it was over.
        self.moves: Counter[int] = Counter()
        self.moved_s: dict[int, float] = {}
        #: Since when each VM runs nowhere, or is not healthy; those that are well are not in it.
        self.down_since_s: dict[int, float] = {}
        self.unwell_since_s: dict[int, float] = {}
        #: The longest time without it, after it was healthy for the first time.
        self.outages_s: dict[int, list[float]] = {}

        #: The image that the definition of each VM names, and those that its guest may go on in;
        #: not in it: BASE.
        self.images: dict[int, str] = {}
        self.newest: dict[int, frozenset[str]] = {}
        self._specs: dict[int, tuple[VmRecord, VmSpec]] = {}
        #: When a start of a VM last failed on a host, or it died there.
        self.trouble_s: dict[tuple[int, int], float] = {}

    # --- names ------------------------------------------------------------------------------

    @property
    def several(self) -> bool:
        """Whether there are VMs beside the engine."""
        return any(number != ENGINE for number in self.records)

    @property
    def numbers(self) -> list[int]:
        """The VMs beside the engine."""
        return [n for n, record in self.records.items() if n != ENGINE and not record.removed]

    @property
    def specs(self) -> tuple[VmSpec, ...]:
        """What is wanted of the VMs, as the registry has it now."""
        return tuple(
            self._spec_of(one) for _, one in sorted(self.records.items()) if not one.removed
        )

    def spec(self, vm: int) -> VmSpec | None:
        """The specification of one VM; None: the registry does not name it."""
        record = self.records.get(vm)
        return None if record is None or record.removed else self._spec_of(record)

    def _spec_of(self, record: VmRecord) -> VmSpec:
        """That of a record; asked for many times a second, and the record does not change."""
        known = self._specs.get(record.number)
        if known is None or known[0] is not record:
            known = self._specs[record.number] = record, record.spec()
        return known[1]

    def name_of(self, vm: int) -> str:
        """What it is called."""
        record = self.records.get(vm)
        if record is None:
            return ENGINE_NAME if vm == ENGINE else f"VM {vm}"
        return record.name

    def of(self, vm: int) -> str:
        """Words behind a line of the trace that is about it; none of the engine."""
        return "" if vm == ENGINE else f" [{self.name_of(vm)}]"

    def named(self, name: str) -> int | None:
        """The number of the VM of that name; None: there is none."""
        if name == ENGINE_NAME:
            return ENGINE
        return next((n for n in self.numbers if self.records[n].name == name), None)

    # --- the registry -----------------------------------------------------------------------

    def change(self, name: str, **fields: Any) -> None:
        """`vm add` or `vm set`: the record of that VM, which is a new one where there is none."""
        number = self.named(name)
        if number is None or (number == ENGINE and ENGINE not in self.records):
            number = ENGINE if name == ENGINE_NAME else 1 + max([1, *self.records])
            record = VmRecord(
                number=number,
                name=name,
                uuid=f"00000000-0000-4000-8000-{number:012x}",
                generation=0,
                memory_mb=4096,
            )
        else:
            record = self.records[number]
        self.generation += 1
        if number != ENGINE and not record.definitions:
            fields["definitions"] = (self._definition(),)
        self.records[number] = replace(record, generation=self.generation, **fields)
        now_s = self.changed_s = self._world.timeline.now_s
        if self.generation == 1:
            self._let_brokers_read()
        self.down_since_s.setdefault(number, now_s)
        self.unwell_since_s.setdefault(number, now_s)
        for host in self._world.hosts.values():
            if host.total_mb is None:
                host.total_mb, host.reserve_mb = TOTAL_MB, RESERVE_MB
                host.memory_mb = TOTAL_MB if host.memory_mb == MEMORY_MB else host.memory_mb
            host.takes_mb[number] = self.records[number].memory_mb
            host.takes_mb.setdefault(ENGINE, self._world.vm_memory_mb)

    def _definition(self) -> Definition:
        """One that is written now, in the registry's next generation."""
        return Definition(
            place=0, stored=1, sha256=64 * "0", generation=max(1, self.generation), wall_s=0.0
        )

    def snapshot(self, host: Host, vm: int) -> None:
        """The VM there goes on in a new image on the shared storage."""
        qemu = host.qemus[vm]
        at = f"{self.generation}-{self._world.timeline.now_s:.0f}"
        qemu.image = f"{SHARED}{self.name_of(vm)}-{at}"
        self.newest[vm] = frozenset({qemu.image})
        self._world.tell(host.name, f"{self.name_of(vm)} writes to {qemu.image}")

    def is_held_back(self, vm: int) -> bool:
        """Whether a start would boot an older disk than the one that it wrote to last."""
        return self.images.get(vm, BASE) not in self._world.newest_images(vm)

    def define_from_running(self, vm: int) -> None:
        """`vm define NAME --from-running`: what it writes to now is what its record says."""
        owner = self._world.owner(vm)
        if owner is None:
            raise NotNow(f"{self.name_of(vm)} runs nowhere")
        self.images[vm] = owner.qemus[vm].image
        self._define(vm)

    def use_recorded_disks(self, vm: int) -> None:
        """`vm set NAME disks=recorded`: a start boots what the record says, all the same."""
        recorded = self.images.get(vm, BASE)
        self.newest[vm] = self._world.newest_images(vm) | {recorded}
        self._define(vm)

    def _define(self, vm: int) -> None:
        newest = replace(self._definition(), generation=self.generation + 1)
        self.change(self.name_of(vm), definitions=(newest,))

    def _let_brokers_read(self) -> None:
        """Brokers that run already begin to read the registry now that there is one."""
        for number, broker in self._world.brokers.items():
            host = self._world.hosts[number]
            assert host.loop is not None
            read = broker.registry.run()
            self._world.timeline.call_within(host.loop, host.processes["broker"].begin, read)

    def remove(self, name: str) -> None:
        """`vm remove`."""
        number = self.named(name)
        assert number is not None
        self.change(name, removed=True)

    def boots_s(self, host: Host, vm: int) -> float:
        """How long its guest boots on a host."""
        return self.boot_s.get(self.name_of(vm), host.guest_boot_s)

    @property
    def must_claim(self) -> bool:
        """Whether there are two VMs or more, so that who brings one somewhere says so before."""
        return self.several

    def cache(self, host: Host) -> SimRegistryCache:
        """What a broker that starts there knows of it."""
        return SimRegistryCache(self._world, host)

    # --- how they are -----------------------------------------------------------------------

    def moved(self, vm: int) -> None:
        """Note that the VM went over to another host alive."""
        self.moves[vm] += 1
        self.moved_s[vm] = self._world.timeline.now_s

    def troubled_for_s(self, host: Host, vm: int) -> float | None:
        """How long ago a VM failed on a host, which stands back from it since then; None: no host
        remembers."""
        at_s = self.trouble_s.get((host.number, vm), float("-inf"))
        troubled_s = self._world.timeline.now_s - at_s
        return troubled_s if troubled_s < TROUBLE_S else None

    def is_healthy(self, vm: int) -> bool:
        """Whether it is healthy somewhere."""
        return any(host.is_healthy(vm) for host in self._world.hosts.values())

    @property
    def at_rest(self) -> bool:
        """Whether each is where it should be: healthy, or nowhere where it is wanted down, or has
        no place."""
        now_s = self._world.timeline.now_s
        if self.records and now_s - self.changed_s < REST_S:
            return False
        return all(
            (self.is_healthy(vm) or self._has_no_place(vm))
            if self.wanted(vm)
            else self._world.owner(vm) is None
            for vm in self.numbers
        )

    def _has_no_place(self, vm: int) -> bool:
        """Whether it has been nowhere for long, and no host has the room for it."""
        down_s = self._world.timeline.now_s - self.down_since_s.get(vm, float("inf"))
        return down_s >= NO_PLACE_S and self._world.laws.vms.is_short(vm)

    def wanted(self, vm: int) -> bool:
        """Whether it is to run."""
        spec = self.spec(vm)
        return vm == ENGINE if spec is None else spec.want is Want.UP

    def look(self) -> None:
        """Note how each VM is; called once a second."""
        now_s = self._world.timeline.now_s
        for vm in self.records:
            if self._world.owner(vm) is None:
                self.down_since_s.setdefault(vm, now_s)
            else:
                self.down_since_s.pop(vm, None)
            if not self.is_healthy(vm):
                if vm not in self.unwell_since_s:
                    self._world.tell("guest", f"{self.name_of(vm)} is not healthy")
                self.unwell_since_s.setdefault(vm, now_s)
            elif vm in self.unwell_since_s:
                self.outages_s.setdefault(vm, []).append(now_s - self.unwell_since_s.pop(vm))
                self._world.tell("guest", f"{self.name_of(vm)} is healthy")

    def longest_downtime_s(self, vm: int) -> float:
        """The longest time in which it was not healthy, after it was for the first time."""
        ended = self.outages_s.get(vm, [])[1:]
        if vm in self.unwell_since_s and vm in self.outages_s:
            ended.append(self._world.timeline.now_s - self.unwell_since_s[vm])
        return max(ended, default=0.0)

    def down_for_s(self, vm: int) -> float:
        """For how long it has run nowhere."""
        since_s = self.down_since_s.get(vm)
        return 0.0 if since_s is None else self._world.timeline.now_s - since_s


class SimRegistryCache(RegistryCache):
    """What one broker knows of the registry. A host of the previous version knows nothing of it."""

    def __init__(self, world: World, host: Host) -> None:
        super().__init__(None, CLUSTER, Signatures(), Path())
        self._world, self._host = world, host
        host.knows_registry_s = None

    async def run(self) -> None:
        """Read for ever, in virtual time."""
        while True:
            await self.look(asyncio.get_running_loop().time())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HEADER_EVERY_S):
                    await self._wake.wait()
            self._wake.clear()
            await asyncio.sleep(PAUSE_S)

    async def look(self, now_s: float) -> None:
        """Read it, where the storage lets this host."""
        host, vms = self._host, self._world.vms
        if host.metadata is not Metadata.THIS or not vms.records:
            return
        if not host.reads_whiteboard or host.registry == "old":
            return
        host.knows_registry_s = self._world.timeline.now_s
        hurt = vms.records if host.registry == "damaged" else host.damaged_vms
        damaged = dict.fromkeys(sorted(hurt), "its record in the registry cannot be read")
        records = dict(vms.records)
        xml = {
            number: f"<domain><name>{one.name}</name></domain>" for number, one in records.items()
        }
        cached = Cached(vms.generation, records, xml, damaged)
        if cached != self.cached:
            self.cached = cached
            self.on_change()
