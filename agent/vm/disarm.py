# SPDX-License-Identifier: LGPL-2.1-or-later
"""Removes what would start the VM without the agent, or with old memory. Each removal is logged as
a warning: somebody made the memory image. Blocking; raises libvirt.libvirtError."""

from __future__ import annotations

import logging

import libvirt

log = logging.getLogger("ha-agent.hypervisor")


def discard_memory_image(domain: libvirt.virDomain) -> None:
    """Remove the managed save image, if there is one: a start is a boot."""
    if domain.hasManagedSaveImage():
        log.warning(
            "a memory image of %s (managed save) is discarded: what it holds is older than the "
            "VM's disks, or would be at the next start; whoever saved it there should shut the VM "
            "down instead (libvirt-guests: ON_SHUTDOWN=shutdown)",
            domain.name(),
        )
        domain.managedSaveRemove()


def turn_off_autostart(domain: libvirt.virDomain) -> None:
    """Turn libvirt's autostart of the VM off, if it is on: the agent starts it."""
    if domain.autostart():
        log.warning("libvirt's autostart of %s is turned off: the agent starts it", domain.name())
        domain.setAutostart(False)
