# SPDX-License-Identifier: LGPL-2.1-or-later
"""What administrators, tools and libvirt itself do to the VM's process, on real parts: it is saved,
paused, left crashed, started behind the agent's back. Two hosts; nothing that ran last is lost."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest

from . import ask, boot_journal, ready
from .cluster import Cluster
from .conftest import TAKEOVER_S, law_1, new_cluster
from .errors import law
from .layout import VM_NAME, host_id_of

#: An I/O port of the pvpanic device; a 1 there is what a panicking kernel writes.
PANIC = "o /b 0x505 1"
GUESTS = "/usr/lib/libvirt/libvirt-guests.sh"


@pytest.fixture(scope="module")
def pair(able: None) -> Iterator[Cluster]:
    """Two hosts without BMCs, up for the tests of this file."""
    with new_cluster() as cluster:
        cluster.up(2, io_timeout_s=1, bmc=False)
        yield cluster


def virsh(lab: Cluster, host: str, *words: str) -> str:
    """What virsh says there, error or not."""
    done = lab.sh(host, ["virsh", *words])
    return (done.stdout + done.stderr).strip()


def begun(lab: Cluster, host: str, *words: str) -> bool:
    """Did ha-agent take this order?"""
    return lab.sh(host, ["ha-agent", *words]).returncode == 0


def settled(lab: Cluster) -> tuple[str, str]:
    """The VM's host, and the other one; both are what they should be.

    A test that failed in global maintenance leaves the cluster in it: that ends here.
    """
    lab.sh(lab.hosts[0], ["ha-agent", "maintenance", "none"])
    owner = lab.wait_healthy(TAKEOVER_S)
    (other,) = [host for host in lab.hosts if host != owner]
    ask.until("its state is EngineUp", 30, lambda: ask.state(lab, owner) == "EngineUp")
    ask.until("the other is ready", 60, lambda: ask.state(lab, other) == "EngineDown")
    ask.until("both know", 30, lambda: ready.everybody_sees_engine(lab, owner))
    return owner, other


def pid(lab: Cluster, host: str) -> str:
    return lab.sh(host, ["cat", f"/run/libvirt/qemu/{VM_NAME}.pid"]).stdout.strip()


def has_image(lab: Cluster, host: str) -> bool:
    return "Managed save:   yes" in virsh(lab, host, "dominfo", VM_NAME)


def test_what_somebody_paused_outlives_a_restart_of_the_agent(pair: Cluster) -> None:
    owner, _ = settled(pair)
    with law_1(pair):
        process, boots = pid(pair, owner), len(boot_journal.read(pair))
        virsh(pair, owner, "suspend", VM_NAME)
        ready.restart(pair, owner, "agent")
        ask.during(
            "paused, and the same process",
            15,
            lambda: (
                virsh(pair, owner, "domstate", "--reason", VM_NAME) == "paused (user)"
                and pid(pair, owner) == process
            ),
        )
        shown = pair.sh(owner, ["ha-agent", "--status"]).stdout
        assert "paused by somebody (virsh suspend)" in shown, shown
        virsh(pair, owner, "resume", VM_NAME)
        assert pair.wait_healthy(15) == owner
        assert len(boot_journal.read(pair)) == boots, "it went on where it was"


def test_a_start_that_was_cut_short_is_told_from_a_pause(pair: Cluster) -> None:
    """libvirt names the same reason for both; QEMU knows that its CPUs never ran."""
    owner, _ = settled(pair)
    with law_1(pair):
        ready.in_global_maintenance(pair, owner)
        virsh(pair, owner, "destroy", VM_NAME)
        virsh(pair, owner, "start", "--paused", VM_NAME)
        assert virsh(pair, owner, "domstate", "--reason", VM_NAME) == "paused (user)"
        process = pid(pair, owner)
        pair.sh(owner, ["ha-agent", "maintenance", "none"])
        ask.until("it is ended", 20, lambda: pid(pair, owner) != process)
        pair.wait_healthy(TAKEOVER_S)


def test_a_paused_vm_that_ran_elsewhere_since_is_ended(pair: Cluster) -> None:
    """libvirt itself would resume it, once the lease is free again."""
    owner, other = settled(pair)
    process = pid(pair, owner)
    virsh(pair, owner, "suspend", VM_NAME)
    for daemon in ("agent", "broker"):
        pair.stop(owner, daemon)
    ask.until("another host runs it", TAKEOVER_S, lambda: pair.page_answers())
    assert pair.sh(other, ["virsh", "domstate", VM_NAME]).stdout.strip() == "running"
    refused = virsh(pair, owner, "resume", VM_NAME)
    assert "Lease is held by another host" in refused
    assert pid(pair, owner) == process
    for daemon in ("broker", "agent"):
        pair.start(owner, daemon)
    ask.until("the old one is ended", 40, lambda: pid(pair, owner) != process)
    log = pair.log_path(owner, "agent").read_text()
    assert "its memory is older than its disks" in log
    assert pair.engine_host() == other
    with law(1):
        assert not boot_journal.doubts(boot_journal.read(pair))


def saved(lab: Cluster, owner: str, other: str) -> None:
    """The VM is saved on its host, and runs on the other one."""
    assert "state saved" in virsh(lab, owner, "managedsave", VM_NAME)
    assert has_image(lab, owner)
    ask.until("another host runs it", TAKEOVER_S, lambda: lab.page_answers())
    assert lab.engine_host() == other


def test_a_memory_image_is_discarded_once_the_vm_runs_elsewhere(pair: Cluster) -> None:
    owner, other = settled(pair)
    with law_1(pair):
        boots = len(boot_journal.read(pair))
        saved(pair, owner, other)
        ask.until("it is discarded", 20, lambda: not has_image(pair, owner))
        ask.until("ready again", 60, lambda: ask.state(pair, owner) == "EngineDown")
        virsh(pair, other, "destroy", VM_NAME)
        assert pair.wait_healthy(TAKEOVER_S) == owner
        assert len(boot_journal.read(pair)) == boots + 2, "two boots, and nothing resumed"


def test_one_that_was_not_discarded_is_told_and_not_resumed(pair: Cluster) -> None:
    """No agent was there while the VM ran elsewhere; libvirt would resume it at the next start."""
    owner, other = settled(pair)
    with law_1(pair):
        boots = len(boot_journal.read(pair))
        pair.stop(owner, "agent")
        saved(pair, owner, other)
        ready.in_global_maintenance(pair, other)
        pair.start(owner, "agent")
        ask.until("it is back", 20, lambda: ask.state(pair, owner) == "GlobalMaintenance")
        assert has_image(pair, owner), "in global maintenance nothing is done"
        assert "a memory image of the VM lies here" in pair.sh(owner, ["ha-agent", "why"]).stdout
        virsh(pair, other, "destroy", VM_NAME)
        # Until the other host has published it, the VM still runs there for everybody else.
        ask.until("it may be started", 20, lambda: begun(pair, owner, "vm", "start"))
        pair.sh(owner, ["ha-agent", "maintenance", "none"])
        assert pair.wait_healthy(TAKEOVER_S) == owner
        assert not has_image(pair, owner)
        assert len(boot_journal.read(pair)) == boots + 2, "two boots, and nothing resumed"


def test_libvirt_guests_start_at_boot_is_refused_by_the_lease(pair: Cluster) -> None:
    """libvirt's own script, as it runs at a boot with ON_BOOT=start, beside the running VM."""
    owner, other = settled(pair)
    with law_1(pair):
        uuid = virsh(pair, other, "domuuid", VM_NAME)
        done = pair.sh(
            other,
            [
                "sh",
                "-c",
                f"echo default {uuid} >/var/lib/libvirt/libvirt-guests;"
                f' sed \'s/ON_BOOT="ignore"/ON_BOOT="start"/\' {GUESTS} >/run/guests.sh;'
                " sh /run/guests.sh start",
            ],
        )
        assert "Lease is held by another host" in done.stdout + done.stderr
        assert pair.engine_host() == owner and pair.page_answers()


