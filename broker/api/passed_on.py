# SPDX-License-Identifier: LGPL-2.1-or-later
"""Passes an order or a maintenance mode from the API on to another host, signed with the cluster
key (broker/peers/member_request.py): who has logged in on one host's page can order for any.

Rules of this file:

1. Only what a holder of the API token asked for is passed on, and only to the addresses that a
   member publishes in its slot.
2. Nothing waits for it but the request itself: ASK_S in all, AT_ONCE at a time.
3. A request whose answer was lost is not repeated: the order may have been given.
"""

from __future__ import annotations

import asyncio

import aiohttp
import msgspec
from aiohttp import web

from broker.api.answers import problem
from broker.api.served import Served
from broker.config.addresses import split
from broker.config.cluster_key import ClusterKey
from broker.daemon.foreign_json import decoded
from broker.daemon.http_words import no_answer
from broker.peers.errors import BadAnswer, PeerError
from broker.peers.heartbeat import new_nonce
from broker.peers.member_request import (
    CHALLENGE_PATH,
    PATH,
    Given,
    Request,
    Wanted,
    answer_to,
    request_bytes,
)
from broker.peers.signed_answer import ANSWER_BYTES_MAX

#: For the challenge and the request together.
ASK_S = 8.0
AT_ONCE = 4
_FAULTS = (aiohttp.ClientError, OSError, TimeoutError, ValueError, PeerError, msgspec.MsgspecError)


class PassedOn:
    """Asks other hosts in the name of the API's clients."""

    def __init__(self, broker: Served, who: str) -> None:
        self._broker, self._who = broker, who
        self._places = asyncio.Semaphore(AT_ONCE)

    async def ask(self, host_id: int, wanted: Wanted, now_s: float) -> web.Response:
        """The answer of that host, with its status; an answer with a problem where it gave none."""
        config, key = self._broker.config, self._broker.heartbeats.key
        host = self._broker.shown.now(now_s).hosts.get(host_id)
        if host is None:
            return problem(404, "no such host", "GET /api/v1/status names them all")
        if key is None:
            return problem(409, "no cluster key", "hosts know each other by it; order there")
        asked = Request(
            asker=config.host.id,
            asked=host_id,
            who=f"{self._who}@{config.host_name}",
            challenge="",
            nonce=new_nonce(),
            body=msgspec.json.encode(wanted).decode(),
        )
        if self._places.locked():
            return problem(503, "busy", "too many orders for other hosts at once; try again")
        async with self._places:
            return await self._asked(host.hostname, host.api, asked, key)

    async def _asked(
        self, name: str, addresses: tuple[str, ...], asked: Request, key: ClusterKey
    ) -> web.Response:
        timeout = aiohttp.ClientTimeout(total=ASK_S / 2)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            why = "it publishes no address (api.listen)"
            for address in addresses:
                try:
                    raw = await _read(session, "GET", address, CHALLENGE_PATH)
                    given = decoded(raw, Given)
                    break
                except _FAULTS as error:
                    why = f"{address}: {_in_words(error)}"
            else:
                return problem(502, f"{name} cannot be asked", f"{why}; order there")
            asked = msgspec.structs.replace(asked, challenge=given.challenge)
            try:
                raw = await _read(session, "POST", address, PATH, request_bytes(key, asked))
                answer = answer_to(key, raw, asked)
            except _FAULTS as error:
                detail = f"{_in_words(error)}; whether it does it is not known"
                return problem(502, f"{name} gave no answer that counts", detail)
        kind = "application/json" if answer.status == 200 else "application/problem+json"
        return web.Response(status=answer.status, body=answer.body.encode(), content_type=kind)


def _in_words(error: Exception) -> str:
    if isinstance(error, (aiohttp.ClientError, OSError)):
        return no_answer(error)
    return str(error) or type(error).__name__


async def _read(
    session: aiohttp.ClientSession, method: str, address: str, path: str, body: bytes | None = None
) -> bytes:
    """The body of an answer of status 200; BadAnswer for another, or a longer one."""
    host, port = split(address)
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}{path}"
    async with session.request(method, url, data=body, allow_redirects=False) as answer:
        raw = bytearray()
        while len(raw) <= ANSWER_BYTES_MAX and (part := await answer.content.readany()):
            raw += part
        if answer.status != 200:
            raise BadAnswer(f"answers {answer.status}")
        if len(raw) > ANSWER_BYTES_MAX:
            raise BadAnswer("too long an answer")
        return bytes(raw)
