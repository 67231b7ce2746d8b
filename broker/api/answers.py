# SPDX-License-Identifier: LGPL-2.1-or-later
"""HTTP answers: JSON, and problem+json (RFC 9457) for every error."""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import hdrs, web

from broker.wire.problem import Problem

encode = msgspec.json.Encoder().encode


def json_answer(value: Any, status: int = 200, kind: str = "application/json") -> web.Response:
    """An answer with the value as JSON."""
    return web.Response(body=encode(value), status=status, content_type=kind)


def json_bytes(made: bytes) -> web.Response:
    """An answer of JSON that is encoded already."""
    return web.Response(body=made, content_type="application/json")


def problem(status: int, title: str, detail: str = "") -> web.Response:
    """An answer that says what went wrong."""
    return json_answer(Problem(title, status, detail), status, "application/problem+json")


@web.middleware
async def as_problems(request: web.Request, handler: Any) -> web.StreamResponse:
    """Answer every error in the form of `problem`."""
    try:
        response = await handler(request)
        assert isinstance(response, web.StreamResponse)
        return response
    except web.HTTPException as error:
        answer = problem(error.status, error.reason)
        if hdrs.ALLOW in error.headers:
            answer.headers[hdrs.ALLOW] = error.headers[hdrs.ALLOW]
        return answer
    except msgspec.MsgspecError as error:
        return problem(400, "the body does not fit", str(error))
    except RecursionError:
        return problem(400, "the body does not fit", "the body is nested too deeply")
