# SPDX-License-Identifier: LGPL-2.1-or-later
"""Moves without downtime on real parts: ordered, refused, interrupted at each end; draining; the
VM started and stopped by hand. libvirt talks by TLS over the lab's network, so that a cut cable
cuts a migration. The fixture `lab` watches at 20 ms that no two QEMUs run the guest."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import time
from collections.abc import Iterator
from functools import partial

import pytest

from . import ask, configs, ready
from .cluster import Cluster
from .layout import VM_NAME, host_id_of
from .moving import (
    BEGUN_S,
    FREE,
    boots,
    ended,
    migration,
    order,
    others,
    refusal,
    settled,
    slow_migration,
    source_of,
    speed,
)

#: From a power cut on: to notice, to prove, to start, to boot an emulated guest.
TAKEOVER_S = 60.0


@pytest.fixture(scope="module")
def by_tls(shared_lab: Cluster) -> Iterator[Cluster]:
    """The shared lab, migrating over its network."""
    shared_lab.wait_healthy(TAKEOVER_S)
    for host in shared_lab.hosts:
        shared_lab.set_migration(host, configs.MIGRATION_BY_TLS)
    try:
        yield shared_lab
    finally:
        for host in shared_lab.hosts:
            if shared_lab.is_on(host):
                shared_lab.set_migration(
                    host, configs.MIGRATION_BY_SOCKET.format(lab=shared_lab.layout)
                )


@pytest.fixture
def moving(lab: Cluster, by_tls: Cluster) -> Iterator[Cluster]:
    """`lab` by TLS, every host in its place; modes and faults end after the test."""
    settled(lab, lab.wait_healthy(TAKEOVER_S), 45.0)
    try:
        yield lab
    finally:
        lab.end_faults()
        for host in lab.census().first:
            order(lab, host, "maintenance", "none")


def pair(lab: Cluster) -> tuple[str, str, str]:
    """The engine's host, the one to move to, and the third."""
    source = source_of(lab)
    target, third = others(lab, source)
    return source, target, third


def test_the_vm_is_moved_where_it_is_ordered_without_a_boot(moving: Cluster) -> None:
    source, _, third = pair(moving)
    before = boots(moving)
    done = order(moving, source, "migrate", "--to", third)
    assert (done.returncode, done.stdout) == (
        0,
        f"the VM runs on {third} (id {host_id_of(third)}) now\n",
    )
    settled(moving, third)
    done = order(moving, third, "migrate")
    assert done.returncode == 0, done.stderr
    home = moving.wait_healthy(TAKEOVER_S)
    settled(moving, home)
    assert boots(moving) == before
    assert "UnknownLocalVmState" not in log_since(moving, third, "EngineUp -> EngineMigratingAway")


def log_since(lab: Cluster, host: str, text: str) -> str:
    return lab.log_path(host, "agent").read_text().rpartition(text)[2]


def test_what_cannot_take_the_vm_is_refused_each_with_its_reason(moving: Cluster) -> None:
    source, target, third = pair(moving)
    migrate = partial(refusal, moving, source, "migrate", "--to")
    assert "runs on this very host" in migrate(source)
    assert f"{source} (id {host_id_of(source)})" in refusal(moving, third, "migrate"), "where it is"
    assert "no migration of the VM is under way" in refusal(moving, source, "migrate", "--cancel")
    unknown = order(moving, source, "migrate", "--to", "host9")
    assert unknown.returncode == 2 and "no such host" in unknown.stderr

    ready.in_local_maintenance(moving, target)
    assert "is in local maintenance" in migrate(target)
    order(moving, target, "maintenance", "none")

    moving.stop(target, "libvirtd")
    ask.until("it is", 15, lambda: peer_state(moving, source, target) == "UnknownLocalVmState")
    assert f"libvirt on {target}" in migrate(target)
    moving.start(target, "libvirtd")

    moving.stop(third, "agent")
    ask.until("it is known", 15, lambda: peer_state(moving, source, third) == "AgentStopped")
    assert "was stopped" in migrate(third)
    moving.start(third, "agent")

    ready.in_global_maintenance(moving, source)
    assert "global maintenance" in migrate(target)
    order(moving, source, "maintenance", "none")
    settled(moving, source, 30.0)


