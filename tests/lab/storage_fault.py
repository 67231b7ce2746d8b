# SPDX-License-Identifier: LGPL-2.1-or-later
"""What becomes of a host's storage operations, and how the file system that does it is run: known
without libfuse."""

from __future__ import annotations

import sys
from pathlib import Path

from .layout import HostLayout

FAULTS = ("ok", "hang", "eio", "slow", "full", "read-only")


def read_fault(path: Path) -> str:
    """What the control file says now; "ok" without one."""
    try:
        return path.read_text().strip() or "ok"
    except FileNotFoundError:
        return "ok"


def argv(host: HostLayout) -> list[str]:
    """The command that mounts it, and serves it until killed."""
    return [sys.executable, "-m", "tests.lab.host_storage", str(host.lab.directory), host.name]
