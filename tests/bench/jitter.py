# SPDX-License-Identifier: LGPL-2.1-or-later
"""How late the beats of one host begin while everything around its broker hangs at once.

The storage hangs and comes back again and again, so that the first moment of a hang, when
nothing is known of it yet, is in the figure many times. All the while the name server and the
mail server take what is sent to them and never answer, and libvirtd is stopped (SIGSTOP).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

from broker.config.secrets import WEBHOOK_KEY_CHARS_MIN
from tests.lab import ask
from tests.lab.cluster import Cluster

from .daemons import lab, scrape
from .figure import Figure

#: sanlock at the lab's io_timeout of 2 s bears a storage that is away for 16 s.
HANG_S = 12.0
PAUSE_S = 8.0
SETTLE_S = 10.0
TOLD_S = 30.0
P99_MAX_S = 0.05

TAR_PIT = """
import socket, sys, time
address, ports = sys.argv[1], (25, 53)
open_ones = [socket.create_server((address, port), backlog=1024) for port in ports]
names = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
names.bind((address, 53))
print("ready", flush=True)
time.sleep(1e6)
"""

FAULTY = """
[notify.smtp]
server = "{pit}"
port = 25
security = "none"
sender = "ha@lab.example"
recipients = ["admin@lab.example"]

[notify.webhook]
url = "http://hooks.lab.example/"
"""


def measure(minutes: float) -> Iterator[Figure]:
    """The figures of one host with the faults and, beside it, of one without."""
    with lab() as cluster:
        engine = cluster.wait_healthy(TOLD_S)
        faulty, pit = [host for host in cluster.hosts if host != engine]
        yield from _measure(cluster, faulty, pit, engine, minutes)


def _measure(
    cluster: Cluster, faulty: str, pit: str, calm: str, minutes: float
) -> Iterator[Figure]:
    where = cluster.layout.host(cluster.hosts.index(pit) + 1).address
    command, environment = cluster.sh_command(pit, [sys.executable, "-c", TAR_PIT, where])
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as tar_pit:
        try:
            assert tar_pit.stdout is not None and tar_pit.stdout.readline() == "ready\n"
            _turn_to(cluster, faulty, where)
            libvirtd = cluster.census().daemon(faulty, "libvirtd")
            assert libvirtd is not None
            before = {host: scrape(cluster, host) for host in (faulty, calm)}
            os.kill(libvirtd, signal.SIGSTOP)
            _hang_again_and_again(cluster, faulty, time.monotonic() + minutes * 60.0)
            seen = ask.status(cluster, faulty)
            os.kill(libvirtd, signal.SIGCONT)
            after = {host: scrape(cluster, host) for host in (faulty, calm)}
            cluster.end_faults()
        finally:
            tar_pit.kill()
    _check_that_they_bit(seen, before[faulty], after[faulty])
    for host, what in ((faulty, "all four faults"), (calm, "no fault, same machine")):
        late = late_between(before[host], after[host])
        begun = late[-1][1]
        yield Figure(f"beats begun ({what})", "", [begun])
        target = P99_MAX_S * 1e3 if host == faulty else None
        yield Figure(f"p99 of beat start after plan ({what})", "ms", [p99_ms(late)], target)
        within = next(count for bound, count in late if bound >= P99_MAX_S)
        yield Figure(f"beats later than {P99_MAX_S * 1e3:.0f} ms ({what})", "", [begun - within])


def _turn_to(cluster: Cluster, host: str, pit: str) -> None:
    """Have the host's broker ask names of, and send mail to, who never answers."""
    layout = cluster.layout.host(cluster.hosts.index(host) + 1)
    (layout.etc / "resolv.conf").write_text(f"nameserver {pit}\n")
    good = layout.config.read_text().replace('test = "ping"', f'test = "dns"\ndns-server = "{pit}"')
    layout.config.write_text(good + FAULTY.format(pit=pit))
    with layout.secrets.open("a") as secrets:
        secrets.write(f'\n[notify]\nwebhook-key = "{"k" * WEBHOOK_KEY_CHARS_MIN}"\n')
    cluster.reload(host)

    def is_in_force() -> bool:
        notify = ask.status(cluster, host)["notify"]
        return len(notify["transports"]) == 2

    ask.until("the faulty configuration is in force", TOLD_S, is_in_force)
    time.sleep(SETTLE_S)


def _hang_again_and_again(cluster: Cluster, host: str, until_s: float) -> None:
    while time.monotonic() < until_s:
        command, environment = cluster.sh_command(host, ["ha-agent", "notify", "test"])
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as told:
            cluster.storage(host, "hang")
            time.sleep(HANG_S)
            cluster.storage(host, "ok")
            time.sleep(PAUSE_S)
            told.kill()


def _check_that_they_bit(
    seen: dict[str, object], before: dict[str, float], after: dict[str, float]
) -> None:
    """A figure without its faults says nothing."""
    monitors = seen["monitors"]
    assert isinstance(monitors, dict)
    assert monitors["engine"]["verdict"] == "unknown", monitors["engine"]
    assert monitors["network"]["value"] != {}, monitors["network"]
    errors = "ha_agent_storage_errors_total"
    assert after[errors] - before[errors] >= HANG_S / 2, after[errors]


def late_between(before: dict[str, float], after: dict[str, float]) -> list[tuple[float, float]]:
    """(upper bound in seconds, beats not later than it), ascending, of the time between."""
    name = "ha_agent_beat_lateness_seconds_bucket,le="
    bounds = [key.removeprefix(name) for key in after if key.startswith(name)]
    return sorted((float(b), after[name + b] - before.get(name + b, 0.0)) for b in bounds)


def p99_ms(late: list[tuple[float, float]]) -> float:
    """The upper bound of the bucket in which the 99th percentile lies."""
    return next(bound for bound, count in late if count >= 0.99 * late[-1][1]) * 1e3