def peer_state(lab: Cluster, host: str, peer: str) -> str:
    shown = ask.status(lab, host).get("hosts", {}).get(str(host_id_of(peer)), {})
    return str(shown.get("state"))


def test_a_host_without_the_lock_driver_and_one_without_the_memory_are_refused(
    moving: Cluster,
) -> None:
    source, target, third = pair(moving)
    qemu_conf = moving.layout.host(host_id_of(target)).etc / "libvirt/qemu.conf"
    good = qemu_conf.read_text()
    definition = moving.layout.host(host_id_of(third)).definition
    small = definition.read_text()
    try:
        qemu_conf.write_text(good.replace("lock_manager", "#lock_manager"))
        ready.restart_libvirt(moving, target)
        definition.write_text(small.replace("<memory unit='MiB'>256<", "<memory unit='TiB'>8<"))
        ready.restart(moving, third, "agent")
        ask.until("it is short", 20, lambda: "cannot-start" in penalties(moving, source, third))
        ask.until("it is seen", 20, lambda: "lock-driver" in penalties(moving, source, target))
        assert "8388608 MiB of memory" in refusal(moving, source, "migrate", "--to", third)
        assert "without its lease" in refusal(moving, source, "migrate", "--to", target)
        assert "no other live host can take the VM" in refusal(moving, source, "migrate")
        assert moving.engine_host() == source
    finally:
        definition.write_text(small)
        qemu_conf.write_text(good)
        ready.restart(moving, third, "agent")
        ready.restart_libvirt(moving, target)
    settled(moving, source, 45.0)


def liveness(lab: Cluster, host: str, peer: str) -> str:
    shown = ask.status(lab, host).get("hosts", {}).get(str(host_id_of(peer)), {})
    return str(shown.get("liveness"))


def penalties(lab: Cluster, host: str, peer: str) -> set[str]:
    shown = ask.status(lab, host).get("hosts", {}).get(str(host_id_of(peer)), {})
    return {penalty["name"] for penalty in shown.get("penalties", ())}


def test_a_migration_is_shown_and_cancelled_and_a_second_order_is_refused(moving: Cluster) -> None:
    source, target, _ = pair(moving)
    with slow_migration(moving, source, target) as command:
        shown = ask.status(moving, source)
        progress = shown["migration"]
        assert 0 <= progress["percent"] <= 100 and progress["remaining"] <= progress["total"]
        ask.until(
            "the target has read of it",
            ready.KNOWN_S,
            lambda: peer_state(moving, target, source) == "EngineMigratingAway",
        )
        assert peer_state(moving, target, target) == "EngineDown", "it receives, and knows it"
        assert f"migrate {host_id_of(target)}, done or" in order(moving, target, "--status").stdout
        move = ask.status(moving, target)["hosts"][str(host_id_of(source))]["move"]
        assert (move["source"], move["target"]) == (host_id_of(source), host_id_of(target))
        assert 0 < move["left_s"] <= 340, "until when it is waited for"
        assert "still under way" in refusal(moving, source, "migrate")
        assert command.poll() is None, "the first order is not disturbed"
        cancelled = order(moving, source, "migrate", "--cancel")
        assert (cancelled.returncode, cancelled.stdout) == (0, "the migration is cancelled\n")
        code, said = ended(command)
        assert code == 11 and "cancelled by an operator's order" in said
    print(f"settled {settled(moving, source):.1f} s after a cancel")
    target_shown = ask.status(moving, target)["hosts"][str(host_id_of(target))]
    assert target_shown["engine_status"]["vm"] == "down", "nothing died there"


