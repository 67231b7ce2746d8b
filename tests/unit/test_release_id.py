# SPDX-License-Identifier: LGPL-2.1-or-later
"""`maintenance local --release-id`: when the host id goes, and that nobody joins again too soon."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
import sanlock

from agent.commands import maintenance
from agent.terminal.errors import CommandError
from broker.broker import Broker
from broker.daemon.exit_codes import ExitCode
from broker.lockspace.delta_leases import Layout, layout_at
from broker.lockspace.own_id import FenceOwner
from broker.lockspace.port import RELEASED
from broker.lockspace.rejoin import OwnLease, Rejoin
from broker.lockspace.sanlock import SanlockLockspace
from broker.whiteboard.sizes import SLOT_BYTES
from broker.whiteboard.slot import decode_slot
from broker.whiteboard.volume import Volume
from broker.wire.status import Maintenance
from tests.fakes.broker import make_broker, report, served
from tests.fakes.lease_volume import lease_volume
from tests.fakes.slot_store import MemoryVolume
from tests.fakes.waiting import until


def release(broker: Broker) -> None:
    broker.keeper.set_local(broker.keeper.mode(Maintenance(True, release_id=True), "root@host1"))


def asked(broker: Broker) -> tuple[bool, bool]:
    """Whether the lockspace is not to be joined, and to be left."""
    return broker.lockspace.no_join, broker.lockspace.stay_out


# --- the command --------------------------------------------------------------------------------


def test_the_command_asks_for_it_and_only_with_local(capsys: pytest.CaptureFixture[str]) -> None:
    for mode in ("global", "none"):
        with pytest.raises(CommandError, match="belongs to: maintenance local") as refused:
            maintenance.run("/no/socket", maintenance.Asked(mode, release_id=True))
        assert refused.value.code == ExitCode.USAGE
    assert capsys.readouterr().out == ""


def test_a_wait_that_is_interrupted_has_said_that_the_mode_is_set(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The mode stays set; before, the command said so at its end alone."""

    def interrupted(*_: object) -> tuple[bool, str]:
        raise KeyboardInterrupt

    monkeypatch.setattr(maintenance, "ask", lambda *_: Maintenance(True))
    monkeypatch.setattr(maintenance, "drained", interrupted)
    with pytest.raises(KeyboardInterrupt):
        maintenance.run("/no/socket", maintenance.Asked("local", wait=True))
    assert capsys.readouterr().out.startswith("local maintenance is set: this host")


