# SPDX-License-Identifier: LGPL-2.1-or-later
"""The HTTP API over TCP, `/api/v1/...`: anyone who can connect may read, a holder of the token may
change (broker/api/gate.py). broker/api/openapi.py describes it; tests hold the two together.

Within v1 fields and paths are only added.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from broker.api.answers import encode, json_answer, json_bytes, problem
from broker.api.event_stream import Streams
from broker.api.gate import Gate
from broker.api.openapi import document
from broker.api.passed_on import PassedOn
from broker.api.served import Served
from broker.daemon.foreign_json import decoded
from broker.peers.member_request import AskOrder, GiveOrder, SetMaintenance
from broker.whiteboard.store import StorageTrouble
from broker.wire.history import History
from broker.wire.status import Maintenance, NewOrder
from scoring.observation import OrderKind

#: The owner of a maintenance that was set over TCP, as the status shows it.
OWNER = "api-token"
#: An answer that is younger is sent again; the history has steps of 5 s.
HISTORY_FRESH_S = 1.0
HOST_ID_MAX = 2000
#: The kind of order that needs another host's id.
_WITH_TARGET = OrderKind.MIGRATE


_T = TypeVar("_T")


class Api:
    """The API over one broker."""

    def __init__(self, broker: Served, gate: Gate) -> None:
        self._broker = broker
        self._gate = gate
        self._passed_on = PassedOn(broker, OWNER)
        self.streams = Streams(broker)
        self._document = encode(document())
        self._history: tuple[float, bytes] = (float("-inf"), b"")

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Add the routes."""
        router.add_get("/api/v1/openapi.json", self._get_document, allow_head=False)
        router.add_get("/api/v1/status", self._get_status, allow_head=False)
        router.add_get("/api/v1/vms", self._get_vms, allow_head=False)
        router.add_get("/api/v1/vms/{vm}", self._get_vm, allow_head=False)
        router.add_get("/api/v1/history", self._get_history, allow_head=False)
        router.add_get("/api/v1/events", self.streams.get_events, allow_head=False)
        router.add_get("/api/v1/orders/{number}", self._get_order, allow_head=False)
        router.add_post("/api/v1/orders", self._post_order)
        router.add_put("/api/v1/maintenance/{mode}", self._put_maintenance)
        router.add_get("/api/v1/token", self._get_token, allow_head=False)

    async def _get_document(self, request: web.Request) -> web.Response:
        return web.Response(body=self._document, content_type="application/json")

    async def _get_status(self, request: web.Request) -> web.Response:
        return json_bytes(self._broker.shown.as_json(_now_s()))

    async def _get_vms(self, request: web.Request) -> web.Response:
        return json_answer(self._broker.shown.vms(_now_s()))

    async def _get_vm(self, request: web.Request) -> web.Response:
        """One VM, by its name or its number."""
        wanted = request.match_info["vm"]
        for vm in self._broker.shown.vms(_now_s()).vms:
            if wanted in (vm.name, str(vm.number)):
                return json_answer(vm)
        return problem(404, "no such VM", "GET /api/v1/vms names them all")

    async def _get_history(self, request: web.Request) -> web.Response:
        made_s, text = self._history
        if _now_s() - made_s >= HISTORY_FRESH_S:
            strips = self._broker.availability.shown(self._broker.this_host.wall())
            text = encode(History(**self._broker.history.shown(), availability=strips))
            self._history = _now_s(), text
        return json_bytes(text)

    def _other_host(self, request: web.Request) -> int | None:
        """The host that `?host=ID` names; None: this one. HTTPBadRequest where it is no id."""
        text = request.query.get("host")
        if text is None:
            return None
        if not (re.fullmatch("[0-9]{1,4}", text) and 1 <= int(text) <= HOST_ID_MAX):
            raise web.HTTPBadRequest(reason="host must be the id of a host")
        return None if int(text) == self._broker.config.host.id else int(text)

    async def _get_token(self, request: web.Request) -> web.Response:
        """Whether the token in the request would be accepted; changes nothing."""
        # Not `or`: up to aiohttp 3.11 an answer is false in a condition.
        refused = self._gate.refusal(request, _now_s())
        return json_answer({"ok": True}) if refused is None else refused

    async def _get_order(self, request: web.Request) -> web.Response:
        text = request.match_info["number"]
        if not re.fullmatch("[0-9]{1,15}", text):
            return problem(400, "the number of an order has 1 to 15 digits")
        host_id = self._other_host(request)
        if host_id is not None:
            # To ask another host costs more than to look here: it needs the token.
            refused = self._gate.refusal(request, _now_s())
            if refused is not None:
                return refused
            return await self._passed_on.ask(host_id, AskOrder(int(text)), _now_s())
        status = self._broker.exchange.orders.status(int(text), _now_s())
        return problem(404, "no such order") if status is None else json_answer(status)

    async def _post_order(self, request: web.Request) -> web.Response:
        refused = self._gate.refusal(request, _now_s())
        if refused is not None:
            return refused
        wanted = _body(await request.read(), NewOrder)
        if (wanted.target is not None) != (wanted.kind is _WITH_TARGET):
            return problem(400, "the body does not fit", "target: for a migration, and only then")
        host_id = self._other_host(request)
        if host_id is not None:
            return await self._passed_on.ask(host_id, GiveOrder(wanted), _now_s())
        order = self._broker.exchange.place_order(wanted)
        return json_answer(self._broker.exchange.orders.status(order.number, _now_s()))

    async def _put_maintenance(self, request: web.Request) -> web.Response:
        refused = self._gate.refusal(request, _now_s())
        if refused is not None:
            return refused
        kind = request.match_info["mode"]
        if kind not in ("global", "local"):
            return problem(404, "no such maintenance", "the modes are global and local")
        wanted = _body(await request.read(), Maintenance)
        host_id = self._other_host(request)
        if host_id is not None and kind == "local":
            return await self._passed_on.ask(host_id, SetMaintenance("local", wanted), _now_s())
        try:
            await self._broker.keeper.set(kind, wanted, OWNER)
        except (StorageTrouble, OSError) as error:
            return problem(503, "maintenance was not changed", str(error))
        return json_answer(wanted)


def _body(raw: bytes, kind: type[_T]) -> _T:
    """The body as that type; msgspec.MsgspecError where it does not fit. 5.0 is an integer for JSON
    Schema, so it is one here."""
    value = decoded(raw, Any)
    if isinstance(value, dict):
        for key, each in value.items():
            if isinstance(each, float) and each.is_integer():
                value[key] = int(each)
    return msgspec.convert(value, kind)


def _now_s() -> float:
    return asyncio.get_running_loop().time()