def test_the_agent_that_migrates_is_killed_and_the_migration_goes_on(moving: Cluster) -> None:
    source, target, _ = pair(moving)
    before = boots(moving)
    with slow_migration(moving, source, target) as command:
        moving.kill(source, "agent")
        code, said = ended(command)
        assert code == 11 and "was restarted meanwhile" in said
        ask.until(
            "the new agent follows it",
            BEGUN_S,
            lambda: ask.state(moving, source) == "EngineMigratingAway",
        )
        speed(moving, source, FREE)
        ask.until("it arrives", BEGUN_S, lambda: moving.engine_host() == target)
    print(f"settled {settled(moving, target):.1f} s after a migration without its agent")
    assert boots(moving) == before


def test_the_target_s_power_is_cut_and_the_vm_stays(moving: Cluster) -> None:
    source, target, _ = pair(moving)
    before = boots(moving)
    with slow_migration(moving, source, target) as command:
        moving.cut(target)
        code, said = ended(command)
        assert code == 11 and said, "it is told why"
    print(f"settled {settled(moving, source):.1f} s after the target was cut: {said.strip()}")
    ask.until("it is silent", 15, lambda: liveness(moving, source, target) == "silent")
    assert "is silent" in refusal(moving, source, "migrate", "--to", target)
    assert boots(moving) == before


def test_the_source_s_power_is_cut_and_the_vm_is_started_elsewhere(moving: Cluster) -> None:
    source, target, _ = pair(moving)
    with slow_migration(moving, source, target):
        cut_s = moving.cut(source)
        heir = moving.wait_healthy(TAKEOVER_S)
    print(f"healthy on {heir} {time.monotonic() - cut_s:.1f} s after the source was cut")
    settled(moving, heir)


def test_local_maintenance_drains_the_host_and_ends(moving: Cluster) -> None:
    source, _, _ = pair(moving)
    before = boots(moving)
    done = order(moving, source, "maintenance", "local", "--for", "1h", "--reason", "new fan")
    assert done.returncode == 0
    began_s = time.monotonic()
    ask.until("it is empty", 30, lambda: ask.state(moving, source) == "LocalMaintenance")
    print(f"drained {time.monotonic() - began_s:.1f} s after maintenance local")
    heir = moving.wait_healthy(TAKEOVER_S)
    assert heir != source
    ready.read_anew(moving, source)
    own = ask.status(moving, heir)["hosts"][str(host_id_of(source))]
    assert own["score"] == 0 and own["maintenance"]
    assert (own["mode"]["reason"], own["mode"]["owner"]) == ("new fan", f"root@{source}")
    assert "LOCAL MAINTENANCE" in order(moving, heir, "--status").stdout
    assert order(moving, source, "maintenance", "none").returncode == 0
    settled(moving, heir)
    assert boots(moving) == before


def test_another_host_is_emptied_and_orders_are_given_from_any_host(moving: Cluster) -> None:
    source, _, third = pair(moving)
    before = boots(moving)
    local = ("maintenance", "local", "--for", "10m")
    done = order(moving, third, *local, "--host", source, "--wait")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{source} starts no VM and is being drained" in done.stdout
    assert "the VM has left, and is up on" in done.stdout
    heir = moving.engine_host()
    assert heir is not None
    assert heir != source
    mode = ask.status(moving, heir)["hosts"][str(host_id_of(source))]["mode"]
    assert str(mode["owner"]).endswith(f"@{third}"), "who sat where"
    assert order(moving, third, "maintenance", "none", "--host", source).returncode == 0
    settled(moving, heir, 30.0)

    back = order(moving, source, "migrate", "--host", heir, "--to", source)
    assert (back.returncode, back.stderr) == (0, "")
    settled(moving, source)
    refused = order(moving, source, "migrate", "--host", third)
    assert refused.returncode == 11 and f"{source} (id {host_id_of(source)})" in refused.stderr
    assert boots(moving) == before, "all of it live"


