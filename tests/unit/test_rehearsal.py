# SPDX-License-Identifier: LGPL-2.1-or-later
"""The way to each fence device is proven again and again, and what came of it is shown."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import cast

import pytest

from agent.fence import rehearsal
from agent.fence.rehearsal import Rehearsals
from agent.fence.storage import StorageFence
from agent.fence.storage_program import StorageFenceError
from agent.ports import FenceDevices, FencePath
from agent.status.troubles import troubles
from broker.peers.fence_paths import storage_fence_shown
from broker.wire.status import FencePathOnWire, StorageFenceStatus
from tests.fakes.statuses import host, status

OWN = "own-uuid"


class Devices:
    """A host's devices by what they say; `asked`: whom, with which UUID."""

    def __init__(self, **problems: str) -> None:
        self.problems = {int(host[1:]): text for host, text in problems.items()}
        self.rehearsed = frozenset(self.problems)
        self.asked: list[tuple[int, str]] = []

    async def rehearse(self, host_id: int, system_uuid: str) -> FencePath:
        self.asked.append((host_id, system_uuid))
        return FencePath(host_id, not self.problems[host_id], self.problems[host_id])


def rehearsals(tmp_path: Path, devices: Devices, wall_s: float = 1000.0) -> Rehearsals:
    file = tmp_path / "fence-paths.json"
    made = Rehearsals(file, 1, OWN, 3600.0, cast(FenceDevices, devices), lambda: wall_s)
    made.system_uuids = {2: "uuid-2"}
    return made


def test_every_device_is_asked_this_host_s_own_too(tmp_path: Path) -> None:
    devices = Devices(h1="", h2="", h3="")
    one = rehearsals(tmp_path, devices)
    assert asyncio.run(one.round())
    assert devices.asked == [(1, OWN), (2, "uuid-2"), (3, "")]
    assert {host: (path.ok, path.proven) for host, path in one.paths.items()} == {
        1: (True, 1000.0),
        2: (True, 1000.0),
        3: (True, 1000.0),
    }


def test_a_way_that_is_no_more_keeps_when_it_was_last_proven_over_a_restart(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asyncio.run(rehearsals(tmp_path, Devices(h2="")).round())
    later = rehearsals(tmp_path, Devices(h2="wrong password"), 5000.0)
    assert not asyncio.run(later.round())
    path = later.paths[2]
    assert (path.ok, path.proven, path.tried) == (False, 1000.0, 5000.0)
    assert "host 2 could not be switched off now: wrong password" in caplog.text
    again = rehearsals(tmp_path, Devices(h2=""))
    assert again.paths == later.paths


def test_a_device_that_is_configured_no_more_is_forgotten(tmp_path: Path) -> None:
    asyncio.run(rehearsals(tmp_path, Devices(h2="", h3="")).round())
    later = rehearsals(tmp_path, Devices(h2=""))
    asyncio.run(later.round())
    assert list(later.paths) == [2]


def test_a_file_that_cannot_be_read_counts_as_nothing_proven(tmp_path: Path) -> None:
    (tmp_path / "fence-paths.json").write_bytes(b"{nonsense")
    assert rehearsals(tmp_path, Devices()).paths == {}


def test_a_file_that_cannot_be_written_is_told_and_nothing_more(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "fence-paths.json.new").mkdir()
    one = rehearsals(tmp_path, Devices(h2=""))
    assert asyncio.run(one.round())
    assert one.paths[2].ok and "forgotten at a restart" in caplog.text


def test_devices_of_a_reload_are_tested_at_once_and_not_in_a_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rehearsal, "FIRST_S", 3600.0)
    monkeypatch.setattr(rehearsal, "RELOADED_APART_S", 0.0)

    async def main() -> None:
        one = rehearsals(tmp_path, Devices(h2=""))
        running = asyncio.create_task(one.run())
        for added in (Devices(h2="", h3=""), Devices(h3="wrong password")):
            one.use(cast(FenceDevices, added), 86_400.0)
            while len(one.paths) != len(added.rehearsed):
                await asyncio.sleep(0)
            assert {host for host, _ in added.asked} == added.rehearsed
        running.cancel()

    asyncio.run(main())


