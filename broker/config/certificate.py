# SPDX-License-Identifier: LGPL-2.1-or-later
"""The certificate of `api.tls-listen`."""

from __future__ import annotations

import ssl

from broker.config.sections import ApiSection, ConfigError
from broker.daemon.tls import server_context


def tls_context(api: ApiSection) -> ssl.SSLContext | None:
    """For a server, as configured; None: there is no `tls-listen`. ConfigError where the files
    cannot be used."""
    if not api.tls_listen:
        return None
    context = server_context()
    load_certificate(context, api)
    return context


def load_certificate(context: ssl.SSLContext, api: ApiSection) -> None:
    """Read the files, again too: from the next connection on they are used. ConfigError where
    they cannot be; a key that has a password is one of those, nobody is asked for it."""
    assert api.certificate is not None and api.private_key is not None, (
        "broker/config/sections.py checks it"
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
