# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a host says of the shared storage over the network, which is all that is left to say it by
where the storage is lost (scoring/hosts/storage_lost.py)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StorageWord:
    """What a host says of the shared storage by its last signed answer over the network, to a
    question that was asked at `heard_s`.

    `lost_s`: for so long nothing that it read or wrote there has come back (None: something does).
    `is_empty`: no process of a protected VM is left on it. `writes`: the storage has acknowledged
    its slot within the last seconds. `global_maintenance`: as it has read it (None: it has not).
    """

    heard_s: float
    lost_s: float | None = None
    is_empty: bool = False
    writes: bool = False
    global_maintenance: bool | None = None
