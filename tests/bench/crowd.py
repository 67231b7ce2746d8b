# SPDX-License-Identifier: LGPL-2.1-or-later
"""What broker and agent cost in a cluster of 100 hosts: three real ones, 97 that are played.

Those write their slots and ask and answer over the network like real ones; they are not in
sanlock's lockspace, so what sanlock says of them is not in the figures.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial

from broker.config.sections import HEARTBEAT_PORT
from tests.lab import ask
from tests.lab.cluster import Cluster
from tests.lab.environment import clean
from tests.lab.layout import CHECKOUT

from .daemons import Pair, lab
from .figure import Figure
from .steady import costs

HOSTS = 100
#: A pass of the broker's window over all slots, which finds new hosts, takes 62 beats.
FOUND_S = 90.0


def measure(minutes: float) -> Iterator[Figure]:
    """The steady costs, over so many minutes."""
    with lab() as cluster:
        real = cluster.hosts
        ids = list(cluster.settings.host_ids())
        addresses = [cluster.layout.host(number).address for number in ids]
        place = cluster.census().first[real[-1]].pid
        command = ["nsenter", "-t", str(place), "-n", "--", sys.executable]
        command += ["-m", "tests.bench.crowd_hosts", str(cluster.layout.whiteboard)]
        command += [str(len(real) + 1), str(HOSTS), addresses[-1]]
        ports = zip(ids, addresses, strict=True)
        command += [",".join(f"{host}@{address}:{HEARTBEAT_PORT}" for host, address in ports)]
        with subprocess.Popen(
            command,
            env=clean(),
            cwd=CHECKOUT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as crowd:
            try:
                assert crowd.stdin is not None and crowd.stdout is not None
                crowd.stdin.write(cluster.settings.cluster_key + "\n")
                crowd.stdin.flush()
                assert crowd.stdout.readline() == "ready\n"
                for host in real:
                    sees_all = partial(_sees_all, cluster, host)
                    ask.until(f"{host} sees {HOSTS} live hosts", FOUND_S, sees_all)
                time.sleep(15.0)
                pairs = [Pair.of(cluster, host) for host in real]
                yield from costs(cluster, pairs, minutes * 60.0, 3.0, 150, 12)
            finally:
                crowd.kill()


def _sees_all(cluster: Cluster, host: str) -> bool:
    hosts = ask.status(cluster, host)["hosts"].values()
    return [each["liveness"] for each in hosts].count("live") == HOSTS
