# SPDX-License-Identifier: LGPL-2.1-or-later
"""The OpenAPI 3.1 document of `/api/v1`. The schemas are made from broker/wire/status.py, from
which the answers are encoded too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from broker.api.event_stream import LIMIT_DEFAULT, LIMIT_MAX
from broker.daemon.version import VERSION
from broker.wire.events import Event, EventList
from broker.wire.history import History
from broker.wire.problem import Problem
from broker.wire.status import Maintenance, NewOrder, OrderStatus, Status
from broker.wire.vms import VmEntry, VmList
from scoring.observation import OrderKind

_TYPES = (
    Status,
    VmEntry,
    VmList,
    History,
    Event,
    EventList,
    Maintenance,
    NewOrder,
    OrderStatus,
    Problem,
)
HOST_ID: dict[str, Any] = {"type": "integer", "minimum": 1, "maximum": 2000}
_COUNT: dict[str, Any] = {"type": "integer", "minimum": 0, "maximum": 10**15 - 1}


def document() -> dict[str, Any]:
    """The complete document."""
    _, components = msgspec.json.schema_components(
        _TYPES, ref_template="#/components/schemas/{name}"
    )
    # The type cannot express it: a target belongs to a migration.
    order = components["NewOrder"]
    others = [kind.value for kind in OrderKind if kind is not OrderKind.MIGRATE]
    order["oneOf"] = [
        {
            "properties": {"kind": {"const": OrderKind.MIGRATE.value}, "target": HOST_ID},
            "required": ["kind", "target"],
        },
        {"properties": {"kind": {"enum": others}, "target": {"type": "null"}}},
    ]
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "ha-agent",
            "version": VERSION,
            "summary": "One host's view of the cluster, and its orders.",
            "license": {"name": "LGPL-2.1-or-later", "identifier": "LGPL-2.1-or-later"},
        },
        "servers": [{"url": "/"}],
        "paths": _paths(),
        "components": {
            "schemas": components,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _paths() -> dict[str, Any]:
    return {
        "/api/v1/status": {
            "get": _operation("getStatus", "The cluster as this host sees it.", _ok("Status"))
        },
        "/api/v1/vms": {
            "get": _operation(
                "getVms", "All protected VMs, and which have no place.", _ok("VmList")
            )
        },
        "/api/v1/vms/{vm}": {
            "get": _operation(
                "getVm",
                "One protected VM.",
                _ok("VmEntry") | _problems(404),
                [_parameter("vm", "path", {"type": "string"}, "its name, or its number")],
            )
        },
        "/api/v1/history": {
            "get": _operation(
                "getHistory", "Scores of the last 15 minutes and the last day.", _ok("History")
            )
        },
        "/api/v1/events": {"get": _events()},
        "/api/v1/orders": {
            "post": _change(
                "postOrder",
                "Order a host's agent, this one's by default, to migrate, start or stop the VM."
                " Where it runs matters: only its own host can move or stop it.",
                "NewOrder",
                _ok("OrderStatus") | _problems(404, 409, 502, 503),
                [_host()],
                examples={
                    "migrate": {"value": {"kind": "migrate", "target": 2}},
                    "start": {"value": {"kind": "start"}},
                },
            )
        },
        "/api/v1/orders/{number}": {
            "get": _operation(
                "getOrder",
                "What became of an order.",
                _ok("OrderStatus") | _problems(401, 403, 404, 409, 429, 502, 503),
                [_parameter("number", "path", _COUNT, "as its order was answered"), _host()],
            )
        },
        "/api/v1/maintenance/{mode}": {
            "put": _change(
                "putMaintenance",
                "Set or end a maintenance: of the cluster, or of a host, this one by default.",
                "Maintenance",
                _ok("Maintenance") | _problems(404, 409, 502, 503),
                [_parameter("mode", "path", {"enum": ["global", "local"]}, "which"), _host()],
            )
        },
        "/api/v1/token": {
            "get": _operation(
                "getToken",
                "Whether the token is taken; changes nothing.",
                {"200": _answer({"type": "object"}, "It is.")} | _problems(401, 403, 429),
                secured=True,
            )
        },
    }


def _host() -> dict[str, Any]:
    """For another host: this one asks it, signed with the cluster key."""
    schema = {"type": "integer", "minimum": 1, "maximum": 2000}
    return _parameter("host", "query", schema, "another host's id; needs the token")


def _events() -> dict[str, Any]:
    operation = _operation(
        "getEvents",
        "What has happened: a list, or with Accept: text/event-stream as it happens, first what"
        " came after Last-Event-ID (or `after`). Events of the stream: `happened` with an Event"
        " and its id, `status` with a Status, `missed` where some are not there any more.",
        _ok("EventList") | _problems(503),
        [
            _parameter("after", "query", _COUNT, "only what came after the event of this id"),
            _parameter(
                "limit",
                "query",
                {"type": "integer", "minimum": 1, "maximum": LIMIT_MAX, "default": LIMIT_DEFAULT},
                "at most so many, of a list: the oldest of them with `after`, else the newest",
            ),
            _parameter(
                "status",
                "query",
                {"enum": ["yes", "no"], "default": "no"},
                "yes: the status with each beat, of a stream",
            ),
        ],
    )
    operation["responses"]["200"]["content"]["text/event-stream"] = {"schema": {"type": "string"}}
    return operation


def _operation(
    name: str,
    what: str,
    responses: Mapping[str, Any],
    parameters: list[dict[str, Any]] | None = None,
    secured: bool = False,
) -> dict[str, Any]:
    found: dict[str, Any] = {"operationId": name, "description": what}
    found["responses"] = {**responses, **_problems(400)}
    if parameters:
        found["parameters"] = parameters
    if secured:
        found["security"] = [{"token": []}]
    return found


def _change(
    name: str,
    what: str,
    body: str,
    responses: Mapping[str, Any],
    parameters: list[dict[str, Any]] | None = None,
    examples: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    refusals = _problems(401, 403, 413, 429)
    found = _operation(name, what, {**responses, **refusals}, parameters, secured=True)
    content: dict[str, Any] = {"schema": _ref(body)}
    if examples:
        content["examples"] = examples
    found["requestBody"] = {"required": True, "content": {"application/json": content}}
    return found


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _ok(name: str) -> dict[str, Any]:
    return {"200": _answer(_ref(name), "As asked.")}


def _answer(schema: Mapping[str, Any], what: str) -> dict[str, Any]:
    return {"description": what, "content": {"application/json": {"schema": schema}}}


_WHY = {
    400: "The question does not fit.",
    401: "The token is missing or wrong.",
    403: "Changes over TCP are off, or not allowed without TLS.",
    404: "There is no such thing.",
    409: "Hosts cannot ask each other: there is no cluster key.",
    413: "The body is too large.",
    429: "Too many wrong tokens.",
    502: "The other host cannot be asked, or gave no answer that counts.",
    503: "Not now: the storage fails, or there are too many streams.",
}


def _problems(*statuses: int) -> dict[str, Any]:
    content = {"application/problem+json": {"schema": _ref("Problem")}}
    return {str(code): {"description": _WHY[code], "content": content} for code in statuses}


def _parameter(name: str, place: str, schema: Mapping[str, Any], what: str) -> dict[str, Any]:
    return {
        "name": name,
        "in": place,
        "required": place == "path",
        "schema": schema,
        "description": what,
    }
