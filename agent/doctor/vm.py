# SPDX-License-Identifier: LGPL-2.1-or-later
"""Checks for `ha-agent doctor`: what could start the VM on this host without the agent, and whether
the VMs of the registry can be started here."""

from __future__ import annotations

import libvirt

from agent.commands.vms_shown import Shown
from agent.doctor.host import Found
from agent.vm import libvirt_guests
from broker.config.sections import Config
from broker.daemon.errors import why
from broker.daemon.foreign import sentence
from broker.registry.record import VmRecord
from broker.vm.needs import needs_of
from broker.vm.start_proof import lacks, refusals, unreadable
from scoring.vm_facts import Want


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


def registry_vms(config: Config) -> Found:
    """Whether this host could start each VM of the registry that it may run: the same proof as for
    the engine."""
    if not config.storage.registry:
        return
    registry = Shown(config)
    if problem := registry.problem or registry.known.problem:
        yield "warn", f"{problem}; looked at is this host's copy", "ha-agent vm list"
    here = config.host.id
    # can_start looks at the engine, in whatever place its definition is.
    vms = [record for number, record in sorted(registry.known.vms.items()) if number != 1]
    vms = [record for record in vms if not record.only or here in record.only]
    for number in sorted(registry.damaged.keys() - registry.known.records.keys()):
        yield (
            "fail",
            f"VM {number}: {registry.damaged[number]}",
            f"ha-agent vm define {number} FILE",
        )
    if not vms:
        return
    try:
        connection = libvirt.open(config.libvirt.uri)
    except libvirt.libvirtError as error:
        text = f"libvirt does not say whether it could start the VMs: {sentence(error)}"
        yield "warn", text, _LIBVIRT
        return
    try:
        for record in vms:
            yield from _can_start(connection, registry, record)
    finally:
        connection.close()


_LIBVIRT = "systemctl start virtqemud.socket"


def _can_start(connection: libvirt.virConnect, registry: Shown, record: VmRecord) -> Found:
    """The proof for one VM; what is missing is a warning only where nobody wants the VM up."""
    name, verdict = record.name, "fail" if record.want is Want.UP else "warn"
    anew = f"ha-agent vm define {name} FILE"
    xml = registry.definitions.get(record.number)
    refusal = registry.trouble(record)
    if refusal or xml is None:
        yield verdict, f"{name}: {refusal or 'its definition is not known here'}", anew
        return
    needs = needs_of(xml)
    problems = [*lacks(needs), *unreadable(needs)]
    silence = ""
    try:
        problems += refusals(connection, needs, xml)
    except libvirt.libvirtError as error:
        silence = f"{name}: libvirt does not say whether it could start it: {sentence(error)}"
        yield "warn", silence, _LIBVIRT
    for problem in problems:
        yield verdict, f"{name}: {problem}", f"mend it here, or {anew}"
    if not problems and not silence:
        yield "ok", f"{name}: what its definition needs is on this host", ""
