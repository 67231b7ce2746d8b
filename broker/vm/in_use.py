# SPDX-License-Identifier: LGPL-2.1-or-later
"""A monitor's result about the VM's definition and its disks in use, for readers without libvirt:
the record of what ran last, the status, the simulation."""

from __future__ import annotations

from dataclasses import dataclass, field
from xml.etree.ElementTree import Element

from broker.vm.domain_facts import Difference, Domain, Layer
from broker.vm.host_local import OneHost


@dataclass(frozen=True, slots=True)
class InUse:
    """`recorded`: the facts of the definition. `running`, `root`: those of the VM that runs here,
    None while none does. `shared`: its images that every host finds. `of_running`: how the running
    VM differs from the definition. `of_libvirt`: how libvirt's own definition differs, where the
    agent did not make it. `one_host`: what of the VM exists on this host alone."""

    recorded: Domain
    running: Domain | None = None
    root: Element | None = field(default=None, compare=False)
    shared: frozenset[Layer] = frozenset()
    of_running: tuple[Difference, ...] = ()
    of_libvirt: tuple[Difference, ...] = ()
    one_host: tuple[OneHost, ...] = ()

    @property
    def problem(self) -> str:
        """All differences in words; "" where there are none."""
        texts = [f"running: {each}" for each in self.of_running]
        texts += [f"libvirt's own definition: {each}" for each in self.of_libvirt]
        return "; ".join(texts)

    def __str__(self) -> str:
        return "differs" if self.problem else "as recorded"
