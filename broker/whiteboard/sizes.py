# SPDX-License-Identifier: LGPL-2.1-or-later
"""The sizes of a slot, in bytes."""

from __future__ import annotations

SLOT_BYTES = 4096
HEAD_BYTES = 512
EXTRA_BYTES = SLOT_BYTES - HEAD_BYTES
