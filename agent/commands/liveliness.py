# SPDX-License-Identifier: LGPL-2.1-or-later
"""`ha-agent check-liveliness`: whether the engine is well, in one line and by the exit code.

The answer is the last check of the host that runs the VM, as this host's broker has read it; no new
check is made.
"""

from __future__ import annotations

import json

from agent.status.command import code_of
from agent.status.text import engine_line
from broker.client.ask import ask
from broker.daemon.exit_codes import ExitCode
from broker.wire.status import Status


def run(socket: str, as_json: bool) -> int:
    """OK: up and healthy; ENGINE_SICK: up, but not (yet) healthy; ENGINE_DOWN: it runs nowhere;
    ENGINE_UNKNOWN: whether it is up, or healthy, is unknown; or its own host finds it healthy and
    no other host reaches it, so that it is unknown whether its users do. Raises as `ask` does."""
    status = ask(socket, "GET", "/v1/status", Status)
    engine = status.engine
    if as_json:
        shown = {
            "up": engine.up,
            "healthy": engine.healthy,
            "reached": engine.reached,
            "host": engine.hostname,
        }
        print(json.dumps({"version": 1, **shown}))
    else:
        print(engine_line(status))
    if not engine.up or engine.healthy is None:
        return code_of(engine.healthy if engine.up else engine.up)
    if not engine.healthy:
        return ExitCode.ENGINE_SICK
    return ExitCode.ENGINE_UNKNOWN if engine.reached is False else ExitCode.OK
