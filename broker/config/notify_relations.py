# SPDX-License-Identifier: LGPL-2.1-or-later
"""Checks whether the keys of `[notify]` fit together. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from broker.config.patterns import matcher

if TYPE_CHECKING:
    from broker.config.notify_section import NotifySection

_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def check_notify(given: NotifySection) -> None:
    """ValueError, "KEY below notify: why", where they do not."""
    for kind, pattern in given.rules.patterns().items():
        try:
            matcher(pattern)
        except ValueError as error:
            raise ValueError(f"rules.{kind}: not a regular expression: {error}") from None
    smtp = given.smtp
    if smtp.server and not re.fullmatch(r"[A-Za-z0-9._:-]+", smtp.server):
        raise ValueError(f"smtp.server: {smtp.server!r} is no host name or address")
    if smtp.server and not smtp.recipients:
        raise ValueError("smtp.recipients: none is given")
    for key, address in [("sender", smtp.sender), *(("recipients", a) for a in smtp.recipients)]:
        if not re.fullmatch(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]+@[A-Za-z0-9.:\[\]-]+", address):
            raise ValueError(f"smtp.{key}: {address!r} is no plain mail address")
    if smtp.username and smtp.security == "none" and smtp.server not in _LOOPBACK:
        raise ValueError("smtp.security: a password needs starttls or tls to travel")
    url = given.webhook.url
    if url and not re.fullmatch(r"https?://[A-Za-z0-9.:\[\]_-]+(/[!-~]*)?", url):
        raise ValueError(
            "webhook.url: is no plain http(s) address (a user or a password may not stand in it)"
        )
    argv = given.command.argv
    if argv and not (argv[0].startswith("/") and "=" not in argv[0]):
        raise ValueError(f"command.argv: {argv[0]!r} is no absolute path")
    if any("\0" in word for word in argv):
        raise ValueError("command.argv: holds a NUL character")
