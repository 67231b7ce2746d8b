# SPDX-License-Identifier: LGPL-2.1-or-later
"""How the lab fails: one line for a person, one exit code for a script.

- LabError, 1: a step failed or a deadline passed
  - UsageError, 2: asked for something that does not exist (a host, a daemon)
  - MachineError, 3: this machine cannot run the lab (not root, packages missing)

And how a test fails: AssertionError, and where it saw a law of the product broken, LawBroken.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

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


class LawBroken(AssertionError):
    """A law of the product (README) is broken: a test that saw it is not tried again."""


@contextlib.contextmanager
def law(number: int) -> Iterator[None]:
    """What is asserted in it is that law: an AssertionError leaves it as LawBroken."""
    try:
        yield
    except AssertionError as error:
        raise LawBroken(f"law {number}: {error}") from error
