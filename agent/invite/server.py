# SPDX-License-Identifier: LGPL-2.1-or-later
"""The process that waits for the newcomer of one invitation.

It is the only one that strangers reach by it (record 58): it has no rights, no files, little
memory, and ends by itself. What it can give away is the offer, which it holds in memory.

Rules:

1. The offer goes to the first one that knows the secret, once. Afterwards, and after ten minutes,
   it says why there is none, for a while, and ends.
2. Strangers: so many connections at once, so many a second of one network, a deadline for each;
   who has no place is closed without a word. Whoever does not know the secret learns nothing else,
   not even whether the invitation was used.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import os
import resource
import socket
import ssl
import sys
import time
from collections.abc import Callable

import msgspec

from agent.invite.offer import ASKED_BYTES_MAX, Answer, Asked, Spec
from broker.daemon.foreign import clean
from broker.daemon.foreign_json import decoded
from broker.daemon.tls import server_context

CONNECTIONS, DEADLINE_S, PAUSE_S = 16, 10.0, 0.1
#: Connections of one network (an IPv4 address, an IPv6 /64) in RATE_S.
OF_ONE_NETWORK, RATE_S, NETWORKS = 20, 60.0, 1024
MEMORY_BYTES = 512 * 1024 * 1024
NOBODY = 65534
WRONG = "it does not know this token; copy it again, or type ha-agent invite there again"


class Invitation:
    """Decides what each one that asks is answered. `clock`: monotonic, in seconds."""

    def __init__(self, spec: Spec, clock: Callable[[], float] = time.monotonic) -> None:
        self._spec, self._clock = spec, clock
        self._ends_s = clock() + spec.holds_s
        self._used_by: str | None = None
        self._came: dict[str, list[float]] = {}

    @property
    def stays_s(self) -> float:
        """For how long the process has something to say yet."""
        return self._ends_s + self._spec.says_s - self._clock()

    def is_let_in(self, address: str) -> bool:
        """Whether one from there may ask now."""
        now_s, network = self._clock(), _network(address)
        came = [at_s for at_s in self._came.get(network, []) if now_s - at_s < RATE_S]
        if len(came) >= OF_ONE_NETWORK:
            return False
        if network not in self._came and len(self._came) >= NETWORKS:
            self._came.pop(next(iter(self._came)))
        self._came[network] = [*came, now_s]
        return True

    def answer(self, asked: Asked) -> Answer:
        """The answer, which is the offer once."""
        if not hmac.compare_digest(asked.secret.encode(), self._spec.secret.encode()):
            return Answer(problem=WRONG)
        again = "type ha-agent invite there again"
        if self._used_by is not None:
            return Answer(problem=f"the token was used already, by {self._used_by}; {again}")
        if self._clock() >= self._ends_s:
            minutes = round(self._spec.holds_s / 60)
            return Answer(problem=f"the token is older than {minutes} minutes; {again}")
        self._used_by = clean(asked.host) or "a host that did not say its name"
        return Answer(self._spec.offer)


def _network(address: str) -> str:
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if found.version == 6 and found.ipv4_mapped is None:
        return str(ipaddress.ip_network((found, 64), strict=False))
    return str(found)


class InvitationServer:
    """The server of one invitation."""

    def __init__(self, spec: Spec) -> None:
        self._invitation = Invitation(spec)
        self._spec = spec
        self._context: ssl.SSLContext
        self._inside = 0

    async def run(self) -> None:
        """Serve until there is nothing to say any more."""
        self._context = _context(self._spec.certificate)
        drop_rights()
        with contextlib.suppress(TimeoutError):
            async with (
                asyncio.timeout(max(0.0, self._invitation.stays_s)),
                asyncio.TaskGroup() as tasks,
            ):
                for number in self._spec.sockets:
                    tasks.create_task(self._accept(socket.socket(fileno=number), tasks))

    async def _accept(self, listening: socket.socket, tasks: asyncio.TaskGroup) -> None:
        """Take connections; before TLS costs anything who has no place is closed."""
        listening.setblocking(False)
        while True:
            try:
                connection, where = await asyncio.get_running_loop().sock_accept(listening)
            except OSError:  # a stranger went away at once, or there are too many
                await asyncio.sleep(PAUSE_S)
                continue
            if self._inside >= CONNECTIONS or not self._invitation.is_let_in(str(where[0])):
                connection.close()
            else:
                self._inside += 1
                tasks.create_task(self._come(connection))

    async def _come(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(ASKED_BYTES_MAX)
        transport: asyncio.BaseTransport | None = None
        try:
            async with asyncio.timeout(DEADLINE_S):
                transport, protocol = await loop.connect_accepted_socket(
                    lambda: asyncio.StreamReaderProtocol(reader), connection, ssl=self._context
                )
                writer = asyncio.StreamWriter(transport, protocol, reader, loop)
                await self._talk(reader, writer)
                writer.close()
                await writer.wait_closed()
        except (OSError, TimeoutError, ValueError, msgspec.MsgspecError):
            pass  # a stranger that went away, or said nothing of use
        finally:
            self._inside -= 1
            if transport is None:
                connection.close()
            else:
                transport.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = decoded(await reader.readline(), Asked)
        writer.write(msgspec.json.encode(self._invitation.answer(asked)) + b"\n")
        await writer.drain()


def _context(certificate: str) -> ssl.SSLContext:
    """TLS with the certificate, which is on no disk."""
    context = server_context()
    number = os.memfd_create("certificate")
    try:
        os.write(number, certificate.encode())
        context.load_cert_chain(f"/proc/self/fd/{number}")
    finally:
        os.close(number)
    return context


def drop_rights() -> None:
    """Give up what a stranger could misuse: the user, files, memory, processes."""
    os.chdir("/")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)


def main() -> None:
    """Serve the invitation that standard input describes."""
    spec = decoded(sys.stdin.buffer.read(), Spec)
    asyncio.run(InvitationServer(spec).run())


if __name__ == "__main__":
    main()
