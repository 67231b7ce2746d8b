# SPDX-License-Identifier: LGPL-2.1-or-later
"""SIGHUP: what may change while the daemons run, what stays, and what is refused."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from broker.client.ask import BrokerDown, ask
from broker.config.errors import ConfigError
from broker.config.load import load, socket_path
from broker.config.reload import needs_restart, refusal
from broker.config.sections import Config
from broker.monitors.network_verdict import Windows
from broker.monitors.of_host import HostMonitors
from broker.wire.status import MonitorStatus, Status
from scoring.vm_facts import Health

BIN = Path(sys.executable).parent
WITHIN_S = 30.0


def changed(site: Path, *changes: tuple[str, str]) -> Config:
    text = site.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    site.write_text(text)
    return load(str(site))


# --- what may change ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("id = 1", "id = 2", "host.id"),
        ("id = 1", 'id = 1\nsystem-uuid = "0a0b0c0d000000000000000000000001"', "host.system-uuid"),
        ("[vm]", '[vm]\nname = "Other"', "vm.name"),
        ("/qemu.conf", "/other.conf", "libvirt.qemu-conf"),
        ("broker.sock", "other.sock", "daemon.socket"),
        ("/leases", "/other-leases", "storage.leases"),
        ("[daemon]", "[api]\nlisten = []\n[daemon]", "api.listen"),
    ],
)
def test_what_a_running_daemon_is_built_upon_cannot_change(
    site: Path, old: str, new: str, key: str
) -> None:
    before = load(str(site))
    assert needs_restart(before, changed(site, (old, new))) == [key]
    assert "restart them" in refusal(str(site), [key])


def test_all_the_rest_may_change(site: Path) -> None:
    before = load(str(site))
    after = changed(
        site,
        ("[daemon]", '[daemon]\nlog-level = "debug"'),
        ("[libvirt]", '[libvirt]\nmigration-uri = "qemu://{host}/"\nmigration-timeout = 60'),
        ("[vm]", '[vm]\non-host-shutdown = "leave"'),
        ("[host]", '[network]\ntest = "none"\n[timing]\nbeat = 2\nsuspect-after = 4\n[host]'),
    )
    assert needs_restart(before, after) == []


# --- the monitors ---------------------------------------------------------------------------------


def made(site: Path, *lines: str) -> tuple[HostMonitors, Config]:
    """The monitors of the site's file with these lines, and the file as it was read."""
    text = site.read_text()
    site.write_text(text + "\n".join(lines))
    config = load(str(site))
    site.write_text(text)
    return HostMonitors(config), config


def test_what_the_monitors_have_seen_stays(site: Path) -> None:
    async def run() -> None:
        tcp = '[network]\ntest = "tcp"\ntargets = ["127.0.0.1:1"]\n'
        health = '[health]\ntcp = "127.0.0.1:1"\nfailures = 3\n'
        monitors, _ = made(site, tcp, health)
        network = monitors._network
        network.windows.take({"127.0.0.1:1": (0.0, "")})
        network.windows.take({"127.0.0.1:1": (0.0, "")})
        monitors.engine.health.ask(True)
        monitors.engine.health.boot.ends()
        await monitors.engine.health.sample()
        await monitors.engine.health.sample()
        load_monitor = monitors._cpu_load
        monitors.can_start.disks = lambda: {"vda": "what ran last"}
        monitors.reload(made(site, tcp, health.replace("3", "4"), "[monitors]\nnetwork = 60")[1])
        (result,) = monitors._network.windows.take({"127.0.0.1:1": (0.0, "")})
        assert result.windows == 3
        assert monitors._network.interval_s == 60.0
        assert monitors._cpu_load is load_monitor
        assert monitors.can_start.disks() == {"vda": "what ran last"}
        await monitors.engine.health.sample()
        verdicts = [monitors.engine.health.verdict[0]]
        await monitors.engine.health.sample()
        verdicts.append(monitors.engine.health.verdict[0])
        assert verdicts == [Health.UNKNOWN, Health.BAD], "the third and the fourth failure"

    asyncio.run(run())


def test_the_windows_of_another_test_are_not_those_of_this_one(site: Path) -> None:
    async def run() -> None:
        monitors, _ = made(site, '[network]\ntest = "ping"\ntargets = ["127.0.0.1"]\n')
        windows: Windows = monitors._network.windows
        monitors.reload(made(site, '[network]\ntest = "dns"\ntargets = ["127.0.0.1"]\n')[1])
        assert monitors._network.windows is not windows

    asyncio.run(run())


def test_a_ca_file_that_cannot_be_used_changes_nothing(site: Path) -> None:
    async def run() -> None:
        monitors, _ = made(site)
        before = (monitors.engine.health, monitors._network)
        bad = made_config(site, '[health]\nca-file = "/nowhere/ca.pem"\n[monitors]\nengine = 4')
        with pytest.raises(ConfigError, match=r"health\.ca-file: /nowhere/ca\.pem"):
            monitors.reload(bad)
        assert (monitors.engine.health, monitors._network) == before
        assert monitors.engine.interval_s == 1.0

    asyncio.run(run())


