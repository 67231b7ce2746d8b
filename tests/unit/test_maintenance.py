# SPDX-License-Identifier: LGPL-2.1-or-later
"""Maintenance that has an owner, a reason and an end."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.status.sentences import duration
from agent.status.text import as_text
from agent.terminal.errors import CommandError
from agent.terminal.times import duration_s
from broker.broker import Broker, Given
from broker.config.load import load
from broker.maintenance import kept as local_mode
from broker.maintenance.countdown import SEEN_MIN_S, Countdown
from broker.maintenance.modes import Modes
from broker.monitors.runner import MonitorRunner
from broker.monitors.watched import Watched
from broker.whiteboard.board import Board
from broker.whiteboard.cluster_slot import OLD_SERIAL_S
from broker.whiteboard.mode import Mode, from_lines, to_lines
from broker.whiteboard.sizes import SLOT_BYTES
from broker.whiteboard.slot import decode_cluster, encode_cluster
from broker.wire.limits import LASTS_MAX_S
from broker.wire.status import Maintenance, MigrationStatus
from scoring.vm_facts import DomainHere
from tests.fakes.lockspace import FakeLockspace
from tests.fakes.slot_store import MemoryStore, MemoryVolume

NOON = 1_800_000_000.0
MODES = st.builds(
    Mode,
    owner=st.text(max_size=300),
    reason=st.text(max_size=300),
    since_epoch_s=st.none() | st.integers(0, 10**11),
    lasts_s=st.none() | st.integers(1, LASTS_MAX_S),
)


class Engine:
    lease_held: bool | None = True
    migration: MigrationStatus | None = None
    facts: DomainHere = DomainHere()


class Wall:
    """A wall clock that goes where it is put."""

    def __init__(self, now_s: float = NOON) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


def slot_0(volume: MemoryVolume) -> bytes:
    return bytes(volume.data[:SLOT_BYTES])


def make_broker(
    tmp_path: Path, volume: MemoryVolume, wall: Wall, host_id: int = 1, boot_id: str = "b"
) -> Broker:
    path = tmp_path / f"{host_id}.toml"
    path.write_text(
        f'[host]\nid = {host_id}\nname = "host{host_id}"\n'
        '[storage]\nwhiteboard = "/w"\nleases = "/l"\n'
        f'[daemon]\nstate-dir = "{tmp_path}/{host_id}"\n'
    )
    board = Board(MemoryStore(volume), host_id)
    runner = MonitorRunner([])
    lockspace = FakeLockspace()
    given = Given(boot_id, wall)
    return Broker(load(str(path)), board, lockspace, Watched(runner, Engine()), given)


# --- writing it down ---------------------------------------------------------------------


@given(MODES)
def test_a_mode_survives_the_slot(mode: Mode) -> None:
    data = encode_cluster(True, {"serial": "7", **to_lines(mode)})
    slot = decode_cluster(data)
    assert slot.maintenance
    again = from_lines(slot.extra)
    assert again.since_epoch_s == mode.since_epoch_s
    assert again.lasts_s == mode.lasts_s
    assert from_lines(to_lines(again)) == again, "what was read once stays as it is"
    for line in data.rstrip(b"\0").split(b"\n"):
        assert line.count(b"=") == 1, "the reference takes each line apart at its one '='"
    assert data.startswith(b"maintenance=1\n")


@given(st.dictionaries(st.sampled_from(["owner", "reason", "since", "lasts"]), st.text()))
def test_any_lines_are_some_mode(lines: dict[str, str]) -> None:
    mode = from_lines(lines)
    assert mode.owner.isprintable() and mode.reason.isprintable()
    assert mode.left_s(NOON) >= 0


def test_damage_makes_a_mode_longer_never_shorter() -> None:
    assert from_lines({"since": "100", "lasts": "5x"}).left_s(NOON) == float("inf")
    assert from_lines({"since": "", "lasts": "50"}).left_s(NOON) == 50


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("30m", 1800),
        ("30min", 1800),
        ("2h", 7200),
        ("1d", 86_400),
        ("1h30m", 5400),
        ("2 h", 7200),
    ],
)
def test_durations(text: str, seconds: int) -> None:
    assert duration_s(text) == seconds


@pytest.mark.parametrize("text", ["", "5", "h", "-1h", "1.5h", "0s", "2x", "9999999d", "1h5", "٣h"])
def test_what_is_no_duration_is_told_how_to_write_one(text: str) -> None:
    with pytest.raises(CommandError, match="30m, 2h, 1d"):
        duration_s(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(5, "5 s"), (65, "1 min 5 s"), (4320.9, "1 h 12 min"), (90_000, "1 d 1 h"), (0, "0 s")],
)
def test_a_duration_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_file_of_the_local_mode(tmp_path: Path) -> None:
    path = tmp_path / "new" / "local.json"
    assert local_mode.load(path) is None
    mode = Mode("root@host1", "a new disk", 5, 60)
    local_mode.save(path, mode)
    assert local_mode.load(path) == mode
    local_mode.save(path, None)
    assert local_mode.load(path) is None
    path.write_text(json.dumps({"on": True}))
    assert local_mode.load(path) == Mode(), "as an earlier version wrote it"
    path.write_bytes(b"\xff{")
    assert local_mode.load(path) == Mode(), "not readable counts as set"


@pytest.mark.parametrize(("boot_id", "left_s"), [("boot-1", 3490.0), ("boot-2", 0.0)])
def test_a_restarted_broker_counts_its_local_mode_by_the_clock_of_this_boot(
    boot_id: str, left_s: float, tmp_path: Path
) -> None:
    path, wall = tmp_path / "local.json", Wall()
    modes = Modes(path, wall, "boot-1")
    modes.set_local(modes.new("root", Maintenance(True, "disk", 3600)), 50.0)
    wall.now_s += 86_400  # the wall clock was set wrong meanwhile
    modes = Modes(path, wall, boot_id)
    modes.look(None, 160.0)
    assert modes.local_countdown.left_s(160.0) == left_s
    path.write_text(json.dumps({"on": True, "boot_id": 1}))
    assert local_mode.set_in(path, boot_id) is None


# --- how long it lasts -------------------------------------------------------------------


def test_the_wall_clock_is_asked_once() -> None:
    mode = Mode(since_epoch_s=int(NOON), lasts_s=100)
    countdown = Countdown()
    countdown.look(mode, 10.0, NOON + 30)
    assert countdown.left_s(10.0) == 70
    for wall_s in (0.0, NOON + 10**9):
        countdown.look(mode, 20.0, wall_s)
        assert countdown.left_s(20.0) == 60
    assert not countdown.is_over(79.9)
    assert countdown.is_over(80.0)


def test_a_wall_clock_that_is_behind_does_not_make_it_longer_than_it_is() -> None:
    countdown = Countdown()
    countdown.look(Mode(since_epoch_s=int(NOON), lasts_s=100), 10.0, NOON - 10**6)
    assert countdown.left_s(10.0) == 100


@pytest.mark.parametrize("wall_s", [NOON - 10**6, NOON + 10**6])
def test_who_saw_it_begin_counts_from_there_whatever_the_wall_clock_says(wall_s: float) -> None:
    mode = Mode(since_epoch_s=int(NOON), lasts_s=100)
    countdown = Countdown()
    countdown.look(None, 9.0, wall_s)
    countdown.look(mode, 10.0, wall_s, 9.0)
    assert 99 <= (countdown.left_s(10.0) or 0) <= 100
    assert not countdown.is_over(108.9)


def test_a_mode_without_an_end_never_ends() -> None:
    countdown = Countdown()
    countdown.look(Mode("root"), 10.0, NOON)
    assert countdown.left_s(10.0) is None
    assert not countdown.is_over(1e12) and not countdown.ends_soon(1e12)


def test_that_it_ends_soon_is_told_once_for_each_mode() -> None:
    countdown = Countdown()
    for since_s in (0, 1):
        countdown.look(Mode(since_epoch_s=int(NOON) + since_s, lasts_s=1000), 0.0, NOON)
        assert not countdown.warns_once(800.0)
        assert countdown.warns_once(901.5)
        assert not countdown.warns_once(902.0)
        assert countdown.ends_soon(902.0)


# --- the broker --------------------------------------------------------------------------


def test_global_maintenance_ends_by_itself(tmp_path: Path) -> None:
    async def run() -> None:
        volume, wall = MemoryVolume(), Wall()
        broker = make_broker(tmp_path, volume, wall)
        await broker.beat(0.0)
        now_s = asyncio.get_running_loop().time()
        await broker.keeper.set_global(broker.keeper.mode(Maintenance(True, "disk", 60), "root@h"))
        await broker.beat(now_s + 1)
        status = broker.status(now_s + 1)
        assert status.global_mode is not None
        assert (status.global_mode.owner, status.global_mode.reason) == ("root@h", "disk")
        assert "set by root@h at 2027-01-15 08:00 UTC: disk; ends in" in as_text(status)
        wall.now_s += 10**6
        await broker.beat(now_s + 50)
        assert broker.board.global_maintenance is True
        await broker.beat(now_s + 61)
        assert broker.board.global_maintenance is False
        assert decode_cluster(slot_0(volume)).maintenance is False
        assert broker.status(now_s + 62).global_mode is None

    asyncio.run(run())


def test_it_ends_though_nobody_was_there_at_its_end(tmp_path: Path) -> None:
    async def run() -> None:
        volume, wall = MemoryVolume(), Wall()
        now_s = asyncio.get_running_loop().time()
        first = make_broker(tmp_path, volume, wall)
        await first.beat(now_s)
        await first.keeper.set_global(first.keeper.mode(Maintenance(True, "", 60), "root@h"))
        first.keeper.set_local(first.keeper.mode(Maintenance(True, "", 60), "root@h"))
        wall.now_s += 600
        later = make_broker(tmp_path, volume, wall, boot_id="the next boot")
        assert later.modes.is_set
        await later.beat(5.0)
        await later.beat(5.0 + SEEN_MIN_S - 0.1)
        assert later.board.global_maintenance is True, "the others may count longer"
        for beat in range(3):
            await later.beat(5.0 + SEEN_MIN_S + beat)
        assert later.board.global_maintenance is False
        assert not later.modes.is_set
        assert not make_broker(tmp_path, volume, wall).modes.is_set, "kept"

    asyncio.run(run())


def test_one_wrong_wall_clock_ends_nothing_while_another_host_counts(tmp_path: Path) -> None:
    async def run() -> None:
        volume = MemoryVolume()
        now_s = asyncio.get_running_loop().time()
        right = make_broker(tmp_path, volume, Wall(), 1)
        await right.beat(now_s)
        await right.keeper.set_global(right.keeper.mode(Maintenance(True, "", 3600), "root@h"))
        wrong = make_broker(tmp_path, volume, Wall(NOON + 86_400), 2)
        for beat in range(8):
            await right.beat(now_s + beat)
            await wrong.beat(now_s + beat + 0.5)
        assert decode_cluster(slot_0(volume)).maintenance is True
        # The other one is gone: nobody contradicts any more.
        for beat in range(8, 14):
            await wrong.beat(now_s + beat)
        assert decode_cluster(slot_0(volume)).maintenance is False

    asyncio.run(run())


def test_a_newer_mode_is_not_ended_in_the_place_of_the_old(tmp_path: Path) -> None:
    async def run() -> None:
        volume = MemoryVolume()
        board = Board(MemoryStore(volume), 1)
        old = Mode("a@h", since_epoch_s=1, lasts_s=5)
        await board.set_global_maintenance(old)
        other = Board(MemoryStore(volume), 2)
        await other.read(1.0)
        await other.set_global_maintenance(Mode("b@h", since_epoch_s=2, lasts_s=5))
        assert await board.end_global_maintenance(old) is False
        assert decode_cluster(slot_0(volume)).maintenance is True

    asyncio.run(run())


def test_a_serial_that_goes_back_is_an_old_read(tmp_path: Path) -> None:
    async def run() -> None:
        volume = MemoryVolume()
        board = Board(MemoryStore(volume), 1)
        await board.set_global_maintenance(None)
        old = slot_0(volume)
        await board.set_global_maintenance(Mode("a@h"))
        await board.read(1.0)
        volume.data[:SLOT_BYTES] = old
        for second in range(2, 60):
            await board.read(float(second))
            assert board.global_maintenance is True
        await board.read(2.0 + OLD_SERIAL_S)
        assert board.global_maintenance is False, "so long is no old read: another volume"

    asyncio.run(run())


def test_setting_one_mode_leaves_the_other(tmp_path: Path) -> None:
    async def run() -> None:
        volume = MemoryVolume()
        broker = make_broker(tmp_path, volume, Wall())
        await broker.beat(0.0)
        await broker.keeper.set_global(broker.keeper.mode(Maintenance(True), "root@h"))
        broker.keeper.set_local(broker.keeper.mode(Maintenance(True), "root@h"))
        broker.keeper.set_local(None)
        await broker.beat(1.0)
        assert broker.board.global_maintenance is True

    asyncio.run(run())


def test_the_other_hosts_show_a_local_mode(tmp_path: Path) -> None:
    async def run() -> None:
        volume, wall = MemoryVolume(), Wall()
        now_s = asyncio.get_running_loop().time()
        one, two = (make_broker(tmp_path, volume, wall, host) for host in (1, 2))
        await one.beat(now_s)
        one.keeper.set_local(one.keeper.mode(Maintenance(True, "new\x1bfan = 2", 600), "root@h"))
        await one.beat(now_s + 1)
        await two.beat(now_s + 1)
        status = two.status(now_s + 1)
        mode = status.hosts[1].mode
        assert mode is not None and mode.left_s is not None
        assert mode.owner == "root@h" and mode.since == int(NOON)
        assert "LOCAL MAINTENANCE on host1; set by root@h at" in as_text(status)
        assert "new?fan = 2; ends in" in as_text(status)

    asyncio.run(run())
