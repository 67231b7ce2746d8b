# SPDX-License-Identifier: LGPL-2.1-or-later
"""The volume on real files (O_DIRECT), the plan which slots to read, and the dump."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import resource
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.commands import whiteboard as whiteboard_dump
from broker.whiteboard.layout import SLOT_MAX
from broker.whiteboard.plan import ALWAYS, SWEEP_BEATS, WINDOW, SlotPlan, slots_of_beat
from broker.whiteboard.sizes import SLOT_BYTES
from broker.whiteboard.slot import EMPTY_SLOT, SlotReport, encode_cluster, encode_slot
from broker.whiteboard.volume import Volume, VolumeError, VolumeFault, volume_error
from broker.wire.limits import HOST_ID_MAX
from scoring.vm_facts import EngineStatus, Health, VmStatus

ALL_SLOTS = range(HOST_ID_MAX + 1)


def marked(slot: int) -> bytes:
    return slot.to_bytes(4, "big") * (SLOT_BYTES // 4)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """An empty volume of full size where O_DIRECT works."""
    path = tmp_path / "metadata"
    path.write_bytes(b"")
    os.truncate(path, (HOST_ID_MAX + 1) * SLOT_BYTES)
    try:
        os.close(os.open(path, os.O_RDWR | os.O_DIRECT))
    except OSError as err:
        pytest.skip(f"{tmp_path}: its file system has no O_DIRECT ({err.strerror})")
    return path


def fault_of(error: pytest.ExceptionInfo[VolumeError], path: Path | str) -> VolumeFault:
    """The fault; every message is one line that names the volume and a next step."""
    text = str(error.value)
    assert str(path) in text
    assert "\n" not in text
    assert ";" in text
    return error.value.fault


class TestReadAndWrite:
    def test_slots_written_are_read_back(self, path: Path) -> None:
        with Volume(path) as volume:
            for slot in (0, 1, 2, 7, 2000):
                volume.write_slot(slot, marked(slot))
            got = volume.read_slots([2000, 7, 0, 1, 2, 3, 7])
        assert got == {**{i: marked(i) for i in (0, 1, 2, 7, 2000)}, 3: EMPTY_SLOT}
        assert list(got) == sorted(got)

    def test_another_opener_sees_a_write_at_once(self, path: Path) -> None:
        with Volume(path) as one, Volume(path) as other, Volume(path, read_only=True) as reader:
            for turn in range(1, 4):
                one.write_slot(5, marked(turn))
                assert other.read_slots([5]) == {5: marked(turn)}
                assert reader.read_slots([5]) == {5: marked(turn)}

    def test_a_written_slot_is_on_the_storage_and_a_read_one_from_it(self, path: Path) -> None:
        """O_DSYNC: not in a disk's cache; O_DIRECT: not from this host's cache."""
        with Volume(path):
            (flags,) = [
                fcntl.fcntl(int(fd), fcntl.F_GETFL)
                for fd in os.listdir("/proc/self/fd")
                if os.path.realpath(f"/proc/self/fd/{fd}") == str(path.resolve())
            ]
        assert flags & os.O_DIRECT
        assert flags & os.O_DSYNC

    def test_a_full_sweep_takes_runs_of_at_most_a_mebibyte(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[tuple[int, int]] = []
        real = os.preadv

        def counting(fd: int, buffers: list[memoryview], offset: int) -> int:
            asked.append((offset, len(buffers[0])))
            return real(fd, buffers, offset)

        with Volume(path) as volume:
            for slot in (255, 256, 1999, 2000):
                volume.write_slot(slot, marked(slot))
            monkeypatch.setattr(os, "preadv", counting)
            got = volume.read_slots(ALL_SLOTS)
            assert len(asked) == 8
            assert max(length for _, length in asked) == 1024 * 1024
            asked.clear()
            assert list(volume.read_slots([3, 4, 5, 9])) == [3, 4, 5, 9]
            assert asked == [(3 * SLOT_BYTES, 3 * SLOT_BYTES), (9 * SLOT_BYTES, SLOT_BYTES)]
        assert list(got) == list(ALL_SLOTS)
        assert {i for i in got if got[i] != EMPTY_SLOT} == {255, 256, 1999, 2000}
        assert got[256] == marked(256)

    def test_no_slots_are_no_reads(self, path: Path) -> None:
        with Volume(path) as volume:
            assert volume.read_slots([]) == {}

    def test_a_read_that_stops_early_goes_on(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = os.preadv
        with Volume(path) as volume:
            for slot in range(10):
                volume.write_slot(slot, marked(slot))
            monkeypatch.setattr(
                os, "preadv", lambda fd, bufs, at: real(fd, [bufs[0][: 3 * SLOT_BYTES]], at)
            )
            assert volume.read_slots(range(10)) == {i: marked(i) for i in range(10)}

    def test_size_is_the_size_now(self, path: Path) -> None:
        with Volume(path) as volume:
            assert volume.size_slots == HOST_ID_MAX + 1
            os.truncate(path, 5 * SLOT_BYTES + 1)
            assert (volume.size_slots, volume.size_bytes) == (5, 5 * SLOT_BYTES + 1)

    def test_wrong_arguments_are_bugs(self, path: Path) -> None:
        with Volume(path) as volume:
            for slot in (-1, SLOT_MAX + 1):
                with pytest.raises(AssertionError):
                    volume.write_slot(slot, EMPTY_SLOT)
                with pytest.raises(AssertionError):
                    volume.read_slots([slot])
            with pytest.raises(AssertionError):
                volume.write_slot(1, b"short")


class TestAVolumeThatShrank:
    def test_the_slot_at_the_end_is_short_and_those_behind_are_missing(self, path: Path) -> None:
        with Volume(path) as volume:
            for slot in range(20):
                volume.write_slot(slot, marked(slot))
            assert len(volume.read_slots(ALL_SLOTS)) == 2001  # the buffer holds old bytes now
            os.truncate(path, 3 * SLOT_BYTES + 1000)
            got = volume.read_slots(range(300))
            assert list(got) == [0, 1, 2, 3]
            assert got[2] == marked(2)
            assert got[3] == marked(3)[:1000]
            assert volume.read_slots([3, 4, 9]) == {3: marked(3)[:1000]}
            assert volume.read_slots([9, 2000]) == {}

    def test_an_empty_volume_has_no_slots(self, path: Path) -> None:
        with Volume(path) as volume:
            os.truncate(path, 0)
            assert volume.read_slots(ALL_SLOTS) == {}

    def test_writing_grows_it_again(self, path: Path) -> None:
        with Volume(path) as volume:
            os.truncate(path, 100)
            volume.write_slot(3, marked(3))
            assert volume.size_slots == 4
            assert volume.read_slots(range(5))[3] == marked(3)


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def as_nobody() -> Iterator[None]:
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def public_dir() -> Iterator[Path]:
    """A folder that others may look into (pytest's own are 0700)."""
    folder = Path(tempfile.mkdtemp(prefix="whiteboard-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


class TestErrors:
    def test_a_missing_path(self, tmp_path: Path) -> None:
        for read_only in (False, True):
            with pytest.raises(VolumeError) as error:
                Volume(tmp_path / "none", read_only=read_only)
            assert fault_of(error, tmp_path / "none") is VolumeFault.MISSING
            assert error.value.errno == errno.ENOENT

    def test_a_path_through_a_file(self, path: Path) -> None:
        with pytest.raises(VolumeError) as error:
            Volume(path / "below")
        assert fault_of(error, path) is VolumeFault.MISSING

    @pytest.mark.parametrize("bad", ["a\0b", "a\nb", "x" * 5000])
    def test_a_path_no_file_can_have(self, bad: str) -> None:
        with pytest.raises(VolumeError) as error:
            Volume(bad)
        assert str(error.value).isprintable()

    @pytest.mark.parametrize("read_only", [False, True])
    def test_what_is_not_a_file_or_block_device(self, tmp_path: Path, read_only: bool) -> None:
        fifo = tmp_path / "fifo"
        os.mkfifo(fifo)
        for odd in (tmp_path, fifo, Path("/dev/null")):
            with pytest.raises(VolumeError) as error:
                Volume(odd, read_only=read_only)
            assert fault_of(error, odd) is VolumeFault.NOT_A_VOLUME

    @pytest.mark.parametrize("mode", [0o000, 0o444])
    def test_a_file_that_may_not_be_written(self, public_dir: Path, mode: int) -> None:
        file = public_dir / "metadata"
        file.write_bytes(EMPTY_SLOT)
        file.chmod(mode)
        with as_nobody(), pytest.raises(VolumeError) as error:
            Volume(file)
        assert fault_of(error, file) is VolumeFault.PERMISSION

    def test_reading_only_cannot_write(self, path: Path) -> None:
        with Volume(path, read_only=True) as volume:
            with pytest.raises(VolumeError) as error:
                volume.write_slot(1, EMPTY_SLOT)
            assert fault_of(error, path) is VolumeFault.READ_ONLY

    def test_a_closed_volume(self, path: Path) -> None:
        volume = Volume(path)
        volume.close()
        volume.close()
        for call in (
            lambda: volume.read_slots([0]),
            lambda: volume.write_slot(0, EMPTY_SLOT),
            lambda: volume.size_slots,
        ):
            with pytest.raises(VolumeError) as error:
                call()
            assert fault_of(error, path) is VolumeFault.CLOSED
            assert error.value.errno == errno.EBADF

    def test_an_io_error(self) -> None:
        """Reading address 0 of one's own memory is a true EIO without any broken disk."""
        with Volume("/proc/self/mem", read_only=True) as volume:
            with pytest.raises(VolumeError) as error:
                volume.read_slots([0])
            assert fault_of(error, "/proc/self/mem") is VolumeFault.IO
            assert error.value.errno == errno.EIO

    def test_a_short_write_is_an_error(self, path: Path) -> None:
        os.truncate(path, SLOT_BYTES)
        with Volume(path) as volume, file_size_limit(SLOT_BYTES + 512):
            with pytest.raises(VolumeError) as error:
                volume.write_slot(1, marked(1))
            assert fault_of(error, path) is VolumeFault.SHORT_WRITE

    def test_a_volume_that_cannot_hold_the_slot(self, path: Path) -> None:
        os.truncate(path, SLOT_BYTES)
        with Volume(path) as volume, file_size_limit(SLOT_BYTES):
            with pytest.raises(VolumeError) as error:
                volume.write_slot(1, marked(1))
            assert fault_of(error, path) is VolumeFault.FULL

    def test_a_file_system_without_o_direct_is_refused_for_writing(self) -> None:
        with pytest.raises(VolumeError) as error:
            Volume("/proc/self/comm")
        assert fault_of(error, "/proc/self/comm") is VolumeFault.NO_DIRECT_IO

    def test_no_descriptor_is_left_behind(self, tmp_path: Path, path: Path) -> None:
        before = len(os.listdir("/proc/self/fd"))
        for odd in (tmp_path, tmp_path / "none"):
            with pytest.raises(VolumeError):
                Volume(odd)
        with Volume(path) as volume:
            volume.read_slots(ALL_SLOTS)
        assert len(os.listdir("/proc/self/fd")) == before


class TestSlotPlan:
    @given(st.sets(st.integers(0, HOST_ID_MAX)), st.integers(-5, 3000))
    def test_a_beat_reads_what_is_in_use_and_a_bounded_rest(
        self, known: set[int], sweep_from: int
    ) -> None:
        slots = slots_of_beat(known, sweep_from)
        assert slots == sorted(set(slots))
        assert set(range(17)) | known <= set(slots) <= set(ALL_SLOTS)
        assert len(slots) <= len(known) + ALWAYS + WINDOW

    def test_every_slot_is_seen_within_a_sweep_from_wherever_it_stands(self) -> None:
        plan = SlotPlan()
        for _ in range(3):
            plan.next_beat()
        seen: set[int] = set()
        for _ in range(SWEEP_BEATS):
            seen.update(plan.next_beat())
        assert seen == set(ALL_SLOTS)
        assert SWEEP_BEATS <= 64

    def test_slots_in_use_are_read_each_beat_until_they_are_empty_again(self) -> None:
        plan = SlotPlan()
        plan.learn({0: encode_cluster(False), 900: marked(900), 901: EMPTY_SLOT, 5: b"cut"})
        assert plan.known == {5, 900}
        for _ in range(SWEEP_BEATS):
            assert {5, 900} <= set(plan.next_beat())
        plan.learn({5: marked(5)})
        assert plan.known == {5, 900}, "not read (the volume shrank) is not empty"
        plan.learn({900: EMPTY_SLOT})
        assert plan.known == {5}

    def test_a_new_host_is_found_on_a_real_volume(self, path: Path) -> None:
        plan = SlotPlan()
        with Volume(path) as volume:
            volume.write_slot(1987, marked(1987))
            for _beat in range(SWEEP_BEATS):
                plan.learn(volume.read_slots(plan.next_beat()))
            assert plan.known == {1987}


REPORT = SlotReport(
    host_id=3,
    timestamp=77,
    score=3400,
    engine_status=EngineStatus(VmStatus.UP, Health.BAD, "up", "page: 503"),
    hostname="three.example",
    conf_on_shared_storage=True,
    local_conf_timestamp=70,
    extra={"state": "EngineUpBadHealth"},
)


class TestDump:
    @pytest.fixture
    def board(self, tmp_path: Path) -> Path:
        """A copy of a volume: a plain file, here without any need for O_DIRECT."""
        board = tmp_path / "copy"
        slots = [EMPTY_SLOT] * 9
        slots[0] = encode_cluster(True)
        slots[3] = encode_slot(REPORT)
        slots[4] = b"\xff" * SLOT_BYTES
        board.write_bytes(b"".join(slots) + b"1|1|")
        return board

    def test_json(self, board: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert whiteboard_dump.run(str(board), as_json=True) == 0
        assert json.loads(capsys.readouterr().out) == {
            "version": 1,
            "cluster": {"maintenance": True},
            "hosts": {
                "3": {
                    "host_id": 3,
                    "timestamp": 77,
                    "score": 3400,
                    "hostname": "three.example",
                    "engine_status": {
                        "vm": "up",
                        "health": "bad",
                        "detail": "up",
                        "reason": "page: 503",
                    },
                    "maintenance": False,
                    "stopped": False,
                    "conf_on_shared_storage": True,
                    "local_conf_timestamp": 70,
                    "extra": {"state": "EngineUpBadHealth"},
                    "extra_trusted": True,
                }
            },
            "bad": {
                "4": "not-utf8: the head is not UTF-8 text",
                "9": "short: 4 of 4096 bytes; was the volume shrunk?",
            },
        }

    def test_table(self, board: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert whiteboard_dump.run(str(board), as_json=False) == 0
        out = capsys.readouterr().out
        assert "Global maintenance: on" in out
        assert "three.example  3400" in out
        assert "EngineUpBadHealth" in out
        assert "slot of host 4: not-utf8" in out

    def test_a_table_never_sends_control_characters(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        status = EngineStatus(VmStatus.UP, Health.GOOD, "\x1b[2J\n\u202e")
        slot = encode_slot(SlotReport(1, 1, 1, status, "h"))
        (tmp_path / "v").write_bytes(EMPTY_SLOT + slot)
        assert whiteboard_dump.run(str(tmp_path / "v"), as_json=False) == 0
        assert all(c.isprintable() or c == "\n" for c in capsys.readouterr().out)

    def test_an_unreadable_cluster_slot(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "v").write_bytes(b"rubbish")
        assert whiteboard_dump.run(str(tmp_path / "v"), as_json=True) == 0
        assert json.loads(capsys.readouterr().out) == {
            "version": 1,
            "cluster": {"maintenance": None},
            "hosts": {},
            "bad": {"0": "short: 7 of 4096 bytes; was the volume shrunk?"},
        }
        assert whiteboard_dump.run(str(tmp_path / "v"), as_json=False) == 0
        assert "unknown" in capsys.readouterr().out

    def test_a_larger_file_is_read_as_far_as_the_last_host(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "v").write_bytes(encode_cluster(False))
        os.truncate(tmp_path / "v", 1 << 30)
        assert whiteboard_dump.run(str(tmp_path / "v"), as_json=True) == 0
        out = json.loads(capsys.readouterr().out)
        nobody = {"cluster": {"maintenance": False}, "hosts": {}, "bad": {}}
        assert out == {"version": 1, **nobody}

    def test_a_volume_in_memory(self, board: Path, capsys: pytest.CaptureFixture[str]) -> None:
        shm = Path("/dev/shm")
        if not shm.is_dir():
            pytest.skip("no /dev/shm here")
        with tempfile.NamedTemporaryFile(dir=shm) as copy:
            copy.write(board.read_bytes())
            copy.flush()
            assert whiteboard_dump.run(copy.name, as_json=True) == 0
        assert "three.example" in capsys.readouterr().out

    @pytest.mark.parametrize("as_json", [False, True])
    def test_what_cannot_be_read_is_one_line_and_exit_code_3(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], as_json: bool
    ) -> None:
        (tmp_path / "empty").write_bytes(b"")
        os.mkfifo(tmp_path / "fifo")
        for name, code in {
            "none": "volume-missing",
            "empty": "volume-empty",
            "fifo": "volume-not-a-volume",
            ".": "volume-not-a-volume",
        }.items():
            path = str(tmp_path / name)
            assert whiteboard_dump.run(path, as_json) == 3
            out, err = capsys.readouterr()
            assert err.startswith(f"ha-agent: volume {path}: ")
            assert err.count("\n") == 1
            if as_json:
                error = json.loads(out)["error"]
                assert error == {"code": code, "message": err.strip().removeprefix("ha-agent: ")}
            else:
                assert out == ""

    def test_a_file_one_may_not_read(
        self, public_dir: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        secret = public_dir / "metadata"
        secret.write_bytes(EMPTY_SLOT)
        secret.chmod(0)
        with as_nobody():
            assert whiteboard_dump.run(str(secret), as_json=False) == 3
        assert "owner and mode" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("code", "fault", "step"),
    [
        (errno.ENOTCONN, VolumeFault.IO, "umount -l"),
        (errno.ESHUTDOWN, VolumeFault.IO, "blocklisted"),
        (errno.ESTALE, VolumeFault.IO, "mount it anew"),
        (errno.EIO, VolumeFault.IO, "servers"),
        (errno.ENOSPC, VolumeFault.FULL, "free space"),
        (errno.EROFS, VolumeFault.READ_ONLY, "read-write"),
    ],
)
def test_what_a_storage_answers_has_a_next_step(code: int, fault: VolumeFault, step: str) -> None:
    """The codes are of an evicted client, a client that ended, and a server's new export."""
    error = volume_error("/srv/whiteboard", "reading", OSError(code, "x"))
    assert (error.fault, error.errno) == (fault, code)
    assert step in str(error)
