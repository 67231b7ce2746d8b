# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whether the libvirt of the other hosts answers from here, as a live migration needs it."""

from __future__ import annotations

import threading

import libvirt

from agent.columns import printable
from agent.setup.watched import read_slots
from broker.config import Config

DEADLINE_S = 10.0


def reach(config: Config, own: int) -> list[tuple[str, str]]:
    """Name and problem (empty: it answers) of every other host that did not stop; none where no
    migration is configured. Takes at most DEADLINE_S: all are asked at once."""
    if not config.libvirt.migration_uri:
        return []
    names = {
        host: report.hostname
        for host, report in sorted(read_slots(config.storage.whiteboard).reports.items())
        if host != own and not report.stopped
    }
    found = dict.fromkeys(names, f"no answer within {DEADLINE_S:.0f} s")

    def ask(host: int, uri: str) -> None:
        try:
            connection = libvirt.open(uri)
            try:
                connection.getLibVersion()
            finally:
                connection.close()
            found[host] = ""
        except libvirt.libvirtError as error:
            found[host] = f"{uri}: {error}"

    threads = [
        threading.Thread(
            target=ask, args=(host, config.libvirt.migration_uri.format(host=name)), daemon=True
        )
        for host, name in names.items()
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    return [(f"{printable(names[host])} (id {host})", found[host]) for host in names]
