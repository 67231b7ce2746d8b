# SPDX-License-Identifier: LGPL-2.1-or-later
"""The ports through which the agent acts. Each has a real adapter and a simulated one.

An adapter never raises for what the outside world does: a failure is an outcome with its
detail, and every call ends within its own deadline.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from broker.wire.exchange import FenceNote
from broker.wire.what_ran import WhatRan
from scoring.decision import FreeHostId
from scoring.observation import (
    DomainDisarmed,
    FenceLeaseAnswer,
    HostIdFreed,
    LeaseAnswer,
    MigrationCancelled,
    MigrationPath,
    PowerAnswer,
    PowerOffEnded,
    PowerOnEnded,
    VmMigrationEnded,
    VmStartEnded,
    VmStopEnded,
)
from scoring.rules import MIGRATION_EXTRA_S

#: Hypervisor: starting the VM; ending, disarming or defining it; cancelling its migration.
START_DEADLINE_S = 60.0
STOP_DEADLINE_S = 30.0
CANCEL_DEADLINE_S = 10.0
#: A target whose libvirt does not answer within this time cannot take the VM.
TARGET_DEADLINE_S = 10.0
#: The deadline of the question whether a migration would connect: half of that, since a VM that
#: nobody reaches waits for the answer.
PATH_DEADLINE_S = 5.0
#: Longer than the migration's own timeout: cancelling takes a moment too.
MIGRATE_EXTRA_S = MIGRATION_EXTRA_S - TARGET_DEADLINE_S
#: Leases: asking for an owner; taking or dropping the fence lease; reading a host id on disk.
ASK_DEADLINE_S = 10.0
ACQUIRE_DEADLINE_S = 20.0
READ_DEADLINE_S = 5.0

#: Returns why an order must not be given now; empty: it may be. Any thread may call it.
Still = Callable[[], str]


class Hypervisor(Protocol):
    """Starts, stops and moves one VM on this host. Which one it is the caller knows: an outcome
    does not say it."""

    async def start(self, what_ran: WhatRan | None = None, registry: int = 0) -> VmStartEnded:
        """Start it under its lease; running means that its process holds the lease. `what_ran`:
        the record of the disks that ran last, which replace those of the definition. `registry`:
        the newest generation of the VMs' registry that any host shows: no older copy is used."""

    async def shut_down(self) -> VmStopEnded:
        """Ask the guest to shut down, without waiting for it."""

    async def power_off(self) -> VmStopEnded:
        """End its process; ok when the process is gone, or there was none."""

    async def disarm(self, image: bool) -> DomainDisarmed:
        """Turn off libvirt's autostart of the VM; `image`: also discard its memory image."""

    async def migrate(
        self, target: int, hostname: str, timeout_s: float | None = None
    ) -> VmMigrationEnded:
        """Live-migrate the VM to another host, if libvirt there answers. A migration that takes
        longer than `timeout_s` (None: the configured time) is cancelled."""

    async def ask_path(self, target: int, hostname: str) -> MigrationPath:
        """Whether another host's libvirt answers at the address of a migration; changes nothing."""

    async def cancel_migration(self, why: str) -> MigrationCancelled:
        """Cancel the migration that is under way, also one that this agent did not begin. `why`:
        for the text of the migration's outcome."""


#: The hand on a VM by its number. A call that hangs for one VM holds no other.
Hypervisors = Callable[[int], Hypervisor]


class Leases(Protocol):
    """The sanlock leases, as far as the agent uses them."""

    fence_held: bool

    async def ask_engine(self) -> LeaseAnswer:
        """The owner of the engine lease, and the state of that host in sanlock."""

    async def ask_vms(self, vms: Sequence[int]) -> tuple[LeaseAnswer, ...]:
        """The owners of the leases of these VMs of the registry, in one read; an answer each."""

    async def ask_fence(self) -> LeaseAnswer:
        """The owner of the fence lease, and the state of that host in sanlock. It answers even
        while an acquire of that lease is under way."""

    async def take_fence(self) -> FenceLeaseAnswer:
        """Take the fence lease for this process; it ends with the process."""

    async def drop_fence(self) -> None:
        """Give the fence lease back."""

    async def read_delta(self, host_id: int) -> tuple[int, int] | None:
        """(generation, timestamp) of a host id on disk; None where it cannot be read."""

    async def free_host_id(self, act: FreeHostId, still: Still) -> HostIdFreed:
        """Release a dead host's id, if everything that allows it is still true: `still` is asked
        right before the write. Returns when no write of it can land any more, however long that
        takes."""

    async def freeing_of_before(self) -> FreeHostId | None:
        """A freeing that an earlier agent of this host began, and whose end was not recorded."""

    async def end_of_before(self, act: FreeHostId) -> HostIdFreed:
        """Wait until that process has ended, so that no write of it can land any more; without a
        limit."""

    def freeing_is_recorded(self) -> None:
        """Note that the fence log has the end of the last freeing."""


class FenceLog(Protocol):
    """The cluster's fence log on the shared storage; only its lease's holder may write it."""

    async def note(self, note: FenceNote) -> str:
        """Add a record; returns why that failed, or "". Where there is nothing to close, that is a
        success."""


@dataclass(frozen=True, slots=True)
class FencePath:
    """The result of a rehearsal. `ok`: this host's devices could switch the target off now."""

    host_id: int
    ok: bool
    detail: str = ""


class FenceDevices(Protocol):
    """The fence devices of all hosts. `system_uuid`: the machine's UUID that the host published.

    A device is never ordered to switch anything unless it is proven to be that machine's (or the
    configuration trusts it by name). `rehearsed`: the hosts whose devices are tested now and then,
    this host's own among them.
    """

    hosts: frozenset[int]
    rehearsed: frozenset[int]

    def know(self, system_uuids: Mapping[int, str]) -> None:
        """Take in the UUIDs that the hosts published, by host id: they show whose machine a strange
        device switches, and that two hosts publish the same one."""

    async def read_power(self, host_id: int, system_uuid: str) -> PowerAnswer:
        """The chassis power, from the first level of devices that can read it."""

    async def power_off(
        self, host_id: int, system_uuid: str, attempt: int, still: Still
    ) -> PowerOffEnded:
        """Hard off, never cycle, reset or soft-off. `attempt` 0, 1, …: each begins at another
        level, in turn. A host that is off already is a success. `still` is asked right before each
        order, in any thread."""

    async def power_on(self, host_id: int, system_uuid: str, still: Still) -> PowerOnEnded:
        """Switch the host on; `still` as in power_off."""

    async def rehearse(self, host_id: int, system_uuid: str) -> FencePath:
        """Test each of a host's devices: login, privilege, identity, power; changes nothing. ok:
        some level could switch the host off; `detail` names the devices that could not."""
