# SPDX-License-Identifier: LGPL-2.1-or-later
"""The labs the tests share: `lab` has BMCs and is brought up once for all tests of the run."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from . import ask, boot_journal, configs, machine, second_try, vms
from .cluster import Cluster
from .errors import MachineError, law
from .watch import EngineWatcher

#: Short: UNIX socket paths below it must stay under 108 bytes.
PARENT = Path("/var/tmp/ha-lab")
TAKEOVER_S = 60.0
#: Mark of tests that take minutes -> the target of the Makefile that runs them.
ASKED_FOR = {"long": "lab-test-long", "storage": "test-storage"}
#: A host that was cut off boots, joins the lockspace, and is heard by the others.
IN_PLACE_S = 90.0


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests with one of the marks ASKED_FOR are run only when the command line speaks of it."""
    for mark, target in ASKED_FOR.items():
        if mark in config.getoption("markexpr"):
            continue
        for item in items:
            if item.get_closest_marker(mark) is not None:
                item.add_marker(pytest.mark.skip(reason=f"takes minutes; run: make {target}"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """A failed lab test is tried once more; other tests are none of this file's business."""
    is_ours = item.path.is_relative_to(Path(__file__).parent)
    return second_try.run(item, nextitem) if is_ours else None


pytest_terminal_summary = second_try.summary
pytest_sessionfinish = second_try.finish


@pytest.fixture(scope="session")
def able() -> None:
    """Skips, with the reason, where this machine cannot run a lab."""
    try:
        machine.check()
    except MachineError as error:
        pytest.skip(f"the lab cannot run here: {error}")


@contextlib.contextmanager
def new_cluster() -> Iterator[Cluster]:
    """In a directory of its own; nothing is up yet, and nothing is left of it at the end."""
    PARENT.mkdir(parents=True, exist_ok=True)
    cluster = Cluster(Path(tempfile.mkdtemp(prefix="t-", dir=PARENT)), print)
    try:
        yield cluster
    finally:
        cluster.down()
        shutil.rmtree(cluster.directory, ignore_errors=True)


@contextlib.contextmanager
def law_1_of_three(cluster: Cluster) -> Iterator[None]:
    """At most one QEMU ran each of the three VMs at any time."""
    with contextlib.ExitStack() as stack:
        watchers = [stack.enter_context(EngineWatcher(cluster, vm.name)) for vm in vms.VMS]
        yield
    assert [watcher.most_running_at_once() for watcher in watchers] == [1, 1, 1]


@contextlib.contextmanager
def three_vms(hosts: int, configuration: str = "") -> Iterator[Cluster]:
    """So many hosts with BMCs, all three VMs healthy; law 1 is watched for each of them."""
    with new_cluster() as cluster:
        cluster.up(hosts, vms=3)
        if configuration:
            cluster.configure(configuration)
        with law_1_of_three(cluster):
            yield cluster


@pytest.fixture(scope="session")
def shared_lab(able: None) -> Iterator[Cluster]:
    """Three hosts with BMCs, up for the whole run."""
    with new_cluster() as cluster:
        cluster.up(3)
        cluster.configure(configs.HASTE)
        yield cluster


@pytest.fixture
def lab(shared_lab: Cluster, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """The shared lab with every host in its place, as each of them sees it, whatever the test
    before has done; law 1 is watched during the test."""
    for host in shared_lab.hosts:
        if shared_lab.power_on(host):
            shared_lab.wait_booted(host)
    shared_lab.wait_healthy(TAKEOVER_S)
    for host in shared_lab.hosts:
        ask.until(f"{host} is in its place", IN_PLACE_S, partial(ask.in_place, shared_lab, host))
    with law_1(shared_lab):
        yield shared_lab


@contextlib.contextmanager
def law_1(cluster: Cluster) -> Iterator[None]:
    """At most one QEMU ran the guest: by the processes, and by what the guest wrote. It is looked
    at however the test ends: one that fails may fail because of a second VM."""
    before, panics = boot_journal.read(cluster), _panics(cluster)
    with EngineWatcher(cluster) as watcher:
        there = len(watcher.history())
        try:
            yield
        finally:
            watcher.stop()
            with law(1):
                _one_at_a_time(cluster, watcher, there, before, _panics(cluster) - panics)


def _one_at_a_time(
    cluster: Cluster,
    watcher: EngineWatcher,
    there: int,
    before: list[boot_journal.Boot],
    panics: int,
) -> None:
    """`there`: how many processes were there before; `before`: the boots until then; `panics`: how
    often the guest's kernel has panicked since. It boots again then, in the same process: that is
    no second one. (An emulated guest does, rarely, after two live migrations in a row.)"""
    history = watcher.history()
    assert watcher.most_running_at_once() <= 1, history
    boots = boot_journal.read(cluster)
    assert not boot_journal.doubts(boots)
    started = [p for p in history[there:] if p.ran and not p.incoming]
    assert len(boots) - len(before) <= len(started) + panics, (
        f"the guest booted where nobody watched: {before[-1:]} before, {boots[-2:]} after; "
        f"{history}; the guest's console ends with {_console(cluster)[-12:]}"
    )


def _console(cluster: Cluster) -> list[str]:
    """All that the guest has said, its boots one after the other."""
    path = cluster.layout.console("engine")
    return path.read_text(errors="replace").splitlines() if path.exists() else []


def _panics(cluster: Cluster) -> int:
    """How often the guest's kernel has panicked so far."""
    return sum("Kernel panic - not syncing" in line for line in _console(cluster))


@pytest.fixture
def fencing(lab: Cluster) -> Iterator[Cluster]:
    """`lab`; faults end after the test."""
    try:
        yield lab
    finally:
        lab.end_faults()


@pytest.fixture
def lab_without_bmc(able: None) -> Iterator[Cluster]:
    """Two hosts, no fence devices, sanlock's shortest host-dead time (68 s at io_timeout 1)."""
    with new_cluster() as cluster:
        cluster.up(2, io_timeout_s=1, bmc=False)
        with law_1(cluster):
            yield cluster


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """After a failure: what the agents said last."""
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    second_try.note_law(report, call)
    if report.failed and call.when == "call":
        for name in ("lab", "lab_without_bmc", "place"):
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
