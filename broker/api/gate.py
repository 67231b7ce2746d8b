# SPDX-License-Identifier: LGPL-2.1-or-later
"""Decides whether a request over TCP may change anything: it must show the token, over TLS or from
this host itself.

A token cannot be found by guessing (it has 128 bits or more), but guesses are bounded and logged:
WRONG_MAX from one client within WRONG_WINDOW_S, then its other wrong ones get 429 until the window
is over. The right token is always accepted: nobody can lock its owner out.
"""

from __future__ import annotations

import hmac
import ipaddress
import logging
from collections import OrderedDict

from aiohttp import web

from broker.api.answers import problem
from broker.api.bounded_server import client_of

log = logging.getLogger("ha-broker.gate")

WRONG_MAX = 10
WRONG_WINDOW_S = 60.0
#: How many clients with wrong tokens are remembered.
REMEMBERED_MAX = 256


class Gate:
    """`token`: None: nothing can be changed over TCP."""

    def __init__(self, token: str | None) -> None:
        self._token = None if token is None else token.encode()
        self._wrong: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def refusal(self, request: web.Request, now_s: float) -> web.Response | None:
        """The answer that refuses the request; None: it may change things."""
        client = client_of(request.remote or "")
        if self._token is None:
            detail = "this host has no api-token in its secrets file; use ha-agent on the host"
            return problem(403, "changes over TCP are off", detail)
        if not is_private(request):
            detail = "a token crosses the network over TLS alone: use an address of api.tls-listen"
            return problem(403, "needs TLS", detail)
        scheme, _, shown = request.headers.get("Authorization", "").partition(" ")
        given = shown.strip().encode("utf-8", "surrogateescape")
        # Others at that address may guess: the right token is accepted all the same.
        if scheme.lower() == "bearer" and hmac.compare_digest(given, self._token):
            return None
        count, since_s = self._wrong.get(client, (0, now_s))
        if now_s - since_s > WRONG_WINDOW_S:
            count, since_s = 0, now_s
        if count >= WRONG_MAX:
            answer = problem(429, "too many wrong tokens", "wait a minute")
            answer.headers["Retry-After"] = str(int(WRONG_WINDOW_S))
            return answer
        if given:
            if count == 0:
                log.warning("a wrong token from %s", client)
            self._wrong[client] = count + 1, since_s
            self._wrong.move_to_end(client)
            while len(self._wrong) > REMEMBERED_MAX:
                self._wrong.popitem(last=False)
        detail = "Authorization: Bearer TOKEN, with api-token of this host's secrets file"
        answer = problem(401, "no such token" if given else "needs a token", detail)
        answer.headers["WWW-Authenticate"] = "Bearer"
        return answer


def is_private(request: web.Request) -> bool:
    """Whether nobody on the network can read the request: it uses TLS, or is of this host
    itself."""
    if request.scheme == "https":
        return True
    try:
        return ipaddress.ip_address(request.remote or "").is_loopback
    except ValueError:
        return False
