# SPDX-License-Identifier: LGPL-2.1-or-later
"""The layout of the whiteboard's volume, in slots of 4096 bytes. Pure.

| slots | what | who writes it |
| - | - | - |
| 0 | the cluster's slot | whoever sets global maintenance |
| 1..2000 | a slot for each host | that host |
| 2001..2256 | the fence log, a ring of records (fence_log.py) | who holds the fence lease |
| 2257 | the volume's identity | `ha-agent init` |
| 2258, 2259 | what ran last, two copies in turn (what_ran.py) | the host that runs the VM |

The reference reads and writes slots 0..2000 only. A slot that has a purpose here never gets another
one: an earlier version may still write there.
"""

from __future__ import annotations

from broker.wire.limits import HOST_ID_MAX

#: The fence log: its first slot, and how many records it holds (1 MiB).
FENCE_LOG_FIRST = HOST_ID_MAX + 1
FENCE_LOG_RECORDS = 256
IDENTITY_SLOT = FENCE_LOG_FIRST + FENCE_LOG_RECORDS
WHAT_RAN_SLOTS = (IDENTITY_SLOT + 1, IDENTITY_SLOT + 2)
#: The last slot that may be read or written.
SLOT_MAX = WHAT_RAN_SLOTS[-1]

assert (FENCE_LOG_FIRST, IDENTITY_SLOT, WHAT_RAN_SLOTS) == (2001, 2257, (2258, 2259))
