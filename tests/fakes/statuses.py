# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whole statuses in which all is well, but for what a test changes."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from broker.wire.status import (
    Bound,
    EngineSummary,
    HostStatus,
    Status,
)
from scoring.vm_facts import EngineStatus, Health, VmStatus

ROOT = Path(__file__).parents[2]
UP = EngineStatus(VmStatus.UP, Health.GOOD, "up")
DOWN = EngineStatus(VmStatus.DOWN, Health.BAD, "off")
BOUND = Bound(13.2, 3.5, 1.2, 0.7, 7.8, "its fence device")


def documented() -> Status:
    """The example of docs/status.md: every structure occurs in it."""
    page = (ROOT / "docs" / "status.md").read_text()
    (example,) = re.findall(r"```json\n(\{\n.*?\n\})\n```", page, re.S)
    return msgspec.json.decode(example, type=Status)


def host(host_id: int, engine: EngineStatus = DOWN, **changes: object) -> HostStatus:
    """A host that could run the VM, but for the changes."""
    made = HostStatus(
        host_id, f"host{host_id}", "live", 3400, "EngineDown", (), "", engine, 0.5, False, False
    )
    return msgspec.structs.replace(made, **changes)


def status(*hosts: HostStatus, **changes: object) -> Status:
    """All is well, but for the changes."""
    example = documented()
    good = msgspec.structs.replace(
        example,
        cluster="lab",
        hosts={one.host_id: one for one in hosts},
        engine=EngineSummary(True, True, 1, "host1", 7800.0, False, 7800.0, False),
        monitors={},
        network="",
        fence_paths=(),
        storage_fence=None,
        notify=type(example.notify)(),
        bound=BOUND,
        reasons=(),
        vms=(),
        short=(),
        n_plus_1=(),
    )
    return msgspec.structs.replace(good, **changes)
