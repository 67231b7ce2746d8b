# SPDX-License-Identifier: LGPL-2.1-or-later
"""The largest values that are accepted over the socket, or from the storage."""

from __future__ import annotations

#: The largest host id.
HOST_ID_MAX = 2000
#: The largest number of a protected VM; number 1 is the engine.
VMS_MAX = 128
#: The largest time or count in a slot: above it a double (any JSON reader's number) does not
#: represent each whole number.
TIMESTAMP_MAX = 2**53
#: Ten years: a maintenance mode that lasts longer is a mistake.
LASTS_MAX_S = 10 * 366 * 86_400
#: The length of the reason for a maintenance mode.
REASON_CHARS_MAX = 200
#: A certificate that ends within so many days is a trouble: ours are renewed long before.
SOON_DAYS = 30
