# SPDX-License-Identifier: LGPL-2.1-or-later
"""libvirt's events of the VMs: a start, a stop, a crash, a pause, a migration or a block job
is known at once and not with the next sample. The content of an event is only logged; the event
wakes the monitors of the VM, which ask libvirt.

libvirt's own event loop runs in one thread of its own, with a connection of its own: a hang
there delays neither the beat nor the questions of the monitor (decision 19).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import libvirt

from broker.daemon.foreign import sentence

log = logging.getLogger("ha-broker.events")

RETRY_S = 5.0
#: A connection that is silent for so long is given up (virConnectSetKeepAlive).
KEEPALIVE_S, KEEPALIVE_COUNT = 5, 3

#: virDomainEventType (libvirt-domain.h).
_LIFECYCLE = {
    libvirt.VIR_DOMAIN_EVENT_DEFINED: "defined",
    libvirt.VIR_DOMAIN_EVENT_UNDEFINED: "undefined",
    libvirt.VIR_DOMAIN_EVENT_STARTED: "started",
    libvirt.VIR_DOMAIN_EVENT_SUSPENDED: "paused",
    libvirt.VIR_DOMAIN_EVENT_RESUMED: "resumed",
    libvirt.VIR_DOMAIN_EVENT_STOPPED: "stopped",
    libvirt.VIR_DOMAIN_EVENT_SHUTDOWN: "shutting down",
    libvirt.VIR_DOMAIN_EVENT_PMSUSPENDED: "suspended by its guest",
    libvirt.VIR_DOMAIN_EVENT_CRASHED: "crashed",
}
#: virConnectDomainEventBlockJobStatus.
_JOB_STATUS = {
    libvirt.VIR_DOMAIN_BLOCK_JOB_COMPLETED: "is over",
    libvirt.VIR_DOMAIN_BLOCK_JOB_FAILED: "failed",
    libvirt.VIR_DOMAIN_BLOCK_JOB_CANCELED: "was cancelled",
    libvirt.VIR_DOMAIN_BLOCK_JOB_READY: "is ready to go over to the other image",
}
#: virDomainEventStoppedDetailType and virDomainEventSuspendedDetailType.
_STOPPED = {
    libvirt.VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN: "it shut down",
    libvirt.VIR_DOMAIN_EVENT_STOPPED_DESTROYED: "it was powered off",
    libvirt.VIR_DOMAIN_EVENT_STOPPED_CRASHED: "it crashed",
    libvirt.VIR_DOMAIN_EVENT_STOPPED_MIGRATED: "it was migrated",
    libvirt.VIR_DOMAIN_EVENT_STOPPED_SAVED: "it was saved",
    libvirt.VIR_DOMAIN_EVENT_STOPPED_FAILED: "its process failed",
}
_PAUSED = {
    libvirt.VIR_DOMAIN_EVENT_SUSPENDED_MIGRATED: "for a migration",
    libvirt.VIR_DOMAIN_EVENT_SUSPENDED_IOERROR: "after an I/O error of its disk",
    libvirt.VIR_DOMAIN_EVENT_SUSPENDED_WATCHDOG: "by its watchdog",
}


#: virDomainEventWatchdogAction.
_WATCHDOG = {
    libvirt.VIR_DOMAIN_EVENT_WATCHDOG_NONE: "nothing is done",
    libvirt.VIR_DOMAIN_EVENT_WATCHDOG_PAUSE: "it is paused",
    libvirt.VIR_DOMAIN_EVENT_WATCHDOG_RESET: "it is reset",
    libvirt.VIR_DOMAIN_EVENT_WATCHDOG_POWEROFF: "it is powered off",
    libvirt.VIR_DOMAIN_EVENT_WATCHDOG_SHUTDOWN: "it is shut down",
    libvirt.VIR_DOMAIN_EVENT_WATCHDOG_DEBUG: "nothing is done",
    libvirt.VIR_DOMAIN_EVENT_WATCHDOG_INJECTNMI: "it gets an NMI",
}
PANICKED = "the guest's kernel panicked"
FIRED = "its watchdog fired"


class DomainEvents:
    """Calls `changed` for each event of the VM, on the loop on which this object was made, until it
    is closed. After a panic or a fired watchdog it first calls `caused` with PANICKED or FIRED,
    since libvirt's state of the VM does not show that afterwards. For each event of another domain
    it calls `other` with the UUID, a text, and that cause ("": neither)."""

    def __init__(
        self,
        uri: str,
        vm_name: str,
        changed: Callable[[], None],
        caused: Callable[[str], None] = lambda cause: None,
        other: Callable[[str, str, str], None] = lambda uuid, text, cause: None,
    ) -> None:
        self._uri = uri
        self._vm_name = vm_name
        self._changed = changed
        self._caused, self._other = caused, other
        self._loop = asyncio.get_running_loop()
        self._closed = False
        self._alive = False
        # This must come before any connection of this process (virEventRegisterDefaultImpl).
        libvirt.virEventRegisterDefaultImpl()
        thread = threading.Thread(target=self._run, name="libvirt events", daemon=True)
        thread.start()

    def close(self) -> None:
        """Call nobody any more. The thread ends with the process: it may hang in libvirt."""
        self._closed = True

    def _run(self) -> None:
        while not self._closed:
            connection = None
            try:
                connection = libvirt.open(self._uri)
                self._watch(connection)
            except libvirt.libvirtError as error:
                log.debug("no events: %s", sentence(error))
            if connection is not None:
                with contextlib.suppress(libvirt.libvirtError):
                    connection.close()
            time.sleep(RETRY_S)

    def _watch(self, connection: libvirt.virConnect) -> None:
        try:
            connection.setKeepAlive(KEEPALIVE_S, KEEPALIVE_COUNT)
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_SUPPORT:
                raise  # a driver inside this process has no connection that could go silent
        connection.registerCloseCallback(self._lost, None)
        registered = [
            connection.domainEventRegisterAny(None, kind, callback, None)
            for kind, callback in (
                (libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._lifecycle),
                (libvirt.VIR_DOMAIN_EVENT_ID_IO_ERROR_REASON, self._io_error),
                (libvirt.VIR_DOMAIN_EVENT_ID_WATCHDOG, self._watchdog),
                (libvirt.VIR_DOMAIN_EVENT_ID_BLOCK_JOB_2, self._block_job),
                (libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_ADDED, self._device_added),
                (libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED, self._device_removed),
            )
        ]
        self._alive = True
        log.info("libvirt sends events of the VM")
        # No event reports what happened before this connection.
        self._report("")
        while self._alive and not self._closed:
            # Returns after each event and each keepalive timer.
            libvirt.virEventRunDefaultImpl()
        with contextlib.suppress(libvirt.libvirtError):
            # Callbacks that stay registered keep the dead connection in memory.
            for number in registered:
                connection.domainEventDeregisterAny(number)
            connection.unregisterCloseCallback()

    def _lost(self, connection: Any, reason: int, opaque: Any) -> None:
        log.warning("libvirt's events are lost (reason %d); connecting anew", reason)
        self._alive = False
        self._report("")

    def _lifecycle(
        self, connection: Any, domain: libvirt.virDomain, event: int, detail: int, opaque: Any
    ) -> None:
        text = _LIFECYCLE.get(event, f"event {event}")
        if event == libvirt.VIR_DOMAIN_EVENT_STOPPED:
            text = f"{text}: {_STOPPED.get(detail, f'reason {detail}')}"
        elif event == libvirt.VIR_DOMAIN_EVENT_SUSPENDED and detail in _PAUSED:
            text = f"{text} {_PAUSED[detail]}"
        is_panic = event == libvirt.VIR_DOMAIN_EVENT_CRASHED
        self._report_of(domain, text, PANICKED if is_panic else "")

    def _io_error(
        self,
        connection: Any,
        domain: libvirt.virDomain,
        path: str,
        alias: str,
        action: int,
        reason: str,
        opaque: Any,
    ) -> None:
        self._report_of(domain, f"I/O error on {path or alias} ({reason or 'no reason given'})")

    def _block_job(
        self,
        connection: Any,
        domain: libvirt.virDomain,
        disk: str,
        kind: int,
        status: int,
        opaque: Any,
    ) -> None:
        word = _JOB_STATUS.get(status, f"status {status}")
        self._report_of(domain, f"block job of {disk} {word}")

    def _device_added(
        self, connection: Any, domain: libvirt.virDomain, alias: str, opaque: Any
    ) -> None:
        self._report_of(domain, f"got device {alias}")

    def _device_removed(
        self, connection: Any, domain: libvirt.virDomain, alias: str, opaque: Any
    ) -> None:
        self._report_of(domain, f"lost device {alias}")

    def _watchdog(
        self, connection: Any, domain: libvirt.virDomain, action: int, opaque: Any
    ) -> None:
        what = f"{FIRED}: {_WATCHDOG.get(action, f'action {action}')}"
        self._report_of(domain, what, FIRED)

    def _report_of(self, domain: libvirt.virDomain, text: str, cause: str = "") -> None:
        if domain.name() == self._vm_name:
            self._report(text, cause)
        elif not self._closed:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._other, domain.UUIDString(), text, cause)

    def _report(self, text: str, cause: str = "") -> None:
        if self._closed:
            return
        if text:
            log.info("libvirt: %s %s", self._vm_name, text)
        with contextlib.suppress(RuntimeError):  # the loop has ended
            if cause:
                self._loop.call_soon_threadsafe(self._caused, cause)
            self._loop.call_soon_threadsafe(self._changed)
