# SPDX-License-Identifier: LGPL-2.1-or-later
"""Block devices: a loop device per volume, which all hosts see, as they would a LUN.

The kernel takes each device away again when its last user is gone (LO_FLAGS_AUTOCLEAR): a lab that
is killed leaves none.
"""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path

from broker.whiteboard.lease_sectors import ALIGN_OF_SECTOR

from ..errors import LabError
from .kinds import BLOCK
from .running import Servers

#: include/uapi/linux/loop.h
LOOP_CTL_GET_FREE = 0x4C82
LOOP_CONFIGURE = 0x4C0A
LO_FLAGS_AUTOCLEAR = 4
LO_FLAGS_DIRECT_IO = 16
_LOOP_MAJOR = 7
_TRIES = 20


def start(servers: Servers) -> None:
    """Make the devices, and links to them where the volumes are looked for; LabError."""
    sector = BLOCK[servers.settings.storage]
    layout = servers.layout
    for link, size in layout.volumes(ALIGN_OF_SECTOR[sector]).items():
        image = layout.servers / f"{link.name}.image"
        with image.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, size)
        device, descriptor = attach(image, sector)
        servers.kept.append(descriptor)
        link.symlink_to(device)


def attach(image: Path, sector: int) -> tuple[str, int]:
    """A new device over a file, and the descriptor that keeps it there; LabError."""
    backing = os.open(image, os.O_RDWR)
    try:
        control = os.open("/dev/loop-control", os.O_RDWR)
        try:
            for _ in range(_TRIES):
                number = fcntl.ioctl(control, LOOP_CTL_GET_FREE)
                path = f"/dev/loop{number}"
                if not os.path.exists(path):
                    os.mknod(path, 0o60660, os.makedev(_LOOP_MAJOR, number))
                device = os.open(path, os.O_RDWR)
                # struct loop_config: fd, block_size, struct loop_info64 (flags at its byte 52).
                info = bytearray(232)
                struct.pack_into("=I", info, 52, LO_FLAGS_AUTOCLEAR | LO_FLAGS_DIRECT_IO)
                try:
                    fcntl.ioctl(
                        device,
                        LOOP_CONFIGURE,
                        struct.pack("=II232s64x", backing, sector, bytes(info)),
                    )
                except OSError:
                    os.close(device)  # another took it between the two calls
                    continue
                return path, device
        finally:
            os.close(control)
    except OSError as error:
        raise LabError(f"loop device over {image}: {error.strerror}") from error
    finally:
        os.close(backing)
    raise LabError(f"loop device over {image}: none of {_TRIES} could be set up")