def test_what_the_command_asks_for_arrives(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def test(broker: Broker, path: str, session: aiohttp.ClientSession) -> None:
        wanted = maintenance.Asked("local", "1h", reason="fan", release_id=True)
        await asyncio.to_thread(maintenance.run, path, wanted)
        await broker.beat(1.0)
        assert asked(broker) == (True, False)

    served(tmp_path, test)
    assert "its host id is given back once it is empty" in capsys.readouterr().out


# --- the broker ---------------------------------------------------------------------------------


def test_the_id_goes_once_the_host_is_empty_and_comes_back_with_the_mode_s_end(
    tmp_path: Path,
) -> None:
    async def run() -> None:
        broker = make_broker(tmp_path, MemoryVolume())
        release(broker)
        # In a migration the lease may be needed again; a new agent looks around first.
        for now_s, state, out in (
            (1.0, "EngineMigratingAway", False),
            (2.0, "LocalMaintenance", True),
            (3.0, "ReinitializeFSM", True),
        ):
            broker.take_report(report(state), now_s)
            await broker.beat(now_s)
            assert asked(broker) == (True, out), state
        broker.keeper.set_local(None)
        await broker.beat(4.0)
        assert asked(broker) == (False, False)

    asyncio.run(run())


def test_local_maintenance_alone_keeps_the_id(tmp_path: Path) -> None:
    async def run() -> None:
        broker = make_broker(tmp_path, MemoryVolume())
        broker.keeper.set_local(broker.keeper.mode(Maintenance(True), "root@host1"))
        broker.take_report(report("LocalMaintenance"), 1.0)
        await broker.beat(1.0)
        assert asked(broker) == (False, False)

    asyncio.run(run())


def test_a_broker_that_is_started_meanwhile_does_not_join(tmp_path: Path) -> None:
    """Known before its lockspace looks for the first time, agent or not."""

    async def run() -> None:
        volume = MemoryVolume()
        release(make_broker(tmp_path, volume))
        again = make_broker(tmp_path, volume)
        assert asked(again) == (True, False), "it leaves when an agent calls the host empty"

    asyncio.run(run())


@pytest.mark.parametrize(
    ("change", "written"),
    [("", True), ("name", False), ("machine", False), ("mode", False)],
)
def test_out_on_request_it_goes_on_with_the_slot_that_is_its_own(
    tmp_path: Path, change: str, written: bool
) -> None:
    """Another host's slot is not continued, nor one before a join that nobody put off."""

    def slot(volume: MemoryVolume) -> int:
        found = decode_slot(1, bytes(volume.data[SLOT_BYTES : 2 * SLOT_BYTES]))
        assert found is not None
        return found.timestamp

    async def run() -> None:
        volume = MemoryVolume()
        first = make_broker(tmp_path, volume)
        first.in_force.system_uuid = "another" if change == "machine" else "this-one"
        if change == "name":
            other = msgspec.structs.replace(first.config.host, name="other")
            first.in_force.use(msgspec.structs.replace(first.config, host=other))
        await first.beat(10.0)
        if change != "mode":
            release(first)
        again = make_broker(tmp_path, volume)
        again.in_force.system_uuid = "this-one"
        again.lockspace.joined = False
        before = slot(volume)
        await again.beat(20.0)
        assert (slot(volume) > before) is written

    asyncio.run(run())


# --- sanlock ------------------------------------------------------------------------------------


class Sanlock:
    """Answers as sanlock does. `joined`: whether the id is; `in_use`: a lease is held under it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, joined: bool, in_use: bool = False) -> None:
        self.joined, self.in_use = joined, in_use
        self.calls: list[str] = []
        for name in ("inq_lockspace", "add_lockspace", "rem_lockspace"):
            monkeypatch.setattr(sanlock, name, getattr(self, name))
        monkeypatch.setattr(sanlock, "get_lockspaces", list)
        monkeypatch.setattr("broker.lockspace.sanlock.layout_at", lambda path: Layout(512))
        monkeypatch.setattr(sanlock, "read_lockspace", lambda path, **size: {"lockspace": b"lab"})

    def inq_lockspace(self, *_: Any) -> bool:
        return self.joined

    def add_lockspace(self, *_: Any, **__: Any) -> None:
        self.calls.append("add")
        self.joined = True

    def rem_lockspace(self, *_: Any, unused: bool = False) -> None:
        assert unused, "or sanlock would end who holds a lease"
        self.calls.append("remove")
        if self.in_use:
            raise sanlock.SanlockException(errno.EBUSY, "busy")
        self.joined = False


class Unmarked:
    """The mark of a host that was never in the lockspace."""

    is_set, process = False, ""

    def set(self, process: str) -> None:
        """Nothing is kept."""

    def clear(self) -> None:
        """Nothing is kept."""


def lockspace_of(path: str = "/no/leases") -> SanlockLockspace:
    """One whose id is free on disk."""
    found = SanlockLockspace("lab", 1, path, 10, Rejoin(frozenset({"ha-one"}), 10.0, Unmarked()))
    found._own_lease = lambda: OwnLease("", 0, 0)  # type: ignore[method-assign]
    return found


def look(times: int, no_join: bool, stay_out: bool = False) -> SanlockLockspace:
    lockspace = lockspace_of()
    lockspace.no_join, lockspace.stay_out = no_join, stay_out

    async def run() -> None:
        for _ in range(times):
            await lockspace._look()

    asyncio.run(run())
    return lockspace


def test_a_lease_volume_that_is_not_there_ends_nothing_and_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An unmounted folder: the broker goes on, and looks again."""
    fake = Sanlock(monkeypatch, joined=False)
    monkeypatch.setattr("broker.lockspace.sanlock.layout_at", layout_at)
    monkeypatch.setattr("broker.lockspace.sanlock.RETRY_S", 0.01)
    lockspace = lockspace_of()
    lockspace._path = str(tmp_path / "leases")

    async def run() -> None:
        keeping = asyncio.ensure_future(lockspace.run())
        await until(lambda: keeping.done() or f"{tmp_path}/leases: opening" in lockspace.problem)
        await asyncio.sleep(0.1)  # ten more attempts
        assert not keeping.done(), keeping.exception()
        assert lockspace.joined is False
        assert fake.calls == []
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)

    asyncio.run(run())


