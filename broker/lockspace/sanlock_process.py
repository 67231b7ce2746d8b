# SPDX-License-Identifier: LGPL-2.1-or-later
"""The process of sanlock's daemon: one that was started anew is another one."""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path

#: Where sanlock has its socket, unless its own variable names another folder (its src/sock.c).
RUN_DIR = "/run/sanlock"
_ANSWER_S = 3.0
_CREDENTIALS = struct.Struct("3i")
#: The word behind the name in /proc/PID/stat (proc(5)) that says when the process was started, in
#: clock ticks after the boot.
_STARTED = 19


def sanlock_process() -> str:
    """The number of the daemon's process and when it was started, which no other process of this
    boot has; "" where that is not known. Blocks for _ANSWER_S at most."""
    path = Path(os.environ.get("SANLOCK_RUN_DIR") or RUN_DIR) / "sanlock.sock"
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(_ANSWER_S)
            sock.connect(os.fspath(path))
            given = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        pid, _, _ = _CREDENTIALS.unpack(given)
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return f"{pid}:{words[_STARTED]}"
    except (OSError, IndexError):
        return ""
