# SPDX-License-Identifier: LGPL-2.1-or-later
"""What systemd hears, on a socket as it would make one."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.daemon import service_manager
from tests.fakes.broker import make_broker
from tests.fakes.slot_store import MemoryVolume
from tests.fakes.waiting import PATIENCE_S, until


@pytest.fixture(params=["path", "abstract"])
def heard(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[socket.socket]:
    """The service manager's end of the socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        if request.param == "path":
            manager.bind(str(tmp_path / "notify"))
            address = str(tmp_path / "notify")
        else:
            manager.bind("")  # the kernel chooses an abstract name (unix(7))
            address = "@" + manager.getsockname()[1:].decode()
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        manager.settimeout(5.0)
        yield manager


def words(manager: socket.socket) -> dict[str, str]:
    lines = manager.recv(4096).decode().splitlines()
    return dict(line.split("=", 1) for line in lines)


def test_a_beat_makes_ready_and_feeds_the_watchdog(heard: socket.socket) -> None:
    service_manager.alive("host 1,\nstorage ok")
    assert words(heard) == {"READY": "1", "WATCHDOG": "1", "STATUS": "host 1, storage ok"}


def test_a_status_cannot_smuggle_in_another_word_and_is_short(heard: socket.socket) -> None:
    service_manager.alive("x" * 1000 + "\nSTOPPING=1")
    assert words(heard)["STATUS"] == "x" * service_manager.STATUS_CHARACTERS_MAX


def test_a_reload_carries_its_time_and_an_end_is_said(heard: socket.socket) -> None:
    service_manager.reloading()
    said = words(heard)
    assert said["RELOADING"] == "1"
    assert int(said["MONOTONIC_USEC"]) > 0
    service_manager.stopping()
    assert words(heard) == {"STOPPING": "1"}


def test_without_a_service_manager_or_with_a_dead_one_nothing_happens(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    service_manager.alive("fine")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    service_manager.alive("fine")


def test_a_service_manager_that_does_not_read_blocks_nobody(heard: socket.socket) -> None:
    for _ in range(5000):
        service_manager.alive("fine")


def test_a_broker_whose_beat_hangs_feeds_no_watchdog(tmp_path: Path) -> None:
    broker = make_broker(tmp_path, MemoryVolume(4))
    beats: list[str] = []

    hangs = asyncio.Event()

    async def hang(now_s: float, until_s: float | None = None) -> None:
        hangs.set()
        await asyncio.Event().wait()

    async def story() -> int:
        broker.beats.on_beat = lambda: beats.append(
            broker.this_host.line(asyncio.get_running_loop().time())
        )
        running = asyncio.create_task(broker.run())
        await until(lambda: beats)
        # The loop turns on, the beat does not.
        broker.beats.once = hang  # type: ignore[method-assign]
        async with asyncio.timeout(PATIENCE_S):
            await hangs.wait()
        before = len(beats)
        await asyncio.sleep(2.5 * broker.config.timing_rules().beat)
        running.cancel()
        return len(beats) - before

    assert asyncio.run(story()) == 0
    assert beats[0].startswith("host 1, ")


def test_the_journal_gets_priorities_and_no_second_time() -> None:
    said = logged(to_journal=True)
    assert said == ["<4>WARNING x: one", "<4>two", "<6>INFO x: fine", "<7>DEBUG x: detail"]


def test_a_terminal_gets_times_and_no_priorities() -> None:
    said = logged(to_journal=False)
    assert not [line for line in said if line.startswith("<")]
    assert said[0].endswith(" WARNING x: one")
    assert said[0][:2] == "20"


def logged(to_journal: bool) -> list[str]:
    """What a daemon's log looks like on a pipe that is, or is not, the journal's."""
    read, write = os.pipe()
    place = os.fstat(write)
    stream = f"{place.st_dev}:{place.st_ino}" if to_journal else "8:1"
    program = (
        "import logging; from broker.daemon.service_manager import set_up_logging; "
        "set_up_logging('debug', '/nowhere'); log = logging.getLogger('x'); "
        "log.warning('one\\ntwo'); log.info('fine'); log.debug('detail')"
    )
    with os.fdopen(read) as lines:
        subprocess.run(
            [sys.executable, "-c", program],
            stderr=write,
            env={**os.environ, "JOURNAL_STREAM": stream},
            check=True,
        )
        os.close(write)
        return lines.read().splitlines()
