# SPDX-License-Identifier: LGPL-2.1-or-later
"""The labs the tests share: `lab` has BMCs and is brought up once for all tests of the run."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from . import machine
from .cluster import Cluster
from .errors import MachineError
from .watch import EngineWatcher

#: Short: UNIX socket paths below it must stay under 108 bytes.
PARENT = Path("/var/tmp/ha-lab")
TAKEOVER_S = 60.0


@pytest.fixture(scope="session")
def able() -> None:
    """Skips, with the reason, where this machine cannot run a lab."""
    try:
        machine.check()
    except MachineError as error:
        pytest.skip(f"the lab cannot run here: {error}")


def _cluster() -> Cluster:
    PARENT.mkdir(parents=True, exist_ok=True)
    return Cluster(Path(tempfile.mkdtemp(prefix="t-", dir=PARENT)), print)


@pytest.fixture(scope="session")
def shared_lab(able: None) -> Iterator[Cluster]:
    """Three hosts with BMCs, up for the whole run."""
    cluster = _cluster()
    try:
        cluster.up(3)
        yield cluster
    finally:
        cluster.down()
        shutil.rmtree(cluster.directory, ignore_errors=True)


@pytest.fixture
def lab(shared_lab: Cluster, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """The shared lab, all hosts on and the engine healthy; law 1 is watched during the test."""
    for host in shared_lab.hosts:
        if shared_lab.power_on(host):
            shared_lab.wait_booted(host)
    shared_lab.wait_healthy(TAKEOVER_S)
    with EngineWatcher(shared_lab) as watcher:
        yield shared_lab
    assert watcher.most_running_at_once() <= 1, watcher.history()


@pytest.fixture
def lab_without_bmc(able: None) -> Iterator[Cluster]:
    """Two hosts, no fence devices, sanlock's shortest host-dead time (68 s at io_timeout 1)."""
    cluster = _cluster()
    try:
        cluster.up(2, io_timeout_s=1, bmc=False)
        with EngineWatcher(cluster) as watcher:
            yield cluster
        assert watcher.most_running_at_once() <= 1, watcher.history()
    finally:
        cluster.down()
        shutil.rmtree(cluster.directory, ignore_errors=True)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """After a failure: what the agents said last."""
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    if report.failed and call.when == "call":
        for name in ("lab", "lab_without_bmc"):
            cluster = getattr(item, "funcargs", {}).get(name)
            if isinstance(cluster, Cluster):
                report.sections.append(("lab logs", _logs(cluster)))


def _logs(cluster: Cluster) -> str:
    parts = []
    for host in cluster.hosts:
        for daemon in ("agent", "broker"):
            path = cluster.log_path(host, daemon)
            if path.exists():
                tail = "\n".join(path.read_text(errors="replace").splitlines()[-25:])
                parts.append(f"--- {host} {daemon}\n{tail}")
    return "\n".join(parts)
