# SPDX-License-Identifier: LGPL-2.1-or-later
"""Broker and agent count by a clock that goes on while the host is asleep."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

import agent.run
import broker.main
from broker.daemon.exit_codes import ExitCode
from broker.daemon.host_clock import HostClockLoop, now_s, of_monotonic, run

#: Kernel's time namespaces: inside, the host seems to have slept for so long.
ASLEEP_S = 1000
_ASLEEP = ("unshare", "--time", "--boottime", str(ASLEEP_S), sys.executable, "-c")


def asleep(code: str, *words: str) -> list[float]:
    """The numbers that the code prints on a host which has slept for ASLEEP_S."""
    done = subprocess.run([*_ASLEEP, code, *words], capture_output=True, text=True, check=False)
    if "unshare failed" in done.stderr:
        pytest.skip(f"no time namespace here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    return [float(word) for word in done.stdout.split()]


def test_a_loop_goes_on_while_the_host_is_asleep() -> None:
    found = asleep(
        "import asyncio, time\n"
        "from broker.daemon.host_clock import run\n"
        "async def main():\n"
        "    print(asyncio.get_running_loop().time() - time.monotonic())\n"
        "run(main())"
    )
    assert found == [pytest.approx(ASLEEP_S, abs=100.0)]


def test_an_own_renewal_is_as_old_as_sanlock_counts_it(tmp_path: Path) -> None:
    """The renewal's time is of CLOCK_MONOTONIC; unconverted it would be older by the sleep."""
    code = (
        "import asyncio, sys, time\n"
        "from pathlib import Path\n"
        "from broker.daemon.host_clock import run\n"
        "from broker.lockspace.sanlock import SanlockLockspace\n"
        "from tests.unit.test_renewals import record\n"
        "path = Path(sys.argv[1])\n"
        "path.write_bytes(record(1, 1, int(time.monotonic()) - 7, 512).ljust(1 << 20, b'\\0'))\n"
        "async def main():\n"
        "    lockspace = SanlockLockspace('lab', 1, str(path), 10, None)\n"
        "    await lockspace._renewals_on_disk([])\n"
        "    print(asyncio.get_running_loop().time() - lockspace.renewed_s)\n"
        "run(main())"
    )
    (age_s,) = asleep(code, str(tmp_path / "leases"))
    assert 6.9 <= age_s < ASLEEP_S / 2


def test_a_time_of_monotonic_keeps_its_age() -> None:
    age_s = now_s() - of_monotonic(time.monotonic() - 5000.0)
    assert age_s == pytest.approx(5000.0, abs=100.0)


def test_both_daemons_run_on_that_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    loops: list[type] = []

    async def lives(*_: object) -> None:
        loops.append(type(asyncio.get_running_loop()))

    config = SimpleNamespace(daemon=SimpleNamespace(log_level="info"))
    monkeypatch.setattr(broker.main, "changed_s", lambda path: 0.0)
    for module in (broker.main, agent.run):
        monkeypatch.setattr(module, "load", lambda path: config)
        monkeypatch.setattr(module.service_manager, "set_up_logging", lambda level: None)
        monkeypatch.setattr(module.faulthandler, "enable", lambda: None)
        monkeypatch.setattr(module.libvirt, "registerErrorHandler", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["ha-broker"])
    monkeypatch.setattr(broker.main, "run", lives)
    broker.main.main()
    monkeypatch.setattr(agent.run, "load_definition", lambda config: None)
    monkeypatch.setattr(agent.run, "check_lock_driver", lambda config: None)
    monkeypatch.setattr(agent.run, "beat_until_stopped", lives)
    assert agent.run.run("") == ExitCode.OK
    assert loops == [HostClockLoop, HostClockLoop]


def test_an_error_comes_out() -> None:
    async def fails() -> None:
        raise ValueError("as asyncio.run")

    with pytest.raises(ValueError, match="as asyncio"):
        run(fails())
