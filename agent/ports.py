# SPDX-License-Identifier: LGPL-2.1-or-later
"""The ports through which the agent acts. Each has a real adapter and a simulated one.

An adapter never raises for what the outside world does: a failure is an outcome with its
detail, and every call ends within its own deadline.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from agent.fence.driver import Still
from broker.wire.what_ran import WhatRan
from scoring.decision import FreeHostId
from scoring.observation import (
    DomainDisarmed,
    FenceLeaseAnswer,
    FenceStep,
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
#: A target's libvirt that does not answer within so long cannot take the VM.
TARGET_DEADLINE_S = 10.0
#: And the question whether it could has half of that, for a VM that nobody reaches waits for it.
PATH_DEADLINE_S = 5.0
#: More than the migration's own timeout: cancelling takes a moment too.
MIGRATE_EXTRA_S = MIGRATION_EXTRA_S - TARGET_DEADLINE_S
#: Leases: a question after an owner; taking or dropping the fence lease; reading a host id on disk.
ASK_DEADLINE_S = 10.0
ACQUIRE_DEADLINE_S = 20.0
READ_DEADLINE_S = 5.0


class Hypervisor(Protocol):
    """Starts, stops and moves the engine VM on this host."""

    async def start(self, what_ran: WhatRan | None = None) -> VmStartEnded:
        """Start it under its lease; running means that its process holds the lease. `what_ran`:
        the record of the disks that ran last, which go before those of the definition."""

    async def shut_down(self) -> VmStopEnded:
        """Ask the guest to shut down; does not wait for it."""

    async def power_off(self) -> VmStopEnded:
        """End its process; ok when it is gone, or was not there."""

    async def disarm(self, image: bool) -> DomainDisarmed:
        """Turn libvirt's autostart of it off; `image`: and discard its memory image."""

    async def migrate(self, target: int, hostname: str) -> VmMigrationEnded:
        """Live-migrate it to another host, if that one's libvirt answers."""

    async def ask_path(self, target: int, hostname: str) -> MigrationPath:
        """Whether another host's libvirt answers where a migration would go to; changes nothing."""

    async def cancel_migration(self, why: str) -> MigrationCancelled:
        """Cancel the migration that is under way, whoever began it. `why`: what its outcome says
        it was cancelled by."""


class Leases(Protocol):
    """The sanlock leases, as far as the agent touches them."""

    fence_held: bool

    async def ask_engine(self) -> LeaseAnswer:
        """Who owns the engine lease, and how that host stands."""

    async def ask_fence(self) -> LeaseAnswer:
        """Who owns the fence lease, and how that host stands. Answers while an acquire of it is
        under way."""

    async def take_fence(self) -> FenceLeaseAnswer:
        """Take the fence lease for this process; it goes with the process."""

    async def drop_fence(self) -> None:
        """Give it back."""

    async def read_delta(self, host_id: int) -> tuple[int, int] | None:
        """(generation, timestamp) of a host id on disk; None when not readable."""

    async def free_host_id(self, act: FreeHostId, still: Still) -> HostIdFreed:
        """Release a dead host's id, if everything that allows it is still true: `still` is asked
        right before the write. Returns when nothing of it can land any more, however long that
        takes."""

    async def freeing_of_before(self) -> FreeHostId | None:
        """A freeing that an earlier agent of this host began, and whose end was not told."""

    async def end_of_before(self, act: FreeHostId) -> HostIdFreed:
        """The end of that, when nothing of it can land any more, however long that takes."""

    def freeing_is_recorded(self) -> None:
        """The end of the last freeing is in the fence log."""


class FenceLog(Protocol):
    """The cluster's fence log on the shared storage; only for who holds the fence lease."""

    async def note(
        self,
        step: FenceStep,
        target: int,
        ordered: bool,
        text: str,
        over: str = "",
        only_closes: bool = False,
        withdrawn: bool = False,
    ) -> str:
        """Add a record; why it is not there, or empty. `over`, `only_closes`, `withdrawn`: see
        FenceNote; where there is nothing to be closed that is well."""


@dataclass(frozen=True, slots=True)
class FencePath:
    """What a rehearsal found. `ok`: this host could be switched off that way now."""

    host_id: int
    ok: bool
    detail: str = ""


class FenceDevices(Protocol):
    """The fence devices of all hosts. `system_uuid`: what the host published of its machine.

    No device that is not proven to be that machine's (or trusted by name in the
    configuration) is ever told to switch anything. `rehearsed`: the hosts whose devices are
    proven now and then, this host's own among them.
    """

    hosts: frozenset[int]
    rehearsed: frozenset[int]

    def know(self, system_uuids: Mapping[int, str]) -> None:
        """What the hosts published, by host id: it tells whose machine a strange device is, and
        that two hosts publish the same."""

    async def read_power(self, host_id: int, system_uuid: str) -> PowerAnswer:
        """The chassis power, from the first level of devices that can tell it."""

    async def power_off(
        self, host_id: int, system_uuid: str, attempt: int, still: Still
    ) -> PowerOffEnded:
        """Hard off, never cycle, reset or soft-off. `attempt` 0, 1, …: begins at another level
        each time, round and round. A host that is off already is a success. `still` is asked
        right before each order, in any thread."""

    async def power_on(self, host_id: int, system_uuid: str, still: Still) -> PowerOnEnded:
        """Switch it on; `still` as for power_off."""

    async def rehearse(self, host_id: int, system_uuid: str) -> FencePath:
        """Prove the way to each of a host's devices: login, privilege, identity, power; changes
        nothing. ok: some level could switch it off; `detail` names whatever could not."""
