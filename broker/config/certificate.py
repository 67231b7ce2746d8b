# SPDX-License-Identifier: LGPL-2.1-or-later
"""Loads the certificate of `api.tls-listen`."""

from __future__ import annotations

import ssl

from broker.config.errors import ConfigError
from broker.config.sections import ApiSection
from broker.daemon.tls import server_context


def tls_context(api: ApiSection) -> ssl.SSLContext | None:
    """The TLS context of the server; None where `tls-listen` is not set. ConfigError where the
    files cannot be used."""
    if not api.tls_listen:
        return None
    context = server_context()
    load_certificate(context, api)
    return context


def load_certificate(context: ssl.SSLContext, api: ApiSection) -> None:
    """Read the files, the first time or anew: they are used from the next connection on.
    ConfigError where they cannot be used; so with a key that has a password, since nobody is asked
    for it."""
    assert api.certificate is not None and api.private_key is not None, (
        "broker/config/relations.py checks it"
    )
    try:
        context.load_cert_chain(api.certificate, api.private_key, password="")
    except OSError as error:
        # ssl.SSLError is one.
        why = error.strerror or str(error)
        raise ConfigError(
            f"api.certificate {api.certificate}, api.private-key {api.private_key}:"
            f" cannot be used: {why}"
        ) from None