def test_an_empty_host_gives_its_id_back_on_request_and_joins_again(moving: Cluster) -> None:
    source, _, third = pair(moving)
    before = boots(moving)
    wrong = order(moving, source, "maintenance", "global", "--release-id")
    assert wrong.returncode == 2 and "belongs to: maintenance local" in wrong.stderr
    done = order(moving, source, "maintenance", "local", "--for", "1h", "--release-id")
    assert done.returncode == 0, done.stderr
    ask.until("it is given back", 45, lambda: not lockspaces(moving, source))
    assert moving.engine_host() != source, "after the VM has left"
    told = "LOCKSPACE: the host id is given back"
    ask.until("it says so", 10, lambda: told in order(moving, source, "--status").stdout)
    moving.kill(source, "broker")
    ask.during("a new broker stays out", 10, lambda: not lockspaces(moving, source))
    ask.until("the broker is back", 20, lambda: ask.state(moving, source) == "LocalMaintenance")
    ask.until("it is seen to live", 10, lambda: liveness(moving, third, source) == "live")
    assert not lockspaces(moving, source)
    assert lockspaces(moving, third), "that of nobody else"
    assert order(moving, source, "maintenance", "none").returncode == 0
    settled(moving, moving.wait_healthy(TAKEOVER_S), 45.0)
    assert lockspaces(moving, source)
    assert boots(moving) == before


def lockspaces(lab: Cluster, host: str) -> list[str]:
    shown = lab.sh(host, ["sanlock", "client", "status"])
    assert shown.returncode == 0, shown.stderr
    return [line for line in shown.stdout.splitlines() if line.startswith("s ")]


def test_a_host_that_nobody_can_relieve_says_so_and_keeps_the_vm(moving: Cluster) -> None:
    source, target, third = pair(moving)
    for host in (target, third, source):
        order(moving, host, "maintenance", "local")
    ask.until("it says so", 20, lambda: "drain-waiting" in reasons(moving, source))
    ask.during("the VM stays", 3, lambda: moving.engine_host() == source)
    order(moving, third, "maintenance", "none")
    ask.until("it is relieved", 30, lambda: moving.engine_host() == third)
    for host in (target, source):
        order(moving, host, "maintenance", "none")
    settled(moving, third, 30.0)


def test_two_machines_with_one_uuid_are_named_and_the_vm_stays(moving: Cluster) -> None:
    """libvirt refuses a migration between them with an internal error, for ever."""
    source, target, third = pair(moving)
    before = boots(moving)
    uuid = str(moving.layout.host(host_id_of(source)).system_uuid)
    set_host_uuids(moving, dict.fromkeys((target, third), uuid))
    try:
        refused = f"it would refuse the VM: its libvirt names the machine UUID {uuid}"
        assert order(moving, source, "doctor").stdout.count(refused) == 2
        said = order(moving, source, "maintenance", "local").stdout
        print(said)
        assert "NOT DRAINED" in said and said.count(f"the machine UUID {uuid}") == 2
        assert "drain-stuck" in reasons(moving, source)
        assert "NOT DRAINED" in order(moving, source, "--status").stdout
        assert "host_uuid in libvirtd.conf" in order(moving, source, "why").stdout
        assert moving.engine_host() == source and moving.page_answers()
    finally:
        own = {
            host: str(moving.layout.host(host_id_of(host)).system_uuid) for host in (target, third)
        }
        set_host_uuids(moving, own)
    for host in (target, third):
        ask.until(f"{host} can take it", 30, partial(ready.can_take, moving, source, host))
    done = order(moving, source, "migrate", "--to", target)
    assert done.returncode == 0, done.stderr
    assert boots(moving) == before
    order(moving, source, "maintenance", "none")
    settled(moving, target, 30.0)


def set_host_uuids(lab: Cluster, uuids: dict[str, str]) -> None:
    """By host, as its libvirtd has it from now on."""
    for host, uuid in uuids.items():
        path = lab.layout.host(host_id_of(host)).etc / "libvirt" / "libvirtd.conf"
        lines = path.read_text().splitlines()
        path.write_text("\n".join([f'host_uuid = "{uuid}"', *lines[1:]]) + "\n")
    ready.restart_libvirt(lab, *uuids)


