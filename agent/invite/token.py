# SPDX-License-Identifier: LGPL-2.1-or-later
"""The token of an invitation: where the member is asked, how it is known, and a secret. Pure.

The token is copied by hand from one terminal to another. It says by itself whether it was copied
whole; everything else (used, expired, of another member) is known by who made it alone.

As bytes: the version, the port, the fingerprint of the member's certificate, the secret, then each
address with its length before it, and a checksum at the end; all in URL-safe base64.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass

from broker.daemon.errors import HaError

PREFIX = "ha1-"
#: SHA-256 of the certificate, cut: who wants to stand in for the member needs one with the same
#: 128 bits.
FINGERPRINT_BYTES = 16
SECRET_BYTES = 12
ADDRESSES_MAX = 3
#: The longest token: three names of 255 characters.
TOKEN_CHARS_MAX = 1200
_CHECK_BYTES, _HEAD_BYTES = 4, 2 + FINGERPRINT_BYTES + SECRET_BYTES


class NoToken(HaError):
    """The text is no token, or not the whole of one."""


@dataclass(frozen=True, slots=True)
class Token:
    """`addresses`: of the member, without the port; one to three."""

    addresses: tuple[str, ...]
    port: int
    fingerprint: bytes
    secret: bytes

    def __repr__(self) -> str:
        return f"Token({', '.join(self.addresses)}, {self.port})"


def fingerprint_of(certificate: bytes) -> bytes:
    """The fingerprint of a certificate in DER."""
    return hashlib.sha256(certificate).digest()[:FINGERPRINT_BYTES]


def written(token: Token) -> str:
    """The text of a token."""
    data = token.port.to_bytes(2, "big") + token.fingerprint + token.secret
    for address in token.addresses[:ADDRESSES_MAX]:
        name = address.encode("ascii")
        data += bytes([len(name)]) + name
    text = base64.urlsafe_b64encode(data + _check(data)).decode().rstrip("=")
    return PREFIX + text


def read(text: str) -> Token:
    """The token that a text is; NoToken."""
    text = "".join(text.split())
    if not text.startswith(PREFIX) or len(text) > TOKEN_CHARS_MAX:
        raise NoToken("it is no token; ha-agent invite on a member prints one")
    body = text.removeprefix(PREFIX)
    try:
        data = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
    except (ValueError, binascii.Error):
        raise NoToken("it is not whole: copy it again") from None
    data, check = data[:-_CHECK_BYTES], data[-_CHECK_BYTES:]
    if len(data) < _HEAD_BYTES or _check(data) != check:
        raise NoToken("it is not whole: copy it again")
    addresses, rest = [], data[_HEAD_BYTES:]
    while rest:
        length = rest[0]
        addresses.append(rest[1 : 1 + length].decode("ascii", "replace"))
        rest = rest[1 + length :]
    if not 1 <= len(addresses) <= ADDRESSES_MAX or not all(addresses):
        raise NoToken("it names no address: it was made by another version of ha-agent")
    fingerprint = data[2 : 2 + FINGERPRINT_BYTES]
    port = int.from_bytes(data[:2], "big")
    return Token(tuple(addresses), port, fingerprint, data[2 + FINGERPRINT_BYTES : _HEAD_BYTES])


def _check(data: bytes) -> bytes:
    return hashlib.sha256(PREFIX.encode() + data).digest()[:_CHECK_BYTES]
