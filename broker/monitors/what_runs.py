# SPDX-License-Identifier: LGPL-2.1-or-later
"""Compares what the VM on this host runs with, and libvirt's own definition of it, with the
definition that the cluster starts. It reads two texts from libvirt and starts no process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import libvirt

from broker.config.sections import Config
from broker.daemon.worker import Hung, Worker
from broker.monitors.runner import Unknown
from broker.vm import domain_facts, domain_text
from broker.vm.domain_facts import Difference, Differs, Domain
from broker.vm.errors import BadDomain
from broker.vm.host_local import one_host
from broker.vm.in_use import InUse
from broker.vm.libvirt_words import libvirt_sentence
from broker.vm.shared_paths import SharedPaths
from broker.whiteboard.what_ran import DEFINED_FILE, digest

DEADLINE_S = 3.0


class WhatRunsMonitor:
    """InUse of this host; Unknown where libvirt or the definition cannot be read."""

    name = "what_runs"
    unit = ""
    deadline_s = 10.0

    def __init__(self, config: Config, interval_s: float = 1.0) -> None:
        self.interval_s = interval_s
        self._config = config
        self._worker = Worker("libvirt's definition")
        self._connection: libvirt.virConnect | None = None
        #: The disks that ran last, as the record has them.
        self.ran: Callable[[], Mapping[str, str]] = dict
        self._made_from: tuple[object, ...] = ()
        self._made: InUse | None = None

    def judge(self, value: InUse) -> str:
        """The differences."""
        return value.problem

    async def sample(self) -> InUse:
        try:
            return await self._worker.call("reading the VM's definition", DEADLINE_S, self._look)
        except libvirt.libvirtError as error:
            raise Unknown(libvirt_sentence(error)) from None
        except Hung as error:
            raise Unknown(str(error)) from None

    # --- in the thread ----------------------------------------------------------------------

    def _look(self) -> InUse:
        path = self._config.vm.definition
        try:
            xml = Path(path).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise Unknown(f"{path}: {error}") from None
        running, own = self._texts()
        read = (xml, running, own, self._defined(), self.ran())
        if self._made is None or read != self._made_from:
            try:
                self._made, self._made_from = self._compare(*read), read
            except BadDomain as error:
                raise Unknown(f"{path} or libvirt's XML of the VM {error}") from None
        return self._made

    def _texts(self) -> tuple[str, str]:
        """libvirt's XML of the running VM, and its own definition; "" where there is none."""
        try:
            if self._connection is None:
                self._connection = libvirt.open(self._config.libvirt.uri)
            domain = self._connection.lookupByName(self._config.vm.name)
            own = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE) if domain.isPersistent() else ""
            return domain.XMLDesc(0) if domain.isActive() else "", own
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return "", ""
            if self._connection is not None:
                self._connection.close()
                self._connection = None
            raise

    def _defined(self) -> str:
        try:
            return (Path(self._config.daemon.state_dir) / DEFINED_FILE).read_text().strip()
        except (OSError, UnicodeDecodeError):
            return ""

    def _compare(
        self, xml: str, running: str, own: str, defined: str, ran: Mapping[str, str]
    ) -> InUse:
        recorded = domain_facts.read(xml)
        found = domain_facts.read(running) if running else None
        of_libvirt: tuple[Difference, ...] = ()
        if own and digest(own) != defined:
            started = domain_facts.read(domain_text.composed(xml, ran))
            mine = domain_facts.read(own)
            of_libvirt = tuple(
                each
                for each in domain_facts.differences(started, mine)
                if not _is_what_runs(each, mine, found)
            )
        storage = self._config.storage
        volumes = SharedPaths([storage.whiteboard, storage.leases])
        alone = one_host(xml, volumes.may_have)
        if found is None:
            return InUse(recorded, of_libvirt=of_libvirt, one_host=alone)
        layers = {layer for disk in found.disks.values() for layer in disk.chain}
        named = [disk.chain[0].place for disk in recorded.disks.values() if disk.chain]
        paths = SharedPaths([storage.whiteboard, storage.leases, *named])
        return InUse(
            recorded,
            found,
            domain_facts.parse(running),
            frozenset(filter(paths.has, layers)),
            domain_facts.differences(recorded, found),
            of_libvirt,
            alone,
        )


def _is_what_runs(each: Difference, own: Domain, running: Domain | None) -> bool:
    """Whether a disk of libvirt's own definition is where the running VM has it: libvirt writes a
    snapshot into both, and the record follows."""
    if each.code is not Differs.DISKS or running is None:
        return False
    one, two = own.disks.get(each.what), running.disks.get(each.what)
    return one is not None and two is not None and one.chain[:1] == two.chain[:1]
