# SPDX-License-Identifier: LGPL-2.1-or-later
"""The port that mail, webhook and command stand behind."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Protocol

from broker.daemon.name_lookup import NameLookup
from broker.daemon.worker import Hung
from broker.events.notice import Message, one_line
from broker.wire.kinds import Severity

ERROR_CHARS_MAX = 200


class SendFailed(Exception):
    """It did not go out: the message says why, in one line and without a secret. Trying again
    may help."""

    def __init__(self, why: str) -> None:
        super().__init__(one_line(why, ERROR_CHARS_MAX))


class Refused(SendFailed):
    """The other side will never take it: trying again is of no use."""


class Sender(Protocol):
    """One way out. `timeout_s`: for one message, all in all; the caller ends it after that."""

    timeout_s: float
    severity: Severity

    async def send(self, message: Message) -> None:
        """Hand it over; SendFailed or Refused. Must bear being cancelled."""


class Names:
    """Host names, looked up in a thread of this way's own (broker/daemon/name_lookup.py)."""

    def __init__(self, whose: str) -> None:
        self._lookup = NameLookup(whose)

    async def addresses(self, host: str) -> list[str]:
        """At least one; SendFailed where there is none."""
        try:
            return await self._lookup.addresses(host)
        except Hung as error:
            raise SendFailed(str(error)) from None
        except OSError as error:
            raise SendFailed(f"{host} cannot be looked up: {error.strerror or error}") from None

    async def connect(self, host: str, port: int) -> socket.socket:
        """A connection to the first address that takes it; SendFailed."""
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
