# SPDX-License-Identifier: LGPL-2.1-or-later
"""Carries out what a member asks of this host: `GET /member-challenge`, `POST /member-request`, for
holders of the cluster key only (broker/peers/member_request.py)."""

from __future__ import annotations

import asyncio
import logging

import msgspec
from aiohttp import web

from broker.api.answers import encode, json_answer, problem
from broker.api.served import Served
from broker.daemon.foreign import clean
from broker.daemon.foreign_json import decoded
from broker.peers.member_request import (
    CHALLENGE_PATH,
    PATH,
    AskOrder,
    Challenges,
    Given,
    GiveOrder,
    Request,
    SetMaintenance,
    signed_answer,
)
from broker.whiteboard.store import StorageTrouble
from broker.wire.problem import Problem

log = logging.getLogger("ha-broker")


class MemberRequests:
    """Carries them out for one broker."""

    def __init__(self, broker: Served) -> None:
        self._broker = broker
        self._challenges = Challenges()

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Add the routes."""
        router.add_get(CHALLENGE_PATH, self._get, allow_head=False)
        router.add_post(PATH, self._post)

    async def _get(self, request: web.Request) -> web.Response:
        made = self._challenges.new(asyncio.get_running_loop().time())
        return json_answer(Given(made, self._broker.config.host.id))

    async def _post(self, request: web.Request) -> web.Response:
        key = self._broker.heartbeats.key
        if key is None:
            return problem(404, "no cluster key", "this host has none in its secrets file")
        asked = decoded(await request.read(), Request)
        if not asked.is_from(key):
            return problem(403, "not signed with this cluster's key")
        status, body = await self._checked(asked)
        return web.Response(
            body=signed_answer(key, asked, status, encode(body)), content_type="application/json"
        )

    async def _checked(self, asked: Request) -> tuple[int, object]:
        """Status and body of the answer to a request that a member has signed."""
        own = self._broker.config.host.id
        if asked.asked != own or asked.asker == own:
            return _refused(403, "meant for another host", f"this is host {own}")
        if not self._challenges.take(asked.challenge, asyncio.get_running_loop().time()):
            return _refused(409, "the challenge does not hold", "ask for a new one")
        try:
            return await self._carried_out(asked)
        except msgspec.MsgspecError as error:
            return _refused(400, "this version does not know such a request", str(error))
        except (StorageTrouble, OSError) as error:
            return _refused(503, "maintenance was not changed", str(error))

    async def _carried_out(self, asked: Request) -> tuple[int, object]:
        exchange, now_s = self._broker.exchange, asyncio.get_running_loop().time()
        match asked.wanted:
            case GiveOrder(order):
                log.warning("an order of %s, by host %d", clean(asked.who), asked.asker)
                placed = exchange.place_order(order)
                return 200, exchange.orders.status(placed.number, now_s)
            case AskOrder(number):
                found = exchange.orders.status(number, now_s)
                return (200, found) if found is not None else _refused(404, "no such order", "")
            case SetMaintenance(mode, wanted):
                log.warning("%s maintenance by %s, host %d", mode, clean(asked.who), asked.asker)
                await self._broker.keeper.set(mode, wanted, clean(asked.who), at="")
                return 200, wanted


def _refused(status: int, title: str, detail: str) -> tuple[int, Problem]:
    return status, Problem(title, status, detail)