def reasons(lab: Cluster, host: str) -> set[str]:
    return {reason["code"] for reason in ask.status(lab, host)["reasons"]}


def test_the_vm_is_stopped_and_started_by_hand(moving: Cluster) -> None:
    source, target, _ = pair(moving)
    warned = refusal(moving, source, "vm", "shutdown")
    assert "the cluster starts the VM again" in warned
    assert "already" in refusal(moving, source, "vm", "start")
    assert f"the VM runs on {source}" in refusal(moving, target, "vm", "start")
    assert f"runs on {source}" in refusal(moving, target, "vm", "poweroff", "--yes")

    ready.in_global_maintenance(moving, source)
    done = order(moving, source, "vm", "shutdown")
    assert (done.returncode, done.stdout) == (0, "the guest of the VM was asked to shut down\n")
    ask.until("it has", 30, lambda: not any(map(moving.census().engines, moving.hosts)))
    ask.until("that is known", ready.KNOWN_S, partial(order_starts, moving, target))
    assert moving.engine_host() == target and ask.lease_holders(moving, target)
    ask.until("its broker has seen it", ready.KNOWN_S, partial(ready.has_engine, moving, target))
    done = order(moving, target, "vm", "poweroff")
    assert (done.returncode, done.stdout) == (0, "the VM's process is gone\n")
    ask.during("nobody starts it", 4, lambda: moving.engine_host() is None)
    order(moving, source, "maintenance", "none")
    settled(moving, moving.wait_healthy(TAKEOVER_S))


def order_starts(lab: Cluster, host: str) -> bool:
    return order(lab, host, "vm", "start").returncode == 0


def test_the_console_is_opened_where_the_vm_runs(moving: Cluster) -> None:
    source, target, _ = pair(moving)
    assert f"runs on {source}" in refusal(moving, target, "vm", "console")
    argv, environment = moving.sh_command(source, ["ha-agent", "vm", "console"])
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvpe(argv[0], argv, environment)
    said = b""
    deadline_s = time.monotonic() + 15.0
    while b"Connected to domain" not in said and time.monotonic() < deadline_s:
        if select.select([terminal], [], [], 0.5)[0]:
            said += os.read(terminal, 4096)
    os.write(terminal, b"\x1d")  # Ctrl-]
    os.waitpid(pid, 0)
    os.close(terminal)
    assert f"Connected to domain '{VM_NAME}'".encode() in said, said


# --- what takes longer --------------------------------------------------------------------------


@pytest.mark.long
def test_the_target_s_cable_is_out_for_a_moment_and_for_long(moving: Cluster) -> None:
    source, target, _ = pair(moving)
    before = boots(moving)
    with slow_migration(moving, source, target) as command:
        moving.partition(target)
        ask.during("the order is under way", 5.0, lambda: command.poll() is None)
        moving.heal(target)
        speed(moving, source, FREE)
        code, said = ended(command)
        assert code == 0, said
    settled(moving, target)
    source, target = target, source
    with slow_migration(moving, source, target) as command:
        moving.partition(target)
        code, said = ended(command, 180.0)
        assert code == 11, said
        print(f"given up: {said.strip()}")
        ask.until("the VM is up", 10, lambda: ask.state(moving, source) == "EngineUp")
        moving.heal(target)
    print(f"settled {settled(moving, source, 60.0):.1f} s after the cable was in again")
    assert boots(moving) == before


@pytest.mark.long
@pytest.mark.parametrize("where", ["source", "target"])
@pytest.mark.parametrize("daemon", ["libvirtd", "broker", "agent"])
def test_a_daemon_dies_at_either_end_of_a_migration(
    moving: Cluster, daemon: str, where: str
) -> None:
    source, target, _ = pair(moving)
    before = boots(moving)
    with slow_migration(moving, source, target) as command:
        moving.kill(source if where == "source" else target, daemon)
        if daemon == "libvirtd":
            code, said = ended(command)
            assert code != 0, said
            on = source
        else:
            speed(moving, source, FREE)
            on = target
        ask.until("it is over", 60, lambda: moving.engine_host() == on)
    print(f"{daemon} of the {where} killed: settled in {settled(moving, on, 60.0):.1f} s")
    assert boots(moving) == before