def says_autostart(lab: Cluster, host: str) -> bool:
    log = lab.log_path(host, "agent").read_text()
    return "autostart of HostedEngine is turned off" in log


def test_autostart_is_turned_off_behind_nobody_s_back(pair: Cluster) -> None:
    owner, other = settled(pair)
    for host in (owner, other):
        virsh(pair, host, "autostart", VM_NAME)
        off = partial(virsh, pair, host, "dominfo", VM_NAME)
        ask.until("it is off", 20, lambda off=off: "disable" in off())  # type: ignore[misc]
        ask.until("it says so", 10, partial(says_autostart, pair, host))


def test_the_process_of_a_panicked_guest_is_in_nobody_s_way(pair: Cluster) -> None:
    """on_crash preserve keeps it: it is ended, and its host can start the VM again."""
    for host in pair.hosts:
        definition = pair.layout.host(host_id_of(host)).definition
        text = definition.read_text()
        text = text.replace("<on_crash>destroy</on_crash>", "<on_crash>preserve</on_crash>")
        definition.write_text(text.replace("<memballoon", "<panic model='isa'/><memballoon"))
    owner, other = settled(pair)
    virsh(pair, owner, "destroy", VM_NAME)
    ask.until("it is down", 20, lambda: not pair.page_answers())
    pair.wait_healthy(TAKEOVER_S)
    owner, other = settled(pair)
    with law_1(pair):
        virsh(pair, owner, "qemu-monitor-command", VM_NAME, "--hmp", PANIC)
        ask.until(
            "the process is ended",
            20,
            lambda: "destroyed" in virsh(pair, owner, "domstate", "--reason", VM_NAME),
        )
        assert "a process of the VM is left here" in pair.log_path(owner, "agent").read_text()
        assert "panicked" in pair.log_path(owner, "agent").read_text()
        assert pair.wait_healthy(TAKEOVER_S) == other
