# SPDX-License-Identifier: LGPL-2.1-or-later
"""What libvirt reports of the VM's domain beside its state: why it is paused, what is left of it,
and what would start it without the agent. Runs in the engine monitor's thread; starts no
process."""

from __future__ import annotations

import json

import libvirt

from scoring.vm_facts import DomainHere, Leftover, Pause

#: virDomainPausedReason. VIR_DOMAIN_PAUSED_API_ERROR (14) is younger than the bindings here.
PAUSES: dict[int, tuple[Pause, str]] = {
    libvirt.VIR_DOMAIN_PAUSED_UNKNOWN: (Pause.OTHER, "paused, libvirt does not know why"),
    libvirt.VIR_DOMAIN_PAUSED_USER: (Pause.USER, "paused by somebody (virsh suspend)"),
    libvirt.VIR_DOMAIN_PAUSED_SAVE: (Pause.SAVE, "paused while it is saved"),
    libvirt.VIR_DOMAIN_PAUSED_DUMP: (Pause.DUMP, "paused for a dump"),
    libvirt.VIR_DOMAIN_PAUSED_IOERROR: (
        Pause.IO_ERROR,
        "paused after an I/O error of its disk: is the storage full or gone?",
    ),
    libvirt.VIR_DOMAIN_PAUSED_WATCHDOG: (Pause.WATCHDOG, "paused by its watchdog: the guest hangs"),
    libvirt.VIR_DOMAIN_PAUSED_FROM_SNAPSHOT: (
        Pause.SNAPSHOT,
        "paused since it was set back to a snapshot",
    ),
    libvirt.VIR_DOMAIN_PAUSED_SNAPSHOT: (Pause.SNAPSHOT, "paused for a snapshot"),
    libvirt.VIR_DOMAIN_PAUSED_POSTCOPY_FAILED: (
        Pause.POST_COPY,
        "paused since a migration in post-copy broke off",
    ),
    14: (Pause.OTHER, "paused, for libvirt could not resume it"),
}
NEVER_RAN = "created and never run (a start that was cut short)"
SUSPENDED = "the guest suspended itself"


class DomainLook:
    """`run` remembers which process has executed the guest, so that QEMU is asked only about one
    that may never have: the question taints the domain in libvirt's log."""

    def __init__(self) -> None:
        self._has_run: int | None = None

    def look(
        self, domain: libvirt.virDomain, state: int, reason: int, leaving: bool, pid: int | None
    ) -> DomainHere:
        """The facts; libvirtError where libvirt does not answer."""
        if state == libvirt.VIR_DOMAIN_RUNNING:
            self._has_run = pid
        return DomainHere(
            pause=None if leaving else self._pause(domain, state, reason, pid),
            leftover=None if leaving else _leftover(domain, state, reason),
            memory_image=bool(domain.hasManagedSaveImage()),
            autostart=bool(domain.autostart()),
        )

    def _pause(
        self, domain: libvirt.virDomain, state: int, reason: int, pid: int | None
    ) -> Pause | None:
        if state == libvirt.VIR_DOMAIN_PMSUSPENDED:
            return Pause.GUEST
        if state != libvirt.VIR_DOMAIN_PAUSED or reason not in PAUSES:
            return None
        pause, _ = PAUSES[reason]
        if pause is Pause.USER and (pid is None or pid != self._has_run):
            # libvirt gives a domain that was created paused the same reason as a user's pause.
            ran = _has_run(domain)
            if ran is False:
                return Pause.NEVER_RAN
            self._has_run = pid if ran else self._has_run
        return pause


def _has_run(domain: libvirt.virDomain) -> bool | None:
    """Whether the CPUs were ever started: QEMU is in run state `prelaunch` until then. None where
    QEMU does not answer."""
    import libvirt_qemu

    try:
        answer = libvirt_qemu.qemuMonitorCommand(domain, '{"execute":"query-status"}', 0)
        return bool(json.loads(answer)["return"]["status"] != "prelaunch")
    except (libvirt.libvirtError, ValueError, KeyError, TypeError):
        return None


def _leftover(domain: libvirt.virDomain, state: int, reason: int) -> Leftover | None:
    if state == libvirt.VIR_DOMAIN_CRASHED:
        return Leftover.CRASHED
    if state != libvirt.VIR_DOMAIN_PAUSED:
        return None
    if reason == libvirt.VIR_DOMAIN_PAUSED_CRASHED:
        return Leftover.CRASHED
    if reason == libvirt.VIR_DOMAIN_PAUSED_MIGRATION and _is_received(domain) is False:
        return Leftover.NOT_RECEIVED
    return None


def _is_received(domain: libvirt.virDomain) -> bool | None:
    """Whether a migration to this host is under way: libvirt refuses job statistics then, since
    only the source has them. None: libvirt has no jobs here."""
    try:
        stats = domain.jobStats()
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_OPERATION_UNSUPPORTED:
            return True
        if error.get_error_code() == libvirt.VIR_ERR_NO_SUPPORT:
            return None
        raise
    return bool(stats.get("type", libvirt.VIR_DOMAIN_JOB_NONE) != libvirt.VIR_DOMAIN_JOB_NONE)
