# SPDX-License-Identifier: LGPL-2.1-or-later
"""Why this host was switched off is shown until somebody has read it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import aiohttp
import pytest

from broker.broker import Broker
from broker.daemon.exit_codes import ExitCode
from broker.status.switched_off import SwitchedOff
from broker.whiteboard.fence_log import FenceLog, LogRecord
from scoring.observation import FenceStep
from tests.fakes.broker import served
from tests.unit import commands

BOOT = "the-boot-before"


def record(number: int = 3) -> LogRecord:
    return LogRecord(
        number=number,
        step=FenceStep.DEAD,
        by=2,
        by_name="host2",
        target=1,
        target_name="host1",
        boot_id=BOOT,
        wall_s=1_800_000_000.0,
        ordered=True,
        text="it hung",
    )


class Log(FenceLog):
    """A log whose certificate of this host is given."""

    def __init__(self, found: LogRecord | None) -> None:
        super().__init__()
        self.found = found

    def certificate(self, host_id: int, boot_id: str) -> LogRecord | None:
        return self.found if (host_id, boot_id) == (1, BOOT) else None


def test_it_is_shown_until_it_is_acknowledged_and_not_after_a_restart(tmp_path: Path) -> None:
    log = Log(record())
    one = SwitchedOff(log, 1, tmp_path)
    assert one.shown(BOOT) == record()
    assert one.acknowledge(BOOT) == record()
    assert one.shown(BOOT) is None and one.acknowledge(BOOT) is None
    assert one.record(BOOT) == record(), "the record itself stays"
    again = SwitchedOff(log, 1, tmp_path)
    assert again.shown(BOOT) is None
    log.found = record(4)
    assert again.shown(BOOT) == record(4), "another power-off is shown anew"


@pytest.mark.parametrize("damage", [b"", b"\xff", b"-3", b"9" * 5000])
def test_a_damaged_file_shows_it_again(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "switched-off-acknowledged").write_bytes(damage)
    assert SwitchedOff(Log(record()), 1, tmp_path).shown(BOOT) == record()


def test_what_cannot_be_kept_is_not_taken_for_read(tmp_path: Path) -> None:
    (tmp_path / "gone").write_text("no folder")
    one = SwitchedOff(Log(record()), 1, tmp_path / "gone")
    with pytest.raises(OSError):
        one.acknowledge(BOOT)
    assert one.shown(BOOT) == record()


def test_the_command_takes_it_out_of_the_status_and_says_what_it_was(tmp_path: Path) -> None:
    async def test(broker: Broker, path: str, session: aiohttp.ClientSession) -> None:
        def typed(*words: str) -> tuple[int, str]:
            done = commands.run("ha-agent", "--config", tmp_path / "1.toml", *words)
            return done.returncode, done.stdout

        (tmp_path / "1").mkdir(exist_ok=True)
        broker._switched_off._fence_log = Log(record())
        broker.own_slot.previous_boot_id = BOOT
        assert broker.status(1.0).switched_off is not None
        code, said = await asyncio.to_thread(typed, "acknowledge")
        assert code == ExitCode.OK and said.startswith("acknowledged: host2 (id 2) switched this")
        assert broker.status(2.0).switched_off is None
        code, said = await asyncio.to_thread(typed, "acknowledge", "--json")
        assert json.loads(said) == {"version": 1, "switched_off": None}

    served(tmp_path, test)
