# SPDX-License-Identifier: LGPL-2.1-or-later
"""The broker's HTTP API on its UNIX socket. `curl --unix-socket PATH http://ha/v1/status` works.

The peer's credentials decide who may change things (unix(7), SO_PEERCRED): root and
the user the broker runs as. Errors are problem+json (RFC 9457).
"""

from __future__ import annotations

import asyncio
import errno
import os
import pwd
import socket
import struct
from pathlib import Path

from aiohttp import web

from broker.api.answers import as_problems, json_answer, json_bytes, problem
from broker.api.bounded_server import BoundedServer, Limits, at_work
from broker.api.served import Served
from broker.daemon.foreign import whole
from broker.daemon.foreign_json import decoded
from broker.this_host.disks_record import CannotDecide
from broker.this_host.disks_shown import record
from broker.whiteboard.store import StorageTrouble
from broker.wire.exchange import FenceNote, Report
from broker.wire.notify import NotifyTest
from broker.wire.status import (
    Decision,
    Maintenance,
    NewOrder,
)
from scoring.vm_facts import VmSpec

BODY_BYTES_MAX = 262_144
SOCKET_MODE = 0o660
#: The largest number in a query: of 15 digits.
NUMBER_MAX = 10**15 - 1
#: Longer than any sensible beat, shorter than the agent's own timeout.
PATIENCE_S = 5.0
#: Bounds for users other than root and the broker's own: connections in all and of one user, the
#: time of a whole request. Its bytes are bounded whoever sends it.
CONNECTIONS_MAX, CONNECTIONS_PER_USER_MAX = 64, 16
REQUEST_S = 30.0
REQUEST_BYTES_MAX = BODY_BYTES_MAX + 16_384

_BROKER: web.AppKey[Served] = web.AppKey("broker")


def _now_s() -> float:
    return asyncio.get_running_loop().time()


def _user_id(request: web.Request) -> int | None:
    """The user of the process that asks."""
    return _peer_user(request.transport.get_extra_info("socket") if request.transport else None)


def _peer_user(sock: socket.socket | None) -> int | None:
    if sock is None:
        return None
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, _ = struct.unpack("3i", raw)
    return int(uid)


def _may_change(request: web.Request) -> bool:
    """Whether root, or the broker's own user, asks."""
    return _user_id(request) in (0, os.getuid())


def _owner(request: web.Request) -> str:
    """The asking user's name, or number."""
    uid = _user_id(request)
    assert uid is not None
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


async def _get_status(request: web.Request) -> web.Response:
    return json_bytes(request.app[_BROKER].shown.as_json(_now_s()))


async def _get_view(request: web.Request) -> web.Response:
    return json_answer(request.app[_BROKER].exchange.view(_now_s()))


async def _get_events(request: web.Request) -> web.Response:
    """The events after `?after=ID`; with `&wait=SECONDS` the answer waits until there is
    one."""
    after, wait = request.query.get("after", "0"), request.query.get("wait", "0")
    event_id, wait_s = whole(after, NUMBER_MAX), whole(wait, NUMBER_MAX)
    if event_id is None or wait_s is None:
        return problem(400, "after and wait must be whole numbers, of up to 15 digits")
    return json_answer(await request.app[_BROKER].events.newer(event_id, float(wait_s)))


async def _put_report(request: web.Request) -> web.Response:
    """The agent's report; answered with a view, so that a beat is one round trip.

    With `?newer-than=N` the answer waits for a view of a later version, PATIENCE_S at most.
    """
    if not _may_change(request):
        return problem(403, "not allowed", "only root and the broker's user may report")
    report = decoded(await request.read(), Report)
    broker = request.app[_BROKER]
    broker.exchange.take_report(report, _now_s())
    than = request.query.get("newer-than", "")
    if (version := whole(than, NUMBER_MAX)) is not None:
        return json_answer(await broker.exchange.newer_view(version, PATIENCE_S))
    return json_answer(broker.exchange.view(_now_s()))


async def _post_fence_log(request: web.Request) -> web.Response:
    if not _may_change(request):
        return problem(403, "not allowed", "only root and the broker's user may write it")
    note = decoded(await request.read(), FenceNote)
    try:
        record = await request.app[_BROKER].asked.note_fence(note)
    except StorageTrouble as error:
        return problem(503, "the fence log was not written", str(error))
    return json_answer({} if record is None else record)


async def _post_what_ran(request: web.Request) -> web.Response:
    """A person's decision where what ran last differs from the definition."""
    if not _may_change(request):
        return problem(403, "not allowed", "only root and the broker's user may decide it")
    wanted = decoded(await request.read(), Decision)
    broker = request.app[_BROKER]
    who = f"{_owner(request)}@{broker.config.host_name}"
    try:
        await broker.asked.decide_what_ran(wanted.decision == "adopt", who)
    except CannotDecide as error:
        return problem(409, "nothing was decided", str(error))
    except StorageTrouble as error:
        return problem(503, "the decision could not be recorded", str(error))
    return json_answer(record(broker.this_host.disks.on_disk))


