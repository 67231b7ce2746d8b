# SPDX-License-Identifier: LGPL-2.1-or-later
"""The shared storage: whiteboard, lease volume and the guest's disk, as files."""

from __future__ import annotations

import mmap
import os
import subprocess
import time
from pathlib import Path

from broker.config.cluster_key import ClusterKey
from broker.registry.record import VmRecord, unit_of
from broker.registry.volume import REGISTRY_BYTES, Registry
from broker.whiteboard.identity import Identity, VolumeKind, encode, place_of
from broker.whiteboard.lease_sectors import ALIGN_OF_SECTOR
from broker.whiteboard.signatures import Signatures
from broker.whiteboard.volume import Volume

from . import vms
from .environment import clean
from .errors import LabError, MachineError
from .guest import GuestImage
from .layout import (
    CHECKOUT,
    CLUSTER_ID,
    DISK_BYTES,
    LEASES_ID,
    LOCKSPACE,
    SLOT_BYTES,
    WHITEBOARD_BYTES,
    WHITEBOARD_ID,
    Layout,
)
from .settings import Settings
from .storages.kinds import BLOCK, FUSE
from .supervisor import Program

# A live migration has two QEMUs connected at once; a refused start is a third.
DISK_CLIENTS_MAX = 16


def create(layout: Layout, settings: Settings) -> None:
    """Make all volumes, empty; MachineError where the file system has no O_DIRECT. The registry
    is filled by `register`."""
    for folder in (layout.shared, layout.array):
        folder.mkdir(parents=True, exist_ok=True)
    sector = BLOCK.get(settings.storage, 512)
    align = ALIGN_OF_SECTOR[sector]
    if settings.storage not in BLOCK:
        check_direct_io(layout.shared)
        fill(layout.whiteboard, WHITEBOARD_BYTES)
        layout.leases.touch(mode=0o600)
        make_disk(layout, settings)
    leases = layout.leases
    sectors = ["-Z", str(sector), "-A", f"{align >> 20}M"]
    direct_init(["-s", f"{LOCKSPACE}:0:{leases}:0", *sectors], settings.io_timeout_s)
    units = {1: "engine", 2: "fence", 3: "registry"}
    units |= {unit_of(vm.number): vm.resource for vm in vms.of(settings)}
    for number, name in units.items():
        resource = f"{LOCKSPACE}:{name}:{leases}:{number * align}"
        direct_init(["-r", resource, *sectors], settings.io_timeout_s)
    for path, kind, volume_id in (
        (layout.whiteboard, VolumeKind.WHITEBOARD, WHITEBOARD_ID),
        (leases, VolumeKind.LEASES, LEASES_ID),
    ):
        identity = Identity(kind, CLUSTER_ID, volume_id, int(time.time()))
        with Volume(path) as opened:
            opened.write_at(place_of(opened, kind), encode(identity))


def make_disk(layout: Layout, settings: Settings) -> None:
    """The VMs' disks, empty, on the storage or behind the disk server; LabError."""
    for vm in vms.of(settings):
        if not vm.has_disk:
            continue
        path = layout.shared_disk_of(vm.role)
        if settings.storage == FUSE:
            fill(layout.disk_file(vm.role), vms.DISK_BYTES)
        elif settings.disk == "raw":
            fill(path, DISK_BYTES)
        else:
            argv = ["qemu-img", "create", "-q", "-f", settings.disk, str(path), str(DISK_BYTES)]
            done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
            if done.returncode != 0:
                raise LabError(f"the disk of {vm.name}: {done.stderr.strip()}")


def fill(path: Path, size: int) -> None:
    """A file of zeros that has real blocks: a hole's first O_DIRECT write also changes
    metadata."""
    with path.open("wb") as file:
        file.write(bytes(size))
        file.flush()
        os.fsync(file.fileno())


def register(layout: Layout, settings: Settings, image: GuestImage) -> None:
    """Make the registry, with all VMs but the engine."""
    fill(layout.registry, REGISTRY_BYTES)
    key = ClusterKey(bytes.fromhex(settings.cluster_key))
    with Volume(layout.registry) as volume:
        registry = Registry(volume, CLUSTER_ID, Signatures(key))
        registry.make()
        for vm in vms.of(settings)[1:]:
            record = VmRecord(
                number=vm.number,
                name=vm.name,
                uuid=vm.uuid,
                generation=0,
                memory_mb=vm.memory_mb,
                priority=vm.priority,
                after=vm.after,
                health=vm.health,
                expect=vm.role,
            )
            xml = vms.domain(vm, layout, settings, image)
            registry.put(record, xml.encode(), time.time(), "lab")


def disk_server(layout: Layout, role: str) -> Program:
    """The server of a guest's disk, to run under the switch: the storage array's part."""
    argv = ["qemu-nbd", "--persistent", "--format=raw", "--cache=none", "--aio=threads"]
    argv += [f"--shared={DISK_CLIENTS_MAX}", f"--export-name={role}"]
    argv += [f"--socket={layout.disk_socket(role)}", str(layout.disk_file(role))]
    log = layout.directory / f"disk-server-{role}.log"
    return Program(f"disk-server-{role}", argv, log, clean(), CHECKOUT)


def direct_init(what: list[str], io_timeout_s: int) -> None:
    """``sanlock direct init``: writes the file, needs no daemon."""
    argv = ["sanlock", "direct", "init", *what, "-o", str(io_timeout_s)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    if done.returncode != 0:
        text = (done.stdout + done.stderr).strip().replace("\n", "; ")
        raise LabError(f"lease volume: {' '.join(argv)}: {text}")


def check_direct_io(directory: Path) -> None:
    """sanlock, libvirt and the whiteboard all need O_DIRECT; tmpfs and others have none."""
    probe = directory / ".o-direct"
    buffer = mmap.mmap(-1, SLOT_BYTES)
    try:
        descriptor = os.open(probe, os.O_CREAT | os.O_RDWR | os.O_DIRECT, 0o600)
        try:
            os.write(descriptor, buffer)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise MachineError(
            f"{directory}: no O_DIRECT there ({error.strerror}); "
            "name a folder on ext4 or XFS with --dir"
        ) from error
    finally:
        probe.unlink(missing_ok=True)
