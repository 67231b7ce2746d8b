# SPDX-License-Identifier: LGPL-2.1-or-later
"""The shared storage: whiteboard, lease volume and the guest's disk, as files."""

from __future__ import annotations

import mmap
import os
import subprocess
import time
from pathlib import Path

from broker.whiteboard.identity import Identity, VolumeKind, encode, place_of
from broker.whiteboard.volume import Volume

from .environment import clean
from .errors import LabError, MachineError
from .guest import JOURNAL_RECORD_BYTES, JOURNAL_RECORDS_MAX
from .layout import (
    CHECKOUT,
    CLUSTER_ID,
    DISK_EXPORT,
    ENGINE_LEASE_OFFSET,
    FENCE_LEASE_OFFSET,
    LEASES_ID,
    LOCKSPACE,
    SLOT_BYTES,
    WHITEBOARD_BYTES,
    WHITEBOARD_ID,
    Layout,
)
from .supervisor import Program

# A live migration has two QEMUs connected at once; a refused start is a third.
DISK_CLIENTS_MAX = 16


def create(layout: Layout, io_timeout_s: int) -> None:
    """Make all volumes, empty; MachineError where the file system has no O_DIRECT."""
    for folder in (layout.shared, layout.array):
        folder.mkdir(parents=True, exist_ok=True)
    check_direct_io(layout.shared)
    for volume, size in (
        (layout.whiteboard, WHITEBOARD_BYTES),
        (layout.engine_disk, JOURNAL_RECORD_BYTES * JOURNAL_RECORDS_MAX),
    ):
        with volume.open("wb") as file:
            # Real blocks, not a hole: a hole's first O_DIRECT write also changes metadata.
            file.write(bytes(size))
            file.flush()
            os.fsync(file.fileno())
    layout.leases.touch(mode=0o600)
    leases = layout.leases
    direct_init(["-s", f"{LOCKSPACE}:0:{leases}:0"], io_timeout_s)
    for name, offset in (("engine", ENGINE_LEASE_OFFSET), ("fence", FENCE_LEASE_OFFSET)):
        direct_init(["-r", f"{LOCKSPACE}:{name}:{leases}:{offset}"], io_timeout_s)
    for path, kind, volume_id in (
        (layout.whiteboard, VolumeKind.WHITEBOARD, WHITEBOARD_ID),
        (leases, VolumeKind.LEASES, LEASES_ID),
    ):
        identity = Identity(kind, CLUSTER_ID, volume_id, int(time.time()))
        with Volume(path) as opened:
            opened.write_at(place_of(opened, kind), encode(identity))


def disk_server(layout: Layout) -> Program:
    """The server of the guest's disk, to run under the switch: the storage array's part."""
    argv = ["qemu-nbd", "--persistent", "--format=raw", "--cache=none", "--aio=threads"]
    argv += [f"--shared={DISK_CLIENTS_MAX}", f"--export-name={DISK_EXPORT}"]
    argv += [f"--socket={layout.disk_socket}", str(layout.engine_disk)]
    log = layout.directory / "disk-server.log"
    return Program("disk-server", argv, log, clean(), CHECKOUT)


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
