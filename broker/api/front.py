# SPDX-License-Identifier: LGPL-2.1-or-later
"""The broker's side of the process that serves strangers (broker/api/front_process.py): it makes
the sockets, starts the process, restarts it when it ends, and answers its requests."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterable
from pathlib import Path

from broker.api.bounded_server import BoundedServer, Limits
from broker.api.pages import behind
from broker.api.served import Served
from broker.config.addresses import split
from broker.config.sections import Config

log = logging.getLogger("ha-broker.front")

#: Pauses before a process that has ended is restarted.
AGAIN_FIRST_S, AGAIN_MAX_S = 0.5, 30.0
#: After a life of this length the pauses begin with the first one again.
LIVED_S = 60.0
#: Time for the process to end.
END_S = 2.0
BACKLOG = 128
#: Connections that the process may have to the broker: one for each request of each pool, and those
#: that are being closed.
_CONNECTIONS_MAX = 256
_SOCKET_MODE = 0o600
_OURS_ALONE = frozenset({"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "CREDENTIALS_DIRECTORY"})


class FrontProcess:
    """Runs the process that serves strangers. `ready`: set while the process serves."""

    def __init__(self, broker: Served, token: str | None = None) -> None:
        config = broker.config
        self._config = config
        self._path = f"{config.daemon.socket}.front"
        limits = Limits(_CONNECTIONS_MAX, _CONNECTIONS_MAX, request_s=600.0)
        self._inside = BoundedServer(behind(broker, token), limits)
        self._plain: list[socket.socket] = []
        self._tls: list[socket.socket] = []
        self._listens_inside = False
        self._process: asyncio.subprocess.Process | None = None
        self.ready = asyncio.Event()

    async def start(self, addresses: Iterable[tuple[str, int]], is_tls: bool = False) -> None:
        """Open sockets on (host, port), port 0: any; OSError, its filename the address, where that
        fails. Requests are answered once `run` runs."""
        loop = asyncio.get_running_loop()
        for host, port in addresses:
            await self._listen_inside()
            try:
                found = await loop.getaddrinfo(
                    host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
                )
                for family, _, _, _, address in dict.fromkeys(found):
                    self._sockets(is_tls).append(_listening(family, address))
            except OSError as error:
                why = error.strerror or str(error)
                raise OSError(error.errno, why, f"{host} port {port}") from None

    async def _listen_inside(self) -> None:
        """Open the socket on which the process asks; once."""
        if self._listens_inside:
            return
        Path(self._path).unlink(missing_ok=True)
        try:
            await self._inside.start_unix(self._path, _SOCKET_MODE)
        except OSError as error:
            why = error.strerror or str(error)
            raise OSError(error.errno, why, self._path) from None
        self._listens_inside = True

    def _sockets(self, is_tls: bool) -> list[socket.socket]:
        return self._tls if is_tls else self._plain

    @property
    def ports(self) -> list[int]:
        """The ports of the open sockets, plain ones before those with TLS."""
        return [int(sock.getsockname()[1]) for sock in (*self._plain, *self._tls)]

    async def run(self) -> None:
        """Keep the process alive, for ever; nothing is done where no socket is open."""
        if not self._plain and not self._tls:
            return
        loop, pause_s = asyncio.get_running_loop(), AGAIN_FIRST_S
        while True:
            begun_s = loop.time()
            code = await self._one_life()
            pause_s = AGAIN_FIRST_S if loop.time() - begun_s >= LIVED_S else pause_s
            log.error(
                "the process that answers over TCP has ended (%s); it is restarted in %g s",
                code,
                pause_s,
            )
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, AGAIN_MAX_S)

    async def _one_life(self) -> str:
        """Start the process and wait for its end; returns how it ended, in words."""
        try:
            process = self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",
                "-m",
                "broker.api.front_process",
                json.dumps(self._spec()),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                pass_fds=[sock.fileno() for sock in (*self._plain, *self._tls)],
                env=_environment(),
            )
        except OSError as error:
            return f"not started: {error.strerror}"
        try:
            assert process.stdout is not None
            if await process.stdout.readline():
                self.ready.set()
            return f"exit code {await process.wait()}"
        finally:
            self.ready.clear()
            await _ended(process)
            self._process = None

    def _spec(self) -> dict[str, object]:
        return {
            "plain": [sock.fileno() for sock in self._plain],
            "tls": [sock.fileno() for sock in self._tls],
            "certificate": self._config.api.certificate,
            "private_key": self._config.api.private_key,
            "upstream": self._path,
            "log_level": self._config.daemon.log_level,
            "names": sorted(own_names(self._config)),
        }

    def certificate_anew(self) -> None:
        """Have the process load the files of the certificate again."""
        if self._process is not None and self.ready.is_set():
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGHUP)

    async def close(self) -> None:
        """End the process and all connections; `run` was cancelled before."""
        for sock in (*self._plain, *self._tls):
            sock.close()
        await self._inside.close()
        Path(self._path).unlink(missing_ok=True)


def _environment() -> dict[str, str]:
    """The environment of the process: this one's without secrets, and the path of the code."""
    ours = {name: value for name, value in os.environ.items() if name not in _OURS_ALONE}
    return ours | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


async def _ended(process: asyncio.subprocess.Process) -> None:
    """End the process by closing its standard input; kill it where it does not end."""
    if process.returncode is not None:
        return
    if process.stdin is not None:
        process.stdin.close()
    ending = asyncio.ensure_future(process.wait())
    # Not asyncio.timeout: up to Python 3.11.3 it raises no TimeoutError in a cancelled task.
    await asyncio.wait((ending,), timeout=END_S)
    if not ending.done():
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    await ending


def _listening(family: int, address: tuple[object, ...]) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise OSError(error.errno, os.strerror(error.errno)) from None
        raise
    return sock


def own_names(config: Config) -> frozenset[str]:
    """The names by which a browser may reach this host: its own, full and short, those it
    advertises, and those in api.names."""
    name = config.host_name.lower().removesuffix(".")
    hosts = [split(address)[0].lower() for address in config.advertised()]
    return frozenset(
        {"localhost", name, name.partition(".")[0], *hosts, *map(str.lower, config.api.names)}
    )
