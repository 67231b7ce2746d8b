# SPDX-License-Identifier: LGPL-2.1-or-later
"""`ha-agent doctor --storage`: is this storage fit to be trusted with a VM?

It reads mounts and /sys, and measures in a scratch file of its own beside each volume: one block of
4096 bytes, written and read ten times a second, and removed. On a block device nothing is written:
the block with the header is read. Other members' brokers are asked when they see what this host's
broker writes, and QEMU's image lock is tried on a scratch image beside the VM's disk.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import stat
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from agent.doctor.host import Found
from agent.doctor.image_lock import image_lock
from agent.doctor.seen_elsewhere import visible
from agent.fence.storage import CephClients
from agent.fence.storage_program import StorageFenceError
from agent.storage.held import logical_volume
from agent.storage.identity import KINDS, check_volumes
from agent.storage.made import LOCAL
from agent.storage.room import sector_of
from agent.terminal.errors import CommandError
from broker.config.sections import Config
from broker.daemon.regular_file import read_text
from broker.vm.domain_facts import parse
from broker.vm.errors import BadDomain
from broker.whiteboard.identity import VolumeKind, place_of
from broker.whiteboard.mounts import Mount, mount_of
from broker.whiteboard.volume import Volume

_STEP_S = 0.1
_BLOCK = 4096
_LVS_DEADLINE_S = 3.0
#: libvirt's virFileIsSharedFS and virFileIsClusterFS (src/util/virfile.c): where a file lies on
#: neither, a live migration is "unsafe"; on a cluster file system the cache mode does not matter.
SHARED = frozenset(
    {"nfs", "nfs4", "gfs2", "ocfs2", "afs", "smb3", "cifs", "ceph", "gpfs", "fuse.glusterfs"}
)
CLUSTER = frozenset({"gfs2", "ocfs2", "ceph", "gpfs", "fuse.glusterfs"})
#: What a dead client costs, and the setting that shortens it (docs/storage.md).
DEAD_CLIENT = {
    "ceph": (
        "its locks stay for up to 60 s",
        "mds cap revoke eviction timeout, above osd heartbeat grace + 2",
    ),
    "fuse.ceph-fuse": (
        "its locks stay for up to 60 s",
        "mds cap revoke eviction timeout, above osd heartbeat grace + 2; fuse disable pagecache ="
        " true",
    ),
    "fuse.glusterfs": (
        "its locks stay for 42 s by default",
        "server.tcp-user-timeout 4, network.ping-timeout 5, cluster.eager-lock off",
    ),
    "nfs4": ("its locks stay for the lease, 90 s by default", "the server's lease time"),
    "nfs": ("its locks stay until it is back", "mount with vers=4.1"),
}
_CEPH = ("ceph", "fuse.ceph-fuse")
#: The MDS's own names of the two settings that must fit together, and how late an OSD that stalls
#: is taken out after its grace.
_EVICTION, _GRACE, OUT_LATE_S = "mds_cap_revoke_eviction_timeout", "osd_heartbeat_grace", 2.0
_CEPH_DEADLINE_S = 5.0
_ODD = ("soft", "softerr", "nolock")


def storage(config: Config, seconds: float) -> Found:
    """All findings on what whiteboard, lease volume and VM disks lie on."""
    if others := _not_ours(config):
        # Nothing is measured there: that writes a scratch file beside the volume.
        yield from others
        return
    if config.cluster.id:
        yield "ok", check_volumes(config), ""
    places = {"whiteboard": config.storage.whiteboard, "leases": config.storage.leases}
    for name, path in places.items():
        mount = _mount(path)
        yield from _kind(name, path, mount)
        yield from _speed(config, name, path, mount, seconds)
        if name == "leases" and mount is not None and mount.kind in _CEPH:
            yield from _evictions(config)
    yield from visible(config, seconds)
    yield from _disks(config)


def _not_ours(config: Config) -> list[tuple[str, str, str]]:
    """A finding for each volume that is not the one that the configuration names."""
    found = []
    for kind in KINDS:
        try:
            check_volumes(config, kind)
        except CommandError as error:
            fix = "ha-agent storage show, here and on another host"
            found.append(("fail", f"{kind.value}: {error}", fix))
    return found


def _mount(path: str) -> Mount | None:
    """The mount of a file; None: a block device."""
    if stat.S_ISBLK(Path(path).stat().st_mode):
        return None
    return mount_of(str(Path(path).resolve()))


def _kind(name: str, path: str, mount: Mount | None) -> Found:
    if mount is None:
        volume = logical_volume(path)
        what = f"logical volume {volume}" if volume else "a block device"
        yield "ok", f"{name}: {path} is {what}, sectors of {sector_of(path)}", ""
        if volume:
            yield from _activation(path)
        return
    way = "FUSE" if mount.kind.startswith("fuse") else "kernel"
    options = ",".join(mount.options)
    text = f"{name}: {path} lies on {mount.kind} ({way}) from {mount.source}, options {options}"
    if mount.kind in LOCAL:
        yield "warn", text, "a local file system: every host must see this very file"
    elif odd := [each for each in mount.options if each in _ODD]:
        yield "fail", text, f"mount it without {', '.join(odd)}: writes may be lost (hard instead)"
    else:
        yield "ok", text, ""
    if mount.kind in DEAD_CLIENT:
        costs, setting = DEAD_CLIENT[mount.kind]
        said = f"{name}: when a client dies, {costs} (as documented, not measured)"
        yield "ok", f"{said}; what shortens it: {setting}", ""


def _evictions(config: Config) -> Found:
    """Whether CephFS evicts a client neither too soon nor too late, by the MDS's own settings;
    nothing where no command of Ceph is configured to ask it."""
    given = config.storage_fence
    if given.type != "ceph":
        return
    mds = CephClients(given.file_system, given.options)
    until_s = time.monotonic() + _CEPH_DEADLINE_S
    found: dict[str, float] = {}
    for name in (_EVICTION, _GRACE):
        try:
            found[name] = mds.setting(name, until_s)
        except StorageFenceError as error:
            yield "warn", f"the MDS does not say its {name}: {error}", "ha-agent fence test"
            return
    yield evictions_fit(found[_EVICTION], found[_GRACE], config.storage.io_timeout)


def evictions_fit(eviction_s: float, grace_s: float, io_timeout_s: int) -> tuple[str, str, str]:
    """The finding on the MDS's two settings. A client that cannot write, since an OSD stalls, gives
    nothing back; evicted for that, its host must boot anew. And while a dead client is not evicted,
    who opens a file stops every host's writes: sanlock bears 6 * io-timeout of that."""
    least_s, most_s = grace_s + OUT_LATE_S, 6.0 * io_timeout_s
    text = (
        f"CephFS evicts a client that gives nothing back after {eviction_s:g} s; an OSD that stalls"
        f" is out after about {least_s:g} s; sanlock bears a stall of {most_s:g} s"
    )
    fix = f"ceph config set mds {_EVICTION} {min(least_s + 3.0, most_s):g}"
    if least_s >= most_s:
        fix = f"a shorter osd_heartbeat_grace, or storage.io-timeout above {least_s / 6.0:.0f} s"
    if eviction_s == 0:
        return "warn", f"{text}; 0 waits for the session's end, 60 s", fix
    if eviction_s >= most_s:
        return "fail", f"{text}: a dead client ends the VMs of the others", fix
    if eviction_s <= least_s:
        return "warn", f"{text}: a healthy host is evicted when OSDs stall, and must boot", fix
    return "ok", text, ""


