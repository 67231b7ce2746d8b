# SPDX-License-Identifier: LGPL-2.1-or-later
"""What may happen to hosts, and to the storage, on each storage: `make test-storage`, minutes for
each (`STORAGE=ceph`: that one alone). A short set on CephFS and Gluster is a part of `make test`.

Law 1 is watched in each. What the storage itself does to writes is printed (-s), not judged: the
figures are in docs/storage.md, of tests.bench.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from functools import partial

import pytest

from . import ask, boot_journal, configs, machine, moving, ready, vms
from .cluster import Cluster
from .conftest import law_1, new_cluster
from .errors import LabError, MachineError, law
from .kept import KEPT, keep_logs
from .storages import kinds, stalls
from .timeline import cut_and_watch
from .visitors import ANSWER_S, Visitors
from .watch import EngineWatcher

#: The storage's own time to miss a client, sanlock's to give up, a boot of the guest, and slack.
BACK_S = 240.0
IN_PLACE_S = 60.0
#: sanlock gives up 16 s after the last renewal at io_timeout 2; the storage is away for longer.
AWAY_S = 30.0
#: Requests a second: what an emulated guest answers on a busy machine without a lost one.
VISITORS = 4.0
#: Requests a second of the page that writes to the disk, by two processes in the guest for each.
DISK_VISITORS = 2.0
#: What is disturbed has been well for so long.
BEFORE_S = 2.0
#: Kinds with daemons of their own, and clients that die with their host.
SHORT = (kinds.CEPH, kinds.GLUSTER)
#: libvirt's own rule: a file on a file system that it does not take for shared is not moved.
NOT_MOVED = {
    kinds.DIR: "a folder of one machine",
    kinds.CEPH: "mounted by ceph-fuse; the kernel's mount is",
    kinds.NFS: "mounted by a client in user space",
}


def bring_up(kind: str, count: int = 1) -> Iterator[Cluster]:
    """A lab of three hosts and so many VMs on that storage; skips, with the reason, where there
    can be none."""
    try:
        machine.install(kind)
        machine.check(kind)
    except MachineError as error:
        pytest.skip(f"storage {kind}: {error}")
    with new_cluster() as cluster:
        try:
            cluster.up(3, storage=kind, vms=count)
            cluster.configure(configs.HASTE)
            yield cluster
        finally:
            keep_logs(cluster, KEPT / f"storage-{kind}")
            print(f"{kind}: the hosts' logs are in {KEPT / f'storage-{kind}'}")


@pytest.fixture(scope="module", params=kinds.KINDS)
def stored(able: None, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """One lab for all tests of a storage."""
    yield from bring_up(request.param)


@pytest.fixture
def place(stored: Cluster) -> Iterator[Cluster]:
    """`stored` with all hosts in their places; law 1 is watched, and all is mended at the end."""
    mended(stored)
    with law_1(stored):
        try:
            yield stored
        finally:
            for name in kinds.THREE.get(stored.settings.storage, ()):
                revive(stored, name)


def mended(lab: Cluster) -> None:
    """All hosts on and in their places; one whose client the storage has shut out boots anew."""
    on(lab)
    with contextlib.suppress(LabError):
        lab.wait_healthy(BACK_S)
    for host in lab.hosts:
        try:
            ask.until(f"{host} is in its place", IN_PLACE_S, partial(ask.in_place, lab, host))
        except AssertionError:
            print(f"{host} is not in its place: it is booted anew")
            lab.cut(host)
            on(lab)
    lab.wait_healthy(BACK_S)
    for host in lab.hosts:
        ask.until(f"{host} is in its place", BACK_S, partial(ask.in_place, lab, host))


def on(lab: Cluster) -> None:
    for host in lab.hosts:
        if lab.power_on(host):
            lab.wait_booted(host)


def revive(lab: Cluster, name: str) -> None:
    """A daemon of the storage runs again, whatever was done to it."""
    lab.server(name, "release")
    with contextlib.suppress(LabError):
        lab.server(name, "thaw")


def same_engine(lab: Cluster, host: str, before: dict[str, object]) -> bool:
    return bool(lab.status()["hosts"][host]["engine_pids"] == before["engine_pids"])


def says_storage(lab: Cluster, host: str) -> bool:
    """Whether that host's status says what is wrong with its storage."""
    return bool(ask.status(lab, host)["storage"]["problem"])


def others(lab: Cluster, host: str) -> list[str]:
    return [name for name in lab.hosts if name != host]


def three(lab: Cluster) -> tuple[str, str, str]:
    """The storage's daemons that keep the data."""
    kind = lab.settings.storage
    if kind not in kinds.THREE:
        pytest.skip(f"storage {kind}: no three daemons that keep the data")
    return kinds.THREE[kind]


