# SPDX-License-Identifier: LGPL-2.1-or-later
"""Sends mail by SMTP (RFC 5321) with STARTTLS, TLS or neither, and with a login.

aiosmtplib is imported by the first mail. It would look up this host's full name and the server's
address with blocking calls, so both are looked up here.
"""

from __future__ import annotations

import contextlib
import re
import ssl
from email.message import EmailMessage
from email.policy import SMTP as SMTP_LINES
from email.utils import formatdate

from broker.config.notify_section import SmtpSection
from broker.notify.message import Message
from broker.notify.sender import Names, Refused, SendFailed
from broker.wire.kinds import Severity

QUIT_S = 1.0
_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
PORTS = {"starttls": 587, "tls": 465, "none": 25}


class SmtpSender:
    """Sender port. OSError where the CA file cannot be used."""

    def __init__(self, given: SmtpSection, password: str) -> None:
        self.timeout_s = given.timeout
        self.severity = Severity[given.severity.upper()]
        self._given = given
        self._password = password
        self._names = Names("mail")
        self._tls: ssl.SSLContext | None = None
        if given.security != "none":
            self._tls = ssl.create_default_context(cafile=given.ca_file)

    async def send(self, message: Message) -> None:
        """Send one mail on one connection. A 5xx answer is final, any other failure may pass."""
        import aiosmtplib

        given = self._given
        port = given.port or PORTS[given.security]
        sock = await self._names.connect(given.server, port)
        client = aiosmtplib.SMTP(
            hostname=given.server,
            sock=sock,
            local_hostname=given.helo or greeting(message.host, sock.getsockname()[0]),
            timeout=given.timeout,
            use_tls=given.security == "tls",
            start_tls=given.security == "starttls",
            tls_context=self._tls,
        )
        try:
            await client.connect()
            if given.username:
                await client.login(given.username, self._password)
            refused, _ = await client.send_message(
                as_mail(message, given), sender=given.sender, recipients=list(given.recipients)
            )
            # The mail is accepted: an unanswered QUIT must not make it a failure.
            with contextlib.suppress(aiosmtplib.SMTPException, OSError):
                await client.quit(timeout=QUIT_S)
        except aiosmtplib.SMTPAuthenticationError as error:
            # The server's text may repeat the password that it was sent.
            raise SendFailed(f"{given.server}: {error.code}, the login is refused") from None
        except aiosmtplib.SMTPRecipientsRefused as error:
            codes = [each.code for each in error.recipients]
            kind = Refused if codes and min(codes) >= 500 else SendFailed
            said = "; ".join(
                dict.fromkeys(f"{each.code} {each.message}" for each in error.recipients)
            )
            raise kind(f"{given.server}: no recipient is accepted: {said}") from None
        except aiosmtplib.SMTPResponseException as error:
            kind = Refused if 500 <= error.code < 600 else SendFailed
            raise kind(f"{given.server}: {error.code} {error.message}") from None
        except (aiosmtplib.SMTPException, OSError, ValueError) as error:
            raise SendFailed(f"{given.server}: {type(error).__name__}: {error}") from None
        finally:
            client.close()
            sock.close()
        if refused:
            said = "; ".join(
                f"{name} ({answer.code} {answer.message})"
                for name, answer in sorted(refused.items())
            )
            raise Refused(f"{given.server}: went out, but not to {said}")


def greeting(host: str, address: str) -> str:
    """The name in EHLO (RFC 5321, 4.1.3): the host's name where it is a full one, else its
    address as a literal, which relays that insist on full names accept too."""
    name = host.rstrip(".")
    labels = name.split(".")
    if len(labels) > 1 and all(_LABEL.fullmatch(label) for label in labels):
        return name
    return f"[IPv6:{address}]" if ":" in address else f"[{address}]"


def as_mail(message: Message, given: SmtpSection) -> EmailMessage:
    """The message with its headers (RFC 5322, RFC 3834)."""
    mail = EmailMessage(policy=SMTP_LINES)
    mail["From"] = given.sender
    mail["To"] = ", ".join(given.recipients)
    mail["Subject"] = message.subject
    mail["Date"] = formatdate()
    mail["Message-ID"] = f"<{message.id}@{_domain(message.host)}>"
    mail["Auto-Submitted"] = "auto-generated"
    mail["X-HA-Agent-Kind"] = message.kind
    mail["X-HA-Agent-Severity"] = message.severity.word
    mail.set_content(message.body)
    return mail


def _domain(host: str) -> str:
    """A host's name in the form that a greeting and a mail address allow."""
    name = "".join(c if c.isascii() and (c.isalnum() or c in ".-") else "-" for c in host[:200])
    return name.strip(".-") or "localhost"
