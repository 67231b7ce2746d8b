# SPDX-License-Identifier: LGPL-2.1-or-later
"""A VM as the agent knows it, before libvirt is asked: its definition, its lease, its domain.

The engine is in a file of this host's configuration; every other VM is in the registry, whose copy
lies in the state folder.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Protocol

import libvirt

from agent.leases.sanlock import SanlockLeases
from agent.leases.vm_records import VmRecords, not_in_registry
from agent.vm.defined import Defined
from agent.vm.definition import (
    Definition,
    definition_of,
    load_definition,
    recorded_definition,
)
from agent.vm.errors import DefinitionError
from broker.config.engine_file import copy_of_engine
from broker.config.sections import Config
from broker.lockspace.delta_leases import layout_at
from broker.registry.admission import refused
from broker.registry.cache import Cached
from broker.registry.record import VmRecord
from broker.whiteboard.volume import VolumeError
from scoring.observation import LeaseAnswer
from scoring.vm_facts import ENGINE

log = logging.getLogger("ha-agent.hypervisor")

#: How long a start waits for this host's broker to have read a newer registry, and how often it
#: looks.
REGISTRY_PATIENCE_S, REGISTRY_LOOK_S = 5.0, 0.2


class ProtectedVm(Protocol):
    """One VM. Its methods block, and raise DefinitionError; `find` libvirtError too."""

    config: Config

    def find(self, connection: libvirt.virConnect) -> libvirt.virDomain:
        """The VM's domain."""

    def wanted(self, registry: int) -> Definition:
        """The VM's definition as it is now, of the registry's generation `registry` at least."""

    def defined(self, definition: Definition) -> Defined:
        """libvirt's own definition of the VM."""

    @property
    def resource(self) -> str:
        """The name of its lease."""

    async def owner(self, leases: SanlockLeases) -> LeaseAnswer:
        """The owner of the VM's lease; raises nothing."""


class Engine:
    """VM 1. `definition`: as it was read last; `records`: where it may be in the registry. A
    definition from there comes from the shared storage, and has to pass what those of the other VMs
    have to; one in a file of the host's own is root's word."""

    def __init__(
        self, config: Config, definition: Definition, records: VmRecords | None = None
    ) -> None:
        self.config = config
        self._definition = definition
        self._records = records

    @property
    def resource(self) -> str:
        return self.config.storage.resource

    def find(self, connection: libvirt.virConnect) -> libvirt.virDomain:
        return connection.lookupByName(self._definition.name)

    def wanted(self, registry: int) -> Definition:
        """The definition from the file as it is now; if that cannot be used, the one that was read
        before. DefinitionError where the file is the registry's copy, and is older than `registry`
        or must not be started here."""
        copy = copy_of_engine(self.config.daemon.state_dir)
        if self._records is not None and Path(self.config.vm.definition) == copy:
            cached = _not_older_than(registry, self._records)
            record, xml = cached.records.get(ENGINE), cached.definitions.get(ENGINE)
            if record is not None and xml is not None and not record.removed:
                if why := refused(xml, record, self.config):
                    raise DefinitionError(f"{record.name}: {why}")
                self._definition = definition_of(xml, self.config)
                return self._definition
        try:
            self._definition = load_definition(self.config)
        except DefinitionError as error:
            log.error("the definition stays as it was read before: %s", error)
        return self._definition

    def defined(self, definition: Definition) -> Defined:
        return Defined(definition.name, Path(self.config.daemon.state_dir))

    async def owner(self, leases: SanlockLeases) -> LeaseAnswer:
        return await leases.ask_engine()


class RecordedVm:
    """A VM of the registry. A record that is gone is remembered: what runs can still be ended."""

    def __init__(self, config: Config, number: int, records: VmRecords) -> None:
        self.config = config
        self._number = number
        self._records = records
        self._last: VmRecord | None = None

    @property
    def resource(self) -> str:
        return self._record().resource

    def find(self, connection: libvirt.virConnect) -> libvirt.virDomain:
        return connection.lookupByUUIDString(self._record().uuid)

    def wanted(self, registry: int) -> Definition:
        cached = _not_older_than(registry, self._records)
        record, xml = self._record(), cached.definitions.get(self._number)
        if why := cached.damaged.get(self._number):
            raise DefinitionError(f"{record.name}: {why}")
        if record.removed or xml is None:
            raise DefinitionError(f"{record.name} has no definition in the registry")
        if why := record.why_not_on(self.config.host.id):
            raise DefinitionError(why)
        try:
            align = layout_at(self.config.storage.leases).align
        except VolumeError as error:
            raise DefinitionError(f"storage.leases: {error}") from None
        found = recorded_definition(record, xml, self.config.storage, align)
        if why := refused(xml, record, self.config):
            raise DefinitionError(f"{record.name}: {why}")
        return found

    def defined(self, definition: Definition) -> Defined:
        return Defined(definition.name, Path(self.config.daemon.state_dir), self.resource)

    def _record(self) -> VmRecord:
        record = self._records.now().records.get(self._number, self._last)
        if record is None:
            raise DefinitionError(not_in_registry(self._number))
        self._last = record
        return record

    async def owner(self, leases: SanlockLeases) -> LeaseAnswer:
        (answer,) = await leases.ask_vms((self._number,))
        return answer


def _not_older_than(registry: int, records: VmRecords) -> Cached:
    """This host's copy once it has the generation `registry`; DefinitionError where it does not
    come."""
    until_s = time.monotonic() + REGISTRY_PATIENCE_S
    while (cached := records.now()).generation < registry:
        if time.monotonic() > until_s:
            raise DefinitionError(
                f"the registry has generation {registry}, and this host has read"
                f" {cached.generation}: no older definition is started; see: ha-agent doctor"
            )
        time.sleep(REGISTRY_LOOK_S)
    return cached