@contextlib.contextmanager
def undisturbed(lab: Cluster, host: str, seconds: float) -> Iterator[None]:
    """Check that QEMU stays, that no visitor of its page is lost, and a visitor of the page that
    writes to its disk only while a plain writer on the same mount stood still too. Prints the
    gaps, and for how long the machine had no time for QEMU, which may explain a lost request."""
    before = lab.status()["hosts"][host]
    [qemu] = before["engine_pids"]
    began_s, waited_s = time.monotonic(), stalls.waited_s(qemu)
    with (
        Visitors(lab.switch_pid, VISITORS) as visitors,
        Visitors(lab.switch_pid, DISK_VISITORS, disk=True) as writing,
        stalls.Writer(lab, host, BEFORE_S + seconds) as writer,
    ):
        time.sleep(BEFORE_S)
        yield
        with law(6):
            ask.during("the same one QEMU", seconds, lambda: same_engine(lab, host, before))
    lost = stalls.beyond(writing.failed, writer.writes, ANSWER_S)
    told = (
        f"{lab.settings.storage}: longest gap of the page {visitors.longest_gap_s():.2f} s, of "
        f"{visitors.asked} requests {len(visitors.failed)} failed; of the page that writes "
        f"{writing.longest_gap_s():.2f} s, of {writing.asked} {len(writing.failed)} failed, "
        f"{len(lost)} of them while the storage wrote; longest write {writer.longest_s:.2f} s; "
        f"QEMU waited for a processor {stalls.waited_s(qemu) - waited_s:.1f} s "
        f"of {time.monotonic() - began_s:.1f} s"
    )
    print(told)
    assert not visitors.failed and not lost, told


def power_cut(lab: Cluster) -> None:
    """The VM's host loses its power; the VM is back elsewhere, and later the host is."""
    with EngineWatcher(lab) as watcher:
        takeover = cut_and_watch(lab, watcher, BACK_S)
    seen = [(step.name, step.at_s) for step in takeover.steps if step.at_s is not None]
    steps = ", ".join(f"{name} {at_s:.1f}" for name, at_s in seen)
    print(f"{lab.settings.storage}: {steps}")
    assert takeover.heir != takeover.victim
    on(lab)
    ask.until("it is in its place", BACK_S, lambda: ask.in_place(lab, takeover.victim))
    assert lab.engine_host() == takeover.heir


@pytest.mark.parametrize("kind", SHORT)
def test_a_dead_daemon_and_a_power_cut(able: None, kind: str) -> None:
    """The short set of every run of the tests."""
    for lab in bring_up(kind):
        with law_1(lab):
            mended(lab)
            host = lab.wait_healthy(BACK_S)
            first, *_ = three(lab)
            with undisturbed(lab, host, 10.0):
                lab.server(first, "kill")
            revive(lab, first)
            power_cut(lab)


@pytest.mark.storage
def test_the_engine_starts_on_the_best_host(place: Cluster) -> None:
    host = place.wait_healthy(BACK_S)
    last, best = others(place, host)
    ready.in_local_maintenance(place, last)
    place.kill(host, "qemu")
    assert place.wait_healthy(BACK_S) == best, "the only host whose score is not 0"
    place.sh(last, ["ha-agent", "maintenance", "none"])


@pytest.mark.storage
def test_a_power_cut_is_survived(place: Cluster) -> None:
    power_cut(place)


@pytest.mark.storage
def test_five_seconds_without_power(place: Cluster) -> None:
    victim = place.wait_healthy(BACK_S)
    boots = len(boot_journal.read(place))
    place.cut(victim)
    time.sleep(5.0)
    on(place)
    place.wait_healthy(BACK_S)
    ask.until("it is in its place", BACK_S, lambda: ask.in_place(place, victim))
    assert len(boot_journal.read(place)) == boots + 1


@pytest.mark.storage
def test_a_live_migration_under_load(place: Cluster) -> None:
    """The VM moves without a lost request, or its storage allows no migration and it stays."""
    kind = place.settings.storage
    source = moving.source_of(place)
    target = others(place, source)[0]
    ask.until("the target can take it", 60, lambda: ready.can_take(place, source, target))
    boots = moving.boots(place)
    with Visitors(place.switch_pid, VISITORS) as visitors:
        done = moving.order(place, source, "migrate", "--to", target)
        is_moved = done.returncode == 0
        place.wait_healthy(60.0)
    print(f"{kind}: longest gap of the page {visitors.longest_gap_s():.2f} s; {done.stderr}")
    assert not visitors.failed
    assert moving.boots(place) == boots
    assert is_moved == (kind not in NOT_MOVED), NOT_MOVED.get(kind, done.stderr)
    assert place.engine_host() == (target if is_moved else source)


@pytest.mark.storage
@pytest.mark.parametrize("fault", ["kill", "freeze"])
def test_one_of_three_daemons_fails(place: Cluster, fault: str) -> None:
    first, *_ = three(place)
    host = place.wait_healthy(BACK_S)
    with undisturbed(place, host, 20.0):
        place.server(first, fault)
    with undisturbed(place, host, 10.0):
        revive(place, first)


