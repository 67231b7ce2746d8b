# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whether libvirt on this host is configured to use the sanlock lock driver."""

from __future__ import annotations

from broker.daemon.worker import Worker
from broker.monitors.runner import Unknown
from broker.vm.qemu_conf import LOCK_MANAGER_LINE, lock_driver_named


class LockDriverMonitor:
    """True: qemu.conf names the driver. Unknown where the file cannot be read; each start of the VM
    is checked all the same. A change of the file after libvirt's start is not noticed."""

    name = "lock_driver"
    unit = ""
    deadline_s = 6.0

    def __init__(self, qemu_conf: str, interval_s: float = 5.0) -> None:
        self.interval_s = interval_s
        self._qemu_conf = qemu_conf
        self._worker = Worker("qemu.conf")

    def judge(self, value: bool) -> str:
        """Why the VM would run here without its lease."""
        if value:
            return ""
        return (
            f"{self._qemu_conf}: libvirt runs without the sanlock lock driver; set"
            f" {LOCK_MANAGER_LINE} and restart libvirt"
        )

    async def sample(self) -> bool:
        named = await self._worker.call("reading", 5.0, lock_driver_named, self._qemu_conf)
        if named is None:
            raise Unknown(f"{self._qemu_conf} cannot be read")
        return named
