# SPDX-License-Identifier: LGPL-2.1-or-later
"""The parser of both command lines: argparse, with errors that say which word was meant.

A verb or an option is never guessed from its first letters: a script that relies on `--fo` breaks
when a later version has two options that begin so. A usage error is one line with the next step.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Sequence
from gettext import gettext
from typing import Any, NoReturn

from broker.daemon.exit_codes import ExitCode
from broker.daemon.version import VERSION

#: argparse's own sentences, which say what is wrong in the words of its code.
_REQUIRED = gettext("the following arguments are required: %s").partition("%s")[0]
_ONE_OF = re.escape(gettext("one of the arguments %s is required")).replace("%s", "(.*)")
#: What the types of the options take.
_TYPES: dict[Any, str] = {int: "a whole number", float: "a number"}


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that takes no abbreviations. `groups`: titles, each with the subcommands
    that the help shows under it."""

    def __init__(self, *args: Any, groups: Sequence[tuple[str, Sequence[str]]] = (), **more: Any):
        more["allow_abbrev"] = False
        super().__init__(*args, **more)
        self._groups = groups
        # A word such as -1h is a value, as argparse has it of -1; no option begins with a digit.
        self._negative_number_matcher = re.compile(r"-[0-9]")

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
        message = self._what_to_type(message)
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

    def _what_to_type(self, message: str) -> str:
        """The message, but where a word is missing: which, and what it may be."""
        by_name = {str(argparse._get_action_name(one)): one for one in self._actions}
        if message.startswith(_REQUIRED):
            names = message.removeprefix(_REQUIRED).split(", ")
            return "; ".join(self._missing(name, by_name.get(name)) for name in names)
        if (several := re.fullmatch(_ONE_OF, message)) is not None:
            named = [name + self._help(by_name.get(name)) for name in several.group(1).split()]
            return f"one of these is needed: {' or '.join(named)}"
        return message

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        """argparse's own reading of an argument's words, in words where they do not fit."""
        try:
            return super()._get_values(action, arg_strings)
        except argparse.ArgumentError as error:
            kind = _TYPES.get(action.type)
            if kind is None or len(arg_strings) != 1:
                raise
            name = error.argument_name or action.dest
            self.error(f"{name} must be {kind}, not {arg_strings[0]!r}")

    def _match_argument(self, action: argparse.Action, arg_strings_pattern: str) -> int:
        """How many words the option takes; an error that names its value where there is none."""
        try:
            return super()._match_argument(action, arg_strings_pattern)
        except argparse.ArgumentError:
            name = "/".join(action.option_strings) or str(argparse._get_action_name(action))
            value = action.metavar or (action.dest or "").upper()
            self.error(f"behind {name} a value is missing: {value}{self._help(action)}")

    def _missing(self, name: str, action: argparse.Action | None) -> str:
        """The sentence that an argument is missing, and what it may be."""
        if action is None or action.choices is None:
            return f"{name} is missing{self._help(action)}"
        *most, last = map(str, action.choices)
        words = f"{', '.join(most)} or {last}" if most else last
        return f"a word is missing: {words}{self._help(action)}"

    def _help(self, action: argparse.Action | None) -> str:
        """An argument's help, in parentheses behind its name."""
        if action is None or not action.help:
            return ""
        return f" ({self._get_formatter()._expand_help(action)})"

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
