# SPDX-License-Identifier: LGPL-2.1-or-later
"""libvirt's own definition of the VM: recognises changes that were not made by the agent."""

from __future__ import annotations

import logging
from pathlib import Path

import libvirt

from agent.vm.old_domains import gives_way
from broker.daemon.atomic_file import write_atomically
from broker.vm import domain_facts
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
            if not (is_taken and gives_way(connection, self._name, xml)):
                raise
            domain = connection.defineXML(xml)
        own = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
        try:
            write_atomically(self._path, digest(own).encode())
        except OSError as error:
            log.warning("%s cannot be written: %s", self._path, error)
        return domain

    def _digest(self) -> str:
        try:
            return self._path.read_text().strip()
        except (OSError, UnicodeDecodeError):
            return ""
