# SPDX-License-Identifier: LGPL-2.1-or-later
"""The configuration of storage fencing (agent/fence/storage.py), and whether it fits together."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from broker.config.values import AbsolutePath, Name, Section

_Word = Annotated[str, Meta(min_length=1, max_length=4096)]
#: Words of a command's argv that are replaced; `{action}`: "check" or "cut".
_PLACES = ("{action}", "{name}", "{host}")


class StorageFenceSection(Section, frozen=True, kw_only=True):
    """What takes from a host that is proven off what the storage still holds for it. `type`:
    `ceph` (evicts its clients of `file-system`), `gluster` (clears the locks on `images`, paths in
    `volume`), `scsi` (takes its SCSI-3 key off `devices`), `command` (runs `argv`, where `{action}`
    is `check` or `cut`, `{name}` and `{host}` the dead host's name and id), or `none`. `options`:
    given to `ceph` or `gluster` before all else. `timeout`: s for all of it."""

    type: Annotated[str, Meta(pattern="^(none|ceph|gluster|scsi|command)$")] = "none"
    timeout: Annotated[float, Meta(gt=0, le=60)] = 5.0
    options: tuple[_Word, ...] = ()
    file_system: Name = "cephfs"
    volume: Annotated[str, Meta(max_length=255)] = ""
    images: tuple[AbsolutePath, ...] = ()
    devices: tuple[AbsolutePath, ...] = ()
    argv: tuple[_Word, ...] = ()

    def __post_init__(self) -> None:
        if self.type == "gluster" and not (self.volume and self.images):
            raise ValueError("type gluster needs volume, and images: the paths of the VMs' disks")
        if self.type == "scsi" and not self.devices:
            raise ValueError("type scsi needs devices: the VMs' disks")
        if self.type == "command":
            missing = [place for place in _PLACES[:2] if not any(place in w for w in self.argv)]
            if not self.argv or missing:
                raise ValueError(f"type command needs argv with {', '.join(missing)}")
