# SPDX-License-Identifier: LGPL-2.1-or-later
"""Carries out the actions of the decision.

Each action is a task of its own, and its outcome is kept for the next observation. A device or
libvirt may take minutes to answer; the beat never waits for them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import replace
from typing import assert_never

from agent.fence.storage import NO_STORAGE_FENCE, StorageFence, off_twice
from agent.fence.switching import note_failed, power_off_host, power_on_host
from agent.last_look import LastLook
from agent.ports import FenceDevices, FenceLog, Hypervisors, Leases
from broker.wire.exchange import FenceNote
from broker.wire.what_ran import WhatRan
from scoring.decision import (
    Action,
    AskFenceOwner,
    AskLease,
    AskMigrationPath,
    AskPower,
    CancelMigration,
    DisarmDomain,
    DropFenceLease,
    FreeHostId,
    HypervisorAction,
    MigrateVm,
    NoteFenceFailed,
    PowerOffHost,
    PowerOffVm,
    PowerOnHost,
    ShutDownVm,
    StartVm,
    TakeFenceLease,
)
from scoring.observation import (
    DomainDisarmed,
    FenceLeaseAnswer,
    FenceOwnerAnswer,
    FenceStep,
    HostIdFreed,
    MigrationCancelled,
    MigrationPath,
    Outcome,
    Power,
    VmMigrationEnded,
    VmStartEnded,
    VmStopEnded,
)
from scoring.vm_facts import ENGINE

log = logging.getLogger("ha-agent.actions")

#: The outcomes of a HypervisorAction.
VmOutcome = (
    VmStartEnded
    | VmStopEnded
    | DomainDisarmed
    | VmMigrationEnded
    | MigrationCancelled
    | MigrationPath
)

#: How often, and at which interval, a failed record of the end of a freeing is tried again.
RECORD_END_TRIES = 12
RECORD_END_PAUSE_S = 5.0
#: When the fence lease was not acquired after this time, the storage may be slow; 0.1 s is usual.
FENCE_LEASE_SLOW_S = 0.5


class ActionRunner:
    """Runs actions through the ports. `news` is set whenever an outcome has come, and by other code
    that wants the next beat early.

    `hostnames` by host id, `what_ran` (the record of the disks of the engine that ran last),
    `registry` (the newest generation of the VMs' registry that any host shows), `is_noted` (whether
    the fence log has the intent of an order) and `last_look` are updated with each view.
    """

    def __init__(
        self,
        hypervisors: Hypervisors,
        leases: Leases,
        fence: FenceDevices,
        fence_log: FenceLog,
        storage_fence: StorageFence | None = None,
    ) -> None:
        self._hypervisors = hypervisors
        self._leases = leases
        self._fence = fence
        self._fence_log = fence_log
        self._storage_fence = storage_fence or NO_STORAGE_FENCE
        #: The host whose access to the storage was cut already, before the fence lease was held.
        self._cut_before: int | None = None
        #: Cleared from the freeing of a host's id to the end of what is cut for it, and how many
        #: starts wait for that.
        self._no_cut = asyncio.Event()
        self._no_cut.set()
        self._starts_waiting = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._outcomes: list[Outcome] = []
        self.news = asyncio.Event()
        #: What ended an action that was to have an outcome and has none; None: nothing did.
        self.failure: BaseException | None = None
        self._system_uuids: Mapping[int, str] = {}
        self.hostnames: Mapping[int, str] = {}
        self.last_look = LastLook(lambda: leases.fence_held)
        self.is_noted: Callable[[int], bool] = lambda host_id: False
        self._noting = 0
        self.what_ran: WhatRan | None = None
        self.registry = 0
        #: The VMs whose leases' owners are asked next.
        self._asked: list[int] = []
        #: Updated with each view: whether a record of the fence log may still land.
        self.log_is_written = False
        #: The host whose id a process of this host is freeing.
        self.freeing: int | None = None
        #: Whether that host owns the fence lease, so that its id is freed without the lease.
        self.freeing_fencer = False
        #: A host whose id was freed to get the fence lease; the fence log has no record of it yet.
        self._found_dead: FreeHostId | None = None
        self._recorder: asyncio.Task[None] | None = None

    @property
    def fence_held(self) -> bool:
        return self._leases.fence_held

    @property
    def fence_hosts(self) -> frozenset[int]:
        return self._fence.hosts

    def use_fence(self, fence: FenceDevices, storage_fence: StorageFence | None = None) -> None:
        """Use these devices from now on; an action that is under way ends with the old ones.
        `storage_fence`: None: the storage is not fenced."""
        self._fence = fence
        self._storage_fence = storage_fence or NO_STORAGE_FENCE
        fence.know(self._system_uuids)

    def know(self, system_uuids: Mapping[int, str]) -> None:
        """Take in the machines' UUIDs that the hosts published, by host id; called each beat."""
        self._system_uuids = system_uuids
        self._fence.know(system_uuids)

    @property
    def busy(self) -> bool:
        """Whether any action is under way."""
        return bool(self._tasks)

    def take_outcomes(self) -> tuple[Outcome, ...]:
        """The outcomes since the last call, in order."""
        outcomes, self._outcomes = tuple(self._outcomes), []
        return outcomes

    def begin(self, action: Action) -> None:
        """Start carrying out an action."""
        if isinstance(action, DropFenceLease) and self._keeps_fence():
            return
        if isinstance(action, AskLease) and action.vm != ENGINE:
            self._asked.append(action.vm)
            if len(self._asked) == 1:
                self._begin(action, self._ask_vms())
            return
        self._begin(action, self._run(action))

    def begin_move(self, action: MigrateVm, published: Awaitable[str]) -> None:
        """Start migrating once the others know of it. `published`: why they do not, or empty."""
        self._begin(action, self._move(action, published))

    def _begin(self, action: Action, running: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(running, name=str(action))
        self._tasks.add(task)
        task.add_done_callback(self._has_ended)
        return task

    def _has_ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("%s failed: %r", task.get_name(), error)
            self.failure = self.failure or error
            self.news.set()

    async def _move(self, action: MigrateVm, published: Awaitable[str]) -> None:
        problem = await published
        if not problem:
            await self._run(action)
            return
        log.warning("%s was not begun: %s", action, problem)
        self._outcomes.append(VmMigrationEnded(action.target, False, problem, vm=action.vm))
        self.news.set()

    async def _run(self, action: Action) -> None:
        level = (
            logging.DEBUG
            if isinstance(action, AskLease | AskFenceOwner | AskPower | AskMigrationPath)
            else logging.INFO
        )
        log.log(level, "begin %s", action)
        outcome = await self._do(action)
        if outcome is not None:
            log.log(level, "ended %s", outcome)
            self._outcomes.append(outcome)
            self.news.set()

    async def _ask_vms(self) -> None:
        """Ask for all leases of one beat at once: they are read from the volume in one go."""
        vms, self._asked = tuple(self._asked), []
        self._outcomes += await self._leases.ask_vms(vms)
        self.news.set()

    async def _do_to_vm(self, action: HypervisorAction) -> VmOutcome:
        hypervisor = self._hypervisors(action.vm)
        match action:
            case StartVm(vm=vm):
                await self._after_the_cut()
                what_ran = self.what_ran if vm == ENGINE else None
                return await hypervisor.start(what_ran, self.registry)
            case ShutDownVm():
                return await hypervisor.shut_down()
            case PowerOffVm():
                return await hypervisor.power_off()
            case DisarmDomain(image=image):
                return await hypervisor.disarm(image)
            case MigrateVm(target=target, timeout_s=timeout_s):
                hostname = self.hostnames.get(target, "")
                return await hypervisor.migrate(target, hostname, timeout_s)
            case CancelMigration(why=why):
                return await hypervisor.cancel_migration(why)
            case AskMigrationPath(target=target):
                return await hypervisor.ask_path(target, self.hostnames.get(target, ""))
            case _:
                assert_never(action)

    async def _do(self, action: Action) -> Outcome | None:
        match action:
            case (
                StartVm()
                | ShutDownVm()
                | PowerOffVm()
                | DisarmDomain()
                | MigrateVm()
                | CancelMigration()
                | AskMigrationPath()
            ):
                return replace(await self._do_to_vm(action), vm=action.vm)
            case AskLease():
                return await self._leases.ask_engine()
            case AskPower(host_id=host):
                return await self._fence.read_power(host, self._system_uuids.get(host, ""))
            case TakeFenceLease():
                return await self._take_fence()
            case AskFenceOwner():
                return FenceOwnerAnswer(await self._leases.ask_fence())
            case DropFenceLease():
                await self._leases.drop_fence()
                return None
            case FreeHostId(fencer=True):
                return await self._free_fencer(action)
            case FreeHostId():
                return await self._free(action)
            case PowerOffHost(host_id=host):
                uuid = self._system_uuids.get(host, "")
                return await power_off_host(
                    action,
                    uuid,
                    lambda: self.last_look.off(action),
                    self._leases,
                    self._fence,
                    self._fence_log,
                    self.is_noted(host),
                )
            case PowerOnHost(host_id=host):
                uuid = self._system_uuids.get(host, "")
                return await power_on_host(
                    action,
                    uuid,
                    lambda: self.last_look.on(host),
                    self._leases,
                    self._fence,
                    self._fence_log,
                )
            case NoteFenceFailed():
                self._noting += 1
                try:
                    await note_failed(action, self._fence_log)
                finally:
                    self._noting -= 1
                return None
            case _:
                assert_never(action)

    def _keeps_fence(self) -> bool:
        """Whether the fence lease must be kept for now; the next decision asks again.

        Its next holder writes to the fence log: no write of this host may land there then.
        """
        is_recorded = self._recorder is None or self._recorder.done()
        return (
            self.log_is_written or self._noting > 0 or self.freeing is not None or not is_recorded
        )

    async def _free(self, act: FreeHostId) -> HostIdFreed:
        """Free the id. The fence log has a record before it begins, and one of its end: a host that
        is back does not join meanwhile."""
        self.freeing = act.host_id
        if self._recorder is not None:
            self._recorder.cancel()
        try:
            note = FenceNote(FenceStep.FREEING, act.host_id, act.ordered, act.evidence)
            problem = await self._fence_log.note(note)
            if problem:
                why = f"the fence log could not be written: {problem}"
                freed = HostIdFreed(act.host_id, False, why, begun=False)
                self._recorder = self._begin(act, self._keep_recording_end(act, freed))
                return freed
            freed = await self._leases.free_host_id(act, lambda: self.last_look.free(act))
            if freed.ok and self._storage_fence.is_configured:
                self._no_cut.clear()
            if not await self._record_end(act, freed):
                self._recorder = self._begin(act, self._keep_recording_end(act, freed))
            if freed.ok:
                await self._cut_storage(act)
            return freed
        finally:
            self.freeing = None
            self._no_cut.set()

    async def _free_fencer(self, act: FreeHostId) -> HostIdFreed:
        """Free the id of the host that owns the fence lease. This host may not write the fence log:
        its slot announces the freeing already, and does so until the act is over."""
        self.freeing, self.freeing_fencer = act.host_id, True
        try:
            freed = await self._leases.free_host_id(act, lambda: self.last_look.free(act))
        finally:
            self.freeing, self.freeing_fencer = None, False
        self._leases.freeing_is_recorded()
        if freed.ok:
            self._found_dead = act
        return freed

    async def _take_fence(self) -> FenceLeaseAnswer:
        """Take the fence lease, and record whose id was freed for it."""
        self._cut_before = None
        taking = asyncio.ensure_future(self._leases.take_fence())
        cutting: asyncio.Task[None] | None = None
        try:
            done, _ = await asyncio.wait([taking], timeout=FENCE_LEASE_SLOW_S)
            host = self.last_look.taking_fence_for
            if not done and host is not None and self._storage_fence.keeps_leases:
                # The dead host's client may be what keeps the lease volume from being opened.
                cutting = asyncio.ensure_future(self._cut_before_the_lease(host))
            answer = await taking
        finally:
            taking.cancel()
            if cutting is not None:
                cutting.cancel()
        if answer.held and (act := self._found_dead) is not None:
            self._found_dead = None
            text = f"it owned the fence lease; {act.evidence}"
            note = FenceNote(FenceStep.DEAD, act.host_id, False, text)
            problem = await self._fence_log.note(note)
            if problem:
                log.error("the fence log could not be written: %s", problem)
        return answer

    async def _cut_storage(self, act: FreeHostId) -> None:
        """Remove the clients and locks of a host whose id was just freed from the storage, unless
        that was done already to get the fence lease."""
        if self._cut_before == act.host_id:
            return

        async def prove() -> str:
            why_not = await self._reads_off(act.host_id)
            if self._starts_waiting:
                # The VM is being started here: for that the takeover is not pursued any more.
                return why_not or self.last_look.cut()
            return why_not or self.last_look.free(act)

        await self._cut(act.host_id, prove)

    async def _cut(self, host: int, prove: Callable[[], Awaitable[str]]) -> bool:
        name = self.hostnames.get(host, "")
        others = [other for number, other in self.hostnames.items() if number != host]
        return await self._storage_fence.cut(host, name, prove, others)

    async def _after_the_cut(self) -> None:
        """Return once nothing is being cut any more. A lease is known to be free as soon as its
        owner's id is, and a QEMU that is started then finds the image locked: it is tried again
        seconds later. Takes as long as the storage fence may take."""
        self._starts_waiting += 1
        try:
            await self._no_cut.wait()
        finally:
            self._starts_waiting -= 1

    async def _cut_before_the_lease(self, host: int) -> None:
        """Do so while the fence lease cannot be had: two readings prove that the host is off."""

        async def prove() -> str:
            return await off_twice(
                lambda: self._reads_off(host),
                lambda: self.last_look.still_taking_fence(host),
                self.last_look.power_reread_s,
            )

        if await self._cut(host, prove):
            self._cut_before = host

    async def _reads_off(self, host: int) -> str:
        """Why the host's fence device does not say now that it is off; "": it does."""
        answer = await self._fence.read_power(host, self._system_uuids.get(host, ""))
        if answer.power is Power.OFF and answer.identity_proven:
            return ""
        return f"its power reads {answer.power}, {answer.detail or 'not proven to be its own'}"

    async def _record_end(
        self, act: FreeHostId, freed: HostIdFreed, only_closes: bool = False
    ) -> bool:
        """Record how a freeing ended; returns whether the fence log has it."""
        step = FenceStep.DEAD if freed.ok else FenceStep.FREEING
        problem = await self._fence_log.note(
            FenceNote(step, act.host_id, act.ordered, act.evidence, freed.detail, only_closes)
        )
        if problem:
            log.error("the end of a freeing could not be written to the fence log: %s", problem)
            return False
        self._leases.freeing_is_recorded()
        return True

    async def _keep_recording_end(self, act: FreeHostId, freed: HostIdFreed) -> None:
        """Repeat that under the fence lease, which is kept; not for ever, since others need it."""
        for _ in range(RECORD_END_TRIES):
            await asyncio.sleep(RECORD_END_PAUSE_S)
            if not self._leases.fence_held or await self._record_end(act, freed, only_closes=True):
                return

    async def finish_freeing_of_before(self) -> None:
        """Wait for a freeing that an earlier agent of this host began, and record its end."""
        act = await self._leases.freeing_of_before()
        if act is None:
            return
        self.freeing, self.freeing_fencer = act.host_id, act.fencer
        log.warning("host id %d was being freed when the last agent ended", act.host_id)
        try:
            freed = await self._leases.end_of_before(act)
        finally:
            self.freeing, self.freeing_fencer = None, False
            self.news.set()
        self._recorder = asyncio.current_task()
        tries = 0
        while tries < RECORD_END_TRIES:
            # Before this host has joined the lockspace it gets no lease.
            is_held = self._leases.fence_held or (await self._leases.take_fence()).held
            if is_held and await self._record_end(act, freed, only_closes=True):
                return
            tries += is_held
            await asyncio.sleep(RECORD_END_PAUSE_S)