@pytest.mark.storage
def test_two_of_three_daemons_are_away_for_a_while(place: Cluster) -> None:
    """The VM is ended in time, or a process that cannot end is fenced; it is back with them."""
    pair = three(place)[:2]
    for name in pair:
        place.server(name, "freeze")
    time.sleep(AWAY_S)
    for name in pair:
        place.server(name, "thaw")
    began_s = time.monotonic()
    place.wait_healthy(BACK_S)
    print(f"{place.settings.storage}: running again {time.monotonic() - began_s:.1f} s after them")


@pytest.mark.storage
@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
def test_the_client_of_the_vm_s_host_fails(place: Cluster, fault: signal.Signals) -> None:
    """The VM runs elsewhere; while it is frozen the storage may keep its lock, and that is said."""
    if place.settings.storage not in kinds.MOUNTED:
        pytest.skip(f"storage {place.settings.storage}: no client that a signal reaches")
    host = place.wait_healthy(BACK_S)
    client = place.storage_client(host)
    witness = others(place, host)[0]
    began_s = time.monotonic()
    os.kill(client, fault)

    def elsewhere_or_said() -> bool:
        if place.engine_host() not in (None, host) and place.page_answers():
            return True
        codes = {reason["code"] for reason in ask.status(place, witness)["reasons"]}
        return "image-locked" in codes

    ask.until("the VM runs elsewhere, or why not is said", BACK_S, elsewhere_or_said)
    now = place.engine_host()
    print(
        f"{place.settings.storage}: {fault.name} of the client: after "
        f"{time.monotonic() - began_s:.1f} s the VM is on {now}"
    )
    # What cannot end goes with its host's power.
    place.cut(host)
    assert place.wait_healthy(BACK_S) != host


@pytest.mark.storage
@pytest.mark.parametrize("fault", ["kill", "freeze"])
def test_the_only_server_is_away_for_a_while(place: Cluster, fault: str) -> None:
    """All hosts lose the storage: each says so, and the VM is back with the server. Until then a
    QEMU that sanlock ended may stay in the kernel."""
    if place.settings.storage != kinds.NFS:
        pytest.skip(f"storage {place.settings.storage}: no server that is alone")
    place.wait_healthy(BACK_S)
    place.server("ganesha", fault)
    for host in place.hosts:
        ask.until(f"{host} says it", IN_PLACE_S, partial(says_storage, place, host))
    time.sleep(AWAY_S)
    for host in place.hosts:
        print(f"nfs {fault}: {host}: {place.sh(host, ['ha-agent', '--status']).stdout}")
    revive(place, "ganesha")
    began_s = time.monotonic()
    place.wait_healthy(BACK_S)
    print(f"nfs {fault}: running again {time.monotonic() - began_s:.1f} s after it")


@pytest.mark.storage
def test_the_active_mds_dies(place: Cluster) -> None:
    if place.settings.storage != kinds.CEPH:
        pytest.skip(f"storage {place.settings.storage}: no MDS")
    host = place.wait_healthy(BACK_S)
    with undisturbed(place, host, 30.0):
        place.server("mds-a", "kill")
    place.server("mds-a", "release")


@pytest.mark.storage
def test_a_host_without_the_vm_dies(place: Cluster) -> None:
    """Nothing happens to the VM, nor by a doctor that runs on its host meanwhile."""
    host = place.wait_healthy(BACK_S)
    with undisturbed(place, host, 30.0):
        place.cut(others(place, host)[1])
        time.sleep(1.0)
        began_s = time.monotonic()
        done = place.sh(host, ["ha-agent", "doctor"])
        print(f"{place.settings.storage}: doctor took {time.monotonic() - began_s:.1f} s")
        print(done.stdout)
    if place.settings.storage == kinds.GLUSTER:
        # The dead host's id is free by now, and its locks are cleared. The VM's is not.
        # Not `qemu-img info`: of a raw image it asks for no lock that a QEMU keeps.
        words = ["qemu-io", "-f", "raw", "-c", "length", str(place.layout.shared_disk)]
        asked = place.sh(others(place, host)[0], words)
        assert 'Failed to get "write" lock' in asked.stderr, asked


@pytest.fixture(params=SHORT)
def two_vms(able: None, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A lab with the engine and the database, whose disks have locks of their own."""
    yield from bring_up(request.param, count=2)


@pytest.mark.storage
def test_two_vms_are_back_after_a_power_cut(two_vms: Cluster) -> None:
    """The dead host's locks on both images are taken off the storage, not on the engine's alone."""
    both = vms.VMS[:2]
    with contextlib.ExitStack() as watched:
        watchers = [watched.enter_context(EngineWatcher(two_vms, vm.name)) for vm in both]
        victim = two_vms.vm_host(vms.DB)
        assert victim is not None
        began_s = two_vms.cut(victim)
        for vm in both:
            assert two_vms.wait_vm_healthy(vm, BACK_S) != victim
        print(f"both answer {time.monotonic() - began_s:.1f} s after the cut")
    with law(1):
        assert [watcher.most_running_at_once() for watcher in watchers] == [1, 1]
