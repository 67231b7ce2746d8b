# SPDX-License-Identifier: LGPL-2.1-or-later
"""The cluster key: one secret on all hosts, which proves that a message or slot is a member's.

Rules of this file:

1. One key signs. A second one may be accepted too, so that the key can be changed while the
   cluster runs: at each moment every host accepts what every other host signs.
2. A MAC is HMAC-SHA-256, in 64 lower-case hexadecimal digits. What is signed begins with the name
   and version of its format ("ha-agent slot 1"), so that nothing signed as one thing can be shown
   as another.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field

#: An HMAC key shorter than the output of the hash is weaker than the hash (RFC 2104, 3).
KEY_BYTES_MIN = 32
#: Length of a MAC as it is written.
MAC_DIGITS = 64


@dataclass(frozen=True, slots=True)
class ClusterKey:
    """`writes`: the key that signs. `also`: another key that is accepted, None: there is none."""

    writes: bytes = field(repr=False)
    also: bytes | None = field(default=None, repr=False)

    def sign(self, data: bytes) -> str:
        """The MAC of `data`."""
        return _mac(self.writes, data)

    def accepts(self, data: bytes, mac: str) -> bool:
        """Whether a member of the cluster made this MAC of `data`."""
        return self.is_written(data, mac) or (
            self.also is not None and _is_same(_mac(self.also, data), mac)
        )

    def is_written(self, data: bytes, mac: str) -> bool:
        """Whether the MAC was made with the key that signs here."""
        return _is_same(_mac(self.writes, data), mac)


def _mac(key: bytes, data: bytes) -> str:
    return hmac.digest(key, data, "sha256").hex()


def _is_same(mac: str, given: str) -> bool:
    """Compare in constant time; compare_digest raises TypeError where a text is not ASCII."""
    return given.isascii() and hmac.compare_digest(mac, given)
