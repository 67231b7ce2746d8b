# SPDX-License-Identifier: LGPL-2.1-or-later
"""The pages of one broker in this very process: the product has a process of its own for them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from broker.api.bounded_server import BoundedServer
from broker.api.metrics import ListenerFigures
from broker.api.pages import application
from broker.broker import Broker


class Listener(BoundedServer):
    """The real server and the real pages, without the process that serves strangers."""

    def __init__(self, broker: Broker, token: str | None = None) -> None:
        door = ListenerFigures(lambda: self.connections.total(), lambda: self.turned_away)
        super().__init__(application(broker, door, token))


@contextlib.asynccontextmanager
async def listening(broker: Broker) -> AsyncIterator[int]:
    """The port of a listener on the loopback, which is closed at the end."""
    listener = Listener(broker)
    try:
        await listener.start([("127.0.0.1", 0)])
        yield listener.ports[0]
    finally:
        await listener.close()
