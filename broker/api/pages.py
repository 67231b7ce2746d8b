# SPDX-License-Identifier: LGPL-2.1-or-later
"""The broker's pages over TCP, for anyone who can connect.

Rules of this file:

1. A page that is read waits for no storage, libvirt or sanlock; but for the questions of holders
   of the cluster key about libvirt (broker/api/reach.py) or a slot (broker/api/slot_seen.py).
   Requests that change something must pass broker/api/gate.py (broker/api/v1.py), or be signed by
   a member (broker/api/member_requests.py).
2. A process of its own serves strangers (broker/api/front_process.py). It sends a few of their
   requests at a time to this application and names the client (`CLIENT`, `OVER_TLS`). Such a
   request comes by a socket that only that process can open.

`application` is the place to add a page.
"""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web

from broker.api.answers import as_problems, problem
from broker.api.bounded_server import BODY_BYTES_MAX, at_work
from broker.api.dashboard import Dashboard
from broker.api.front_process import CLIENT, OPEN_CONNECTIONS, OVER_TLS, TURNED_AWAY, with_headers
from broker.api.gate import Gate
from broker.api.member_requests import MemberRequests
from broker.api.metrics import ListenerFigures, Metrics
from broker.api.reach import LibvirtReachRoute
from broker.api.served import Served
from broker.api.slot_seen import SlotSeenRoute
from broker.api.v1 import Api
from broker.daemon.foreign import whole
from broker.peers.heartbeat import is_nonce

_COUNT_MAX = 10**12

_BROKER: web.AppKey[Served] = web.AppKey("broker")
_METRICS: web.AppKey[Metrics] = web.AppKey("metrics", Metrics)


def application(
    broker: Served, figures: ListenerFigures | None = None, token: str | None = None
) -> web.Application:
    """The pages over one broker; `figures`: the listener's figures for the metrics; `token`: for
    changes, None: nothing can be changed."""
    app = web.Application(middlewares=[as_problems, at_work], client_max_size=BODY_BYTES_MAX)
    app[_BROKER] = broker
    app[_METRICS] = Metrics(broker, lambda: asyncio.get_running_loop().time(), figures=figures)
    app.router.add_get("/heartbeat", _get_heartbeat, allow_head=False)
    app.router.add_get("/metrics", _get_metrics)
    Api(broker, Gate(token)).add_to(app.router)
    Dashboard().add_to(app.router)
    LibvirtReachRoute(broker).add_to(app.router)
    SlotSeenRoute(broker).add_to(app.router)
    MemberRequests(broker).add_to(app.router)
    app.on_response_prepare.append(with_headers)
    return app


async def _get_heartbeat(request: web.Request) -> web.Response:
    """A signed sign of life: broker/peers/heartbeat.py."""
    nonce = request.query.get("nonce", "")
    if not is_nonce(nonce):
        return problem(400, "nonce must be 32 lower-case hexadecimal digits")
    answer = request.app[_BROKER].sign_of_life.at_listener(nonce, asyncio.get_running_loop().time())
    if answer is None:
        return problem(404, "no heartbeat", "this host has no cluster-key in its secrets file")
    return web.Response(body=answer, content_type="application/json")


async def _get_metrics(request: web.Request) -> web.Response:
    """The metrics for Prometheus: broker/api/metrics.py."""
    text, kind = request.app[_METRICS].text(request.headers.get("Accept", ""))
    return web.Response(body=text, headers={"Content-Type": kind})


class FrontFigures(ListenerFigures):
    """The listener's figures, as the process that serves strangers sends them."""

    def __init__(self) -> None:
        self.open = self.turned_away = 0
        super().__init__(lambda: self.open, lambda: self.turned_away)

    def look(self, request: web.Request) -> web.Request:
        """The request with the stranger's address, as the process names it."""
        given = request.headers
        self.open = whole(given.get(OPEN_CONNECTIONS, ""), _COUNT_MAX) or 0
        self.turned_away = whole(given.get(TURNED_AWAY, ""), _COUNT_MAX) or 0
        scheme = "https" if given.get(OVER_TLS) == "yes" else "http"
        return request.clone(remote=given.get(CLIENT, ""), scheme=scheme)


def behind(broker: Served, token: str | None = None) -> web.Application:
    """The application for the process that serves strangers."""
    figures = FrontFigures()

    @web.middleware
    async def as_asked(request: web.Request, handler: Any) -> web.StreamResponse:
        response = await handler(figures.look(request))
        assert isinstance(response, web.StreamResponse)
        return response

    app = application(broker, figures, token)
    app.middlewares.insert(0, as_asked)
    return app
