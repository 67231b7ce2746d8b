# SPDX-License-Identifier: LGPL-2.1-or-later
"""libvirt's own definition of the VM: what the agent made of it last, and what others did."""

from __future__ import annotations

import logging
from pathlib import Path

import libvirt

from broker.daemon.atomic_file import write_atomically
from broker.vm import domain_facts
from broker.vm.domain_facts import BadDomain, Difference
from broker.whiteboard.what_ran import DEFINED_FILE, digest

log = logging.getLogger("ha-agent.defined")


class Defined:
    """Of the domain `name`. What was defined last is remembered as a digest in `state_dir`, so that
    a change by others is told from one of the record's."""

    def __init__(self, name: str, state_dir: Path) -> None:
        self._name = name
        self._path = state_dir / DEFINED_FILE

    def changes(self, connection: libvirt.virConnect, wanted: str) -> tuple[Difference, ...]:
        """What libvirt's own definition has otherwise than `wanted`, where somebody else made it;
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
        """Define it, and remember how libvirt has it; libvirtError."""
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
