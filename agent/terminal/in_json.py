# SPDX-License-Identifier: LGPL-2.1-or-later
"""How a command answers in JSON.

Rules of this file:

1. Each answer is one object with `version`, whatever the verb; a field may be added within a
   version. `replay` and `events --follow` print an object a line, `score` of a list prints a list.
2. A command that fails, or is refused, has `error` in its object: `code`, which is stable, and
   `message`, the line that stands on standard error too. Its other fields are what there is of the
   answer all the same.
3. An answer that says "no" by itself (a host that is not fit, a VM that is down) is no failure: its
   exit code says so, and its fields say what was found.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

VERSION = 1


def show(answer: Mapping[str, Any], indent: int | None = 2) -> None:
    """Print an answer. `indent`: None: all of it in one line."""
    # ASCII alone: a terminal of any encoding takes it.
    print(json.dumps({"version": VERSION, **answer}, indent=indent))


def show_line(one: Mapping[str, Any]) -> None:
    """Print one of several objects, each in a line of its own."""
    print(json.dumps(one))


def show_all(answers: Sequence[Mapping[str, Any]], as_list: bool) -> None:
    """Print answers in one line: as a list, or the only one of them as it is."""
    versioned = [{"version": VERSION, **each} for each in answers]
    print(json.dumps(versioned if as_list else versioned[0]))


def show_error(code: str, message: str, answer: Mapping[str, Any] | None = None) -> None:
    """Print that a command failed, in one line. `answer`: what there is of its answer."""
    show({**(answer or {}), "error": {"code": code, "message": message}}, indent=None)
