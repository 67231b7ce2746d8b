# SPDX-License-Identifier: LGPL-2.1-or-later
"""What operators do with whole hosts while the cluster runs: `ha-agent leave`, `join`,
`clean-metadata` and `reinitialize-lockspace`, another machine under the same id, a reload.

The commands' own code (agent/setup/) needs libvirt's and sanlock's libraries: here is what they do
to the world, and what they refuse. What is refused changes nothing, and is told in the trace.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

from broker.lockspace.rejoin import name_of
from broker.whiteboard.slot import EMPTY_SLOT
from scoring.observation import Standing
from tests.simulation.bmc import fence_levels
from tests.simulation.host import Bmc, Host
from tests.simulation.lockspace import Membership, Refused, Resource

if TYPE_CHECKING:
    from tests.simulation.world import World

#: The service manager stops both daemons, and a last write of the broker lands.
STOPPED_S = 3.0


def leaves(world: World, host: Host) -> None:
    """`ha-agent leave`: its daemons are stopped and disabled, its slot emptied, its id given
    back. Refused while the VM is here."""
    if host.qemu is not None or not host.up:
        _refused(world, host, "leave", "the VM is here" if host.up else "it is off")
        return
    world.wish_agent(host, False)
    world.timeline.after(STOPPED_S, world.wish_daemons, host, False)
    world.timeline.after(STOPPED_S + world.beat_s, _give_back, world, host)


def _give_back(world: World, host: Host) -> None:
    if host.qemu is not None or host.sanlock is None or host.storage.fault:
        _refused(world, host, "leave", "it is not what it was")
        return
    host.whiteboard.put(host.host_id, EMPTY_SLOT)
    if host.sanlock.membership is Membership.IN:
        host.sanlock.leave_unused()
    world.tell(host.name, "has left")


def joins(world: World, host: Host) -> None:
    """`ha-agent join`: its daemons are enabled and started."""
    host.agent_wanted = True
    world.wish_daemons(host, True)
    world.tell(host.name, "joins")


def cleaned(world: World, host: Host) -> None:
    """`ha-agent clean-metadata` of its slot, on another host. Refused while it may live."""
    if "broker" in host.processes:
        _refused(world, host, "clean-metadata", "it writes its slot")
        return
    for other in world.hosts.values():
        if other is host or other.sanlock is None:
            continue
        try:
            found = other.sanlock.host(host.host_id)
        except Refused:
            continue
        if found is not None and found.standing not in (Standing.FREE, Standing.DEAD):
            _refused(world, host, "clean-metadata", f"its id is {found.standing}")
            return
        other.whiteboard.put(host.host_id, EMPTY_SLOT)
        world.tell(host.name, "its slot is emptied")
        return
    _refused(world, host, "clean-metadata", "no host is in the lockspace")


def replaced(world: World, host: Host) -> None:
    """Cut the host's power for good, and switch another machine on under its id and its name."""
    host.power_off("taken away")
    host.system_uuid = str(uuid.UUID(int=world.chance.getrandbits(128)))
    host.bmc = Bmc(host.system_uuid)
    if host.sanlock_name:
        host.sanlock_name = name_of(f"another machine-id of {host.name}", host.system_uuid)
    host.joined_on_boot, host.freeing_on_file, host.memory_image = 0, None, None
    host.local_maintenance_since_s, host.may_restart = None, False
    world.forget_own_files(host)
    world.tell(host.name, "another machine takes its place")
    host.power_on()


def reloads(world: World, host: Host) -> None:
    """`systemctl reload` of both daemons: they go by the configuration as it is now."""
    broker, agent = world.brokers.get(host.number), world.agents.get(host.number)
    if host.loop is None or broker is None or agent is None or not world.both_run(host):
        _refused(world, host, "reload", "its daemons do not run")
        return
    config = world.config(host)
    rules, fence = config.rules(world.vm_memory_mb), fence_levels(world, host, config.fence.timeout)
    world.tell(host.name, "reloads its configuration")
    world.timeline.call_within(host.loop, broker.reconfigure, config)
    world.timeline.call_within(
        host.loop, agent.reconfigure, rules, fence, float("inf"), world.settings.migration
    )


def reinitialized(world: World) -> None:
    """`ha-agent reinitialize-lockspace`. Refused while a daemon runs or a host is in the
    lockspace."""
    for host in world.hosts.values():
        daemon = host.sanlock
        if host.processes or host.qemu is not None:
            _refused(world, host, "reinitialize-lockspace", "its daemons or the VM run there")
            return
        if daemon is not None and daemon.running and daemon.membership is not Membership.OUT:
            _refused(world, host, "reinitialize-lockspace", "it is in the lockspace")
            return
    world.leases.deltas.clear()
    world.leases.resources.update({name: Resource() for name in world.leases.resources})
    world.tell("storage", "the lockspace is made anew")


def _refused(world: World, host: Host, command: str, why: str) -> None:
    world.tell("operator", f"{command} of {host.name} is refused: {why}")