@pytest.mark.long
def test_a_migration_that_takes_too_long_is_cancelled(moving: Cluster) -> None:
    source, target, _ = pair(moving)
    lines = f"{configs.MIGRATION_BY_TLS}migration-timeout = 6\nmigration-bandwidth = 1\n"
    try:
        moving.set_migration(source, lines)
        said = refusal(moving, source, "migrate", "--to", target)
        assert "it took more than 6 s (libvirt.migration-timeout)" in said
        settled(moving, source)
    finally:
        moving.set_migration(source, configs.MIGRATION_BY_TLS)
    assert migration(moving, source) is None


def orphaned(lab: Cluster, source: str, command: subprocess.Popen[str]) -> None:
    """The agent that began the migration is killed, and the next one watches over it."""
    lab.kill(source, "agent")
    code, said = ended(command)
    assert code == 11 and "was restarted meanwhile" in said
    told = "-> EngineMigratingAway because"
    ask.until("the new agent has found it", BEGUN_S, lambda: told in since_start(lab, source))


def intent(lab: Cluster, host: str, peer: str) -> str:
    shown = ask.status(lab, host).get("hosts", {}).get(str(host_id_of(peer)), {})
    return str(shown.get("intent"))


def since_start(lab: Cluster, host: str) -> str:
    return log_since(lab, host, "is up, VM")


@pytest.mark.long
def test_a_migration_whose_agent_was_killed_is_ended_in_time(moving: Cluster) -> None:
    source, target, _ = pair(moving)
    before = boots(moving)
    try:
        moving.set_migration(source, f"{configs.MIGRATION_BY_TLS}migration-timeout = 25\n")
        with slow_migration(moving, source, target) as command:
            orphaned(moving, source, command)
            ask.until("it is told", 10, lambda: intent(moving, target, source) == "migrate away")
            shown = ask.status(moving, target)["hosts"][str(host_id_of(source))]
            assert 0 < shown["move"]["left_s"] <= 65
            ask.until("it is ended", 60, lambda: "migration-overdue" in since_start(moving, source))
            assert "more than 25 s" in since_start(moving, source)
            print(f"settled {settled(moving, source, 30.0):.1f} s after it was to end")
    finally:
        moving.set_migration(source, configs.MIGRATION_BY_TLS)
    assert migration(moving, source) is None and boots(moving) == before


@pytest.mark.long
def test_a_migration_whose_agent_was_killed_is_cancelled_by_an_order(moving: Cluster) -> None:
    source, target, _ = pair(moving)
    with slow_migration(moving, source, target) as command:
        orphaned(moving, source, command)
        done = order(moving, source, "migrate", "--cancel")
        assert (done.returncode, done.stdout) == (0, "the migration is cancelled\n"), done.stderr
        print(f"settled {settled(moving, source, 30.0):.1f} s after it was cancelled")
    done = order(moving, source, "migrate", "--to", target)
    assert done.returncode == 0, done.stderr
    settled(moving, target)


@pytest.mark.long
def test_post_copy_ends_what_would_never_end(moving: Cluster) -> None:
    """1 MiB/s takes minutes; after 5 s the VM goes on at the target all the same."""
    source, target, _ = pair(moving)
    before = boots(moving)
    lines = f"{configs.MIGRATION_BY_TLS}migration-post-copy-after = 5\nmigration-bandwidth = 1\n"
    try:
        moving.set_migration(source, lines)
        done = order(moving, source, "migrate", "--to", target)
        assert done.returncode == 0, done.stderr
        settled(moving, target)
    finally:
        moving.set_migration(source, configs.MIGRATION_BY_TLS)
    assert boots(moving) == before
