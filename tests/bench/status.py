# SPDX-License-Identifier: LGPL-2.1-or-later
"""How long `ha-agent --status` takes, from its start to its end: `python -m tests.bench status`.

A broker in a process of its own beats on a whiteboard file in which every host's slot changes
each second, as live hosts' do. The command is this tree's, started as the packages start it
(isolated, /usr/bin/python3, packaging/install.py), so that this environment's own start-up is
not counted.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from broker.api.socket import serve
from broker.broker import Broker
from broker.config.load import load
from broker.config.places import changed_s
from broker.monitors.runner import MonitorRunner, Sample
from broker.monitors.watched import Watched
from broker.whiteboard.board import Board
from broker.whiteboard.sizes import SLOT_BYTES
from broker.whiteboard.slot import SlotReport, encode_cluster, encode_slot
from broker.whiteboard.store import VolumeStore
from broker.wire.status import MigrationStatus
from scoring.vm_facts import DomainHere, EngineStatus, Health, VmStatus
from tests.fakes.lockspace import FakeLockspace

RUNS = 15
ROOT = Path(__file__).parents[2]
#: Hosts -> the target, ms of wall time.
TARGETS_MS = {3: 100.0, 100: 150.0, 2000: 600.0}
WARM_UP_S = 180.0
_UP = EngineStatus(VmStatus.UP, Health.GOOD, "up")
_DOWN = EngineStatus(VmStatus.DOWN, Health.BAD, "unknown", "vm not running on this host")

Row = tuple[str, str, list[float], float | None]


def rows() -> Iterator[Row]:
    """Name, unit, values, target of each figure."""
    for hosts, target_ms in TARGETS_MS.items():
        with (
            TemporaryDirectory(dir=os.environ.get("HA_BENCH_DIR")) as folder,
            running(Path(folder), hosts) as command,
        ):
            wall, cpu = _measured(command)
            yield f"ha-agent --status, {hosts} hosts", "ms", wall, target_ms
            yield f"ha-agent --status, {hosts} hosts, CPU", "ms", cpu, None
            wall, _ = _measured([*command, "--json"])
            yield f"ha-agent --status --json, {hosts} hosts", "ms", wall, target_ms


def _measured(command: list[str]) -> tuple[list[float], list[float]]:
    wall, cpu = [], []
    for _ in range(RUNS):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        began_s = time.perf_counter()
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        wall.append((time.perf_counter() - began_s) * 1e3)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu.append((after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * 1e3)
    return wall, cpu


@contextmanager
def running(folder: Path, hosts: int) -> Iterator[list[str]]:
    """The command line that asks the broker in `folder`, which runs meanwhile."""
    (folder / "whiteboard").write_bytes(bytes((hosts + 1) * SLOT_BYTES))
    config = folder / "ha-agent.toml"
    config.write_text(
        '[host]\nid = 1\nname = "host1"\n'
        f'[storage]\nwhiteboard = "{folder}/whiteboard"\nleases = "{folder}/leases"\n'
        f'[daemon]\nstate-dir = "{folder}"\nsocket = "{folder}/broker.sock"\n'
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.status", str(folder), str(hosts)], cwd=ROOT
    )
    try:
        command = [*_installed(folder), "--config", str(config), "--status"]
        _wait_for(command, hosts)
        yield command
    finally:
        process.terminate()
        process.wait()


def _wait_for(command: list[str], hosts: int) -> None:
    """Until the broker sees that many hosts live."""
    until_s = time.monotonic() + WARM_UP_S
    while time.monotonic() < until_s:
        time.sleep(0.5)
        said = subprocess.run([*command, "--json"], capture_output=True)
        seen = json.loads(said.stdout)["hosts"].values() if not said.returncode else ()
        if sum(host["liveness"] == "live" for host in seen) == hosts:
            return
    raise SystemExit(f"the broker does not see {hosts} hosts within {WARM_UP_S} s")


def _installed(folder: Path) -> list[str]:
    """The command as packaging/install.py starts it, with this tree and this environment's
    libraries."""
    libraries = [str(ROOT), sysconfig.get_path("purelib")]
    start = folder / "ha-agent"
    start.write_text(
        f"import sys\nsys.path[:0] = {libraries}\nfrom agent.main import main\nmain()\n"
    )
    return ["/usr/bin/python3", "-I", str(start)]


# --- the process with the broker ------------------------------------------------------------


class _Engine:
    lease_held: bool | None = True
    migration: MigrationStatus | None = None
    facts: DomainHere = DomainHere()


async def _serve(folder: Path, hosts: int) -> None:
    path = str(folder / "ha-agent.toml")
    config = load(path)
    broker = Broker(
        config,
        Board(VolumeStore(config.storage.whiteboard, 2.0), 1),
        FakeLockspace(),
        Watched(MonitorRunner([]), _Engine()),
    )
    broker.in_force.file_s = changed_s(path)
    await serve(broker, config.daemon.socket)
    writing = asyncio.create_task(asyncio.to_thread(_write, config.storage.whiteboard, hosts))
    beating = asyncio.create_task(broker.run())
    while True:
        broker.monitors.latest["engine"] = Sample(_UP, asyncio.get_running_loop().time())
        await asyncio.sleep(1.0)
        assert not writing.done() and not beating.done()


def _write(path: str, hosts: int) -> None:
    """Every other host's slot, each second, in one go: that it is one writer is not measured."""
    file = os.open(path, os.O_RDWR)
    os.pwrite(file, encode_cluster(False), 0)
    count = 0
    while True:
        count += 1
        slots = b"".join(_slot(host, count) for host in range(2, hosts + 1))
        os.pwrite(file, slots, 2 * SLOT_BYTES)
        os.fdatasync(file)
        time.sleep(1.0)


def _slot(host: int, count: int) -> bytes:
    extra = {
        "state": "EngineDown",
        "agent": "ok",
        "boot-id": "00000000-0000-0000-0000-000000000000",
        "system-uuid": f"00000000-0000-0000-0000-{host:012}",
        "reason": "the VM is up on host1",
        "penalty-load": "310 mean load 0.55",
    }
    return encode_slot(SlotReport(host, count, 3090, _DOWN, f"host{host}", extra=extra))


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1]), int(sys.argv[2])))
