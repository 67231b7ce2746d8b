# SPDX-License-Identifier: LGPL-2.1-or-later
"""What strangers cost the VM's host in a cluster of real daemons: its beats, its CPU and its
heartbeats, while another machine does all of tests/bench/attack.py to it and a slot is forged each
second. `python -m tests.bench flood`.

The third host is left alone: what its beats are late in the same minutes is the machine's.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from broker.config.cluster_key import ClusterKey
from broker.config.sections import HEARTBEAT_PORT
from broker.peers.datagram import Question, question_bytes
from broker.peers.heartbeat import new_nonce
from tests.lab import ask
from tests.lab.cluster import Cluster
from tests.lab.layout import API_PORT, HOST_BRIDGE, NETWORK_PREFIX, host_id_of

from .attack import SOURCES
from .daemons import Pair, cpu_percent, lab, scrape
from .figure import Figure
from .forged import Forged
from .jitter import P99_MAX_S, late_between, p99_ms

SETTLE_S = 30.0
ANSWERED_S = 60.0
#: Nobody disturbs for so long, before.
BEFORE_S = 60.0
#: Addresses that nobody else has in the lab.
ADDRESSES = [f"{NETWORK_PREFIX}.{number}" for number in range(211, 211 + SOURCES)]


def measure(minutes: float) -> Iterator[Figure]:
    """Before, and meanwhile."""
    with lab() as cluster:
        owner = cluster.wait_healthy(ANSWERED_S)
        sender, left_alone = (host for host in cluster.hosts if host != owner)
        hosts = {owner: "attacked", left_alone: "left alone"}
        time.sleep(SETTLE_S)
        yield from _over(cluster, hosts, BEFORE_S, "before", None)
        before = _acts(cluster)
        with ExitStack() as stack:
            stack.enter_context(_attack(cluster, sender, owner))
            stack.enter_context(Forged(cluster.layout.whiteboard))
            yield from _over(cluster, hosts, minutes * 60.0, "under attack", P99_MAX_S * 1e3)
        after = _acts(cluster)
        for act, count in after.items():
            yield Figure(f"{act} (under attack)", "", [float(count - before[act])], 0)


def _over(
    cluster: Cluster, hosts: dict[str, str], for_s: float, when: str, target: float | None
) -> Iterator[Figure]:
    before = {host: scrape(cluster, host) for host in hosts}
    cpu = cpu_percent([Pair.of(cluster, host) for host in hosts], for_s)
    after = {host: scrape(cluster, host) for host in hosts}
    for (host, which), used in zip(hosts.items(), cpu, strict=True):
        what = f"{when}, {which}"
        late = late_between(before[host], after[host])
        wanted = target if which == "attacked" else None
        yield Figure(f"beats ({what})", "", [late[-1][1]])
        yield Figure(f"p99 of beat start after plan ({what})", "ms", [p99_ms(late)], wanted)
        yield Figure(f"CPU of broker and agent ({what})", "% of 1", [used])
    (owner, left_alone) = hosts
    name = "ha_agent_heartbeat_questions_total,outcome="
    counts = {
        key.removeprefix(name): after[owner][key] - before[owner].get(key, 0.0)
        for key in after[owner]
        if key.startswith(name)
    }
    yield Figure(f"questions answered ({when})", "", [counts.pop("answered")])
    yield Figure(f"datagrams refused a second ({when})", "", [sum(counts.values()) / for_s])
    seen = ask.status(cluster, left_alone)["hosts"][str(host_id_of(owner))]["witnesses"]
    is_silent = seen["unanswered_s"] is not None or seen["port_silent_s"] is not None
    yield Figure(f"questions to it unanswered ({when})", "", [float(is_silent)], 0)


def _acts(cluster: Cluster) -> dict[str, int]:
    """What strangers must not cause, as all hosts have counted it."""
    found = {"fencing attempts": 0, "changes of state": 0, "starts, stops and moves": 0}
    for host in cluster.hosts:
        for key, value in scrape(cluster, host).items():
            if key.startswith("ha_agent_fences_total"):
                found["fencing attempts"] += int(value)
            elif key.startswith("ha_agent_transitions_total"):
                found["changes of state"] += int(value)
        # Another process, or another host, would make another sum of the numbers.
        pids: list[Any] = cluster.status()["hosts"][host]["engine_pids"]
        found["starts, stops and moves"] += sum(pids)
    return found


@contextmanager
def _attack(cluster: Cluster, sender: str, owner: str) -> Iterator[None]:
    own, address = host_id_of(sender), cluster.layout.host(host_id_of(owner)).address
    key = ClusterKey(bytes.fromhex(cluster.settings.cluster_key))
    recorded = question_bytes(key, Question(own, host_id_of(owner), "recorded", 1, new_nonce()))
    for source in ADDRESSES:
        cluster.sh(sender, ["ip", "address", "add", f"{source}/32", "dev", HOST_BRIDGE])
    argv = [sys.executable, "-m", "tests.bench.attack", address, str(API_PORT)]
    command, environment = cluster.sh_command(sender, [*argv, str(HEARTBEAT_PORT), *ADDRESSES])
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as them:
        try:
            assert them.stdin is not None and them.stdout is not None
            them.stdin.write(recorded.hex() + "\n")
            them.stdin.flush()
            assert them.stdout.readline() == "begun\n"
            yield
            assert them.poll() is None, "the strangers have ended"
        finally:
            # The flood ends with its standard input; the process started here is only its parent.
            them.communicate()
            for source in ADDRESSES:
                cluster.sh(sender, ["ip", "address", "del", f"{source}/32", "dev", HOST_BRIDGE])
