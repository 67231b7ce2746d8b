# SPDX-License-Identifier: LGPL-2.1-or-later
"""The answer to an administrator who has read what the status shows until then."""

from __future__ import annotations

from msgspec import Struct

from broker.wire.status import FenceLogEntry


class Acknowledged(Struct, frozen=True):
    """`switched_off`: the record that is not shown any more; None: none was."""

    switched_off: FenceLogEntry | None
