# SPDX-License-Identifier: LGPL-2.1-or-later
"""Questions for a sign of life over HTTP: `GET /heartbeat?nonce=…`, by h11. They go to hosts whose
port for heartbeats (broker/peers/heartbeat_port.py) does not answer, or that publish none.

Each question makes a connection of its own: a kept one could answer out of a buffer, and
half-open ones of dead hosts would have to be found first. docs/decisions/0023 has the cost of
that. Addresses come from the whiteboard: nothing in them, and no answer, is trusted.
"""

from __future__ import annotations

import asyncio

import h11

from broker.daemon.name_lookup import NameLookup, is_address
from broker.daemon.worker import Hung
from broker.peers.heartbeat import ANSWER_BYTES_MAX

#: The largest head of an answer.
HEAD_BYTES_MAX = 4096
#: How long a name's address is used before it is looked up again, and after that failed.
NAME_GOOD_S = 300.0
NAME_RETRY_S = 30.0
NAME_DEADLINE_S = 0.5


async def ask_over_http(where: str, port: int, address: str, nonce: str) -> bytes:
    """The answer of the broker there to this nonce; OSError where there is no good one. `address`:
    as it was published."""
    reader, writer = await asyncio.open_connection(where, port, limit=HEAD_BYTES_MAX)
    try:
        return await _get(reader, writer, address, f"/heartbeat?nonce={nonce}")
    except h11.ProtocolError as error:
        raise ConnectionError(f"no HTTP: {error}") from None
    finally:
        writer.close()


async def _get(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, target: str
) -> bytes:
    """The body of an answer of status 200; ConnectionError where it is missing, too large, or of
    another status."""
    http = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_BYTES_MAX)
    headers = [("Host", host), ("Connection", "close")]
    request = h11.Request(method="GET", target=target, headers=headers)
    writer.write((http.send(request) or b"") + (http.send(h11.EndOfMessage()) or b""))
    body, left = bytearray(), HEAD_BYTES_MAX + ANSWER_BYTES_MAX
    while left > 0:
        event = http.next_event()
        if event is h11.NEED_DATA:
            data = await reader.read(left)
            left -= len(data)
            http.receive_data(data)
        elif isinstance(event, h11.Response) and event.status_code != 200:
            # This refuses a redirect too: an answer comes from the asked address, or not at all.
            raise ConnectionError(f"HTTP status {event.status_code}")
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            return bytes(body)
        elif isinstance(event, h11.ConnectionClosed):
            raise ConnectionError("closed without an answer")
    raise ConnectionError("the answer has no end")


class Names:
    """Addresses of names, kept: the name service may well fail together with a host."""

    def __init__(self) -> None:
        self.lookup = NameLookup("heartbeats")
        self._known: dict[str, tuple[str, float]] = {}

    async def find(self, name: str) -> str:
        """An address; OSError where none is known."""
        if is_address(name):
            return name
        now_s = asyncio.get_running_loop().time()
        known, good_until_s = self._known.get(name, ("", 0.0))
        if known and now_s < good_until_s:
            return known
        # Callers that come meanwhile use the known address.
        self._known[name] = known, now_s + NAME_RETRY_S
        try:
            async with asyncio.timeout(NAME_DEADLINE_S):
                found = (await self.lookup.addresses(name))[0]
        except (Hung, OSError, IndexError) as error:
            if known:
                return known
            raise OSError(f"no address for the name {name}") from error
        self._known[name] = found, now_s + NAME_GOOD_S
        return found
