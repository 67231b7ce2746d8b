# SPDX-License-Identifier: LGPL-2.1-or-later
"""What systemd hears, on a socket as it would make one."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker import service_manager


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
