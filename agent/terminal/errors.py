# SPDX-License-Identifier: LGPL-2.1-or-later
"""The error that ends a command."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from broker.daemon.errors import HaError
from broker.daemon.exit_codes import ExitCode


class CommandError(HaError):
    """A line that names what failed and the next step, and the exit code. `answer`: what there is
    of the answer in JSON all the same."""

    def __init__(
        self, code: ExitCode, message: str, answer: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.answer = answer
