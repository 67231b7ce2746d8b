# SPDX-License-Identifier: LGPL-2.1-or-later
"""The TLS settings of this host's servers."""

from __future__ import annotations

import ssl


def server_context() -> ssl.SSLContext:
    """TLS 1.2 and later, forward secrecy, no CBC (RFC 9325, 4.2)."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("ECDHE+AESGCM:ECDHE+CHACHA20")
    return context
