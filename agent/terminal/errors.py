# SPDX-License-Identifier: LGPL-2.1-or-later
"""The error that ends a command."""

from __future__ import annotations

from broker.daemon.errors import HaError
from broker.daemon.exit_codes import ExitCode


class CommandError(HaError):
    """A line that names what failed and the next step, and the exit code."""

    def __init__(self, code: ExitCode, message: str) -> None:
        super().__init__(message)
        self.code = code
