# SPDX-License-Identifier: LGPL-2.1-or-later
"""The main job on real parts: started on the best host, under its lease, and back after
everything that may happen to its host. Each test's fixture watches law 1 at 20 ms."""

from __future__ import annotations

import os
from functools import partial

import pytest

from broker.whiteboard.sizes import SLOT_BYTES
from broker.whiteboard.slot import decode_slot

from . import ask, ready
from .cluster import Cluster
from .errors import law
from .layout import VM_NAME

TAKEOVER_S = 300.0


def others(lab: Cluster, host: str) -> list[str]:
    return [name for name in lab.hosts if name != host]


def test_the_running_engine_holds_the_lease(lab: Cluster) -> None:
    host = lab.wait_healthy(TAKEOVER_S)
    pid_file = lab.sh(host, ["cat", f"/run/libvirt/qemu/{VM_NAME}.pid"])
    assert ask.lease_holders(lab, host) == {int(pid_file.stdout)}
    ask.until("its state is EngineUp", 15, lambda: ask.state(lab, host) == "EngineUp")
    for other in others(lab, host):
        assert ask.lease_holders(lab, other) == set()


def test_a_second_start_is_refused_by_the_lease(lab: Cluster) -> None:
    host = lab.wait_healthy(TAKEOVER_S)
    other = others(lab, host)[0]
    refused = lab.sh(other, ["virsh", "start", VM_NAME])
    assert refused.returncode != 0
    assert lab.engine_host() == host
    assert lab.page_answers()


def test_a_killed_vm_comes_back_on_the_best_of_the_other_hosts(lab: Cluster) -> None:
    host = lab.wait_healthy(TAKEOVER_S)
    last, best = others(lab, host)
    ask.until("the engine is up for good", 15, lambda: ask.state(lab, host) == "EngineUp")
    ready.in_local_maintenance(lab, last)
    lab.kill(host, "qemu")
    assert lab.wait_healthy(TAKEOVER_S) == best, "the only host whose score is not 0"
    lab.sh(last, ["ha-agent", "maintenance", "none"])
    ask.until("maintenance is over", 10, lambda: ask.state(lab, last) == "EngineDown")


def test_a_power_cut_is_survived_and_the_host_comes_back(lab: Cluster) -> None:
    victim = lab.wait_healthy(TAKEOVER_S)
    lab.cut(victim)
    heir = lab.wait_healthy(TAKEOVER_S)
    assert heir != victim
    log = lab.log_path(heir, "agent").read_text()
    assert f"freed host id {victim.removeprefix('host')}" in log
    assert _last_word(lab, victim).get("uplink") == "up", "without power nobody sees his cable go"
    assert "no-global-maintenance" in log, "the preconditions are in the log with their values"
    lab.power_on(victim)
    lab.wait_booted(victim)
    ask.until("the host rejoined", 60, lambda: ask.state(lab, victim) == "EngineDown")
    assert lab.engine_host() == heir


def _last_word(lab: Cluster, host: str) -> dict[str, str]:
    """The lines that a host wrote to its slot last."""
    number = int(host.removeprefix("host"))
    with lab.layout.whiteboard.open("rb") as volume:
        volume.seek(number * SLOT_BYTES)
        report = decode_slot(number, volume.read(SLOT_BYTES))
    assert report is not None
    return dict(report.extra)


def test_killed_daemons_do_not_disturb_the_vm(lab: Cluster) -> None:
    host = lab.wait_healthy(TAKEOVER_S)
    before = lab.status()["hosts"][host]
    for daemon in ("agent", "broker", "libvirtd"):
        lab.kill(host, daemon)
        with law(6):
            ask.during("the same one QEMU", 4, lambda: same_engine(lab, host, before))
        ask.until(f"{daemon} is back", 20, partial(lab_daemon, lab, host, daemon))
    ask.until("all is well", 30, lambda: ask.state(lab, host) == "EngineUp")
    with law(6):
        assert same_engine(lab, host, before)
    assert lab.page_answers()


def same_engine(lab: Cluster, host: str, before: dict[str, object]) -> bool:
    return bool(lab.status()["hosts"][host]["engine_pids"] == before["engine_pids"])


def lab_daemon(lab: Cluster, host: str, daemon: str) -> int | None:
    return lab.census().daemon(host, daemon)


def has_reason(lab: Cluster, host: str, code: str) -> bool:
    return any(reason["code"] == code for reason in ask.status(lab, host)["reasons"])


def test_daemons_that_stay_away_do_not_make_peers_take_over(lab: Cluster) -> None:
    host = lab.wait_healthy(TAKEOVER_S)
    before = lab.status()["hosts"][host]
    lab.stop(host, "agent")
    lab.stop(host, "broker")
    with law(6):
        ask.during("the same one QEMU", 15, lambda: same_engine(lab, host, before))
    witness = others(lab, host)[0]
    assert ask.status(lab, witness)["hosts"][host.removeprefix("host")]["liveness"] == "silent"
    lab.start(host, "broker")
    lab.start(host, "agent")
    ask.until("all is well", 30, lambda: ask.state(lab, host) == "EngineUp")
    with law(6):
        assert same_engine(lab, host, before)


def test_global_maintenance_holds_everything(lab: Cluster) -> None:
    host = lab.wait_healthy(TAKEOVER_S)
    ready.in_global_maintenance(lab, host)
    lab.kill(host, "qemu")
    with law(4):
        ask.during("no engine anywhere", 15, lambda: lab.engine_host() is None)
    witness = others(lab, host)[0]
    shown = lab.sh(witness, ["ha-agent", "--status"])
    assert shown.returncode == 6, "the documented code for: the VM is down everywhere"
    assert "GLOBAL MAINTENANCE" in shown.stdout
    assert lab.sh(witness, ["ha-agent", "maintenance", "none"]).returncode == 0
    lab.wait_healthy(TAKEOVER_S)


def test_corrupted_slots_cost_only_themselves(lab: Cluster) -> None:
    host = lab.wait_healthy(TAKEOVER_S)
    before = lab.status()["hosts"][host]
    whiteboard = lab.status()["whiteboard"]
    unused = 12
    for slot in (int(host.removeprefix("host")), unused, 0):
        poke(whiteboard, slot, os.urandom(4096))
    witness = others(lab, host)[0]
    ask.until(
        "the unused slot and the cluster slot are reported",
        10,
        lambda: {"0", str(unused)} <= set(ask.status(lab, witness)["bad_slots"]),
    )
    with law(6):
        ask.during("the same one QEMU", 10, lambda: same_engine(lab, host, before))
    for slot in (unused, 0):
        poke(whiteboard, slot, bytes(4096))
    ask.until("all is well", 15, lambda: not ask.status(lab, witness)["bad_slots"])
    assert lab.page_answers()


def poke(whiteboard: str, slot: int, data: bytes) -> None:
    with open(whiteboard, "r+b") as file:
        file.seek(slot * 4096)
        file.write(data)


@pytest.mark.long
def test_without_a_bmc_sanlock_s_own_verdict_is_waited_for(lab_without_bmc: Cluster) -> None:
    lab = lab_without_bmc
    victim = lab.wait_healthy(TAKEOVER_S)
    lab.cut(victim)
    heir = others(lab, victim)[0]
    ask.until(
        "the wait is shown as a countdown",
        20,
        partial(has_reason, lab, heir, "lease-wait"),
    )
    # 8 * io_timeout + 60 s of sanlock, and the time to notice and to boot.
    assert lab.wait_healthy(68 + 40) == heir
