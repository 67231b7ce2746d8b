# SPDX-License-Identifier: LGPL-2.1-or-later
"""`ha-agent events [--since TIME] [--follow] [--json]`: what happened, as this host saw it."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterable
from datetime import UTC, datetime

import msgspec

from agent.terminal import in_json
from agent.terminal.columns import say, wants_colour
from agent.terminal.times import moment
from broker.client.ask import BrokerDown, ask
from broker.daemon.exit_codes import ExitCode
from broker.wire.events import Event, EventList

#: How long the broker holds back an answer until there is an event; the command waits longer.
WAIT_S = 20
PATIENCE_S = 30.0
#: The pause between two tries while no broker answers.
RETRY_S = 1.0
#: Where a long line goes on: below its severity.
TEXT_AT = 25
_COLOURS = {"critical": "1;31", "warning": "33"}


def run(socket_path: str, since: str | None, follow: bool, as_json: bool) -> int:
    """Print the events, oldest first. Raises as `ask` does where the first answer does not come,
    and CommandError where `since` is no time."""
    not_before = "" if since is None else _not_before(since)
    found = ask(socket_path, "GET", "/v1/events", EventList)
    events = [event for event in found.events if event.time >= not_before]
    if as_json and not follow:
        shown = msgspec.structs.replace(found, events=tuple(events))
        in_json.show(msgspec.to_builtins(shown))
        return ExitCode.OK
    _print(events, as_json)
    if follow:
        with contextlib.suppress(KeyboardInterrupt):
            _follow(socket_path, found.last, as_json)
    return ExitCode.OK


def _follow(socket_path: str, last: int, as_json: bool) -> None:
    """Print new events for ever; wait for a broker that is away."""
    is_away = False
    while True:
        resource = f"/v1/events?after={last}&wait={WAIT_S}"
        try:
            found = ask(socket_path, "GET", resource, EventList, timeout_s=PATIENCE_S)
        except BrokerDown as error:
            if not is_away:
                print(f"ha-agent: {error}; waiting for it", file=sys.stderr)
            is_away = True
            time.sleep(RETRY_S)
            continue
        is_away = False
        if found.missed:
            print("ha-agent: events may be missing here", file=sys.stderr)
        last = found.last
        _print(found.events, as_json)


def _print(events: Iterable[Event], as_json: bool) -> None:
    colour = sys.stdout.isatty() and wants_colour()
    for event in events:
        if as_json:
            in_json.show_line(msgspec.to_builtins(event))
        else:
            say(as_line(event), TEXT_AT, colour=_COLOURS.get(event.severity, "") if colour else "")
    sys.stdout.flush()


def as_line(event: Event) -> str:
    """Time with its zone, severity unless it is information, host, kind, and a sentence."""
    text = event.text
    facts = event.facts
    if event.kind == "state-transition":
        text = f"{facts.get('from')} -> {facts.get('to')}"
        if facts.get("reason"):
            text += f" because {facts['reason']}"
        if facts.get("vm"):
            text = f"{facts['vm']}: {text}"
    severity = "" if event.severity == "info" else event.severity.upper()
    return (
        f"{event.time[:10]} {event.time[11:19]} UTC  {severity:8}  {event.host}  {event.kind}:"
        f" {text}"
    )


def _not_before(since: str) -> str:
    """The beginning, in the form of an event's time."""
    at = moment(since, datetime.now(UTC))
    return at.strftime("%Y-%m-%dT%H:%M:%S") + f".{at.microsecond // 1000:03d}Z"
