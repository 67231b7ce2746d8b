# SPDX-License-Identifier: LGPL-2.1-or-later
"""Checks for `ha-agent doctor`: what could start the VM on this host without the agent."""

from __future__ import annotations

import libvirt

from agent.doctor.host import Found
from agent.vm import libvirt_guests
from broker.config.sections import Config
from broker.daemon.errors import why


def vm_domain(config: Config) -> Found:
    """Whether libvirt starts the VM by itself, and whether there is a memory image of it."""
    name = config.vm.name
    try:
        connection = libvirt.open(config.libvirt.uri)
    except libvirt.libvirtError:
        return  # another check reports it
    try:
        domain = connection.lookupByName(name)
        image, autostart = domain.hasManagedSaveImage(), domain.autostart()
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
            yield "warn", f"libvirt does not answer about {name}: {error}", ""
        return
    finally:
        connection.close()
    if image:
        yield (
            "warn",
            f"a memory image of {name} lies here (managed save): the agent boots it and discards "
            "the image, a start by hand would resume it",
            f"virsh managedsave-remove {name}",
        )
    if autostart:
        yield (
            "warn",
            f"libvirt starts {name} by itself when this host boots",
            f"virsh autostart --disable {name}",
        )
    if not image and not autostart:
        yield "ok", f"{name} has no memory image here, and libvirt does not start it by itself", ""


def libvirt_guests_found(config: Config) -> Found:
    """Whether libvirt-guests saves the VM at a shutdown, or starts it at a boot."""
    try:
        text, fix = libvirt_guests.problem()
    except OSError as error:
        yield (
            "warn",
            f"the settings of libvirt-guests cannot be read: {why(error)}",
            "run it as root",
        )
        return
    if text:
        yield "warn", text, fix
    else:
        yield "ok", "libvirt-guests does nothing to the VM", ""
