# SPDX-License-Identifier: LGPL-2.1-or-later
"""The paths of oVirt's volumes, without the links that VDSM makes. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from agent.ovirt.errors import ImportFault

#: domainType of hosted-engine.conf whose volumes are logical volumes.
BLOCK = ("iscsi", "fc", "fcp")
_MOUNTS = "/rhev/data-center/mnt"
UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
#: VDSM's paths to a volume: by its links in /run, by the pool, by the mount.
_VDSM_PATH = re.compile(
    r"/(?:(?:var/)?run/vdsm/storage|rhev/data-center)/(?:.*/)?"
    r"([0-9a-f-]{36})/(?:images/)?([0-9a-f-]{36})/([0-9a-f-]{36})"
)


@dataclass(frozen=True, slots=True)
class StorageDomain:
    """`kind`: oVirt's domainType. `uuid`: sdUUID. `address`: the source of the mount, such as
    `nas:/export`. `mount`: its place; empty: where VDSM mounts it."""

    kind: str
    uuid: str
    address: str
    mount: str = ""

    @property
    def is_block(self) -> bool:
        """Whether its volumes are logical volumes."""
        return self.kind in BLOCK

    @property
    def place(self) -> str:
        """The mount point. VDSM writes / as _ and _ as __ (its fileUtils.transformPath)."""
        if self.mount:
            return self.mount.rstrip("/")
        name = self.address.rstrip("/").replace("_", "__").replace("/", "_")
        return f"{_MOUNTS}/glusterSD/{name}" if self.kind == "glusterfs" else f"{_MOUNTS}/{name}"

    def volume(self, image: str, volume: str, domain: str = "") -> str:
        """The path of a volume of this domain, or of another block domain; ImportFault where one of
        the ids is no UUID: it would become a part of a path that root opens."""
        uuid = domain or self.uuid
        for given in (uuid, volume, *(() if self.is_block else (image,))):
            if not UUID.fullmatch(given):
                raise ImportFault(
                    f"{given[:80]!r} is no UUID, and would be a part of a disk's path"
                )
        if self.is_block:
            return f"/dev/{uuid}/{volume}"
        return f"{self.place}/{uuid}/images/{image}/{volume}"

    def without_vdsm(self, path: str) -> str:
        """The path without VDSM, of a path that only VDSM makes; any other path as it is."""
        found = _VDSM_PATH.fullmatch(path)
        if found is None:
            return path
        domain, image, volume = found.groups()
        return self.volume(image, volume, domain)
