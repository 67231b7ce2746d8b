# SPDX-License-Identifier: LGPL-2.1-or-later
"""The fence lease when sanlock takes its time: it holds an acquire back until the last holder
is dead for it. A pipe stands for the connection to its daemon: closed, the lease is released."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sanlock

from agent.fence.driver import always
from agent.leases import sanlock as leases
from agent.leases.sanlock import SanlockLeases
from agent.leases.sanlock_direct import SanlockDirect
from broker.config.sections import (
    ClusterSection,
    Config,
    DaemonSection,
    HostSection,
    StorageSection,
)
from broker.lockspace.freeing_before import freeing_before
from broker.lockspace.open_leases import OpenLeases
from broker.whiteboard.identity import Expected, Identity, VolumeKind, encode
from broker.whiteboard.volume import Volume, VolumeError
from scoring.decision import FreeHostId
from tests.fakes.lease_volume import lease_volume
from tests.fakes.waiting import until


class SlowSanlock:
    """A sanlock whose acquire returns when `given` is set. `connection`: the other end of the
    last one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.given = threading.Event()
        self.connection = -1
        monkeypatch.setattr(sanlock, "register", self._register)
        monkeypatch.setattr(sanlock, "acquire", self._acquire)

    def _register(self) -> int:
        self.connection, descriptor = os.pipe()
        return descriptor

    def _acquire(self, *_: Any, **__: Any) -> None:
        self.given.wait()

    def is_released(self) -> bool:
        """Waits for the end of the connection, or of what was written into it."""
        return os.read(self.connection, 1) == b""


def fence(
    folder: Path,
    state_dir: Path | None = None,
    direct: SanlockDirect | None = None,
    held: Mapping[str, tuple[int, int]] | None = None,
    renewals: Mapping[int, tuple[int, int]] | None = None,
) -> SanlockLeases:
    path = folder / "leases"
    if not path.exists():
        lease_volume(path, held=held, renewals=renewals)
    storage = StorageSection(whiteboard="/no/whiteboard", leases=str(path))
    config = Config(
        host=HostSection(id=1, name="one"),
        storage=storage,
        daemon=DaemonSection(state_dir=str(state_dir or folder)),
    )
    return SanlockLeases(config, 1 << 20, direct)


