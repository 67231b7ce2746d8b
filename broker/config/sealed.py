# SPDX-License-Identifier: LGPL-2.1-or-later
"""Seals a password, so that it can lie among what all hosts share: who reads the volume without
being a member learns nothing but its length.

The key is derived from the cluster key, which each member has: a host that left for good is locked
out by another cluster key, after which `ha-agent config reseal` seals all anew. A sealed text is
bound to its name: it cannot be put in the place of another one.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import os

from msgspec import field

from broker.config.cluster_key import ClusterKey
from broker.config.errors import ConfigError
from broker.config.values import Section

_PURPOSE, _NONCE_BYTES = b"ha-agent sealed secret 1", 12
#: The longest password that is sealed.
SECRET_CHARS_MAX = 1024


class SealedSection(Section, frozen=True, kw_only=True):
    """The table `[sealed]`. `fence_passwords`: by HOST or HOST/NAME."""

    fence_passwords: dict[str, str] = field(default_factory=dict)
    smtp_password: str = ""
    webhook_key: str = ""


def seal(key: ClusterKey, name: str, secret: str) -> str:
    """The sealed text of a secret."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    nonce = os.urandom(_NONCE_BYTES)
    data = AESGCM(_derived(key.writes)).encrypt(nonce, secret.encode(), name.encode())
    return base64.b64encode(nonce + data).decode()


def opened(key: ClusterKey | None, name: str, text: str) -> str:
    """The secret; ConfigError where no key of this host opens it."""
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        data = b""
    for each in () if key is None else (key.writes, key.also):
        if each is None or len(data) <= _NONCE_BYTES:
            continue
        try:
            cipher = AESGCM(_derived(each))
            return cipher.decrypt(data[:_NONCE_BYTES], data[_NONCE_BYTES:], name.encode()).decode()
        except (InvalidTag, UnicodeDecodeError):
            continue
    raise ConfigError(
        f"sealed.{name}: cannot be opened with this host's cluster-key; set it anew: ha-agent"
        f" config secret {name}"
    )


def _derived(key: bytes) -> bytes:
    return hmac.digest(key, _PURPOSE, "sha256")
