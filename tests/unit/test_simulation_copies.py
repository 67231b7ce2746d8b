# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the simulation copies of the real adapters is what they have.

It runs with Python alone (make demo-sim), and their modules need the libraries of libvirt and
sanlock.
"""

from __future__ import annotations

import agent.hypervisor
import agent.leases
import agent.sanlock_direct
import broker.main
import broker.monitors.engine
import broker.sanlock_lockspace
import broker.server
from tests.simulation import lockspace, ports


def test_the_deadlines() -> None:
    assert ports.STORAGE_DEADLINE_S == broker.main.STORAGE_DEADLINE_S
    assert ports.LINK_PATIENCE_S == broker.server.PATIENCE_S
    assert ports.ASK_DEADLINE_S == agent.leases.ASK_DEADLINE_S
    assert ports.ACQUIRE_DEADLINE_S == agent.leases.ACQUIRE_DEADLINE_S
    assert ports.DIRECT_DEADLINE_S == agent.sanlock_direct.READ_DEADLINE_S
    assert ports.LIBVIRT_DEADLINE_S == broker.monitors.engine.LIBVIRT_DEADLINE_S
    assert ports.START_DEADLINE_S == agent.hypervisor.START_DEADLINE_S
    assert ports.STOP_DEADLINE_S == agent.hypervisor.STOP_DEADLINE_S
    assert ports.MIGRATE_EXTRA_S == agent.hypervisor.MIGRATE_EXTRA_S
    assert ports.PATH_DEADLINE_S == agent.hypervisor.PATH_DEADLINE_S
    assert ports.LOCKSPACE_RETRY_S == broker.sanlock_lockspace.RETRY_S
    assert ports.DISK_DEADLINE_S == broker.sanlock_lockspace.DISK_DEADLINE_S
    assert lockspace.WATCHDOG_FIRE_S == agent.leases.WATCHDOG_FIRE_S
