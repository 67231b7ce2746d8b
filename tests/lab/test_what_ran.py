# SPDX-License-Identifier: LGPL-2.1-or-later
"""What ran last is what is started: a backup tool's external snapshot, on the shared storage and on
one host alone, and a definition that somebody changed behind the agent's back."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from broker.vm.domain_facts import differences, read
from broker.whiteboard.layout import WHAT_RAN_SLOTS
from broker.whiteboard.sizes import SLOT_BYTES

from . import ask, boot_journal, ready
from .cluster import Cluster
from .errors import law
from .layout import VM_NAME, host_id_of

TAKEOVER_S = 60.0
RECORDED_S = 20.0


@pytest.fixture
def own_disk(lab: Cluster) -> Iterator[Cluster]:
    """The engine's disk is its own: libvirt snapshots none that is shareable. Whatever ran, the
    definition's disk has all of it afterwards."""
    files = {host: lab.config_path(host).with_name("engine.xml") for host in lab.hosts}
    before = {host: path.read_text() for host, path in files.items()}
    for host, path in files.items():
        path.write_text(before[host].replace("<shareable/>", ""))
    restart(lab)
    yield lab
    for host in lab.hosts:
        if lab.power_on(host):
            lab.wait_booted(host)
    host = lab.wait_healthy(TAKEOVER_S)
    if "nbd" not in in_use(lab, host):
        virsh(lab, host, "blockcommit", VM_NAME, "vda", "--active", "--pivot", "--wait")
        ask.until("the pivot is recorded", RECORDED_S, lambda: "nbd" in recorded(lab, host))
    for each, path in files.items():
        path.write_text(before[each])
    restart(lab)


def restart(lab: Cluster) -> None:
    lab.kill(lab.wait_healthy(TAKEOVER_S), "qemu")
    ask.until("it is gone", 15, lambda: not lab.page_answers())
    lab.wait_healthy(TAKEOVER_S)


def virsh(lab: Cluster, host: str, *words: str) -> str:
    done = lab.sh(host, ["virsh", *words])
    assert done.returncode == 0, done.stderr
    return done.stdout


def snapshot(lab: Cluster, host: str, path: Path) -> None:
    """Make a snapshot of the VM's disk as a backup tool does."""
    spec = f"vda,snapshot=external,file={path}"
    words = ("--disk-only", "--no-metadata", "--atomic", "--diskspec", spec)
    virsh(lab, host, "snapshot-create-as", VM_NAME, "backup", *words)


def in_use(lab: Cluster, host: str) -> str:
    """The image that is written to."""
    return str(read(virsh(lab, host, "dumpxml", VM_NAME)).disks["vda"].chain[0].place)


def differing(lab: Cluster, host: str) -> list[str]:
    return [each["code"] for each in ask.status(lab, host)["differences"]]


def recorded(lab: Cluster, host: str) -> str:
    record = ask.status(lab, host).get("what_ran") or {}
    return str(record.get("disks", {}).get("vda", ""))


def places(lab: Cluster) -> bytes:
    """The two places of the record on the whiteboard's volume."""
    first, *_, last = WHAT_RAN_SLOTS
    with lab.layout.whiteboard.open("rb") as volume:
        volume.seek(first * SLOT_BYTES)
        return volume.read((last - first + 1) * SLOT_BYTES)


def test_the_engine_as_it_runs_is_no_difference(lab: Cluster) -> None:
    """libvirt's own words of the real definition, running and not."""
    host = lab.wait_healthy(TAKEOVER_S)
    recorded_xml = lab.config_path(host).with_name("engine.xml").read_text()
    for words in (("dumpxml", VM_NAME), ("dumpxml", "--inactive", VM_NAME)):
        assert differences(read(recorded_xml), read(virsh(lab, host, *words))) == ()
    assert ask.status(lab, host)["differences"] == []


