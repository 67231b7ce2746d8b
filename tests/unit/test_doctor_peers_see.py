# SPDX-License-Identifier: LGPL-2.1-or-later
"""`doctor --storage`: when another host sees a write, and whether QEMU's lock keeps one out."""

from __future__ import annotations

import shutil
import stat
from pathlib import Path

import pytest

from agent.doctor import image_lock
from agent.doctor.seen_elsewhere import Looks, judged, measured
from broker.client.ask import BrokerDown
from broker.peers.slot_question import Seen, digest_of


class Storage:
    """A slot that is written anew at each third look; a member sees the last one after it was asked
    `late` times. Its own clock goes on with each look."""

    def __init__(self, late: int = 0) -> None:
        self.late, self.now_s, self.reads, self.asked = late, 0.0, 0, 0

    def read(self) -> bytes:
        self.reads += 1
        self.now_s += 0.1
        return str(self.reads // 30).encode()

    def ask(self, digest: str) -> Seen:
        self.now_s += 0.02
        self.asked += 1
        is_now = digest == digest_of(str(self.reads // 30).encode())
        if is_now and self.asked > self.late:
            self.asked = 0
            return Seen.YES
        return Seen.NO


def looks_at(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> Looks:
    monkeypatch.setattr("time.monotonic", lambda: storage.now_s)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    return measured(storage.read, {2: storage.ask}, 20.0)[2]


def test_a_member_that_sees_each_write_at_once_is_well(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = looks_at(Storage(), monkeypatch)
    assert len(looks.took_s) == looks.looks > 3 and looks.stale == 0
    verdict, text, _ = judged("host2 (id 2)", looks, 1.0)
    assert verdict == "ok" and "host2 (id 2) sees a write of this host after 20.0" in text


def test_a_member_that_reads_what_was_there_before_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = looks_at(Storage(late=5), monkeypatch)
    assert looks.stale and looks.took_s
    verdict, text, fix = judged("host2 (id 2)", looks, 1.0)
    assert verdict == "fail" and f"old data read in {looks.stale} of" in text and "Gluster" in fix


def test_what_was_not_seen_at_all_is_another_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = looks_at(Storage(late=10**6), monkeypatch)
    verdict, text, fix = judged("host2 (id 2)", looks, 1.0)
    assert not looks.took_s and verdict == "fail" and "read none of this host's writes" in text
    assert "the same storage?" in fix


def test_what_was_not_measured_is_said_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage()

    def refuses(digest: str) -> Seen:
        raise BrokerDown("host2:8765: refused")

    monkeypatch.setattr("time.monotonic", lambda: storage.now_s)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    looks = measured(storage.read, {2: refuses}, 20.0)[2]
    verdict, text, _ = judged("host2 (id 2)", looks, 1.0)
    assert verdict == "warn" and text.endswith("not measured: host2 (id 2): host2:8765: refused")
    assert "wrote nothing" in judged("host2 (id 2)", Looks(), 1.0)[1]
    assert judged("host2 (id 2)", Looks([1.5], 1), 1.0)[0] == "warn"


# --- QEMU's image lock ---------------------------------------------------------------------------

QEMU = shutil.which("qemu-system-x86_64")
needs_qemu = pytest.mark.skipif(not (QEMU and shutil.which("qemu-io")), reason="no QEMU here")


@needs_qemu
def test_the_lock_of_a_real_qemu_keeps_another_one_out(tmp_path: Path) -> None:
    ((verdict, text, _),) = image_lock.image_lock(tmp_path, "qemu-system-x86_64")
    assert verdict == "ok" and "keeps a second QEMU out" in text
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


def program(folder: Path, name: str, text: str) -> Path:
    made = folder / name
    made.write_text(f"#!/bin/sh\n{text}\n")
    made.chmod(made.stat().st_mode | stat.S_IXUSR)
    return made


@pytest.mark.parametrize(
    ("qemu_io", "verdict", "says"),
    [
        ("exit 0", "warn", "a second QEMU opens an image in"),
        ("exit 1", "fail", "QEMU cannot open an image"),
    ],
)
def test_a_storage_without_locks_is_told_from_one_that_qemu_cannot_use(
    qemu_io: str, verdict: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools, disk = tmp_path / "tools", tmp_path / "disk"
    tools.mkdir()
    disk.mkdir()
    program(tools, "qemu-io", qemu_io)
    emulator = program(tools, "qemu", """echo '{"QMP": 1}'; echo '{"return": {}}'; exec sleep 60""")
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    ((found, text, _),) = image_lock.image_lock(disk, str(emulator))
    assert found == verdict and says in text and list(disk.iterdir()) == []


def test_where_there_is_no_qemu_it_is_said_that_nothing_was_tried(tmp_path: Path) -> None:
    for emulator in ("/nowhere/qemu", "/bin/true"):
        ((verdict, text, _),) = image_lock.image_lock(tmp_path, emulator)
        assert verdict == "warn" and text.startswith("QEMU's image lock was not tried in")
    assert list(tmp_path.iterdir()) == []
