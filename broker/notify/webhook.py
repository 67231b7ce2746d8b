# SPDX-License-Identifier: LGPL-2.1-or-later
"""Sends a signed POST: the message as JSON to one URL.

The signature is HMAC-SHA256 over the time of sending and the body, so that neither can be
changed, and an old request cannot be passed off as a new one. docs/notifications.md says how
to check it.
"""

from __future__ import annotations

import hashlib
import hmac
import ssl
import time
from collections.abc import Callable
from urllib.parse import urlsplit

import aiohttp

from broker.config.notify_section import WebhookSection
from broker.daemon.aiohttp_names import Resolver
from broker.daemon.http_words import no_answer
from broker.notify.message import Message
from broker.notify.render import as_json
from broker.notify.sender import Names, Refused, SendFailed
from broker.wire.kinds import Severity

#: Status codes that mean "not now" (RFC 9110, RFC 6585); every other 3xx and 4xx is final.
_NOT_NOW = {408, 425, 429}


class WebhookSender:
    """Sender port. OSError where the CA file cannot be used. `wall`: UTC seconds since 1970."""

    def __init__(
        self, given: WebhookSection, key: str, wall: Callable[[], float] = time.time
    ) -> None:
        self.timeout_s = given.timeout
        self.severity = Severity[given.severity.upper()]
        self._given = given
        self._key = key.encode()
        self._wall = wall
        self._names = Names("webhook")
        self._resolver = Resolver(self._addresses)
        self._tls: ssl.SSLContext | bool = True
        if given.url.startswith("https:"):
            self._tls = ssl.create_default_context(cafile=given.ca_file)
        parts = urlsplit(given.url)
        # The path of the URL is often a secret, so it is never shown.
        self._shown = f"{parts.scheme}://{parts.netloc}"

    async def send(self, message: Message) -> None:
        """One request on one connection; redirects are not followed, the answer is not read."""
        body = as_json(message)
        stamp = str(int(self._wall()))
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "ha-agent",
            "X-HA-Agent-Id": message.id,
            "X-HA-Agent-Timestamp": stamp,
            "X-HA-Agent-Signature": f"sha256={signature(self._key, stamp, body)}",
        }
        connector = aiohttp.TCPConnector(resolver=self._resolver, force_close=True)
        timeout = aiohttp.ClientTimeout(total=self.timeout_s)
        try:
            async with (
                aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
                session.post(
                    self._given.url,
                    data=body,
                    headers=headers,
                    allow_redirects=False,
                    ssl=self._tls,
                ) as answer,
            ):
                status = answer.status
        except TimeoutError:
            raise SendFailed(f"{self._shown}: no answer within {self.timeout_s:g} s") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            text = no_answer(error).replace(self._given.url, self._shown)
            raise SendFailed(f"{self._shown}: {text}") from None
        if 200 <= status < 300:
            return
        final = 300 <= status < 500 and status not in _NOT_NOW
        raise (Refused if final else SendFailed)(f"{self._shown} answers {status}")

    async def _addresses(self, host: str) -> list[str]:
        try:
            return await self._names.addresses(host)
        except SendFailed as error:
            raise OSError(str(error)) from None


def signature(key: bytes, stamp: str, body: bytes) -> str:
    """The MAC in hex digits, over the time of sending, a full stop and the body."""
    return hmac.new(key, stamp.encode() + b"." + body, hashlib.sha256).hexdigest()
