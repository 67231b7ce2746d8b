# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every `ha-agent` command that a page has can be typed: its verb, words and options exist."""

from __future__ import annotations

import contextlib
import functools
import io
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.main import _parser

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    *(page for page in sorted((ROOT / "docs").glob("*.md")) if page.name != "mutation.md"),
]
#: What a word in capitals stands for where any word would not do.
WORDS = {"N": "1", "SECONDS": "5", "PORT": "1", "ID": "3", "MODE": "none", "HOW": "none"}
#: A way to write several commands at once, or a part of one, is no command.
SHORT = re.compile(r"[…\[\]|<>]|\.\.\.")
#: Where the rest of a line is the shell's.
SHELL = re.compile(r"\s(?:>|\||&&|;|#)\s?.*")


parser = functools.cache(_parser)


def commands(text: str) -> Iterator[str]:
    """The commands of a page: in backticks, and the lines of its blocks."""
    for line in text.splitlines():
        found = re.match(r"(?: {4}|\w+# )\s*(?:\w+# )?(ha-agent .*)", line)
        if found is not None:
            # Behind two blanks stands what it does.
            yield re.split(r" {2,}", found[1])[0]
        yield from re.findall(r"`(ha-agent [^`]+)`", line)


@functools.cache
def refusal(command: str) -> str:
    """Why the command line refuses it; empty: it does not, or only a word is missing, since a
    sentence names a verb alone."""
    typed = SHELL.sub("", command)
    if SHORT.search(typed):
        return ""
    words = [WORDS.get(word, word) for word in shlex.split(typed, comments=True)[1:]]
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            parser().parse_args(words)
        except SystemExit as ended:
            is_a_name = " is missing" in said.getvalue()
            return said.getvalue() if ended.code and not is_a_name else ""
    return ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_command_of_a_page_can_be_typed(page: Path) -> None:
    refused = {command: why for command in commands(page.read_text()) if (why := refusal(command))}
    assert refused == {}


@pytest.mark.parametrize(
    "typed", ["ha-agent vm unprotect db", "ha-agent storage grow --vms 5 --vmss 5"]
)
def test_a_command_that_is_not_there_is_seen(typed: str) -> None:
    assert refusal(next(commands(f"    {typed}  what it does")))
