# SPDX-License-Identifier: LGPL-2.1-or-later
"""How the lab fails: one line for a person, one exit code for a script.

- LabError, 1: a step failed or a deadline passed
  - UsageError, 2: asked for something that does not exist (a host, a daemon)
  - MachineError, 3: this machine cannot run the lab (not root, packages missing)
"""

from __future__ import annotations

EXIT_OK = 0
EXIT_INTERRUPTED = 130  # 128 + SIGINT, what a shell reports for Ctrl-C


class LabError(Exception):
    """A step failed; the text names what failed and what to do next."""

    exit_code = 1


class UsageError(LabError):
    """The caller named something that is not there."""

    exit_code = 2


class MachineError(LabError):
    """The machine lacks what the lab needs; nothing was started."""

    exit_code = 3
