# SPDX-License-Identifier: LGPL-2.1-or-later
"""When sanlock may take this host's own id back at once: never where an old lease may be in use."""

from __future__ import annotations

import asyncio
import errno
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sanlock

from broker.lockspace.delta_leases import Layout, read_named_leases
from broker.lockspace.joined_mark import FILE, PROCESS_FILE, JoinedMark
from broker.lockspace.rejoin import (
    NAME_MAX,
    OwnLease,
    Rejoin,
    is_made_up,
    name_of,
    own_name,
    own_names,
)
from broker.lockspace.sanlock import SanlockLockspace, _text
from broker.lockspace.sanlock_process import sanlock_process
from broker.whiteboard.lease_sectors import DELTA_MAGIC
from broker.whiteboard.volume import Volume

IO_S = 10.0
DEAD_S = 8 * IO_S + 60.0
OURS = name_of("0123456789abcdef0123456789abcdef", "36a5c4e0-0000-4000-8000-000000000001")
#: Two starts of sanlock.
FIRST, SECOND = "100:5000", "230:9000"
MADE_UP = "6f1d0b1c-77f0-4f3a-9a43-2f0f6f6cbb1e.host1"


class Marked:
    """A mark without a file."""

    def __init__(self, is_set: bool, process: str) -> None:
        self.is_set, self.process = is_set, process

    def set(self, process: str) -> None:
        self.is_set, self.process = True, process

    def clear(self) -> None:
        self.is_set, self.process = False, ""


class Own:
    """The rules, asked by a host of that sanlock."""

    def __init__(self, marked: Marked, names: frozenset[str]) -> None:
        self.rules = Rejoin(names, IO_S, marked)

    def look(self, lease: OwnLease | None, now_s: float, process: str = "") -> str:
        return self.rules.look(lease, now_s, process)


def rejoin(is_set: bool, names: frozenset[str] = frozenset({OURS}), process: str = FIRST) -> Own:
    return Own(Marked(is_set, process), names)


def lease(name: str = OURS, timestamp: int = 900, generation: int = 4) -> OwnLease:
    return OwnLease(name, generation, timestamp, int(IO_S))


# --- the name -----------------------------------------------------------------------------------


def test_the_name_is_the_machines_and_short_enough_for_sanlock() -> None:
    assert OURS.startswith("ha-") and len(OURS) <= NAME_MAX and not is_made_up(OURS)
    clones = {name_of("a", "u"), name_of("a", "v"), name_of("b", "u")}
    assert len(clones) == 3, "a copy of the disk, and a board of the same kind, have other names"
    assert name_of("", "u") == name_of("a", "") == "", "half of it tells no two machines apart"


def test_what_sanlock_makes_up_is_known_by_its_form() -> None:
    assert is_made_up(MADE_UP)
    assert not is_made_up("host1") and not is_made_up(MADE_UP.replace(".", "-"))


def test_a_machine_without_a_machine_id_has_no_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.lockspace.rejoin.MACHINE_ID", tmp_path / "machine-id")
    assert own_name("u") == ""
    (tmp_path / "machine-id").write_text("a\n")
    assert own_name("u") == name_of("a", "u")
    assert own_names("u") == {name_of("a", "u"), "u"}, "oVirt's own choice is its machine's too"
    assert own_names("") == frozenset()


# --- the rules ----------------------------------------------------------------------------------


def test_after_a_boot_sanlock_is_asked_at_once() -> None:
    assert rejoin(is_set=False).look(lease(), 0.0) == ""


@pytest.mark.parametrize("found", [OwnLease("", 0, 0), lease(timestamp=0), lease(MADE_UP)])
@pytest.mark.parametrize("is_set", [False, True])
def test_what_is_free_or_made_up_is_left_to_sanlock(found: OwnLease, is_set: bool) -> None:
    assert rejoin(is_set).look(found, 0.0) == ""


