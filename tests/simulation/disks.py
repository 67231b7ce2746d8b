# SPDX-License-Identifier: LGPL-2.1-or-later
"""The VM's disk in a simulated cluster: an image that is written to, and what libvirt says of it.

An image is a path: every host finds those below /shared/, one host those below /HOST/.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from broker.monitors.runner import Sampled, Unknown
from broker.vm import domain_facts, domain_text
from broker.vm.in_use import InUse
from broker.wire.what_ran import WhatRan

if TYPE_CHECKING:
    from tests.simulation.host import Host

#: The image that the definition names.
BASE = "/shared/base"
SHARED = "/shared/"


def definition(image: str = BASE, job: str = "") -> str:
    """The VM's XML with its disk in that image, and the block job that is under way."""
    mirror = f"<mirror job='{job}' ready='yes'/>" if job else ""
    return (
        "<domain><name>HostedEngine</name><devices><disk type='file'><driver type='qcow2'/>"
        f"<source file='{image}'/>{mirror}<target dev='vda'/></disk></devices></domain>"
    )


@cache
def in_use(image: str, job: str) -> InUse:
    """What the monitor says of a VM that writes to that image; "": none runs."""
    recorded = domain_facts.read(definition())
    if not image:
        return InUse(recorded)
    xml = definition(image, job)
    running = domain_facts.read(xml)
    layers = {layer for disk in running.disks.values() for layer in disk.chain}
    return InUse(
        recorded,
        running,
        domain_facts.parse(xml),
        frozenset(layer for layer in layers if layer.place.startswith(SHARED)),
        domain_facts.differences(recorded, running),
    )


def started_image(what_ran: WhatRan | None) -> str:
    """The image that a start opens."""
    xml = domain_text.composed(definition(), {} if what_ran is None else what_ran.disks)
    return domain_facts.read(xml).disks["vda"].chain[0].place


class SimWhatRuns(Sampled):
    """What broker.monitors.what_runs does, on a simulated libvirt."""

    name = "what_runs"
    unit = ""
    interval_s = 1.0
    deadline_s = 5.0

    def __init__(self, host: Host) -> None:
        self._host = host

    async def sample(self) -> InUse:
        host = self._host
        if host.libvirt_hangs or not host.libvirt_up:
            raise Unknown("libvirt does not answer")
        qemu = host.qemu
        return in_use("", "") if qemu is None else in_use(qemu.image, qemu.job)
