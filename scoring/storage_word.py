# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a host says over the network about its access to the shared storage.

A host that has lost the storage cannot write its slot; the network is the only way left to say so.
Without that word the other hosts could not know that its VM may be ended and started elsewhere
(scoring/hosts/storage_lost.py).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StorageWord:
    """A host's last signed answer over the network, to a question that was asked at `heard_s`.

    `lost_s`: for how many seconds no read and no write of that host has succeeded (None: they
    succeed). `is_empty`: no process of a protected VM is left on that host. `writes`: the storage
    has acknowledged the host's slot within the last seconds. `global_maintenance`: whether it is
    set, as that host has read it (None: it could not read it).
    """

    heard_s: float
    lost_s: float | None = None
    is_empty: bool = False
    writes: bool = False
    global_maintenance: bool | None = None
