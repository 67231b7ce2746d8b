# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the simulation copies of the real adapters is what they have.

It runs with Python alone (make demo-sim), and their modules need the libraries of libvirt and
sanlock.
"""

from __future__ import annotations

from agent.leases import sanlock as leases
from agent.leases import sanlock_direct
from agent.vm import hypervisor
from broker import main
from broker.api import socket as server
from broker.lockspace import sanlock as sanlock_lockspace
from broker.monitors import vm as engine
from tests.simulation import lockspace, ports


def test_the_deadlines() -> None:
    assert ports.STORAGE_DEADLINE_S == main.STORAGE_DEADLINE_S
    assert ports.LINK_PATIENCE_S == server.PATIENCE_S
    assert ports.ASK_DEADLINE_S == leases.ASK_DEADLINE_S
    assert ports.ACQUIRE_DEADLINE_S == leases.ACQUIRE_DEADLINE_S
    assert ports.DIRECT_DEADLINE_S == sanlock_direct.READ_DEADLINE_S
    assert ports.LIBVIRT_DEADLINE_S == engine.LIBVIRT_DEADLINE_S
    assert ports.START_DEADLINE_S == hypervisor.START_DEADLINE_S
    assert ports.STOP_DEADLINE_S == hypervisor.STOP_DEADLINE_S
    assert ports.MIGRATE_EXTRA_S == hypervisor.MIGRATE_EXTRA_S
    assert ports.PATH_DEADLINE_S == hypervisor.PATH_DEADLINE_S
    assert ports.LOCKSPACE_RETRY_S == sanlock_lockspace.RETRY_S
    assert ports.DISK_DEADLINE_S == sanlock_lockspace.DISK_DEADLINE_S
    assert lockspace.WATCHDOG_FIRE_S == leases.WATCHDOG_FIRE_S
