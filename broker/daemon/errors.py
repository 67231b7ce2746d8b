# SPDX-License-Identifier: LGPL-2.1-or-later
"""The root of the errors that these programs expect.

Each room has one base of its own below it, named in the room's own words; what the room raises
beside the language's and the libraries' errors stands below that base. A command that gets one
prints its text in one line and ends with its exit code; any other error is a bug, and keeps its
traceback. docs/decisions/0101 says why.
"""

from __future__ import annotations

from broker.daemon.exit_codes import ExitCode


class HaError(Exception):
    """str(): one line that says what failed, where, and what to do next, as far as it is known.

    `code`: how a command ends on it. `json_code`: its stable code in JSON.
    """

    code: ExitCode = ExitCode.FAILED

    @property
    def json_code(self) -> str:
        if self.code is ExitCode.CONFIG:
            return "not-configured"
        return self.code.name.lower().replace("_", "-")


def why(error: BaseException) -> str:
    """Why it failed, in words, without the number and the path that Python adds to an OSError;
    never empty. A caller names the path. An error of foreign text is cleaned by `sentence`."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
