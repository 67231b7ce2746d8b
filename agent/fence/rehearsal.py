# SPDX-License-Identifier: LGPL-2.1-or-later
"""Proves again and again that this host reaches every host's fence device, and that it could cut
other hosts off the storage: a takeover in the night must not find out that a password was changed
in spring. Changes nothing on any device, and cuts nothing."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from agent.fence.storage import NO_STORAGE_FENCE, StorageFence
from agent.ports import FenceDevices
from broker.daemon.atomic_file import write_atomically
from broker.daemon.foreign_json import decoded
from broker.wire.status import FencePathOnWire

log = logging.getLogger("ha-agent.rehearsal")

#: The first round begins so long after the start, and a little later on each further host, so
#: that not all hosts ask the BMCs at once.
FIRST_S = 20.0
APART_S = 7.0
#: After a reload somebody waits for the result: the hosts begin so far from each other.
RELOADED_APART_S = 1.0
#: A failed device is tried again after this time.
RETRY_S = 300.0


class Rehearsals:
    """Tests every device in turn, then the storage fence; `paths`: the results by host id, and
    `storage_path`: that of the storage fence (None: none yet), both kept over restarts.

    `system_uuids`, `hostnames`: what the other hosts published, updated each beat by `see`.
    """

    def __init__(
        self,
        file: Path,
        host_id: int,
        own_uuid: str,
        every_s: float,
        devices: FenceDevices,
        wall: Callable[[], float] = time.time,
        storage_fence: StorageFence = NO_STORAGE_FENCE,
    ) -> None:
        self._file, self._storage_file = file, file.with_name("storage-fence.json")
        self._host_id = host_id
        self._own_uuid = own_uuid
        self._wall = wall
        self._every_s = every_s
        self.devices = devices
        #: A round is due before its time.
        self._due = asyncio.Event()
        self.system_uuids: Mapping[int, str] = {}
        self.hostnames: Mapping[int, str] = {}
        #: The UUID, or "", with which each host's device was last tested since the start.
        self._tried_with: dict[int, str] = {}
        self.storage_fence = storage_fence
        self.paths: dict[int, FencePathOnWire] = _load(file)
        kept = _load(self._storage_file).get(host_id)
        self.storage_path = kept if storage_fence.is_configured else None

    async def run(self) -> None:
        """Test for ever, until cancelled."""
        await self._rest(FIRST_S + APART_S * (self._host_id % 10))
        while True:
            self._due.clear()
            ok = await self.round()
            await self._rest(self._every_s if ok else min(self._every_s, RETRY_S))

    def use(
        self, devices: FenceDevices, every_s: float, storage_fence: StorageFence = NO_STORAGE_FENCE
    ) -> None:
        """Use other devices: each is tested now, not in a day."""
        self.devices, self._every_s, self.storage_fence = devices, every_s, storage_fence
        self.storage_path = None
        self._due.set()

    def see(self, system_uuids: Mapping[int, str], hostnames: Mapping[int, str]) -> None:
        """What the other hosts publish now. A device that failed is tested again at once when its
        host first shows its UUID, without which no device can be proven to be that host's."""
        for host, uuid in system_uuids.items():
            is_new = uuid and self._tried_with.get(host) not in (None, uuid)
            path = self.paths.get(host)
            if is_new and path is not None and not path.ok:
                self._tried_with[host] = uuid
                self._due.set()
        self.system_uuids, self.hostnames = system_uuids, hostnames

    async def _rest(self, at_most_s: float) -> None:
        """Wait until the next round, or until one is due before its time: then a while more, since
        an administrator reloads all hosts one after the other, and they must not ask the BMCs at
        the same time."""
        try:
            async with asyncio.timeout(at_most_s):
                await self._due.wait()
        except TimeoutError:
            return
        await asyncio.sleep(RELOADED_APART_S * (self._host_id % 10))

    async def round(self) -> bool:
        """Test every device once, and the storage fence; returns whether all are fine."""
        hosts = self.devices.rehearsed
        for host in sorted(hosts):
            await self._rehearse(host)
        self.paths = {host: path for host, path in self.paths.items() if host in hosts}
        _save(self._file, self.paths)
        await self._rehearse_storage()
        is_fenced = self.storage_path is None or self.storage_path.ok
        return is_fenced and all(path.ok for path in self.paths.values())

    async def _rehearse_storage(self) -> None:
        """Ask the storage fence about each other host, until it fails for one."""
        fence = self.storage_fence
        others = {host: name for host, name in self.hostnames.items() if host != self._host_id}
        if not fence.is_configured or not others:
            return
        clock = asyncio.get_running_loop().time
        began_s, problem = clock(), ""
        for host, name in sorted(others.items()):
            if problem := await fence.check(host, name):
                problem = f"about host {host} ({name}): {problem}"
                break
        if fence is not self.storage_fence:
            return  # a reload came meanwhile, and is rehearsed by itself
        old, wall_s = self.storage_path, self._wall()
        proven_s = (old.proven if old is not None else None) if problem else wall_s
        took_s = clock() - began_s
        self.storage_path = FencePathOnWire(not problem, proven_s, wall_s, took_s, problem)
        _save(self._storage_file, {self._host_id: self.storage_path})
        if old is None or old.ok != self.storage_path.ok:
            if problem:
                log.warning("no dead host could be cut off the storage now: %s", problem)
            else:
                log.info("a dead host could be cut off the storage")

    async def _rehearse(self, host: int) -> None:
        clock = asyncio.get_running_loop().time
        began_s = clock()
        uuids = {**self.system_uuids, self._host_id: self._own_uuid}
        uuid = self._tried_with[host] = uuids.get(host, "")
        found = await self.devices.rehearse(host, uuid)
        took_s, wall_s = clock() - began_s, self._wall()
        old = self.paths.get(host)
        proven_s = wall_s if found.ok else (old.proven if old is not None else None)
        self.paths[host] = FencePathOnWire(found.ok, proven_s, wall_s, took_s, found.detail)
        if old is None or old.ok != found.ok:
            if found.ok:
                log.info("the way to the fence device of host %d is proven", host)
            else:
                log.warning("host %d could not be switched off now: %s", host, found.detail)


def _save(file: Path, paths: Mapping[int, FencePathOnWire]) -> None:
    try:
        write_atomically(file, msgspec.json.encode(paths))
    except OSError as error:
        log.warning("%s: %s; what was proven is forgotten at a restart", file, error)


def _load(file: Path) -> dict[int, FencePathOnWire]:
    try:
        return decoded(file.read_bytes(), dict[int, FencePathOnWire])
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.MsgspecError) as error:
        log.warning("%s: %s; nothing counts as proven yet", file, error)
        return {}