def test_a_snapshot_on_the_shared_storage_is_what_the_heir_boots(own_disk: Cluster) -> None:
    lab, overlay = own_disk, own_disk.layout.shared / "overlay.qcow2"
    owner = lab.wait_healthy(TAKEOVER_S)
    none = places(lab)
    snapshot(lab, owner, overlay)
    begun_s = time.monotonic()
    ask.until("it is on the storage", RECORDED_S, lambda: places(lab) != none)
    print(f"recorded {time.monotonic() - begun_s:.2f} s after virsh had made the snapshot")
    peer = next(host for host in lab.hosts if host != owner)
    ask.until("it is recorded for all", RECORDED_S, lambda: str(overlay) in recorded(lab, peer))
    ask.until("its own host tells", RECORDED_S, lambda: differing(lab, owner) == ["disks-differ"])
    before = boot_journal.read(lab)
    lab.cut(owner)
    heir = lab.wait_healthy(TAKEOVER_S)
    assert in_use(lab, heir) == str(overlay)
    # Into the first image again, where the guest's journal can be read: QEMU keeps the overlay's
    # tables in its memory until the guest asks for a flush.
    virsh(lab, heir, "blockcommit", VM_NAME, "vda", "--active", "--pivot", "--wait")
    ask.until("the pivot is recorded", RECORDED_S, lambda: "nbd" in recorded(lab, heir))
    ask.until("the new boot is there", 15, lambda: len(boot_journal.read(lab)) > len(before))
    after = boot_journal.read(lab)
    with law(1):
        assert not boot_journal.doubts(after)
    assert [boot.boot_id for boot in after[:-1]] == [boot.boot_id for boot in before]


def test_a_snapshot_on_one_host_holds_the_others_back_until_somebody_decides(
    own_disk: Cluster,
) -> None:
    lab = own_disk
    owner = lab.wait_healthy(TAKEOVER_S)
    others = [host for host in lab.hosts if host != owner]
    local = lab.layout.host(host_id_of(owner)).directory / "overlay.qcow2"
    snapshot(lab, owner, local)
    for host in others:
        ask.until(f"{host} is held back", RECORDED_S, partial(held_back, lab, host))
    lab.cut(owner)
    sentence = f"vda ran last from {local}, which only {owner} is known to have"
    ask.until("a host says so", 30, lambda: "held-back" in reasons(lab, others[0]))
    with law(10):
        ask.during("nobody boots an older disk", 8, lambda: lab.engine_host() is None)
    assert f"HELD BACK: {sentence}" in lab.sh(others[0], ["ha-agent", "--status"]).stdout
    assert sentence in lab.sh(others[0], ["ha-agent", "why"]).stdout
    done = lab.sh(others[0], ["ha-agent", "vm", "adopt"])
    assert done.returncode == 0, done.stderr
    heir = lab.wait_healthy(TAKEOVER_S)
    assert heir != owner and in_use(lab, heir) == str(local)


def held_back(lab: Cluster, host: str) -> bool:
    own = ask.status(lab, host)["hosts"][str(host_id_of(host))]
    return [penalty["name"] for penalty in own["penalties"]][:1] == ["held-back"]


def reasons(lab: Cluster, host: str) -> list[str]:
    return [reason["code"] for reason in ask.status(lab, host)["reasons"]]


def test_what_somebody_defined_is_told_and_put_back_only_by_a_word(lab: Cluster) -> None:
    owner = lab.wait_healthy(TAKEOVER_S)
    host = next(host for host in lab.hosts if host != owner)

    changed = lab.layout.host(host_id_of(host)).directory / "two.xml"
    text = lab.config_path(host).with_name("engine.xml").read_text()
    changed.write_text(text.replace("<vcpu>1<", "<vcpu>2<"))
    virsh(lab, host, "define", str(changed))
    ask.until("it is told", RECORDED_S, lambda: differing(lab, host) == ["vcpus-differ"])
    ready.restart(lab, host, "agent")
    ask.during(
        "an agent's start puts nothing back", 6, lambda: differing(lab, host) == ["vcpus-differ"]
    )
    done = lab.sh(host, ["ha-agent", "vm", "keep"])
    assert done.returncode == 0, done.stderr
    ask.until("it is as recorded", RECORDED_S, lambda: differing(lab, host) == [])
