# SPDX-License-Identifier: LGPL-2.1-or-later
"""The port for a channel: mail, webhook and command implement it."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Protocol

from broker.daemon.errors import HaError, why
from broker.daemon.name_lookup import NameLookup
from broker.daemon.worker import Hung
from broker.events.notice import one_line
from broker.notify.message import Message
from broker.wire.kinds import Severity

ERROR_CHARS_MAX = 200


class SendFailed(HaError):
    """The message was not sent: the text says why, in one line and without a secret. Another try
    may help."""

    def __init__(self, why: str) -> None:
        super().__init__(one_line(why, ERROR_CHARS_MAX))


class Refused(SendFailed):
    """The receiver will never take this message: another try is of no use."""


class Sender(Protocol):
    """Sends by one channel. `timeout_s`: for one message in all; the caller cancels it then."""

    timeout_s: float
    severity: Severity

    async def send(self, message: Message) -> None:
        """Send one message; SendFailed or Refused. It may be cancelled at any moment."""


class Names:
    """Host names, looked up in this channel's own thread (broker/daemon/name_lookup.py)."""

    def __init__(self, whose: str) -> None:
        self._lookup = NameLookup(whose)

    async def addresses(self, host: str) -> list[str]:
        """At least one address; SendFailed where there is none."""
        try:
            return await self._lookup.addresses(host)
        except Hung as error:
            raise SendFailed(str(error)) from None
        except OSError as error:
            raise SendFailed(f"{host} cannot be looked up: {why(error)}") from None

    async def connect(self, host: str, port: int) -> socket.socket:
        """A connection to the first address that accepts one; SendFailed."""
        loop = asyncio.get_running_loop()
        problem = f"{host} has no address"
        for address in await self.addresses(host):
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            sock = socket.socket(family, socket.SOCK_STREAM)
            try:
                sock.setblocking(False)
                await loop.sock_connect(sock, (address, port))
            except OSError as error:
                sock.close()
                problem = f"{host} port {port}: {os.strerror(error.errno or 0)}"
            except BaseException:
                sock.close()
                raise
            else:
                return sock
        raise SendFailed(problem)