def test_a_device_that_failed_is_tested_again_when_its_host_shows_its_uuid_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rehearsal, "FIRST_S", 0.0)
    monkeypatch.setattr(rehearsal, "APART_S", 0.0)
    monkeypatch.setattr(rehearsal, "RELOADED_APART_S", 0.0)

    async def main() -> None:
        devices = Devices(h2="", h3="the host published no machine UUID to compare with")
        one = rehearsals(tmp_path, devices)
        running = asyncio.create_task(one.run())

        async def beats(uuids: dict[int, str]) -> list[tuple[int, str]]:
            devices.asked.clear()
            for _ in range(20):
                one.see(uuids, {2: "host2"})
                await asyncio.sleep(0)
                await asyncio.sleep(0.001)
            return list(devices.asked)

        assert await beats({2: "uuid-2"}) == [(2, "uuid-2"), (3, "")]
        assert await beats({2: "another"}) == [], "a device that is well waits for its time"
        both = {2: "uuid-2", 3: "uuid-3"}
        assert await beats(both) == [(2, "uuid-2"), (3, "uuid-3")]
        assert await beats({2: "uuid-2"}) == await beats(both) == [], "the same UUID shows nothing"
        running.cancel()

    asyncio.run(main())


class Storage:
    """A storage's way to cut hosts off; `refuses`: which hosts it cannot be asked about."""

    def __init__(self, *refuses: int) -> None:
        self.refuses, self.asked = set(refuses), list[tuple[int, str]]()

    def find(
        self, host: int, name: str, deadline_s: float, others: Collection[str] = ()
    ) -> tuple[str, ...]:
        self.asked.append((host, name))
        if host in self.refuses:
            raise StorageFenceError("no rights")
        return ()

    def cut(self, host: int, name: str, found: Sequence[str], deadline_s: float) -> None:
        raise AssertionError("a rehearsal cuts nothing")


def with_storage(folder: Path, storage: Storage, wall_s: float = 1000.0) -> Rehearsals:
    made = Rehearsals(
        folder / "paths.json",
        1,
        OWN,
        3600.0,
        cast(FenceDevices, Devices()),
        lambda: wall_s,
        StorageFence("ceph", storage, 5.0),
    )
    made.hostnames = {1: "host1", 2: "host2", 3: "host3"}
    return made


def test_the_storage_fence_is_rehearsed_for_each_other_host(tmp_path: Path) -> None:
    storage = Storage()
    one = with_storage(tmp_path, storage)
    assert asyncio.run(one.round()) and storage.asked == [(2, "host2"), (3, "host3")]
    path = one.storage_path
    assert path is not None and (path.ok, path.proven, path.tried) == (True, 1000.0, 1000.0)
    storage.refuses = {2}
    later = with_storage(tmp_path, storage, 4600.0)
    assert later.storage_path == path, "it is kept over a restart"
    assert not asyncio.run(later.round()), "it is tried again soon"
    path = later.storage_path
    assert path is not None and (path.ok, path.proven, path.tried) == (False, 1000.0, 4600.0)
    assert path.detail == "about host 2 (host2): ceph: no rights"


def test_nothing_is_said_of_a_storage_fence_that_nobody_configured(tmp_path: Path) -> None:
    one = with_storage(tmp_path, Storage())
    asyncio.run(one.round())
    one.use(cast(FenceDevices, Devices()), 3600.0)
    assert asyncio.run(one.round()) and one.storage_path is None
    alone = with_storage(tmp_path / "alone", Storage(2))
    alone.hostnames = {1: "host1"}
    assert asyncio.run(alone.round()) and alone.storage_path is None


def test_what_the_rehearsal_of_the_storage_fence_found_is_shown(tmp_path: Path) -> None:
    good = FencePathOnWire(True, 5000.0, 5000.0, 0.2)
    shown = storage_fence_shown(good, 5060.0)
    assert shown is not None and (shown.ok, shown.proven_age_s, shown.tried_age_s) == (True, 60, 60)
    assert storage_fence_shown(None, 5060.0) is None

    def lines(fence: StorageFenceStatus | None) -> list[str]:
        seen = status(host(1, local=True), host(2), storage_fence=fence)
        return [line for line in troubles(seen) if line.startswith("STORAGE FENCE")]

    assert lines(None) == [] and lines(shown) == []
    failed = StorageFenceStatus(False, 10800.0, 60.0, 0.2, "about host 2 (host2): no rights")
    assert lines(failed) == [
        "STORAGE FENCE of this host: last proven 3 h 0 min ago: about host 2 (host2): no rights"
        " (ha-agent fence test all)"
    ]
    (old,) = lines(StorageFenceStatus(True, 90000.0, 90000.0, 0.2))
    assert "not tried for long" in old
    (never,) = lines(StorageFenceStatus(False, None, 60.0, 0.2, "no rights"))
    assert "last proven never: no rights" in never