def test_on_the_same_boot_the_id_must_stand_still_for_the_host_dead_time() -> None:
    """sanlock died: a QEMU may use the old lease until the watchdog resets the host."""
    own = rejoin(is_set=True)
    assert "started anew on this boot" in own.look(lease(), 0.0)
    assert own.look(lease(), DEAD_S - 1.0)
    assert own.look(lease(), DEAD_S) == ""


def test_a_sanlock_that_gave_the_id_up_by_itself_is_asked_at_once() -> None:
    """The storage was away: it ends an id only once every process with a lease under it has
    ended."""
    assert rejoin(is_set=True).look(lease(), 0.0, FIRST) == ""


@pytest.mark.parametrize(("marked", "now"), [(FIRST, SECOND), (FIRST, ""), ("", FIRST), ("", "")])
def test_only_one_that_is_known_to_be_the_same_is(marked: str, now: str) -> None:
    assert "must stand still" in rejoin(is_set=True, process=marked).look(lease(), 0.0, now)


def test_the_same_sanlock_is_no_leave_to_take_anothers_name() -> None:
    found = lease("ha-of-another")
    assert "not this machine's" in rejoin(is_set=True).look(found, 0.0, FIRST)
    assert rejoin(is_set=True).look(None, 0.0, FIRST)


def test_a_renewal_begins_the_wait_anew() -> None:
    own = rejoin(is_set=True)
    own.look(lease(timestamp=900), 0.0)
    assert own.look(lease(timestamp=920), DEAD_S)
    assert own.look(lease(timestamp=920), 2 * DEAD_S) == ""


def test_the_longer_io_timeout_counts() -> None:
    own = rejoin(is_set=True)
    slow = OwnLease(OURS, 4, 900, 20)
    own.look(slow, 0.0)
    assert own.look(slow, 8 * 20 + 59.0)
    assert own.look(slow, 8 * 20 + 60.0) == ""


@pytest.mark.parametrize("names", [frozenset({OURS}), frozenset()])
def test_another_machines_fixed_name_is_no_leave_to_hurry(names: frozenset[str]) -> None:
    """A copy of the disk, booted elsewhere: its sanlock has the living original's name."""
    own = rejoin(is_set=False, names=names)
    assert "not this machine's" in own.look(lease("ha-of-another"), 0.0)
    assert own.look(lease("ha-of-another"), DEAD_S) == ""


def test_what_cannot_be_read_is_not_known() -> None:
    assert rejoin(is_set=False).look(None, 0.0) == "the lease of this host's id cannot be read"


# --- the mark -----------------------------------------------------------------------------------


def test_the_mark_outlives_the_broker_and_not_the_boot(tmp_path: Path) -> None:
    first = JoinedMark(tmp_path, "boot-a")
    assert (first.is_set, first.process) == (False, "")
    first.set(FIRST)
    for found in (first, JoinedMark(tmp_path, "boot-a")):
        assert (found.is_set, found.process) == (True, FIRST)
    later = JoinedMark(tmp_path, "boot-b")
    assert (later.is_set, later.process) == (False, "")
    first.set(SECOND)
    assert JoinedMark(tmp_path, "boot-a").process == SECOND
    first.set("")
    assert JoinedMark(tmp_path, "boot-a").process == "", "it is not known which one it is"
    first.clear()
    for found in (first, JoinedMark(tmp_path, "boot-a")):
        assert (found.is_set, found.process) == (False, "")


def test_a_broker_of_an_earlier_version_reads_the_mark_and_this_one_its(tmp_path: Path) -> None:
    JoinedMark(tmp_path, "boot-a").set(FIRST)
    assert (tmp_path / FILE).read_text().strip() == "boot-a"
    (tmp_path / PROCESS_FILE).unlink()
    found = JoinedMark(tmp_path, "boot-a")
    assert (found.is_set, found.process) == (True, "")


def test_a_boot_that_is_not_known_may_have_been_in(tmp_path: Path) -> None:
    mark = JoinedMark(tmp_path, "")
    assert mark.is_set
    mark.set(FIRST)
    mark = JoinedMark(tmp_path, "")
    assert (mark.is_set, mark.process) == (True, "")
    mark.clear()
    assert mark.is_set


