# SPDX-License-Identifier: LGPL-2.1-or-later
"""Undefines domains of earlier days that are in the way of a VM of the registry.

libvirt keeps what it once defined, or received by a migration, and refuses a second domain of a
name, or of a UUID. So a VM that was removed from the registry and added anew, or added under
another name than before, could neither be started nor be migrated to a host that had run it.

Such a domain is the VM itself under an earlier name (it has the VM's UUID), or one of the VM's name
that the cluster protected under a lease of its own. One that runs, or that never had such a lease,
stays. The files of its firmware and its TPM are kept.
"""

from __future__ import annotations

import asyncio
import logging
from xml.etree.ElementTree import Element

import libvirt

from agent.leases.vm_records import VmRecords
from broker.config.sections import Config
from broker.daemon.foreign import sentence
from broker.daemon.worker import Hung, Worker
from broker.registry.cache import Cached
from broker.vm import domain_facts
from broker.vm.admitted import leases_of
from broker.vm.errors import BadDomain
from scoring.vm_facts import ENGINE

log = logging.getLogger("ha-agent.defined")

#: How often the copy of the registry is looked at, and how long libvirt may take.
LOOK_S, DEADLINE_S = 10.0, 30.0


class OldDomains:
    """Looks for such domains whenever this host's copy of the registry is another one."""

    def __init__(self, config: Config, records: VmRecords) -> None:
        self._uri, self._records = config.libvirt.uri, records
        self._worker = Worker("domains of earlier days")
        self._seen: Cached | None = None

    async def run(self) -> None:
        """Look for ever."""
        while True:
            try:
                await self._worker.call("looking for them", DEADLINE_S, self.look)
            except (Hung, libvirt.libvirtError) as error:
                log.info("domains of earlier days: %s", sentence(error))
            await asyncio.sleep(LOOK_S)

    def look(self) -> None:
        """Look once, where the copy has changed; libvirtError. Blocks."""
        cached = self._records.now()
        if cached is self._seen:
            return
        connection = libvirt.open(self._uri)
        try:
            for number, record in cached.vms.items():
                if number != ENGINE and number in cached.definitions:
                    gives_way(connection, record.name, cached.definitions[number])
        finally:
            connection.close()
        self._seen = cached


def gives_way(connection: libvirt.virConnect, name: str, xml: str) -> bool:
    """Whether a domain was in the way of the VM of that name and definition, and is undefined
    now."""
    try:
        wanted = domain_facts.parse(xml)
    except BadDomain:
        return False
    uuid = wanted.findtext("uuid", "").strip().lower()
    for look, key in ((connection.lookupByUUIDString, uuid), (connection.lookupByName, name)):
        try:
            domain = look(key)
            its_name, its_uuid = domain.name(), domain.UUIDString()
            is_wanted = its_uuid == uuid and its_name == name
            is_ours = its_uuid == uuid or _had_its_lease(domain, wanted)
            if is_wanted or domain.isActive() or not is_ours:
                continue
            undefine(domain)
        except (libvirt.libvirtError, BadDomain):
            continue
        log.warning("libvirt's domain %s (%s) of earlier days is undefined", its_name, its_uuid)
        return True
    return False


def _had_its_lease(domain: libvirt.virDomain, wanted: Element) -> bool:
    """Whether the domain has a lease of its own in the volume in which `wanted` has one."""
    own = domain_facts.parse(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
    resource = "vm-" + domain.UUIDString().replace("-", "")
    places = {(lease.lockspace, lease.path) for lease in leases_of(wanted) if lease is not None}
    return any(
        lease is not None and lease.key == resource and (lease.lockspace, lease.path) in places
        for lease in leases_of(own)
    )


def undefine(domain: libvirt.virDomain) -> None:
    """Undefine it, and keep its files; libvirtError."""
    keeps_nvram = libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM
    keeps_tpm = getattr(libvirt, "VIR_DOMAIN_UNDEFINE_KEEP_TPM", 0)
    has_tpm = "<tpm" in domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    # An earlier libvirt knows fewer of the flags, and deletes the state of a TPM without a word.
    for flags in (keeps_nvram | keeps_tpm, keeps_nvram, 0):
        if has_tpm and not (keeps_tpm and flags & keeps_tpm):
            continue
        try:
            domain.undefineFlags(flags)
        except libvirt.libvirtError:
            continue
        return
    raise libvirt.libvirtError("libvirt does not undefine the domain")