def test_an_id_that_was_given_back_is_not_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Sanlock(monkeypatch, joined=False)
    lockspace = look(3, no_join=True)
    assert fake.calls == []
    assert (lockspace.joined, lockspace.problem) == (False, RELEASED)
    assert look(1, no_join=False).joined and fake.calls == ["add"]


def test_one_that_is_joined_stays_so_until_the_host_is_empty(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake = Sanlock(monkeypatch, joined=True)
    assert look(2, no_join=True).joined and fake.calls == []
    assert look(2, no_join=True, stay_out=True).problem == RELEASED
    assert fake.calls == ["remove"]


def test_one_under_which_a_lease_is_held_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Sanlock(monkeypatch, joined=True, in_use=True)
    assert look(2, no_join=True, stay_out=True).joined
    assert fake.calls == ["remove", "remove"] and fake.joined


def test_an_id_that_is_held_back_is_not_joined_and_says_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake = Sanlock(monkeypatch, joined=False)
    lockspace = lockspace_of()
    lockspace.hold = "host2 may still free this host's id"
    asyncio.run(lockspace._look())
    assert (lockspace.joined, lockspace.problem) == (False, lockspace.hold)
    assert fake.calls == []


def test_one_that_was_joined_while_it_was_being_freed_is_given_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake = Sanlock(monkeypatch, joined=True)
    lockspace = lockspace_of()
    lockspace.hold, lockspace.stay_out = "host2 may still free this host's id", True
    asyncio.run(lockspace._look())
    assert (lockspace.joined, lockspace.problem) == (False, lockspace.hold)
    assert fake.calls == ["remove"]


@pytest.mark.parametrize(
    ("held", "found"), [({}, FenceOwner(0, 0)), ({"fence": (3, 7)}, FenceOwner(3, 7))]
)
def test_who_owns_the_fence_lease_is_read_where_it_matters(
    tmp_path: Path, held: dict[str, tuple[int, int]], found: FenceOwner
) -> None:
    lockspace = lockspace_of(str(lease_volume(tmp_path / "leases", "lab", held)))
    lockspace.fence_owner = FenceOwner(9, 9)
    asyncio.run(lockspace._look_at_fence())
    assert lockspace.fence_owner == found


@pytest.mark.parametrize("name", ["another", "none"])
def test_a_fence_lease_that_is_not_there_has_no_known_owner(tmp_path: Path, name: str) -> None:
    path = tmp_path / "leases"
    if name == "another":
        lease_volume(path, "another", {"fence": (3, 7)})
    lockspace = lockspace_of(str(path))
    lockspace.fence_owner = FenceOwner(9, 9)
    asyncio.run(lockspace._look_at_fence())
    assert lockspace.fence_owner is None


def test_the_fence_lease_is_read_without_opening_the_volume_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On CephFS each opening while a host is dead holds up everybody's writes."""
    path = lease_volume(tmp_path / "leases", "lab", {"fence": (3, 7)})
    lockspace = lockspace_of(str(path))
    asyncio.run(lockspace._look_at_fence())
    lockspace.fence_owner = None
    monkeypatch.setattr(Volume, "_open", None)
    monkeypatch.setattr(Volume, "size_bytes", None)
    asyncio.run(lockspace._look_at_fence())
    assert lockspace.fence_owner == FenceOwner(3, 7)
