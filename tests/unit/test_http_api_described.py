# SPDX-License-Identifier: LGPL-2.1-or-later
"""`/api/v1` over a real socket, held to its OpenAPI document: every path and verb of it, with what
schemathesis draws.

The file is apart from test_http_api.py since its library costs 3 s of a processor before the first
test: each path becomes a test of its own while the tests are collected.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings

from broker.api import gate
from broker.api.openapi import document
from tests.fakes.broker import make_broker, report, up
from tests.fakes.listener import Listener
from tests.fakes.slot_store import MemoryVolume
from tests.unit.draws import draws

pytestmark = pytest.mark.slow

TOKEN = "t" * 40
AUTH = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def api_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A broker with an agent's report, in a thread of its own."""
    ready, done = threading.Event(), asyncio.Event()
    found: dict[str, Any] = {}

    async def main() -> None:
        broker = make_broker(tmp_path_factory.mktemp("api"), MemoryVolume())
        door = Listener(broker, TOKEN)
        await door.start([("127.0.0.1", 0)])
        beating = asyncio.create_task(broker.run())
        loop = asyncio.get_running_loop()
        up(broker, loop.time())
        broker.take_report(report(), loop.time())
        found.update(loop=loop, url=f"http://127.0.0.1:{door.ports[0]}")
        ready.set()
        await done.wait()
        beating.cancel()
        await door.close()

    thread = threading.Thread(target=lambda: asyncio.run(main()), name="api")
    thread.start()
    assert ready.wait(10.0)
    yield found["url"]
    found["loop"].call_soon_threadsafe(done.set)
    thread.join(10.0)


described = schemathesis.openapi.from_dict(document())


@described.parametrize()
@settings(max_examples=draws(40), suppress_health_check=list(HealthCheck))
def test_every_answer_is_as_the_document_says(
    case: schemathesis.Case[Any], api_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Wrong tokens are tried by the hundred.
    monkeypatch.setattr(gate, "WRONG_MAX", 10**9)
    case.call_and_validate(base_url=api_url, headers=AUTH, timeout=60.0)
