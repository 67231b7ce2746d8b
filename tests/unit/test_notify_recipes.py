# SPDX-License-Identifier: LGPL-2.1-or-later
"""The recipes of docs/notifications.md, run as they stand there by the real sender; only their
addresses are replaced by one of a receiver here."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from broker.config.notify_section import CommandSection
from broker.events.notice import Notice
from broker.notify.command import CommandSender
from broker.notify.message import Message, StampedNotice
from broker.notify.sender import SendFailed
from broker.wire.kinds import Kind

PAGE = Path(__file__).parents[2] / "docs" / "notifications.md"
STAMPED = StampedNotice(Notice(Kind.FAILOVER_DONE, "host1", "it is up, after 12 s", {}), 1.8e9)
MESSAGE = Message("1", "lab", "host1", (STAMPED,), 0, '[lab] "failover" of ä', "line 1\n")
DIGEST = Message("2", "lab", "host1", (STAMPED, STAMPED), 3, "many", "b\n")
needed = pytest.mark.skipif(
    not (shutil.which("jq") and shutil.which("curl")), reason="jq and curl are not installed"
)


def script(folder: Path, at: str) -> Path:
    """The recipes as one script; each address is replaced by a path of the receiver."""
    text = re.search(r"```sh\n(#!/bin/sh.*?)```", PAGE.read_text(), re.S)
    assert text is not None
    found, count = re.subn(r"https://([^\s/]+)\S*", rf"{at}/\1", text[1])
    assert count == 4, "an address for each service"
    path = folder / "notify"
    path.write_text(found)
    path.chmod(0o755)
    return path


def received(
    folder: Path, message: Message, status: int = 200
) -> dict[str, tuple[dict[str, str], str]]:
    """What the receiver got: path -> headers and body. `status`: its answers."""
    found: dict[str, tuple[dict[str, str], str]] = {}

    async def take(request: web.Request) -> web.Response:
        found[request.path] = dict(request.headers), await request.text()
        return web.Response(status=status)

    async def run() -> None:
        app = web.Application()
        app.router.add_post("/{path:.*}", take)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            path = script(folder, f"http://127.0.0.1:{runner.addresses[0][1]}")
            await CommandSender(CommandSection(argv=(str(path),), timeout=30.0)).send(message)
        finally:
            await runner.cleanup()

    asyncio.run(run())
    return found


def as_json(got: tuple[dict[str, str], str]) -> Any:
    headers, body = got
    assert headers["Content-Type"] == "application/json"
    return json.loads(body)


@needed
@pytest.mark.parametrize("message", [MESSAGE, DIGEST], ids=["one", "digest"])
def test_each_service_gets_what_its_documentation_asks_for(
    tmp_path: Path, message: Message
) -> None:
    found = received(tmp_path, message)
    ntfy, slack, teams, pagerduty = sorted(found, key=_order)
    headers, body = found[ntfy]
    assert (headers["Title"], headers["Priority"], body) == ("lab", "5", message.subject)
    assert as_json(found[slack]) == {"text": message.subject}
    card = as_json(found[teams])["attachments"][0]
    assert card["contentType"] == "application/vnd.microsoft.card.adaptive"
    assert card["content"]["body"][0]["text"] == message.subject
    event = as_json(found[pagerduty])
    assert (event["event_action"], event["routing_key"]) == ("trigger", "…")
    assert event["payload"] == {
        "summary": message.subject,
        "source": "host1",
        "severity": "critical",
    }
    subject = "host1" if message.is_single else ""
    assert event["dedup_key"] == f"lab/{subject}/{message.kind}"


def _order(path: str) -> int:
    words = ("ntfy", "slack", "logic.azure", "pagerduty")
    return next(n for n, word in enumerate(words) if word in path)


@needed
def test_a_service_that_refuses_is_a_failure(tmp_path: Path) -> None:
    with pytest.raises(SendFailed, match="404"):
        received(tmp_path, MESSAGE, 404)
