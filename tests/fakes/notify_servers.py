# SPDX-License-Identifier: LGPL-2.1-or-later
"""Real servers for notifications on this machine: mail by aiosmtpd, HTTP by aiohttp, and one
that only accepts connections."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from email.message import Message as Mail
from email.parser import BytesParser
from email.policy import default as policy
from pathlib import Path
from typing import Any

import trustme
from aiohttp import web
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

USER, PASSWORD = "host1", "geheim-42"


class Authority:
    """A certificate authority of the test's own, and what it signed for localhost."""

    def __init__(self, folder: Path) -> None:
        authority = trustme.CA()
        self.ca_file = str(folder / "ca.pem")
        authority.cert_pem.write_to_path(self.ca_file)
        self.server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert("localhost", "127.0.0.1").configure_cert(self.server)


class Mailbox:
    """aiosmtpd's handler. `answers`: one for each DATA, the last one for ever. `strict`: like
    Postfix's reject_non_fqdn_helo_hostname; `greetings`: what clients said in EHLO."""

    strict = False

    def __init__(self, *answers: str) -> None:
        self.answers = list(answers) or ["250 taken"]
        self.mails: list[Mail] = []
        self.envelopes: list[Envelope] = []
        self.logins: list[bytes] = []
        self.tls: list[bool] = []
        self.tries = 0
        self.greetings: list[str] = []

    async def handle_DATA(  # noqa: N802
        self, server: SMTP, session: Session, envelope: Envelope
    ) -> str:
        self.tries += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if answer == "close":
            assert isinstance(server.transport, asyncio.Transport)
            server.transport.abort()
            return "421 gone"
        if answer == "hang":
            await asyncio.Event().wait()
        if answer.startswith("250"):
            assert isinstance(envelope.content, bytes)
            self.mails.append(BytesParser(policy=policy).parsebytes(envelope.content))
            self.envelopes.append(envelope)
            assert server.transport is not None
            self.tls.append(server.transport.get_extra_info("ssl_object") is not None)
        return answer

    async def handle_RCPT(  # noqa: N802
        self,
        server: SMTP,
        session: Session,
        envelope: Envelope,
        address: str,
        options: list[str],
    ) -> str:
        name = session.host_name or ""
        self.greetings.append(name)
        if self.strict and "." not in name.strip(".[]") and not name.startswith("["):
            return f"504 5.5.2 <{name}>: Helo command rejected: need fully-qualified hostname"
        if address.startswith("nobody"):
            return "550 no such user"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    def check(
        self, server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: Any
    ) -> AuthResult:
        assert isinstance(data, LoginPassword)
        self.logins.append(data.login)
        good = (data.login, data.password) == (USER.encode(), PASSWORD.encode())
        return AuthResult(success=good, handled=False)


@contextlib.asynccontextmanager
async def mail_server(
    mailbox: Mailbox, security: str = "none", auth: bool = False, tls: Authority | None = None
) -> AsyncIterator[int]:
    """A mail server; yields its port on 127.0.0.1."""
    loop = asyncio.get_running_loop()
    options: dict[str, Any] = {"loop": loop}
    if auth:
        options |= {"authenticator": mailbox.check, "auth_required": True}
        options["auth_require_tls"] = security == "starttls"
    if security == "starttls":
        assert tls is not None
        options |= {"tls_context": tls.server, "require_starttls": True}
    context = tls.server if tls is not None and security == "tls" else None

    def made() -> SMTP:
        with warnings.catch_warnings():
            # aiosmtpd warns of a login without TLS of its own; here TLS is around all of it.
            warnings.simplefilter("ignore")
            return SMTP(mailbox, hostname="localhost", **options)

    server = await loop.create_server(made, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


@contextlib.asynccontextmanager
async def web_server(
    handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
    tls: Authority | None = None,
) -> AsyncIterator[int]:
    """A web server; yields its port on 127.0.0.1."""
    server = web.Server(handler)
    runner = web.ServerRunner(server, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls.server if tls else None)
    await site.start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


@contextlib.contextmanager
def silent_server() -> Any:
    """The port of one that takes connections and never says anything."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(20)
        yield listener.getsockname()[1]
