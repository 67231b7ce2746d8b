# SPDX-License-Identifier: LGPL-2.1-or-later
"""`ha-agent storage register`: this host's SCSI-3 key with the VMs' disks, once at each boot.

A host that was cut has no key any more, and its boot gives it back. So this runs before libvirt and
the agent start, and never while a VM may run here that another host has taken over.
"""

from __future__ import annotations

import argparse
import os
import time
from contextlib import suppress
from pathlib import Path

from agent.fence.reservations import ScsiReservations
from agent.fence.storage_program import StorageFenceError
from agent.terminal import in_json
from agent.terminal.columns import say
from agent.terminal.errors import CommandError
from broker.config.load import load
from broker.daemon.exit_codes import ExitCode


def run(arguments: argparse.Namespace, as_json: bool) -> int:
    """Register and print; CommandError where a device refuses."""
    config = load(arguments.config)
    given = config.storage_fence
    if given.type != "scsi":
        raise CommandError(
            ExitCode.CONFIG, 'storage-fence.type is not "scsi": there is nothing to register with'
        )
    if (vm := running_vm(config.libvirt.pid_dir)) is not None:
        raise CommandError(
            ExitCode.REFUSED,
            f"{vm} runs here: a host that was cut while it lived must boot before it writes again",
        )
    fence = ScsiReservations(given.devices, config.cluster.id, config.host.id)
    try:
        done = fence.register(time.monotonic() + given.timeout)
    except StorageFenceError as error:
        raise CommandError(ExitCode.STORAGE, str(error)) from None
    if as_json:
        in_json.show({"registered": list(done)}, indent=None)
    else:
        for line in done:
            say(line, 2)
    return ExitCode.OK


def running_vm(pid_dir: str) -> str | None:
    """The name of a VM whose process is here by libvirt's own files; None: there is none."""
    for path in sorted(Path(pid_dir).glob("*.pid")):
        with suppress(OSError, ValueError):
            pid = int(path.read_text())
            os.kill(pid, 0)
            if path.stem not in ("driver", "libvirtd", "virtqemud"):
                return path.stem
    return None
