# SPDX-License-Identifier: LGPL-2.1-or-later
"""Questions the lab's tests ask as an administrator would: by the command line."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from .cluster import Cluster
from .errors import LabError
from .layout import host_id_of

POLL_S = 0.2


def status(cluster: Cluster, host: str) -> dict[str, Any]:
    """`ha-agent --status --json` on a host; LabError where it says nothing (it boots)."""
    shown = cluster.sh(host, ["ha-agent", "--status", "--json"])
    if not shown.stdout:
        raise LabError(f"{host}: status says nothing ({shown.returncode}): {shown.stderr.strip()}")
    answer: dict[str, Any] = json.loads(shown.stdout)
    return answer


def state(cluster: Cluster, host: str) -> str:
    """The host's own state, "" while its broker does not answer."""
    answer = status(cluster, host)
    own = answer.get("hosts", {}).get(str(answer.get("host_id")), {})
    return str(own.get("state", ""))


def in_place(cluster: Cluster, host: str) -> bool:
    """Whether that host sees the engine up, all others ready to take it, and hears from each."""
    try:
        shown = status(cluster, host)
    except LabError as error:
        print(f"not in its place: {error}", flush=True)
        return False
    hosts = shown.get("hosts", {})
    seen = [hosts.get(str(host_id_of(name)), {}) for name in cluster.hosts]
    return (
        {one.get("state") for one in seen} == {"EngineUp", "EngineDown"}
        and all(one.get("liveness") == "live" and one.get("score", 0) > 0 for one in seen)
        and all(
            (one.get("witnesses") or {}).get("heartbeat") == "answered"
            for one in seen
            if one.get("hostname") != host
        )
    )


def until(what: str, within_s: float, holds: Callable[[], object]) -> None:
    """Wait until it holds; AssertionError naming it when it does not in time."""
    deadline_s = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline_s, f"not within {within_s:.0f} s: {what}"
        time.sleep(POLL_S)


def during(what: str, for_s: float, holds: Callable[[], object]) -> None:
    """Watch that it holds all the time; AssertionError naming it when it does not."""
    until_s = time.monotonic() + for_s
    while time.monotonic() < until_s:
        assert holds(), f"no longer: {what}"
        time.sleep(POLL_S)


def lease_holders(cluster: Cluster, host: str) -> set[int]:
    """Pids (as the host counts them) that sanlock on the host says hold the engine lease."""
    shown = cluster.sh(host, ["sanlock", "client", "status"])
    holders = set()
    for line in shown.stdout.splitlines():
        words = line.split()
        if words[:1] == ["r"] and ":engine:" in words[1] and words[-1].isdigit():
            holders.add(int(words[-1]))
    return holders


def seen(lab: Cluster, asker: str, peer: str) -> dict[str, Any]:
    """The peer in the asker's table of witnesses; empty while there is none."""
    host = status(lab, asker).get("hosts", {}).get(str(host_id_of(peer)), {})
    return host.get("witnesses") or {}


def heartbeat(lab: Cluster, asker: str, peer: str) -> str:
    """What became of the asker's last question to the peer; empty before the first."""
    return str(seen(lab, asker, peer).get("heartbeat", ""))


def says(lab: Cluster, asker: str, peer: str, word: str) -> bool:
    """Whether that is `word`."""
    return heartbeat(lab, asker, peer) == word
