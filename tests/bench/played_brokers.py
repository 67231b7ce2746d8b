# SPDX-License-Identifier: LGPL-2.1-or-later
"""Brokers of a cluster on a whiteboard in a file, with their doors for strangers and their ports
for heartbeats, as a program: `python -m tests.bench.played_brokers FOLDER HOSTS NETWORK`.

HOSTS: `1` or `2,3`; host 1 has the address NETWORK.1, and the VM. Says "ready" once it runs, and
runs until standard input ends; then it says in JSON how late the beats of the first of them began,
how late its loop woke, and what it used. There is no sanlock, no libvirt and no agent: what is
measured is the loop that writes the slot.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import sys
import time
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import psutil

from broker.api.front import FrontProcess
from broker.broker import Broker
from broker.config.addresses import split
from broker.config.cluster_key import ClusterKey
from broker.config.load import load
from broker.config.sections import HEARTBEAT_PORT
from broker.daemon.histogram import Histogram
from broker.monitors.runner import MonitorRunner, Sample
from broker.monitors.watched import Watched
from broker.peers.asker import Heartbeats
from broker.peers.heartbeat_port import HeartbeatPort, NetworkTransport
from broker.whiteboard.board import Board
from broker.whiteboard.signatures import Signatures
from broker.whiteboard.store import VolumeStore
from scoring.vm_facts import EngineStatus, Health, VmStatus
from tests.fakes.broker import Engine, report
from tests.fakes.lockspace import FakeLockspace

KEY = ClusterKey(b"the key of the cluster that is measured")
API_PORT = 8765
TICK_S, DEADLINE_S = 0.01, 2.0
UP = EngineStatus(VmStatus.UP, Health.GOOD, "up")
DOWN = EngineStatus(VmStatus.DOWN, Health.BAD, "unknown", "vm not running on this host")


@dataclass(slots=True)
class Spent:
    """What the first broker did. Times in ms, CPU in seconds. `collected_ms`: how long Python's
    collector stopped it."""

    beats_ms: list[float] = field(default_factory=list)
    wakes_ms: list[float] = field(default_factory=list)
    collected_ms: list[float] = field(default_factory=list)
    cpu_s: float = 0.0
    front_cpu_s: float = 0.0
    for_s: float = 0.0


class Noted(Histogram):
    """Keeps every value."""

    def __init__(self, values_ms: list[float]) -> None:
        super().__init__()
        self._values_ms = values_ms

    def add(self, seconds: float) -> None:
        super().add(seconds)
        self._values_ms.append(1e3 * seconds)


def made(folder: Path, host_id: int, network: str) -> Broker:
    """The broker of a host."""
    path, address = folder / f"{host_id}.toml", f"{network}.{host_id}"
    path.write_text(
        f'[host]\nid = {host_id}\nname = "host{host_id}"\n'
        f'[storage]\nwhiteboard = "{folder}/whiteboard"\nleases = "/l"\n'
        f'[api]\nlisten = ["{address}:{API_PORT}"]\n'
        f'heartbeat-listen = ["{address}:{HEARTBEAT_PORT}"]\n'
        f'[daemon]\nstate-dir = "{folder}/{host_id}"\nsocket = "{folder}/{host_id}.sock"\n'
    )
    config = load(str(path))
    store = VolumeStore(config.storage.whiteboard, DEADLINE_S)
    board = Board(store, host_id, signatures=Signatures(KEY))
    heartbeats = Heartbeats(host_id, KEY, NetworkTransport())
    watched = Watched(MonitorRunner([]), Engine())
    return Broker(config, board, FakeLockspace(), watched, heartbeats=heartbeats)


def answer(broker: Broker, raw: bytes, source: str) -> bytes | None:
    """To a datagram from that address."""
    return broker.sign_of_life.answer(raw, source, asyncio.get_running_loop().time())


async def live(broker: Broker) -> None:
    """What its monitors and its agent would say."""
    loop, is_up = asyncio.get_running_loop(), broker.config.host.id == 1
    while True:
        broker.monitors.latest["engine"] = Sample(UP if is_up else DOWN, loop.time())
        broker.take_report(report("EngineUp" if is_up else "EngineDown"), loop.time())
        await asyncio.sleep(1.0)


async def note_wakes(values_ms: list[float]) -> None:
    """How late a timer of the loop is, again and again."""
    loop = asyncio.get_running_loop()
    while True:
        due_s = loop.time() + TICK_S
        await asyncio.sleep(TICK_S)
        values_ms.append(1e3 * (loop.time() - due_s))


def note_collector(values_ms: list[float]) -> None:
    """How long each run of Python's collector takes."""
    begun_s = 0.0

    def note(phase: str, _: dict[str, int]) -> None:
        nonlocal begun_s
        if phase == "start":
            begun_s = time.perf_counter()
        else:
            values_ms.append(1e3 * (time.perf_counter() - begun_s))

    gc.callbacks.append(note)


async def main() -> None:
    """Until standard input ends."""
    folder, hosts, network = Path(sys.argv[1]), sys.argv[2].split(","), sys.argv[3]
    logging.disable()
    loop, ended, spent = asyncio.get_running_loop(), asyncio.Event(), Spent()
    loop.add_reader(sys.stdin.fileno(), ended.set)
    brokers = [made(folder, int(host), network) for host in hosts]
    tasks, doors = [], []
    for broker in brokers:
        door = FrontProcess(broker)
        await door.start(map(split, broker.config.api.listen))
        port = HeartbeatPort(partial(answer, broker))
        await port.start(map(split, broker.config.heartbeat_listen()))
        runs = (live(broker), broker.run(), broker.heartbeats.run(), door.run())
        tasks += [asyncio.create_task(run) for run in runs]
        doors.append(door)
    for door in doors:
        await door.ready.wait()
    print("ready", flush=True)
    this = psutil.Process()
    (front,) = this.children()[:1]
    brokers[0].lateness = Noted(spent.beats_ms)
    note_collector(spent.collected_ms)
    tasks.append(asyncio.create_task(note_wakes(spent.wakes_ms)))
    began_s, cpu_s, front_cpu_s = loop.time(), time.process_time(), sum(front.cpu_times()[:2])
    await ended.wait()
    spent.for_s, spent.cpu_s = loop.time() - began_s, time.process_time() - cpu_s
    spent.front_cpu_s = sum(front.cpu_times()[:2]) - front_cpu_s
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for door in doors:
        await door.close()
    print(json.dumps(asdict(spent)), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
