# SPDX-License-Identifier: LGPL-2.1-or-later
"""The parser of both command lines: argparse, with errors that say which word was meant.

A verb or an option is never guessed from its first letters: a script that relies on `--fo` breaks
when a later version has two options that begin so. A usage error is one line with the next step.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from broker.daemon.exit_codes import ExitCode
from broker.daemon.version import VERSION


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that takes no abbreviations. `groups`: titles, each with the subcommands
    that the help shows under it."""

    def __init__(self, *args: Any, groups: Sequence[tuple[str, Sequence[str]]] = (), **more: Any):
        more["allow_abbrev"] = False
        super().__init__(*args, **more)
        self._groups = groups

    def add_version(self) -> None:
        """Add `--version`."""
        self.add_argument(
            "--version", action="version", version=f"{self.prog} {VERSION}", help="show it, and end"
        )

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """The arguments. A word that nothing takes is an error that names what is near it."""
        found, rest = self.parse_known_args(args, namespace)
        if rest:
            reached = self._reached(found)
            parser, word = reached[-1], rest[0].partition("=")[0]
            if word.startswith("-"):
                for above in reached:
                    if word in above._option_string_actions:
                        parser.error(f"{word!r} must stand right behind {above.prog!r}")
                options = (name for one in reached for name in one._option_string_actions)
                parser.error(f"no option {word!r}{_near(word, list(options))}")
            parser.error(f"takes no {word!r}")
        return found

    def error(self, message: str) -> NoReturn:
        """One line on standard error, with --json an object on standard output; exit code 2."""
        link = " See" if message.endswith("?") else "; see"
        text = f"{message}{link}: {self.prog} --help"
        if "--json" in sys.argv:
            answer = {"version": 1, "error": {"code": "usage", "message": text}}
            print(json.dumps(answer))  # noqa: T201
        self.exit(ExitCode.USAGE, f"{self.prog}: {text}\n")

    def format_help(self) -> str:
        """The help, with the subcommands by their groups."""
        if not self._groups:
            return super().format_help()
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, self._actions, self._mutually_exclusive_groups)
        formatter.add_text(self.description)
        helps = {one.dest: one for one in self._subcommands()._choices_actions}
        for title, names in self._groups:
            formatter.start_section(title)
            formatter.add_arguments([helps[name] for name in names])
            formatter.end_section()
        formatter.start_section("options")
        formatter.add_arguments([one for one in self._actions if one.option_strings])
        formatter.end_section()
        formatter.add_text(self.epilog)
        return formatter.format_help()

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """argparse's own check of a word against its choices, with the word that was meant."""
        if action.choices is None or value in action.choices:
            return
        known = [str(one) for one in action.choices]
        near = _near(str(value), known) or f"; there are: {', '.join(known)}"
        self.error(f"no word {str(value)!r} here{near}")

    def _subcommands(self) -> Any:
        """The action that takes a subcommand; None: there are none."""
        return next((a for a in self._actions if isinstance(a, argparse._SubParsersAction)), None)

    def _reached(self, found: argparse.Namespace) -> list[Parser]:
        """This parser, and those of the verbs as far as they were understood."""
        reached = [self]
        while (below := reached[-1]._subcommands()) is not None and (
            name := getattr(found, below.dest, None)
        ):
            reached.append(below.choices[name])
        return reached


def _near(word: str, known: Iterable[str]) -> str:
    """The known words that are nearest, as a question; empty: none is near."""
    import difflib

    candidates = list(dict.fromkeys(known))
    near = [one for one in candidates if len(word.strip("-")) > 1 and one.startswith(word)]
    near = near or difflib.get_close_matches(word, candidates, n=2)
    return f"; did you mean {' or '.join(near[:3])}?" if near else ""
