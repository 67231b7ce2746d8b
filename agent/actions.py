# SPDX-License-Identifier: LGPL-2.1-or-later
"""Carrying out what was decided. Each action is a task of its own; its outcome is kept for
the next observation, so the beat never waits for any of them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Coroutine, Mapping
from typing import assert_never

from agent.fencing import note_failed, power_off_host, power_on_host
from agent.ports import FenceDevices, FenceLog, Hypervisor, Leases
from broker.what_ran import WhatRan
from scoring.decision import (
    Action,
    AskLease,
    AskMigrationPath,
    AskPower,
    CancelMigration,
    DisarmDomain,
    DropFenceLease,
    FreeHostId,
    MigrateEngine,
    NoteFenceFailed,
    PowerOffEngine,
    PowerOffHost,
    PowerOnHost,
    ShutdownEngine,
    StartEngine,
    TakeFenceLease,
)
from scoring.observation import EngineMigrationEnded, FenceStep, HostIdFreed, Outcome

log = logging.getLogger("ha-agent.actions")


class Hands:
    """Runs actions through the ports. `news` is set whenever an outcome has come (and by
    whoever else has some).

    `hostnames`, `slots` (timestamps): by host id, and `what_ran` (the record of the disks that ran
    last), brought up to date with each view.
    """

    def __init__(
        self, hypervisor: Hypervisor, leases: Leases, fence: FenceDevices, fence_log: FenceLog
    ) -> None:
        self._hypervisor = hypervisor
        self._leases = leases
        self._fence = fence
        self._fence_log = fence_log
        self._tasks: set[asyncio.Task[None]] = set()
        self._outcomes: list[Outcome] = []
        self.news = asyncio.Event()
        self._system_uuids: Mapping[int, str] = {}
        self.hostnames: Mapping[int, str] = {}
        self.slots: Mapping[int, int] = {}
        self.what_ran: WhatRan | None = None

    @property
    def fence_held(self) -> bool:
        return self._leases.fence_held

    @property
    def fence_hosts(self) -> frozenset[int]:
        return self._fence.hosts

    def use_fence(self, fence: FenceDevices) -> None:
        """Ask these from now on; a question under way is answered by the old ones."""
        self._fence = fence
        fence.know(self._system_uuids)

    def know(self, system_uuids: Mapping[int, str]) -> None:
        """What the hosts published of their machines, by host id; brought up to date each beat."""
        self._system_uuids = system_uuids
        self._fence.know(system_uuids)

    @property
    def busy(self) -> bool:
        """Whether any action is under way."""
        return bool(self._tasks)

    def take_outcomes(self) -> tuple[Outcome, ...]:
        """What has ended since the last call, in order."""
        outcomes, self._outcomes = tuple(self._outcomes), []
        return outcomes

    def begin(self, action: Action) -> None:
        """Start carrying out an action."""
        self._begin(action, self._run(action))

    def begin_move(self, action: MigrateEngine, told: Awaitable[str]) -> None:
        """Start migrating once the others know of it. `told`: why they do not, or empty."""
        self._begin(action, self._move(action, told))

    def _begin(self, action: Action, running: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(running, name=str(action))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _move(self, action: MigrateEngine, told: Awaitable[str]) -> None:
        problem = await told
        if not problem:
            await self._run(action)
            return
        log.warning("not begun: %s: %s", action, problem)
        self._outcomes.append(EngineMigrationEnded(action.target, False, problem))
        self.news.set()

    async def _run(self, action: Action) -> None:
        level = (
            logging.DEBUG
            if isinstance(action, AskLease | AskPower | AskMigrationPath)
            else logging.INFO
        )
        log.log(level, "begin %s", action)
        outcome = await self._do(action)
        if outcome is not None:
            log.log(level, "ended %s", outcome)
            self._outcomes.append(outcome)
            self.news.set()

    async def _do(self, action: Action) -> Outcome | None:
        match action:
            case StartEngine():
                return await self._hypervisor.start(self.what_ran)
            case ShutdownEngine():
                return await self._hypervisor.shut_down()
            case PowerOffEngine():
                return await self._hypervisor.power_off()
            case DisarmDomain(image=image):
                return await self._hypervisor.disarm(image)
            case MigrateEngine(target=target):
                return await self._hypervisor.migrate(target, self.hostnames.get(target, ""))
            case CancelMigration(why=why):
                return await self._hypervisor.cancel_migration(why)
            case AskMigrationPath(target=target):
                return await self._hypervisor.ask_path(target, self.hostnames.get(target, ""))
            case AskLease():
                return await self._leases.ask_engine()
            case AskPower(host_id=host):
                return await self._fence.read_power(host, self._system_uuids.get(host, ""))
            case TakeFenceLease():
                return await self._leases.take_fence()
            case DropFenceLease():
                await self._leases.drop_fence()
                return None
            case FreeHostId():
                return await self._free(action)
            case PowerOffHost(host_id=host):
                uuid = self._system_uuids.get(host, "")
                return await power_off_host(
                    action,
                    uuid,
                    lambda number: self.slots.get(number),
                    self._leases,
                    self._fence,
                    self._fence_log,
                )
            case PowerOnHost(host_id=host):
                uuid = self._system_uuids.get(host, "")
                return await power_on_host(action, uuid, self._leases, self._fence, self._fence_log)
            case NoteFenceFailed():
                await note_failed(action, self._fence_log)
                return None
            case _:
                assert_never(action)

    async def _free(self, act: FreeHostId) -> HostIdFreed:
        """Free it, and tell the log: who wonders later why a host is gone finds it there."""
        freed = await self._leases.free_host_id(act)
        if freed.ok:
            problem = await self._fence_log.note(
                FenceStep.DEAD, act.host_id, act.ordered, act.evidence
            )
            if problem:
                log.error("the fence log could not be written: %s", problem)
        return freed
