# SPDX-License-Identifier: LGPL-2.1-or-later
"""What `leave` and `clean-metadata` would fail at is found before they stop or empty anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sanlock

from agent.setup import leave
from agent.setup.leave import check_slots_can_be_written
from agent.terminal.errors import CommandError
from broker.config.load import load
from broker.config.sections import Config
from broker.daemon.exit_codes import ExitCode
from broker.lockspace.delta_leases import LeaseVolume
from tests.fakes.systemctl import put_systemctl


@pytest.fixture
def config(site: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """Host 1 is in the lockspace, in generation 4."""
    head = LeaseVolume("hosted-engine", 512, 10, 1 << 20, {1 << 20: "engine", 2 << 20: "fence"})
    monkeypatch.setattr(leave, "read_leases", lambda path: (head, {1: (4, 77)}))
    monkeypatch.setattr(leave, "own_id", lambda storage: 1)
    return load(str(site))


@pytest.mark.parametrize(
    ("held", "owner", "refused"),
    [
        ("engine", (1, 4), True),
        ("fence", (1, 4), True),
        ("engine", (1, 3), False),
        ("engine", (2, 4), False),
        ("", (0, 0), False),
    ],
)
def test_a_lease_that_is_held_here_refuses_beforehand(
    config: Config,
    monkeypatch: pytest.MonkeyPatch,
    held: str,
    owner: tuple[int, int],
    refused: bool,
) -> None:
    def owners(
        lockspace: bytes, resource: bytes, disks: list[tuple[str, int]], **size: int
    ) -> list[Any]:
        assert size == {"align": 1 << 20, "sector": 512}
        assert disks[0][1] == {b"engine": 1 << 20, b"fence": 2 << 20}[resource]
        is_it = resource.decode() == held
        return [{"host_id": owner[0], "generation": owner[1]}] if is_it else []

    monkeypatch.setattr(sanlock, "read_resource_owners", owners)
    look = leave._lockspace_step(config).look
    if not refused:
        assert look() is None
        return
    with pytest.raises(CommandError, match=f"holds lease {held} in it; move the VM") as caught:
        look()
    assert caught.value.code == ExitCode.REFUSED


def test_a_whiteboard_that_cannot_be_opened_is_found(config: Config) -> None:
    check_slots_can_be_written(config)
    Path(config.storage.whiteboard).unlink()
    with pytest.raises(CommandError) as caught:
        check_slots_can_be_written(config)
    assert caught.value.code == ExitCode.STORAGE


@pytest.mark.parametrize(
    ("active", "enabled", "only", "is_over"),
    [
        ("inactive inactive", "disabled disabled", False, True),
        ("failed inactive", "static disabled", False, True),
        ("active active", "enabled enabled", False, False),
        # The broker has died, and systemd starts it anew in a second.
        ("active activating", "disabled disabled", True, False),
        # Stopped by hand: it would be back after the next boot.
        ("inactive inactive", "enabled enabled", False, False),
        ("inactive inactive", "enabled enabled", True, True),
    ],
)
def test_daemons_that_systemd_keeps_are_stopped_though_no_broker_answers(
    config: Config,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    active: str,
    enabled: str,
    only: bool,
    is_over: bool,
) -> None:
    put_systemctl(tmp_path, monkeypatch, active=active, enabled=enabled)
    monkeypatch.setattr(leave, "SYSTEMD", tmp_path)
    found = leave._daemons_step(config, only).look()
    assert found == ("they do not run" if is_over else None)
