# SPDX-License-Identifier: LGPL-2.1-or-later
"""How large what comes in over the socket, or is read from the storage, may be."""

from __future__ import annotations

#: The largest host id.
HOST_ID_MAX = 2000
#: The largest time or count that a slot may name: above it a double (any JSON reader's number) no
#: longer counts one by one.
TIMESTAMP_MAX = 2**53
#: Ten years: a maintenance mode that lasts longer is a mistake.
LASTS_MAX_S = 10 * 366 * 86_400
#: Of the reason of a maintenance mode.
REASON_CHARS_MAX = 200