def test_a_lease_that_comes_too_late_is_given_back(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def run() -> None:
        slow, ours = SlowSanlock(monkeypatch), fence(tmp_path)
        monkeypatch.setattr(leases, "ACQUIRE_DEADLINE_S", 0.01)
        answer = await ours.take_fence()
        assert not answer.held and not ours.fence_held
        again = await ours.take_fence()
        assert not again.held, "the first try is still under way"
        assert (await ours.ask_engine()).known, "who owns the engine lease is asked meanwhile"
        slow.given.set()
        assert await asyncio.to_thread(slow.is_released)
        assert not ours.fence_held

    asyncio.run(run())


def test_a_lease_that_comes_in_time_is_held_until_it_is_dropped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def run() -> None:
        slow, ours = SlowSanlock(monkeypatch), fence(tmp_path)
        slow.given.set()
        assert (await ours.take_fence()).held and ours.fence_held
        await ours.drop_fence()
        assert not ours.fence_held
        assert await asyncio.to_thread(slow.is_released)

    asyncio.run(run())


class Child:
    """A process that holds what it inherits until it ends; SIGKILL does not end it."""

    def __init__(self) -> None:
        self.returncode: int | None = None
        self.held: list[int] = []
        self.ends = asyncio.Event()

    async def begin(self, arguments: Sequence[str], descriptors: Sequence[int]) -> Child:
        self.held = [os.dup(descriptor) for descriptor in descriptors]
        return self

    def kill(self) -> None:
        pass

    async def communicate(self) -> tuple[bytes, bytes | None]:
        await self.ends.wait()
        for descriptor in self.held:
            os.close(descriptor)
        self.returncode = 0
        return b"", None


ACT = FreeHostId(2, 5, 77, 0.0, True, "read off twice")


def test_sanlock_keeps_the_fence_lease_until_the_freeing_has_ended_whatever_ends_the_agent(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The process inherits the agent's connection to sanlock, and the lock of the file."""

    async def run() -> None:
        slow, child = SlowSanlock(monkeypatch), Child()
        slow.given.set()
        ours = fence(tmp_path, direct=SanlockDirect(child.begin))
        assert (await ours.take_fence()).held
        freeing = asyncio.ensure_future(ours.release_id(ACT, always))
        while not child.held:
            await asyncio.sleep(0)
        # The agent dies: what it held is closed.
        freeing.cancel()
        await ours.drop_fence()
        os.set_blocking(slow.connection, False)
        with pytest.raises(BlockingIOError):
            slow.is_released()
        # The next one finds what was begun, begins nothing, and waits.
        connection = slow.connection
        after = fence(tmp_path, direct=SanlockDirect(Child().begin))
        assert await after.freeing_of_before() == replace(ACT, timestamp=0)
        assert (await after.take_fence()).held
        assert await after.release_id(ACT, always) == "an earlier one has not ended"
        waiting = asyncio.ensure_future(after.end_of_before(ACT))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        waiting.cancel()
        child.ends.set()
        await child.communicate()
        assert os.read(connection, 1) == b"", "sanlock releases it now"
        after.freeing_is_recorded()
        assert await after.freeing_of_before() is None

    asyncio.run(run())


def test_without_the_fence_lease_no_process_is_begun(tmp_path: Path) -> None:
    async def run() -> None:
        child = Child()
        ours = fence(tmp_path, direct=SanlockDirect(child.begin))
        assert await ours.release_id(ACT, always) == "the fence lease is not held"
        assert not child.held

    asyncio.run(run())


def test_a_fencer_is_freed_without_the_fence_lease_but_not_without_a_trace(tmp_path: Path) -> None:
    """The lock of the file is all that tells a broker without an agent of it."""

    async def run() -> None:
        act, child = replace(ACT, host_id=3, fencer=True), Child()
        ours = fence(tmp_path, direct=SanlockDirect(child.begin))
        freeing = asyncio.ensure_future(ours.release_id(act, always))
        while not child.held:
            await asyncio.sleep(0)
        assert len(child.held) == 1, "the file alone"
        path = tmp_path / "freeing.json"
        freeing.cancel()
        await asyncio.sleep(0)
        assert freeing_before(path) == 3, "the agent has died, the process has not ended"
        after = fence(tmp_path)
        assert await after.freeing_of_before() == replace(act, timestamp=0)
        child.ends.set()
        await child.communicate()
        assert freeing_before(path) is None

    asyncio.run(run())


def test_a_full_disk_keeps_a_fencer_s_id_from_being_freed(tmp_path: Path) -> None:
    async def run() -> None:
        child = Child()
        ours = fence(tmp_path, tmp_path / "file", SanlockDirect(child.begin))
        (tmp_path / "file").write_text("no folder")
        act = replace(ACT, fencer=True)
        assert "could not be written" in await ours.release_id(act, always)
        assert not child.held

    asyncio.run(run())


def test_who_owns_the_fence_lease_is_known_while_an_acquire_of_it_hangs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def run() -> None:
        slow = SlowSanlock(monkeypatch)
        ours = fence(tmp_path, held={"fence": (3, 5)}, renewals={3: (5, 77)})
        host = {"host_id": 3, "generation": 5, "timestamp": 70, "flags": sanlock.HOST_LIVE}
        monkeypatch.setattr(sanlock, "get_hosts", lambda lockspace, host_id: [host])
        taking = asyncio.ensure_future(ours.take_fence())
        await asyncio.sleep(0.01)
        answer = await ours.ask_fence()
        assert not taking.done()
        assert (answer.owner, answer.owner_generation, answer.owner_timestamp) == (3, 5, 77)
        slow.given.set()
        assert (await taking).held, "an acquire that was under way has the lease that came free"

    asyncio.run(run())


def test_what_a_takeover_asks_neither_opens_nor_measures_anything(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On CephFS an open, and a question for the size, wait for the client of the dead host."""

    async def run() -> None:
        slow = SlowSanlock(monkeypatch)
        slow.given.set()
        ours = fence(tmp_path, held={"engine": (2, 5)}, renewals={2: (5, 77)})
        host = {"host_id": 2, "generation": 5, "timestamp": 70, "flags": sanlock.HOST_DEAD}
        monkeypatch.setattr(sanlock, "get_hosts", lambda lockspace, host_id=0: [host])
        ahead = asyncio.ensure_future(ours.opened_ahead())
        opened = (ours._open, ours._vms_open, ours._fence_open)
        await until(lambda: all(leases._volume is not None for leases in opened))
        ahead.cancel()
        hangs = threading.Event()
        for name in ("open", "stat", "lstat", "fstat", "lseek"):
            monkeypatch.setattr(os, name, lambda *_, **__: hangs.wait())
        monkeypatch.setattr(sanlock, "read_resource_owners", lambda *_, **__: hangs.wait())
        monkeypatch.setattr("agent.leases.sanlock.ASK_DEADLINE_S", 2.0)
        engine, known = await ours.ask_engine(), await ours.ask_fence()
        several = await ours.owners({1: "engine"})
        delta, taken = await ours.read_delta(2), await ours.take_fence()
        monkeypatch.undo()
        assert (engine.known, engine.owner, engine.owner_timestamp) == (True, 2, 77), engine
        assert (known.known, known.owner) == (True, None)
        assert several[1].owner == 2
        assert delta == (5, 77)
        assert taken.held, taken.detail

    asyncio.run(run())


def test_a_volume_that_fails_is_opened_anew(tmp_path: Path) -> None:
    """After a mount was made anew the old descriptor answers ESTALE for good."""
    path = lease_volume(tmp_path / "leases")
    kept = OpenLeases(str(path), Expected(VolumeKind.LEASES))
    first = kept.now()
    assert kept.now() is first
    first.close()
    with pytest.raises(VolumeError):
        kept.owner_of("hosted-engine", "engine", 1 << 20)
    assert not kept.owner_of("hosted-engine", "engine", 1 << 20).held


def test_a_freeing_is_not_written_to_another_volume_at_the_path(tmp_path: Path) -> None:
    """The process that writes opens the path anew, whatever was read through the open one."""
    other = "21111111-2222-3333-4444-555555555555"

    async def run() -> None:
        child = Child()
        ours = fence(tmp_path, direct=SanlockDirect(child.begin))
        ours._wanted = Expected(VolumeKind.LEASES, other, other)
        why = await ours.release_id(replace(ACT, fencer=True), always)
        assert "has no identity; leases 2111" in why
        assert not child.held

    asyncio.run(run())


def test_a_freeing_that_was_overtaken_begins_no_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The file on the local disk may have taken its time."""

    async def run() -> None:
        slow, child = SlowSanlock(monkeypatch), Child()
        slow.given.set()
        ours = fence(tmp_path, direct=SanlockDirect(child.begin))
        assert (await ours.take_fence()).held
        begun: list[bool] = []

        def still() -> str:
            begun.append((tmp_path / "freeing.json").exists())
            return "it lives"

        assert await ours.release_id(ACT, still) == "it lives"
        assert begun == [True] and not child.held

    asyncio.run(run())


def test_a_full_disk_does_not_keep_a_dead_host_s_id_from_being_freed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The file is for the next agent; what protects is the connection that is inherited."""

    async def run() -> None:
        slow, child = SlowSanlock(monkeypatch), Child()
        slow.given.set()
        ours = fence(tmp_path, tmp_path / "file", SanlockDirect(child.begin))
        (tmp_path / "file").write_text("no folder")
        assert (await ours.take_fence()).held
        child.ends.set()
        assert await ours.release_id(ACT, always) == ""
        assert len(child.held) == 1

    asyncio.run(run())


def test_another_cluster_s_lease_volume_is_asked_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The storage is not mounted, and below lies another file: no owner, no lease, no freeing."""
    other = "21111111-2222-3333-4444-555555555555"
    path = tmp_path / "leases"
    path.touch()
    os.truncate(path, 5 << 20)
    with Volume(path) as volume:
        volume.write_at(4 << 20, encode(Identity(VolumeKind.LEASES, other, other, 0)))
    storage = StorageSection(
        whiteboard="/no/whiteboard",
        leases=str(path),
        leases_id="31111111-2222-3333-4444-555555555555",
    )
    cluster = ClusterSection(id="11111111-2222-3333-4444-555555555555")
    config = Config(host=HostSection(id=1, name="one"), cluster=cluster, storage=storage)

    async def run() -> None:
        slow = SlowSanlock(monkeypatch)
        slow.given.set()
        ours = SanlockLeases(config, 1 << 20)
        answer = await ours.ask_engine()
        assert not answer.known
        assert f"{path}: is leases {other} of cluster {other}; leases 3111" in answer.detail
        assert not (await ours.take_fence()).held
        assert await ours.read_delta(2) is None

    asyncio.run(run())