def test_where_the_mark_cannot_be_written_this_broker_knows_it_and_tries_again(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "state"
    folder.write_text("no folder")
    mark = JoinedMark(folder, "boot-a")
    mark.set(FIRST)
    assert (mark.is_set, mark.process) == (True, FIRST)
    assert not JoinedMark(folder, "boot-a").is_set
    folder.unlink()
    folder.mkdir()
    mark.set(FIRST)
    assert (folder / FILE).read_text() == "boot-a\n"
    assert JoinedMark(folder, "boot-a").process == FIRST


# --- which process it is --------------------------------------------------------------------------


def test_sanlocks_process_is_the_one_that_listens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SANLOCK_RUN_DIR", str(tmp_path))
    assert sanlock_process() == "", "nobody listens"
    program = "import socket, sys, time; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); "
    program += "s.listen(); print(flush=True); time.sleep(60)"
    seen = set()
    for _ in range(2):
        path = tmp_path / "sanlock.sock"
        path.unlink(missing_ok=True)
        argv = [sys.executable, "-c", program, str(path)]
        with subprocess.Popen(argv, stdout=subprocess.PIPE) as daemon:
            assert daemon.stdout is not None
            daemon.stdout.readline()
            first = sanlock_process()
            assert first.startswith(f"{daemon.pid}:") and sanlock_process() == first
            seen.add(first)
            daemon.kill()
    assert len(seen) == 2 and sanlock_process() == ""


# --- the adapter --------------------------------------------------------------------------------


def volume(path: Path, name: str, timestamp: int, owner: int = 1) -> str:
    """A lockspace with the lease of host id 1."""
    data = bytearray(1 << 20)
    struct.pack_into("<I", data, 0, DELTA_MAGIC)
    struct.pack_into("<I", data, 12, 512)
    struct.pack_into("<QQ", data, 32, owner, 4)
    data[104 : 104 + len(name)] = name.encode()
    struct.pack_into("<Q", data, 152, timestamp)
    struct.pack_into("<H", data, 174, 10)
    path.write_bytes(data)
    return str(path)


def test_names_are_read_from_the_volume(tmp_path: Path) -> None:
    with Volume(volume(tmp_path / "leases", OURS, 900), read_only=True) as opened:
        assert read_named_leases(opened, [1, 2]) == {1: OwnLease(OURS, 4, 900, 10)}


class Joins:
    """sanlock's answer to add_lockspace."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fails: int = 0) -> None:
        self.asked, self.fails, self.is_in = 0, fails, False
        monkeypatch.setattr(sanlock, "inq_lockspace", lambda *_: self.is_in)
        monkeypatch.setattr(sanlock, "add_lockspace", self.add)
        monkeypatch.setattr(sanlock, "get_lockspaces", list)
        monkeypatch.setattr("broker.lockspace.sanlock.layout_at", lambda path: Layout(512))
        monkeypatch.setattr(sanlock, "read_lockspace", lambda path, **size: {"lockspace": b"lab"})

    def add(self, *_: Any, **__: Any) -> None:
        self.asked += 1
        if self.fails:
            raise sanlock.SanlockException(self.fails, "no")
        self.is_in = True


def look(path: str, mark: JoinedMark) -> SanlockLockspace:
    lockspace = SanlockLockspace("lab", 1, path, 10, Rejoin(frozenset({OURS}), IO_S, mark))

    async def run() -> None:
        try:
            await lockspace._look()
        except sanlock.SanlockException:
            lockspace.joined = False

    asyncio.run(run())
    return lockspace


def test_the_first_join_of_a_boot_is_quick_and_marked_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leases, fake = volume(tmp_path / "leases", OURS, 900), Joins(monkeypatch)
    assert look(leases, JoinedMark(tmp_path, "boot")).joined and fake.asked == 1
    assert JoinedMark(tmp_path, "boot").is_set


def test_a_sanlock_that_was_started_anew_is_not_asked_on_the_same_boot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leases, fake = volume(tmp_path / "leases", OURS, 900), Joins(monkeypatch)
    JoinedMark(tmp_path, "boot").set(FIRST)
    found = look(leases, JoinedMark(tmp_path, "boot"))
    assert (found.joined, fake.asked) == (False, 0)
    assert "must stand still" in found.problem


@pytest.mark.parametrize(("process", "asked"), [(FIRST, 1), (SECOND, 0), ("", 0)])
def test_the_sanlock_that_had_the_id_is_asked_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, process: str, asked: int
) -> None:
    """sanlock joins, loses the storage and gives the id up; the broker was restarted meanwhile."""
    leases, fake = volume(tmp_path / "leases", OURS, 900), Joins(monkeypatch)
    monkeypatch.setattr("broker.lockspace.sanlock.sanlock_process", lambda: FIRST)
    assert look(leases, JoinedMark(tmp_path, "boot")).joined
    fake.is_in, fake.asked = False, 0
    monkeypatch.setattr("broker.lockspace.sanlock.sanlock_process", lambda: process)
    assert look(leases, JoinedMark(tmp_path, "boot")).joined is bool(asked)
    assert fake.asked == asked
    assert JoinedMark(tmp_path, "boot").process == FIRST


def test_who_is_found_in_the_lockspace_is_marked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Joined by the broker of an earlier version, or by hand."""
    fake = Joins(monkeypatch)
    fake.is_in = True
    assert look(volume(tmp_path / "leases", OURS, 900), JoinedMark(tmp_path, "boot")).joined
    assert JoinedMark(tmp_path, "boot").is_set


@pytest.mark.parametrize("says", [True, None])
def test_one_that_took_the_place_of_the_one_that_had_the_id_is_not_marked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: bool | None
) -> None:
    """The one that said that the id is in died right after: its QEMU may be left behind."""
    leases, fake = volume(tmp_path / "leases", OURS, 900), Joins(monkeypatch)
    runs = [FIRST]

    def answer(*_: Any) -> bool | None:
        runs.append(SECOND)
        return says

    monkeypatch.setattr(sanlock, "inq_lockspace", answer)
    monkeypatch.setattr("broker.lockspace.sanlock.sanlock_process", lambda: runs[-1])
    look(leases, JoinedMark(tmp_path, "boot"))
    assert JoinedMark(tmp_path, "boot").process == FIRST
    monkeypatch.setattr(sanlock, "inq_lockspace", lambda *_: False)
    assert not look(leases, JoinedMark(tmp_path, "boot")).joined and fake.asked == 0


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (errno.EAGAIN, "sanlock has lost this host's id, and is still leaving the lockspace"),
        (errno.EPIPE, "sanlock does not answer"),
        (-262, "sanlock error -262: no"),
    ],
)
def test_why_sanlock_does_not_join(code: int, says: str) -> None:
    """A host whose storage came back said `sanlock error 11: Resource temporarily unavailable`."""
    assert _text(sanlock.SanlockException(code, "no")).startswith(says)


@pytest.mark.parametrize(
    ("fails", "marked"), [(-5, False), (-262, False), (errno.EPIPE, True), (errno.ECONNRESET, True)]
)
def test_only_sanlocks_own_word_takes_the_mark_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: int, marked: bool
) -> None:
    """One that died in mid-join may have joined first."""
    Joins(monkeypatch, fails)
    look(volume(tmp_path / "leases", OURS, 900), JoinedMark(tmp_path, "boot"))
    assert JoinedMark(tmp_path, "boot").is_set is marked


def test_a_failed_try_later_in_the_boot_takes_no_mark_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Joins(monkeypatch, -5)
    JoinedMark(tmp_path, "boot").set(FIRST)
    look(volume(tmp_path / "leases", OURS, 0), JoinedMark(tmp_path, "boot"))
    assert JoinedMark(tmp_path, "boot").is_set


def test_a_lease_that_cannot_be_read_keeps_sanlock_from_being_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = Joins(monkeypatch)
    found = look(str(tmp_path / "none"), JoinedMark(tmp_path, "boot"))
    assert (found.joined, fake.asked) == (False, 0)
    assert "cannot be read" in found.problem