def made_config(site: Path, *lines: str) -> Config:
    path = site.parent / "other.toml"
    path.write_text(site.read_text() + "\n".join(lines))
    return load(str(path))


# --- the real ha-broker ---------------------------------------------------------------------------


@contextmanager
def broker(site: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The daemon on the site's files, without a sanlock and a libvirt."""
    with (site.parent / "broker.log").open("wb") as log:
        process = subprocess.Popen([BIN / "ha-broker", "--config", site], stderr=log)
        try:
            yield process
        finally:
            process.terminate()
            process.wait(WITHIN_S)


def status(site: Path) -> Status | None:
    """What the broker says; None while it does not answer."""
    try:
        return ask(str(site.parent / "broker.sock"), "GET", "/v1/status", Status)
    except BrokerDown:
        return None


def until(holds: Callable[[], bool], log: Path) -> None:
    end_s = time.monotonic() + WITHIN_S
    while not holds():
        assert time.monotonic() < end_s, log.read_text()
        time.sleep(0.05)


def is_told(site: Path, words: str) -> bool:
    answer = status(site)
    assert answer is not None and answer.host_id == 1
    return words in answer.config_problem


@pytest.mark.slow
def test_a_running_broker_reads_its_file_anew_and_refuses_a_bad_one(site: Path) -> None:
    good = site.read_text() + "[monitors]\ncpu-load = 0.5\n[timing]\nload-window = 1\n"
    site.write_text(good)
    log = site.parent / "broker.log"

    def monitor(name: str) -> MonitorStatus | None:
        answer = status(site)
        return answer.monitors.get(name) if answer is not None else None

    def knows_the_load() -> bool:
        found = monitor("cpu_load")
        return found is not None and found.verdict == "ok"

    def looks_rarely_at_the_bridge() -> bool:
        found = monitor("bridge")
        return found is not None and found.interval_s == 77.0

    with broker(site) as process:
        until(knows_the_load, log)
        answer = status(site)
        assert answer is not None and answer.config_problem == ""

        for bad, words in (
            (good + "[scores]\n", "did you mean score?"),
            (good.replace("id = 1", "id = 2"), "host.id cannot change while the daemons run"),
            (good + '[health]\nca-file = "/nowhere"\n', "health.ca-file: /nowhere cannot be used"),
            (good + "[network]\ntest = 7\n", "network.test"),
            (good + "[[[\n", "is not TOML"),
        ):
            site.write_text(bad)
            process.send_signal(signal.SIGHUP)
            until(partial(is_told, site, words), log)
        shown = subprocess.run(
            [BIN / "ha-agent", "--status"],
            capture_output=True,
            text=True,
            env={**os.environ, "HA_AGENT_CONFIG": str(site)},
            timeout=WITHIN_S,
        )
        assert f"CONFIGURATION: an older one is in force: {site}: is not TOML" in shown.stdout
        assert "asking the broker all the same" in shown.stderr

        site.write_text(good.replace("cpu-load = 0.5", "cpu-load = 0.5\nbridge = 77"))
        process.send_signal(signal.SIGHUP)
        until(looks_rarely_at_the_bridge, log)
        answer = status(site)
        assert answer is not None and answer.config_problem == ""
        assert knows_the_load(), "what was seen before is kept"
        assert process.poll() is None
    assert "Traceback" not in log.read_text()


@pytest.mark.slow
def test_a_flood_of_signals_is_survived(site: Path) -> None:
    log = site.parent / "broker.log"
    with broker(site) as process:
        until(lambda: status(site) is not None, log)
        for _ in range(200):
            process.send_signal(signal.SIGHUP)
        until(lambda: "is read anew" in log.read_text(), log)
        assert status(site) is not None
    assert process.returncode == 0
    assert "Traceback" not in log.read_text()


# --- asking a broker whose file has a mistake -----------------------------------------------------


def test_a_mistake_in_the_file_does_not_hide_the_broker(site: Path) -> None:
    warnings: list[str] = []
    own = load(str(site)).daemon.socket
    assert socket_path(str(site), warnings.append) == own
    site.write_text(site.read_text() + "[scores]\n")
    with pytest.raises(ConfigError, match="scores"):  # nobody listens: the mistake is the answer
        socket_path(str(site), warnings.append)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(own)
        assert not warnings
        assert socket_path(str(site), warnings.append) == own
    assert len(warnings) == 1 and "did you mean score?" in warnings[0]
    with pytest.raises(ConfigError, match="no such file"):
        socket_path(str(site.parent / "gone.toml"), warnings.append)
