# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whether a VM that is about to be protected runs on this host already, without a lease.

Nothing would keep another host from starting it a second time, on the same disks: its lease is free
as long as its process does not hold it.
"""

from __future__ import annotations

import libvirt

from agent.terminal.errors import CommandError
from broker.config.sections import Config
from broker.daemon.exit_codes import ExitCode
from broker.daemon.foreign import sentence


def not_running_here(config: Config, name: str, uuid: str) -> list[str]:
    """CommandError where libvirt here runs a domain of that name or UUID; a warning where libvirt
    does not answer."""
    libvirt.registerErrorHandler(lambda context, error: None, None)
    try:
        connection = libvirt.openReadOnly(config.libvirt.uri)
        try:
            running = connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE)
            same = [d.name() for d in running if uuid == d.UUIDString() or name == d.name()]
        finally:
            connection.close()
    except libvirt.libvirtError as error:
        return [f"whether it runs on this host already is not known: libvirt: {sentence(error)}"]
    if same:
        raise CommandError(
            ExitCode.REFUSED,
            f"{same[0]} runs on this host, without a lease: another host would start it a second"
            f" time; shut it down first: virsh shutdown {same[0]}",
        )
    return []
