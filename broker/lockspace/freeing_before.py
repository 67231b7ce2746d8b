# SPDX-License-Identifier: LGPL-2.1-or-later
"""Finds a host id that a process of this host may still be freeing though no agent reports it.

Such a process survives its agent (agent/leases/sanlock_direct.py). If it acts without the fence
lease, only a line in this host's own slot shows it on the shared storage. The agent repeats that
line in each report; but a broker that was restarted has no report yet, and would remove the line.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import msgspec

from broker.daemon.foreign_json import decoded

#: The agent's file, in the state directory.
FREEING_FILE = "freeing.json"


class _OnFile(msgspec.Struct, frozen=True):
    """The part of the agent's file that matters here."""

    host_id: int
    fencer: bool = False


def freeing_before(path: Path) -> int | None:
    """The host whose id is being freed without the fence lease, by the agent's file. None: there is
    no such freeing, or its process has ended: that process holds a lock on the file as long as it
    lives."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _fencer(path)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return None


def _fencer(path: Path) -> int | None:
    try:
        found = decoded(path.read_bytes(), _OnFile)
    except (OSError, msgspec.MsgspecError):
        return None
    return found.host_id if found.fencer else None
