# SPDX-License-Identifier: LGPL-2.1-or-later
"""Wakes a monitor before its interval is over: by libvirt's events of the VM, by the kernel's of
links and of libvirt's own files. Where a source is missing, its monitor only samples."""

from __future__ import annotations

import contextlib
import logging

from broker.config.sections import Config
from broker.monitors.bridge import LinkEvents
from broker.monitors.domain_events import DomainEvents
from broker.monitors.of_host import HostMonitors
from broker.monitors.status_file import StatusFileEvents

log = logging.getLogger("ha-broker")


def listen(config: Config, monitors: HostMonitors) -> contextlib.ExitStack:
    """Listen to all of them, until the result is closed."""
    wake = monitors.runner.wake

    def vm_changed() -> None:
        wake("engine")
        wake("what_runs")
        wake("can_start")
        # While there was no connection to libvirt, there were no events.
        wake("vms")

    def other_changed(uuid: str, text: str, cause: str) -> None:
        if monitors.vms is not None:
            monitors.vms.happened(uuid, text, cause)

    def links_changed() -> None:
        wake("bridge")
        wake("uplink")
        wake("vms")
        wake("can_start")

    listeners = contextlib.ExitStack()
    name = config.vm.name
    caused = monitors.engine.caused
    changes = DomainEvents(config.libvirt.uri, name, vm_changed, caused, other_changed)
    listeners.callback(changes.close)
    try:
        listeners.callback(LinkEvents(links_changed).close)
    except OSError as error:
        log.warning("the kernel reports no changed links (%s): the bridge is only polled", error)
    try:
        written = StatusFileEvents(config.libvirt.pid_dir, name, lambda: wake("what_runs"))
        listeners.callback(written.close)
    except OSError as error:
        log.warning("the kernel reports no changed files (%s): what runs is only polled", error)
    return listeners