async def _post_order(request: web.Request) -> web.Response:
    if not _may_change(request):
        return problem(403, "not allowed", "only root and the broker's user may give orders")
    wanted = decoded(await request.read(), NewOrder)
    order = request.app[_BROKER].exchange.place_order(wanted)
    return json_answer(request.app[_BROKER].exchange.orders.status(order.number, _now_s()))


async def _get_order(request: web.Request) -> web.Response:
    status = request.app[_BROKER].exchange.orders.status(
        int(request.match_info["number"]), _now_s()
    )
    if status is None:
        return problem(404, "no such order")
    return json_answer(status)


async def _put_maintenance(request: web.Request) -> web.Response:
    if not _may_change(request):
        return problem(403, "not allowed", "only root and the broker's user may set maintenance")
    wanted = decoded(await request.read(), Maintenance)
    broker, kind = request.app[_BROKER], request.match_info["mode"]
    try:
        await broker.keeper.set(kind, wanted, _owner(request))
    except (StorageTrouble, OSError) as error:
        return problem(503, "maintenance was not changed", str(error))
    return json_answer(wanted)


async def _put_host_shutdown(request: web.Request) -> web.Response:
    """This host is shutting down; the command repeats this until the answer says that it is
    empty."""
    if not _may_change(request):
        return problem(403, "not allowed", "only root and the broker's user may say so")
    return json_answer(request.app[_BROKER].asked.host_shuts_down(_now_s()))


async def _post_acknowledge(request: web.Request) -> web.Response:
    if not _may_change(request):
        return problem(403, "not allowed", "only root and the broker's user may acknowledge")
    try:
        found = request.app[_BROKER].acknowledge()
    except OSError as error:
        return problem(503, "the acknowledgement could not be kept", str(error))
    return json_answer(found)


async def _post_notify_test(request: web.Request) -> web.Response:
    """Send a test notice by each configured channel, and wait for the results."""
    if not _may_change(request):
        return problem(403, "not allowed", "only root and the broker's user may send a test")
    notices = request.app[_BROKER].notices
    outcomes = await notices.test()
    if not outcomes:
        why = notices.problem or "none of notify.smtp.server, notify.webhook.url and"
        why += "" if notices.problem else " notify.command.argv is set"
        return problem(409, "notifications are not configured", why)
    return json_answer(NotifyTest(outcomes))


async def _post_registry(request: web.Request) -> web.Response:
    """A command has changed the registry: read it now."""
    if not _may_change(request):
        return problem(403, "not allowed", "only root and the broker's user may say so")
    request.app[_BROKER].registry.look_now()
    return json_answer({})


async def _post_room(request: web.Request) -> web.Response:
    """What would have no place if the registry had this VM."""
    spec = decoded(await request.read(), VmSpec)
    return json_answer(request.app[_BROKER].vms_now.room_for(spec, _now_s()))


def application(broker: Served) -> web.Application:
    """The API over one broker."""
    app = web.Application(middlewares=[as_problems, at_work], client_max_size=BODY_BYTES_MAX)
    app[_BROKER] = broker
    app.router.add_get("/v1/status", _get_status)
    app.router.add_get("/v1/view", _get_view)
    app.router.add_get("/v1/events", _get_events)
    app.router.add_put("/v1/report", _put_report)
    app.router.add_post("/v1/fence-log", _post_fence_log)
    app.router.add_post("/v1/notify/test", _post_notify_test)
    app.router.add_post("/v1/what-ran", _post_what_ran)
    app.router.add_post("/v1/acknowledge", _post_acknowledge)
    app.router.add_post("/v1/registry", _post_registry)
    app.router.add_post("/v1/room", _post_room)
    app.router.add_post("/v1/orders", _post_order)
    app.router.add_get("/v1/orders/{number:[0-9]{1,15}}", _get_order)
    app.router.add_put("/v1/host-shutdown", _put_host_shutdown)
    app.router.add_put("/v1/maintenance/{mode:global|local}", _put_maintenance)
    return app


def _answers(path: str) -> bool:
    """Whether somebody listens on the UNIX socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(path) == 0


class OwnSocket(BoundedServer):
    """The API on a UNIX socket. Root and the broker's own user have places of their own: a reader
    of the socket's group who takes all that he may keeps the agent from nothing."""

    def __init__(self, app: web.Application) -> None:
        limits = Limits(
            CONNECTIONS_MAX,
            CONNECTIONS_PER_USER_MAX,
            REQUEST_S,
            REQUEST_BYTES_MAX,
            trusted=frozenset({"0", str(os.getuid())}),
        )
        super().__init__(app, limits)
        self.whose = _user_of

    async def cleanup(self) -> None:
        """End it, and all connections."""
        await self.close()


def _user_of(transport: asyncio.Transport) -> str:
    """The number of the user whose process is at the other end."""
    uid = _peer_user(transport.get_extra_info("socket"))
    return "" if uid is None else str(uid)


async def serve(broker: Served, path: str) -> OwnSocket:
    """Listen on the UNIX socket `path`, replacing what an ended broker left there.

    Raises OSError where the socket cannot be made.
    """
    place = Path(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    if _answers(path):
        raise OSError(errno.EADDRINUSE, "another ha-broker answers at this socket; stop it first")
    place.unlink(missing_ok=True)
    server = OwnSocket(application(broker))
    await server.start_unix(path, SOCKET_MODE)
    return server
