# SPDX-License-Identifier: LGPL-2.1-or-later
"""What strangers cost the engine's host: its beats, its CPU and its heartbeats, while another
machine sends garbage and a recorded question to its port for heartbeats and fills its listener.

`python -m tests.bench flood`. As a program, `python -m tests.bench.flood ADDRESS PER_SECOND`, it is
the machine that sends; the recorded datagram comes in hexadecimal on standard input.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack

from broker.config.cluster_key import ClusterKey
from broker.config.sections import HEARTBEAT_PORT
from broker.peers.datagram import DATAGRAM_BYTES, Question, question_bytes
from broker.peers.heartbeat import new_nonce
from tests.lab import ask
from tests.lab.ask import says
from tests.lab.cluster import Cluster
from tests.lab.idle_connections import idle_connections
from tests.lab.layout import host_id_of

from .daemons import Pair, cpu_percent, lab, scrape
from .figure import Figure
from .jitter import P99_MAX_S, late_between, p99_ms

#: Datagrams a second, half of them garbage, half a question that was asked before.
PER_SECOND = 2000
#: So many go out at once, so that the sender needs no more of the machine than it must.
BURST = 20
SETTLE_S = 30.0
ANSWERED_S = 60.0


def measure(minutes: float) -> Iterator[Figure]:
    """Before, and meanwhile."""
    with lab() as cluster:
        owner = cluster.wait_healthy(ANSWERED_S)
        sender, asker = (host for host in cluster.hosts if host != owner)
        time.sleep(SETTLE_S)
        for_s = minutes * 60.0
        yield from _over(cluster, owner, asker, for_s, "nobody disturbs")
        with ExitStack() as stack:
            stack.enter_context(_flood(cluster, sender, owner))
            yield from _over(
                cluster, owner, asker, for_s, f"{PER_SECOND} datagrams a second", P99_MAX_S * 1e3
            )
        with idle_connections(cluster, sender, owner):
            ask.during("the owner answers", 10.0, lambda: says(cluster, asker, owner, "answered"))


def _over(
    cluster: Cluster, owner: str, asker: str, for_s: float, what: str, target: float | None = None
) -> Iterator[Figure]:
    before, pair = scrape(cluster, owner), Pair.of(cluster, owner)
    (cpu,) = cpu_percent([pair], for_s)
    after = scrape(cluster, owner)
    yield Figure(f"CPU of broker and agent ({what})", "% of 1", [cpu])
    late = late_between(before, after)
    yield Figure(f"p99 of beat start after plan ({what})", "ms", [p99_ms(late)], target)
    name = "ha_agent_heartbeat_questions_total,outcome="
    counts = {
        key.removeprefix(name): after[key] - before.get(key, 0.0)
        for key in after
        if key.startswith(name)
    }
    yield Figure(f"questions answered ({what})", "", [counts.pop("answered")])
    yield Figure(f"datagrams refused a second ({what})", "", [sum(counts.values()) / for_s])
    seen = ask.status(cluster, asker)["hosts"][str(host_id_of(owner))]["witnesses"]
    is_silent = seen["unanswered_s"] is not None or seen["port_silent_s"] is not None
    yield Figure(f"questions to it unanswered ({what})", "", [float(is_silent)], 0)


def _flood(cluster: Cluster, sender: str, owner: str) -> subprocess.Popen[str]:
    """Runs until its block is left."""
    own, address = host_id_of(sender), cluster.layout.host(host_id_of(owner)).address
    key = ClusterKey(bytes.fromhex(cluster.settings.cluster_key))
    recorded = question_bytes(key, Question(own, host_id_of(owner), "recorded", 1, new_nonce()))
    argv = [sys.executable, "-m", "tests.bench.flood", address, str(PER_SECOND)]
    command, environment = cluster.sh_command(sender, argv)
    flood = _Flood(command, env=environment, stdin=subprocess.PIPE, text=True)
    assert flood.stdin is not None
    flood.stdin.write(recorded.hex() + "\n")
    flood.stdin.flush()
    return flood


class _Flood(subprocess.Popen[str]):
    def __exit__(self, *_: object) -> None:
        self.kill()
        self.wait()


def main() -> None:
    """Send for ever."""
    address, per_second = sys.argv[1], int(sys.argv[2])
    recorded = bytes.fromhex(sys.stdin.readline())
    garbage = b"ha-agent heartbeat question 1\n".ljust(DATAGRAM_BYTES, b"x")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        due_s = time.monotonic()
        while True:
            for _ in range(BURST // 2):
                sock.sendto(garbage, (address, HEARTBEAT_PORT))
                sock.sendto(recorded, (address, HEARTBEAT_PORT))
            due_s += BURST / per_second
            time.sleep(max(0.0, due_s - time.monotonic()))


if __name__ == "__main__":
    main()
