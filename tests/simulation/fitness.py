# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which hosts of a simulated cluster could run the VM, as the world knows it, not the product."""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.whiteboard.slot import EMPTY_SLOT
from broker.wire.limits import HOST_ID_MAX
from scoring.vm_facts import Pause
from tests.simulation.disks import SHARED
from tests.simulation.lockspace import Membership

if TYPE_CHECKING:
    from tests.simulation.host import Host
    from tests.simulation.world import World

#: A load that costs a host no points.
LIGHT_LOAD = 0.4


def could_run(world: World, host: Host) -> bool:
    """Whether nothing at all is wrong on a host that keeps it from running a VM that is reached."""
    return (
        could_act(world, host)
        and host.is_way_open
        and host.uplink_up
        and host.bridge_up
        and not host.packet_loss
        and not host.packet_delay_s
        and host.gateway_answers == 1.0
        and host.local_maintenance_since_s is None
        and not host.starts_fail
        and not host.refused
        and not host.refuses_moves
        and host.lock_driver
        and host.config_up_to_date
        and host.load <= LIGHT_LOAD
        and host.free_memory_mb >= world.vm_memory_mb
        and world.newest_image.startswith((SHARED, f"/{host.name}/"))
    )


def could_act(world: World, host: Host) -> bool:
    """Whether a host's daemons can do anything with a VM on it."""
    return (
        world.both_run(host)
        and host.going_down_since_s is None
        and not host.frozen
        and host.host_id == host.number
        and host.sanlock is not None
        and host.sanlock.membership is Membership.IN
        and not host.is_misled
        and not host.storage.fault
        and not host.storage.parts
        and not host.storage.late_s
        and not host.is_sanlock_stale
        and host.libvirt_up
        and not host.libvirt_hangs
        and not host.qemu_unkillable
        and not host.unkillable_vms
    )


def is_all_well(world: World) -> bool:
    """Whether nothing is wrong anywhere, nobody changes anything, and the VM is reached."""
    hosts = world.hosts.values()
    return (
        not world.cut_links
        and not world.modes_with_end
        and not world.guest_closed_to
        and world.vms.at_rest
        and world.global_maintenance_since_s is None
        and all(could_run(world, host) for host in hosts)
        and any(map(world.users_reach, hosts))
    )


def may_stand_still(world: World) -> bool:
    """Whether nobody has to do anything: the VM is reached, or what is wrong is wrong for all, or
    is somebody's wish, or nobody may know enough."""
    hosts = world.hosts.values()
    return (
        world.may_be_down()
        or any(map(world.users_reach, hosts))
        or bool(world.guest_closed_to)
        or world.settings.on_isolation == "leave"
        or is_hindered(world)
        or any(_is_beyond_help(world, host) for host in hosts)
    )


def is_hindered(world: World) -> bool:
    """Whether something keeps all hosts from starting anything."""
    hosts = world.hosts.values()
    return (
        world.global_maintenance_since_s is not None
        or world.cluster_slot_is_bad()
        # A slot that no host here wrote: of a newer version, or left behind.
        or any(max(world.hosts) < slot <= HOST_ID_MAX for slot in _used(world))
        or not all(host.is_on_shared and host.host_id == host.number for host in hosts)
    )


def _used(world: World) -> list[int]:
    return [slot for slot, data in world.board.slots.items() if data != EMPTY_SLOT]


def _is_beyond_help(world: World, host: Host) -> bool:
    """Whether a QEMU is on a host that cannot act on it, or somebody has paused it."""
    qemu = host.qemu
    return qemu is not None and (qemu.pause is Pause.USER or not could_act(world, host))
