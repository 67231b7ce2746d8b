# SPDX-License-Identifier: LGPL-2.1-or-later
"""libvirt's own definition of the VM: recognises changes that were not made by the agent."""

from __future__ import annotations

import logging
from pathlib import Path
from xml.etree.ElementTree import Element

import libvirt

from broker.daemon.atomic_file import write_atomically
from broker.vm import domain_facts
from broker.vm.admitted import leases_of
from broker.vm.domain_facts import Difference
from broker.vm.errors import BadDomain
from broker.whiteboard.what_ran import DEFINED_FILE, digest

log = logging.getLogger("ha-agent.defined")


class Defined:
    """The definition of the domain `name`. A digest of the last version that the agent defined is
    kept in `state_dir`: it distinguishes changes by others from changes of the record. `resource`:
    the VM's lease, whose name the file of a VM of the registry has; "": the engine's."""

    def __init__(self, name: str, state_dir: Path, resource: str = "") -> None:
        self._name = name
        self._path = state_dir / (f"defined-{resource}.sha256" if resource else DEFINED_FILE)

    def changes(self, connection: libvirt.virConnect, wanted: str) -> tuple[Difference, ...]:
        """How libvirt's own definition differs from `wanted`, where somebody else made it;
        libvirtError."""
        try:
            own = connection.lookupByName(self._name).XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return ()
            raise
        if digest(own) == self._digest():
            return ()
        try:
            return domain_facts.differences(domain_facts.read(wanted), domain_facts.read(own))
        except BadDomain as error:
            log.warning("libvirt's definition cannot be compared: %s", error)
            return ()

    def define(self, connection: libvirt.virConnect, xml: str) -> libvirt.virDomain:
        """Define the domain, and remember libvirt's form of it; libvirtError."""
        try:
            domain = connection.defineXML(xml)
        except libvirt.libvirtError as error:
            is_taken = error.get_error_code() == libvirt.VIR_ERR_OPERATION_FAILED
            if not (is_taken and self._makes_way(connection, xml)):
                raise
            domain = connection.defineXML(xml)
        own = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
        try:
            write_atomically(self._path, digest(own).encode())
        except OSError as error:
            log.warning("%s cannot be written: %s", self._path, error)
        return domain

    def _makes_way(self, connection: libvirt.virConnect, xml: str) -> bool:
        """Whether a domain of earlier days was in the way, and is undefined now: libvirt keeps what
        it once defined, and refuses a second domain of a name, or of a UUID.

        Such a domain is this VM under an earlier name (it has the VM's UUID), or one of this name
        that the cluster protected under its own lease, until it was removed from the registry. One
        that runs, or that has no lease here, stays.
        """
        wanted = domain_facts.parse(xml)
        uuid = wanted.findtext("uuid", "").strip().lower()
        looks = ((connection.lookupByUUIDString, uuid), (connection.lookupByName, self._name))
        for look, key in looks:
            try:
                domain = look(key)
                name, old = domain.name(), domain.UUIDString()
                is_wanted = old == uuid and name == self._name
                is_ours = old == uuid or _had_its_lease(domain, wanted)
                if is_wanted or domain.isActive() or not is_ours:
                    continue
                _undefine(domain)
            except (libvirt.libvirtError, BadDomain):
                continue
            log.warning("libvirt's domain %s (%s) of earlier days is undefined", name, old)
            return True
        return False

    def _digest(self) -> str:
        try:
            return self._path.read_text().strip()
        except (OSError, UnicodeDecodeError):
            return ""


def _had_its_lease(domain: libvirt.virDomain, wanted: Element) -> bool:
    """Whether the domain has a lease of its own in the volume in which `wanted` has one."""
    own = domain_facts.parse(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
    resource = "vm-" + domain.UUIDString().replace("-", "")
    places = {(lease.lockspace, lease.path) for lease in leases_of(wanted) if lease is not None}
    return any(
        lease is not None and lease.key == resource and (lease.lockspace, lease.path) in places
        for lease in leases_of(own)
    )


def _undefine(domain: libvirt.virDomain) -> None:
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
    raise libvirt.libvirtError("it cannot be undefined")
