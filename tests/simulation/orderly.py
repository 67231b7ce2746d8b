# SPDX-License-Identifier: LGPL-2.1-or-later
"""A host that systemd shuts down or reboots, in the order of the units.

ha-agent-host-shutdown runs the product's own command; then the agent ends, then the broker,
then libvirt-guests shuts down what still runs, and the power goes. No daemon that dies meanwhile
is started anew: systemd starts nothing during a shutdown.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from agent.commands.host_shutdown import drain
from broker.client.ask import BrokerDown
from broker.wire.status import HostShutdownStatus
from scoring.vm_facts import VmStatus
from tests.simulation.host import Host, Qemu

if TYPE_CHECKING:
    from tests.simulation.world import World

#: TimeoutStopSec of ha-agent.service.
AGENT_STOP_S = 30.0
#: SHUTDOWN_TIMEOUT of libvirt-guests.
GUESTS_S = 300.0
#: How long a guest takes to shut down.
GUEST_STOP_S = 8.0
#: The rest of the system.
REST_S = 3.0


async def shut_down(world: World, host: Host, reboots: bool) -> None:
    """All of it; the host's own event loop ends with the power."""

    async def say() -> HostShutdownStatus:
        broker = world.brokers.get(host.number)
        await asyncio.sleep(0.002)
        if broker is None:
            raise BrokerDown("no answer: connection refused")
        return broker.asked.host_shuts_down(asyncio.get_running_loop().time())

    def tell(text: str) -> None:
        world.tell(host.name, f"host-shutdown: {text}")

    await drain(say, tell)
    await _end_agent(world, host)
    host.crash("broker")
    if host.qemu is not None and await _libvirt_guests(host, host.qemu):
        world.tell(host.name, "libvirt-guests has shut the VM down")
    await asyncio.sleep(REST_S)
    why = "it was shut down"
    host.timeline.after(0.0, host.reset if reboots else host.power_off, why)


async def _end_agent(world: World, host: Host) -> None:
    loop = asyncio.get_running_loop()
    until_s = loop.time() + AGENT_STOP_S
    if "agent" in host.processes:
        world.agents[host.number].stop()
    while "agent" in host.processes and loop.time() < until_s:
        await asyncio.sleep(0.1)
    host.crash("agent")


async def _libvirt_guests(host: Host, qemu: Qemu) -> bool:
    """Ask the guest to shut down, and wait; whether it has."""
    loop = asyncio.get_running_loop()
    until_s = loop.time() + GUESTS_S
    await asyncio.sleep(GUEST_STOP_S)
    while host.qemu is qemu and loop.time() < until_s:
        if qemu.running and not qemu.is_hung and not qemu.ignores_shutdown:
            host.end_qemu("libvirt-guests shut it down", VmStatus.DOWN, "shut down")
            return True
        await asyncio.sleep(1.0)
    return False
