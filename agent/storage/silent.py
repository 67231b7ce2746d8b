# SPDX-License-Identifier: LGPL-2.1-or-later
"""Asks the broker whether a client of the storage has just fallen silent.

On CephFS whoever opens a file then, or asks for its size, waits until the storage has missed that
client, and all hosts' writes to the file wait with it (record 108): a command leaves it alone.
"""

from __future__ import annotations

from broker.client.ask import ask
from broker.config.sections import Config
from broker.daemon.errors import HaError
from broker.wire.status import Status

#: The longest time that a storage with the settings of docs/storage.md has a dead client's locks.
SILENT_S = 90.0
_ASK_S = 3.0


def silent_client(config: Config) -> str:
    """Which host has just fallen silent, in words; "": none is known. Asks the broker."""
    try:
        status = ask(config.daemon.socket, "GET", "/v1/status", Status, timeout_s=_ASK_S)
    except HaError:
        return ""
    for host in status.hosts.values():
        if host.liveness != "live" and host.age_s is not None and host.age_s < SILENT_S:
            return f"host {host.hostname} fell silent {host.age_s:.0f} s ago"
    return ""
