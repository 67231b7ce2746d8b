# SPDX-License-Identifier: LGPL-2.1-or-later
"""Asks the broker whether a command must leave the storage alone now.

On CephFS whoever opens a file while a client has just fallen silent, or asks for its size, waits
until the storage has missed that client, and all hosts' writes to the file wait with it (record
108). And where the broker's own reads and writes hang, a command's would hang too.

A host that has just died is not called silent yet. So on CephFS it is waited for until every live
host was seen to write since the command began, which takes a beat or two, or until one is silent.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from broker.client.ask import ask
from broker.config.sections import Config
from broker.daemon.errors import HaError
from broker.whiteboard.mounts import file_system
from broker.wire.status import HostStatus, Status

#: The longest time that a storage with the settings of docs/storage.md has a dead client's locks.
SILENT_S = 90.0
_ASK_S = 3.0
#: For so long at most every live host's write is waited for; one that is dead is silent by then.
WRITES_S = 4.0
_LOOK_S = 0.25
#: File systems on which opening a file waits for a dead client.
_WAITS_FOR_CLIENTS = frozenset({"ceph", "fuse.ceph-fuse"})


@dataclass(frozen=True, slots=True)
class LeftAlone:
    """Whether nothing of the storage is to be touched now. `why`: the reason in words; "": it may
    be touched. `hangs`: the storage does not answer the broker here."""

    why: str = ""
    hangs: bool = False

    def __bool__(self) -> bool:
        return bool(self.why)


def left_alone(config: Config) -> LeftAlone:
    """What the broker here says; that the storage may be touched, where it says nothing."""
    began_s = time.monotonic()
    writes_s = WRITES_S if file_system(config.storage.whiteboard) in _WAITS_FOR_CLIENTS else 0.0
    while True:
        try:
            status = ask(config.daemon.socket, "GET", "/v1/status", Status, timeout_s=_ASK_S)
        except HaError:
            return LeftAlone()
        if status.storage.state == "hung":
            return LeftAlone(f"{config.storage.whiteboard}: {status.storage.problem}", hangs=True)
        for host in status.hosts.values():
            # Where nothing can be read here no host is known to be silent, and none of its files
            # open.
            if host.liveness == "silent" and host.age_s is not None and host.age_s < SILENT_S:
                return LeftAlone(f"host {host.hostname} fell silent {host.age_s:.0f} s ago")
        waited_s = time.monotonic() - began_s
        if waited_s >= writes_s or not any(
            _is_due(each, waited_s) for each in status.hosts.values()
        ):
            return LeftAlone()
        time.sleep(_LOOK_S)


def _is_due(host: HostStatus, since_s: float) -> bool:
    """Whether a live host has not been seen to write for longer than that."""
    return host.liveness == "live" and not host.local and (host.age_s or 0.0) > since_s
