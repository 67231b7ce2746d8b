# SPDX-License-Identifier: LGPL-2.1-or-later
"""Fence agents as processes: what they are given and how, and that none outlives its deadline."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from pathlib import Path

import psutil
import pytest

from agent.fence.guarded import DeviceSetting, GuardedDevice
from agent.fence.program import AgentDriver
from scoring.observation import Power
from tests.fakes.ipmi_bmc import IpmiBmc
from tests.fakes.waiting import until_now, was_given_up

FAKE_AGENT = str(Path(__file__).parents[1] / "fakes" / "fence_fake")
PASSWORD = "s3cret+/word"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "power").write_text("1")
    return tmp_path


def device(place: Path, mood: str = "", timeout_s: float = 8.0, **more: str) -> GuardedDevice:
    options = {"username": "admin", "password": PASSWORD, "state": str(place), "mood": mood}
    driver = AgentDriver(FAKE_AGENT, options | more)
    return GuardedDevice(
        2, "pdu", driver, DeviceSetting(trusted=True, timeout_s=timeout_s, secrets=[PASSWORD])
    )


def test_options_go_to_standard_input(place: Path) -> None:
    asyncio.run(device(place, plug="7").read(""))
    told = json.loads((place / "options").read_text())
    assert told == {
        "action": "status",
        "username": "admin",
        "password": PASSWORD,
        "state": str(place),
        "mood": "",
        "plug": "7",
    }


def test_nothing_secret_is_in_the_process_list(place: Path) -> None:
    seen: list[str] = []
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            for process in psutil.Process().children(recursive=True):
                try:
                    seen.append(" ".join(process.cmdline()) + str(process.environ()))
                except psutil.Error:
                    continue

    watcher = threading.Thread(target=watch)
    watcher.start()
    asyncio.run(device(place, "hang", timeout_s=1.0).read(""))
    done.set()
    watcher.join()
    assert any("fence_fake" in line for line in seen)
    assert not any(PASSWORD in line for line in seen)


def test_at_its_deadline_the_whole_group_is_killed(place: Path) -> None:
    # Time enough for the agent to start its child.
    found = asyncio.run(device(place, "hang", timeout_s=3.0).read(""))
    assert found.power is Power.UNKNOWN and was_given_up(found.detail)
    child = int((place / "child").read_text())
    until_now(lambda: not psutil.pid_exists(child) or psutil.Process(child).status() == "zombie")


def test_a_password_that_it_says_itself_is_taken_out(place: Path) -> None:
    found = asyncio.run(device(place, "leak").read(""))
    assert "cannot log in as admin:***" in found.detail
    assert PASSWORD not in found.detail


def test_of_a_flood_only_whole_lines_of_the_end_are_kept(place: Path) -> None:
    detail = asyncio.run(device(place, "flood").read("")).detail
    assert "the last line" in detail and len(detail) < 2500
    assert "word" not in detail.partition("the last line")[0], "no part of a password"


def test_the_goal_is_the_power_and_not_the_exit_code(place: Path) -> None:
    found = asyncio.run(device(place, "grumble").switch("", on=False))
    assert found.power is Power.OFF and found.usable
    assert (place / "power").read_text() == "0"


def test_a_program_that_is_not_there(place: Path) -> None:
    mine = GuardedDevice(2, "pdu", AgentDriver("fence_of_nobody", {}), DeviceSetting(trusted=True))
    found = asyncio.run(mine.read(""))
    assert "fence_of_nobody is not installed" in found.detail


def test_a_password_with_a_line_break_gives_no_orders(place: Path) -> None:
    found = asyncio.run(device(place, password="x\naction=off").read(""))
    assert "line break" in found.detail
    assert not (place / "options").exists()


@pytest.mark.skipif(shutil.which("fence_ipmilan") is None, reason="fence-agents not installed")
@pytest.mark.slow
def test_the_real_fence_ipmilan(tmp_path: Path) -> None:
    bmc = IpmiBmc(tmp_path / "bmc", "0a0b0c0d" * 4)
    options = {"ip": "127.0.0.1", "ipport": str(bmc.port), "username": "admin"}
    options |= {"password": "s3cret+/word", "lanplus": "1", "cipher": "3", "power_wait": "0"}

    async def run() -> None:
        mine = GuardedDevice(
            2,
            "bmc",
            AgentDriver("fence_ipmilan", options),
            DeviceSetting(trusted=True, timeout_s=30),
        )
        assert (await mine.check("")).power is Power.ON
        assert (await mine.switch("", on=False)).ordered
        assert (await mine.read("")).power is Power.OFF

    try:
        asyncio.run(run())
        assert bmc.orders[-1] == "power 0"
    finally:
        bmc.close()
