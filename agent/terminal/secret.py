# SPDX-License-Identifier: LGPL-2.1-or-later
"""Asks for a secret: never an argument, which others see in the list of processes."""

from __future__ import annotations

import getpass
import sys

from agent.terminal.errors import CommandError
from broker.daemon.exit_codes import ExitCode


def asked(what: str, chars_max: int) -> str:
    """A secret, typed unseen on a terminal, else a line of standard input; CommandError."""
    if sys.stdin.isatty():
        said = getpass.getpass(f"{what}: ")
    else:
        said = sys.stdin.readline(chars_max + 2).removesuffix("\n")
    if not said or len(said) > chars_max:
        raise CommandError(
            ExitCode.USAGE, f"no password, or one of more than {chars_max} characters"
        )
    return said
