# SPDX-License-Identifier: LGPL-2.1-or-later
"""The limits of the units as a real systemd and a real kernel keep them: a broker that takes too
much memory is ended in its own control group, and QEMU is not touched.

The kernel here has its memory controller in a tree of version 1, so the machine's systemd is given
that (`has_memory_limits`); of the releases only bookworm's still takes it. MemoryHigh exists in
version 2 alone, and is therefore only read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .machine import Machine, bring_up, is_up, machines, why_no_memory_limits, why_not

WHY_NOT = why_not() or why_no_memory_limits()
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=f"no such machine can be made: {WHY_NOT}")

#: Less than a broker needs to start.
TOO_LITTLE = "24M"
LIMITS = {
    "ha-broker": {"MemoryMax": 2**30, "MemoryHigh": 768 * 2**20, "LimitNOFILE": 4096},
    "ha-agent": {"MemoryMax": 768 * 2**20, "MemoryHigh": 512 * 2**20, "LimitNOFILE": 4096},
}
DROP_IN = "/run/systemd/system/ha-broker.service.d/t.conf"


@pytest.fixture
def one(directory: Path) -> Iterator[Machine]:
    for (machine,) in machines("bookworm", directory, 1, has_memory_limits=True):
        yield machine


def test_a_broker_that_takes_too_much_is_ended_and_qemu_is_not(
    one: Machine, debs: dict[str, Path]
) -> None:
    one.install(debs["debian12"])
    pid = bring_up(one)
    for unit, limits in LIMITS.items():
        for name, value in limits.items():
            assert one.show(unit, name) == str(value), (unit, name)
        limit = f"/sys/fs/cgroup/memory/system.slice/{unit}.service/memory.limit_in_bytes"
        assert one.must("cat", limit).strip() == str(limits["MemoryMax"]), "the kernel knows it"
        main = one.show(unit, "MainPID")
        assert "4096" in one.must("grep", "Max open files", f"/proc/{main}/limits")
        # Only read: to lower a score takes a capability that not every machine of tests gives.
        assert one.show(unit, "OOMScoreAdjust") == "-900"
    group = "/sys/fs/cgroup/memory/system.slice/ha-broker.service/cgroup.procs"
    (front,) = set(one.must("cat", group).split()) - {one.show("ha-broker", "MainPID")}
    assert one.must("cat", f"/proc/{front}/oom_score_adj").strip() == "500", "it goes first"
    assert one.show("ha-broker", "OOMPolicy") == "continue"

    one.write(DROP_IN, f"[Service]\nMemoryMax={TOO_LITTLE}\n")
    one.must("systemctl", "daemon-reload")
    one.run("systemctl", "--no-block", "restart", "ha-broker")
    one.wait("the kernel's hand", lambda: int(one.show("ha-broker", "NRestarts")) >= 1)
    assert "status=9/KILL" in one.must("journalctl", "-u", "ha-broker", "-o", "cat")
    assert one.engine_pid() == pid, "QEMU is in another control group, and lives"
    assert one.show("ha-agent", "ActiveState") == "active"

    one.must("rm", DROP_IN)
    one.must("systemctl", "daemon-reload")
    one.must("systemctl", "restart", "ha-broker")
    one.wait("both", lambda: is_up(one))
    assert one.engine_pid() == pid
