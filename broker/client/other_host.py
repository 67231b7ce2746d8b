# SPDX-License-Identifier: LGPL-2.1-or-later
"""Asks another host's broker, over its published address."""

from __future__ import annotations

import http.client

from broker.client.ask import BrokerRefused, refusal
from broker.client.quick import BrokerDown
from broker.config.addresses import split
from broker.daemon.foreign import clean


def ask_host(
    address: str,
    method: str,
    target: str,
    bytes_max: int,
    timeout_s: float,
    body: bytes | None = None,
) -> bytes:
    """The body of an answer of status 200, cut at `bytes_max`. Blocks at most `timeout_s` in each
    step.

    `address`: host:port. Raises BrokerDown where nothing answers there in HTTP, BrokerRefused for
    any other status; both say why, and not at which address.
    """
    try:
        connection = http.client.HTTPConnection(*split(address), timeout=timeout_s)
        try:
            connection.request(method, target, body)
            response = connection.getresponse()
            raw = response.read(bytes_max)
        finally:
            connection.close()
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise BrokerDown(str(error) or type(error).__name__) from None
    if response.status != 200:
        raise BrokerRefused(clean(refusal(response.status, raw)), response.status)
    return raw