def _activation(path: str) -> Found:
    """How LVM has the volume active; it is looked at, never changed."""
    words = ["lvs", "--noheadings", "--separator", "|", "-o", "vg_shared,lv_active_exclusively"]
    try:
        done = subprocess.run(  # noqa: S603
            [*words, "--", path], capture_output=True, text=True, timeout=_LVS_DEADLINE_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        yield "warn", f"{path}: lvs does not say how it is active: {error}", "vgs; lvs"
        return
    shared, _, exclusive = done.stdout.strip().partition("|")
    if done.returncode or not _:
        said = done.stderr.strip() or "it says nothing"
        yield "warn", f"{path}: lvs does not say how it is active: {said}", "run as root"
    elif shared and exclusive:
        yield (
            "fail",
            f"{path}: is active exclusively: no other host has it",
            f"lvchange -asy {path}",
        )
    elif not shared:
        text = f"{path}: its volume group is not shared: nobody may change it on several hosts"
        yield "warn", text, "lvmlockd and vgchange --lock-type sanlock, or leave the group alone"
    else:
        yield "ok", f"{path}: is active in a shared volume group", ""


def _speed(config: Config, name: str, path: str, mount: Mount | None, seconds: float) -> Found:
    """Latencies against what a beat and io-timeout can bear."""
    took = list(_reads(path, seconds) if mount is None else _writes(path, seconds))
    if not took:
        yield "fail", f"{name}: nothing could be measured", "look at the storage"
        return
    for what, values in zip(("write", "read"), zip(*took, strict=True), strict=False):
        if mount is None and what == "write":
            continue
        yield _compared(config, name, what, sorted(values))
    if mount is not None:
        yield from _locks(name, path)


def _compared(config: Config, name: str, what: str, took: list[float]) -> tuple[str, str, str]:
    """One finding of latencies in seconds, in order."""
    p50, p99, most = took[len(took) // 2], took[min(len(took) - 1, len(took) * 99 // 100)], took[-1]
    shown = " / ".join(f"{1000 * each:.1f}" for each in (p50, p99, most))
    text = f"{name}: direct {what} of 4 KiB: {shown} ms (p50 / p99 / max of {len(took)})"
    beat, io_timeout = config.rules(0).timing.beat, config.storage.io_timeout
    if most > io_timeout:
        fix = f"storage.io-timeout above {most:.0f} s, or a faster storage"
        return "fail", f"{text}; sanlock gives up after io-timeout, {io_timeout} s", fix
    if p99 > beat / 2:
        return "warn", f"{text}; a beat is {beat:g} s", "a longer timing.beat, or a faster storage"
    return "ok", f"{text}; a beat is {beat:g} s, io-timeout {io_timeout} s", ""


def _writes(path: str, seconds: float) -> Iterator[tuple[float, float]]:
    """Seconds that each write and each read of the scratch file took."""
    with _scratch(path) as (descriptor, buffer):
        for _ in range(max(1, int(seconds / _STEP_S))):
            began_s = time.monotonic()
            os.pwrite(descriptor, buffer, 0)
            wrote_s = time.monotonic()
            os.preadv(descriptor, [buffer], 0)
            read_s = time.monotonic()
            yield wrote_s - began_s, read_s - wrote_s
            time.sleep(_STEP_S)


@contextlib.contextmanager
def _scratch(path: str) -> Iterator[tuple[int, mmap.mmap]]:
    """A new file beside the volume, of one block, for direct I/O; removed at the end."""
    name = Path(path).with_name(f".ha-agent-doctor-{os.uname().nodename}-{os.getpid()}")
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_DIRECT | os.O_DSYNC | os.O_CLOEXEC
    descriptor = os.open(name, flags, 0o600)
    try:
        yield descriptor, mmap.mmap(-1, _BLOCK)
    finally:
        os.close(descriptor)
        name.unlink(missing_ok=True)


def _reads(path: str, seconds: float) -> Iterator[tuple[float, float]]:
    """The times of reads, as `_writes` has them of writes: of a device, where nothing may be
    written, the block of its header is read."""
    with Volume(path, read_only=True) as volume:
        at = place_of(volume, VolumeKind.WHITEBOARD)
        for _ in range(max(1, int(seconds / _STEP_S))):
            began_s = time.monotonic()
            volume.read_at(min(at, volume.size_bytes // _BLOCK * _BLOCK - _BLOCK))
            yield 0.0, time.monotonic() - began_s
            time.sleep(_STEP_S)


def _locks(name: str, path: str) -> Found:
    """Whether a lock, as QEMU takes it on an image, keeps a second one out."""
    fields = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0)
    with _scratch(path) as (descriptor, _):
        again = os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, fields)
            fcntl.fcntl(again, fcntl.F_OFD_SETLK, fields)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                yield "ok", f"{name}: file locks keep a second writer out here", ""
            else:
                text = f"{name}: no file locks: {error.strerror}"
                yield "warn", text, "QEMU's image lock does not work there; the lease protects"
            return
        finally:
            os.close(again)
    yield "warn", f"{name}: file locks keep nobody out", "QEMU's image lock does not work there"


def _disks(config: Config) -> Found:
    """Whether libvirt would migrate the VM live, by its own rule for file systems and caches."""
    try:
        root = parse(read_text(Path(config.vm.definition)))
    except (OSError, UnicodeDecodeError, BadDomain):
        return  # the checks of the configuration report it
    emulator = root.findtext("devices/emulator") or "qemu-system-x86_64"
    tried = set()
    for disk in root.iterfind("devices/disk"):
        source, driver = disk.find("source"), disk.find("driver")
        path = "" if source is None else source.get("file") or source.get("dev") or ""
        if not path or disk.find("readonly") is not None:
            continue
        mount = _mount(path) if Path(path).exists() else mount_of(path)
        cache = "default" if driver is None else driver.get("cache", "default")
        yield migration_of(path, None if mount is None else mount.kind, cache)
        if mount is not None and (folder := Path(path).parent) not in tried:
            tried.add(folder)
            yield from image_lock(folder, emulator)
        if disk.find("shareable") is not None:
            text = f"disk {path}: <shareable/> turns QEMU's image lock off"
            yield "warn", text, "remove it unless a second VM writes to the disk on purpose"


def migration_of(path: str, kind: str | None, cache: str) -> tuple[str, str, str]:
    """The finding on a disk. `kind`: its file system, None: a block device."""
    if kind is not None and kind not in SHARED:
        return (
            "warn",
            f"disk {path} lies on {kind}: libvirt refuses a live migration of it",
            "the kernel's mount, or a block device; a move is a stop and a start until then",
        )
    if kind not in CLUSTER and cache not in ("none", "directsync"):
        text = f"disk {path} has cache {cache!r}: libvirt refuses a live migration of it"
        return "fail", text, "<driver cache='none'>"
    return "ok", f"disk {path}: a live migration is possible ({kind or 'block'}, {cache})", ""
