# SPDX-License-Identifier: LGPL-2.1-or-later
"""SIGHUP to both daemons while the VM runs, and what the monitors see of the real parts."""

from __future__ import annotations

import os
import signal
from typing import Any

from . import ask
from .cluster import Cluster
from .layout import GATEWAY, VM_NAME

HEALTHY_S = 60.0
WITHIN_S = 15.0


def reload(lab: Cluster, host: str) -> None:
    for daemon in ("broker", "agent"):
        pid = lab.census().daemon(host, daemon)
        assert pid is not None, f"{daemon} does not run on {host}"
        os.kill(pid, signal.SIGHUP)


def monitor(lab: Cluster, host: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = ask.status(lab, host)["monitors"].get(name, {})
    return found


def log_of(lab: Cluster, host: str, daemon: str) -> str:
    return lab.log_path(host, daemon).read_text(errors="replace")


def with_timing(text: str, keys: str) -> str:
    """A configuration with more keys in [timing], which it may have already."""
    before, table, after = text.partition("[timing]\n")
    return f"{before}\n[timing]\n{keys}{after}" if table else f"{text}\n[timing]\n{keys}"


def test_both_daemons_read_their_file_anew_while_the_vm_runs(lab: Cluster) -> None:
    host = lab.wait_healthy(HEALTHY_S)
    ask.until("its state is EngineUp", WITHIN_S, lambda: ask.state(lab, host) == "EngineUp")
    ask.until(
        "the gateway was pinged",
        WITHIN_S,
        lambda: monitor(lab, host, "network").get("value") == {GATEWAY: 1.0},
    )
    engine, holders = lab.status()["hosts"][host], ask.lease_holders(lab, host)
    daemons = {name: lab.census().daemon(host, name) for name in ("agent", "broker")}
    path = lab.config_path(host)
    good = path.read_text()

    def is_untouched() -> bool:
        return (
            lab.status()["hosts"][host]["engine_pids"] == engine["engine_pids"]
            and ask.lease_holders(lab, host) == holders
            and ask.state(lab, host) == "EngineUp"
            and ask.status(lab, host)["lockspace"] == "joined"
        )

    try:
        path.write_text(with_timing(good, "beat = 2\nsuspectafter = 9\n"))
        reload(lab, host)
        words = "unknown key timing.suspectafter; did you mean suspect-after?"
        ask.until(
            "the mistake is told",
            WITHIN_S,
            lambda: words in ask.status(lab, host)["config_problem"],
        )
        shown = lab.sh(host, ["ha-agent", "--status"])
        assert "CONFIGURATION: an older one is in force" in shown.stdout
        assert words in shown.stdout
        ask.until("the agent refuses it too", WITHIN_S, lambda: words in log_of(lab, host, "agent"))
        ask.during("the VM, its lease and its state", 4, is_untouched)

        path.write_text(with_timing(good, "move-dwell = 45\n") + "\n[monitors]\nbridge = 33\n")
        reload(lab, host)
        ask.until(
            "the good one is in force",
            WITHIN_S,
            lambda: monitor(lab, host, "bridge").get("interval_s") == 33.0,
        )
        ask.until(
            "by the agent too", WITHIN_S, lambda: "is read anew" in log_of(lab, host, "agent")
        )
        ask.until(
            "neither has a problem any more",
            WITHIN_S,
            lambda: ask.status(lab, host)["config_problem"] == "",
        )
        ask.during("the VM, its lease and its state", 4, is_untouched)
        assert monitor(lab, host, "network")["value"][GATEWAY] > 0, "what was seen is kept"

        secrets = lab.sh(host, ["grep", "-o", "secrets = .*", str(path)]).stdout.split('"')[1]
        lab.sh(host, ["chmod", "0644", secrets])
        reload(lab, host)
        ask.until(
            "what only the agent refuses is told by the broker",
            WITHIN_S,
            lambda: "chmod 0600" in ask.status(lab, host)["config_problem"],
        )
        lab.sh(host, ["chmod", "0600", secrets])
    finally:
        path.write_text(good)
        reload(lab, host)
    ask.until("all is as before", WITHIN_S, lambda: ask.status(lab, host)["config_problem"] == "")
    assert daemons == {name: lab.census().daemon(host, name) for name in ("agent", "broker")}
    assert is_untouched()
    assert lab.page_answers()
    # The journal knows by which rules each decision was made.
    journal = path.parent / "state/journal/journal.jsonl"
    replayed = lab.sh(host, ["ha-agent", "replay", str(journal)])
    assert replayed.returncode == 0, replayed.stdout + replayed.stderr


def test_what_the_monitors_see_of_real_parts(lab: Cluster) -> None:
    host = lab.wait_healthy(HEALTHY_S)
    ask.until("its state is EngineUp", WITHIN_S, lambda: ask.state(lab, host) == "EngineUp")
    status = ask.status(lab, host)
    assert status["monitors"]["bridge"]["verdict"] == "ok", status["monitors"]["bridge"]
    assert status["monitors"]["memory"]["value"] > 0
    assert status["monitors"]["health"]["value"] == "good"
    load = status["monitors"]["cpu_load"]
    assert load["problem"].endswith("of 900 s seen") or load["value"] is not None
    assert status["storage"]["state"] == "ok"
    assert status["storage"]["write_times"]["count"] > 0
    assert 0 < status["lockspace_budget_s"] <= status["lockspace_budget_max_s"]
    # Renewed every two io_timeouts, and read every two seconds; a busy machine is late with both.
    enough_s = 5 * status["lockspace_budget_max_s"] / 8
    ask.until(
        "it is renewed", WITHIN_S, lambda: ask.status(lab, host)["lockspace_budget_s"] >= enough_s
    )
    for number in status["hosts"]:
        assert status["hosts"][number]["sanlock_state"] == "live", number

    lab.sh(host, ["virsh", "suspend", VM_NAME])
    ask.until(
        "the pause is told by an event",
        WITHIN_S,
        lambda: f"libvirt: {VM_NAME} paused" in log_of(lab, host, "broker"),
    )
    ask.until("and shown", WITHIN_S, lambda: monitor(lab, host, "engine").get("verdict") == "bad")
    assert "paused by" in monitor(lab, host, "engine")["problem"]
    lab.sh(host, ["virsh", "resume", VM_NAME])
    lab.wait_healthy(HEALTHY_S)
