# SPDX-License-Identifier: LGPL-2.1-or-later
"""`python -m tests.bench scale [--hosts 3 100 500]`: what grows with the number of hosts.

One broker and what its agent does with its view, in one process: CPU time of each part of a beat,
with every slot new and signed in each of them, as it is where all hosts live. Not in it: the system
calls of the storage, the socket between the two daemons, heartbeats (`heartbeat`), and monitors,
none of which grows with the hosts but the heartbeats. At a beat of 1 s, 10 ms are 1 % of a core.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections import defaultdict
from functools import partial
from pathlib import Path

import msgspec

from broker.broker import Broker, Given
from broker.config.cluster_key import ClusterKey
from broker.config.load import load
from broker.monitors.runner import MonitorRunner
from broker.monitors.watched import Watched
from broker.peers.asker import Heartbeats
from broker.whiteboard.board import Board
from broker.whiteboard.signatures import COUNTER_LINE, SLOT, Signatures
from broker.whiteboard.slot import SlotReport, encode_cluster, encode_slot
from broker.wire.exchange import View
from scoring.decide import decide
from scoring.observation import Observation
from scoring.state import AgentState
from scoring.vm_facts import EngineStatus, Health, VmStatus
from tests.fakes.broker import Engine, report, up
from tests.fakes.lockspace import FakeLockspace
from tests.fakes.slot_store import MemoryStore, MemoryVolume

BEATS = 20
#: The first beats read what was never read.
WARM = 3
KEY = ClusterKey(bytes(32))
_DOWN = EngineStatus(VmStatus.DOWN, Health.BAD, "unknown", "vm not running on this host")


class _Hosts:
    """The other hosts: each writes a new slot each beat."""

    def __init__(self, volume: MemoryVolume, count: int) -> None:
        self._store, self._signer = MemoryStore(volume), Signatures(KEY)
        self._numbers = range(2, count + 1)

    async def beat(self, number: int) -> None:
        await self._store.write(0, encode_cluster(False, sign=partial(self._signer.sign, SLOT, 0)))
        for host in self._numbers:
            lines = {
                "boot-id": f"{host:08x}-0000-4000-8000-000000000000",
                COUNTER_LINE: str(number),
                "state": "EngineDown",
                "agent": "ok",
                "beat": str(number),
                "mem-free": "16384",
                "network": "gateway good",
                "heartbeat": f"192.0.2.{host % 250}:8766",
                "system-uuid": f"{host:08x}-0000-4000-8000-000000000001",
                "reason": "the VM runs on host1 (id 1)",
            }
            slot = SlotReport(host, number, 3400, _DOWN, f"host{host}", extra=lines)
            await self._store.write(host, encode_slot(slot, partial(self._signer.sign, SLOT, host)))


def _broker(folder: Path, volume: MemoryVolume) -> Broker:
    path = folder / "ha-agent.toml"
    path.write_text(
        f'[host]\nid = 1\nname = "host1"\n[storage]\nwhiteboard = "/w"\nleases = "/l"\n'
        f'[daemon]\nstate-dir = "{folder}"\nsocket = "{folder}/broker.sock"\n'
    )
    return Broker(
        load(str(path)),
        Board(MemoryStore(volume), 1, signatures=Signatures(KEY)),
        FakeLockspace(),
        Watched(MonitorRunner([]), Engine()),
        Given("boot"),
        heartbeats=Heartbeats(1, KEY, None),
    )


async def parts_ms(hosts: int) -> dict[str, float]:
    """Milliseconds of CPU a beat, by part: the median."""
    volume, spent = MemoryVolume(), defaultdict[str, list[float]](list)
    others = _Hosts(volume, hosts)
    with tempfile.TemporaryDirectory() as folder:
        broker, state = _broker(Path(folder), volume), AgentState()
        broker.take_report(report("EngineUp"), 0.5)
        for beat in range(1, BEATS + 1):
            now_s = float(beat)
            await others.beat(beat)
            up(broker, now_s)
            marks = [time.process_time()]
            await broker.beat(now_s)
            marks.append(time.process_time())
            raw = msgspec.json.encode(broker.view(now_s))
            marks.append(time.process_time())
            view = msgspec.json.decode(raw, type=View)
            marks.append(time.process_time())
            observation = Observation(
                local=view.local.observed(),
                peers=tuple(peer.observed() for peer in view.peers),
                storage_good_since_s=view.storage_good_since_s,
                sweep=view.sweep,
                global_maintenance=view.global_maintenance,
                lockspace_joined=True,
            )
            marks.append(time.process_time())
            state = decide(state, observation, now_s).state
            marks.append(time.process_time())
            if beat > WARM:
                names = ("broker: beat", "broker: view", "agent: view", "agent: hosts", "decide")
                for name, before, after in zip(names, marks, marks[1:], strict=False):
                    spent[name].append((after - before) * 1000.0)
        assert len(observation.peers) == hosts - 1
    return {name: statistics.median(times) for name, times in spent.items()}


def main(argv: list[str]) -> int:
    """0: it has no target of its own; `crowd` has."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench scale")
    parser.add_argument("--hosts", type=int, nargs="+", default=[3, 100, 500], metavar="N")
    options = parser.parse_args(argv)
    found = {hosts: asyncio.run(parts_ms(hosts)) for hosts in options.hosts}
    print("| CPU a beat, ms | " + " | ".join(f"{hosts} hosts" for hosts in found) + " |")
    print("| - |" + " - |" * len(found))
    rows = [*next(iter(found.values()))]
    for name in rows:
        print(f"| {name} | " + " | ".join(f"{parts[name]:.2f}" for parts in found.values()) + " |")
    sums = [sum(parts.values()) for parts in found.values()]
    print("| all | " + " | ".join(f"{total:.2f}" for total in sums) + " |")
    return 0
