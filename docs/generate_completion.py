# SPDX-License-Identifier: LGPL-2.1-or-later
"""Completion for bash, zsh and fish, from the parsers that print `--help`.

docs/generate_man.py writes them into the folder that the packages are built with; nothing of
it is kept in the repository. In all three a word is offered by what verbs stand before it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

Verb = tuple[tuple[str, ...], str, argparse.ArgumentParser]


def verbs(parser: argparse.ArgumentParser, above: tuple[str, ...] = ()) -> Iterator[Verb]:
    """Each subcommand with its words, its help and its parser; deepest ones too."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for name, sub in action.choices.items():
                words = (*above, name)
                yield words, helps.get(name, ""), sub
                yield from verbs(sub, words)


def arguments(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """Options and positionals, subcommands left out."""
    return [a for a in parser._actions if not isinstance(a, argparse._SubParsersAction)]


@dataclass(frozen=True)
class Offer:
    """A word that may come, its help, and whether a value follows it."""

    word: str
    text: str = ""
    takes_value: bool = False


@dataclass(frozen=True)
class Place:
    """What may come after these verbs. `files`: a file's name too."""

    words: tuple[str, ...]
    offers: tuple[Offer, ...]
    files: bool


def places(parser: argparse.ArgumentParser) -> list[Place]:
    """All of them, the deepest first."""
    known: list[Verb] = [((), "", parser), *verbs(parser)]
    found = []
    for words, _, sub in sorted(known, key=lambda verb: -len(verb[0])):
        offers = [
            Offer(child[-1], text) for child, text, _ in known if child and child[:-1] == words
        ]
        files = False
        for action in arguments(sub):
            text = (action.help or "").replace("%(default)s", str(action.default))
            takes_value = bool(action.option_strings) and action.nargs != 0
            offers += [Offer(option, text, takes_value) for option in action.option_strings]
            offers += [Offer(str(choice)) for choice in action.choices or ()]
            files |= action.dest in ("file", "config") or action.metavar in ("FILE", "OUT")
        found.append(Place(words, tuple(offers), files))
    return found


def _pattern(words: tuple[str, ...]) -> str:
    """Of a case: one blank stands between two words, so only the first brings its own."""
    return "".join(f"*'{word} '" for word in (f" {words[0]}", *words[1:])) if words else ""


def _name(parser: argparse.ArgumentParser) -> str:
    return "_" + parser.prog.replace("-", "_")


def bash(parser: argparse.ArgumentParser) -> str:
    """For bash-completion."""
    cases = [
        f"    {_pattern(place.words)}*) words='{' '.join(one.word for one in place.offers)}' ;;"
        for place in places(parser)
    ]
    return "\n".join(
        [
            f"# bash completion of {parser.prog}; generated",
            f"{_name(parser)}() {{",
            "  local words current=${COMP_WORDS[COMP_CWORD]}",
            '  case " ${COMP_WORDS[*]:1:COMP_CWORD-1} " in',
            *cases,
            "  esac",
            '  mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")',
            "}",
            f"complete -o default -F {_name(parser)} {parser.prog}",
            "",
        ]
    )


def zsh(parser: argparse.ArgumentParser) -> str:
    """For zsh's completion system."""
    cases = []
    for place in places(parser):
        entries = " ".join(_quoted(_described(offer)) for offer in place.offers)
        files = "; files=1" if place.files else ""
        cases.append(f"    ({_pattern(place.words)}*) offers=({entries}){files} ;;")
    return "\n".join(
        [
            f"#compdef {parser.prog}",
            f"# zsh completion of {parser.prog}; generated",
            f"{_name(parser)}() {{",
            "  local -a offers",
            "  local files=0 found=1 before",
            # The same words as bash has: all but the program and the one that is being typed.
            '  before=" ${(j: :)words[2,CURRENT-1]} "',
            "  case $before in",
            *cases,
            "  esac",
            f"  _describe {parser.prog} offers && found=0",
            "  (( files )) && _files && found=0",
            "  return found",
            "}",
            f'{_name(parser)} "$@"',
            "",
        ]
    )


def _described(offer: Offer) -> str:
    word = offer.word.replace(":", "\\:")
    return f"{word}:{offer.text}" if offer.text else word


def _quoted(text: str) -> str:
    """For zsh and fish: within single quotes."""
    return "'" + text.replace("'", "'\\''") + "'"


def fish(parser: argparse.ArgumentParser) -> str:
    """For fish."""
    lines = [f"# fish completion of {parser.prog}; generated"]
    command = f"complete -c {parser.prog}"
    lines.append(f"{command} -f")
    known = places(parser)
    for place in known:
        children = [
            other.words[-1] for other in known if other.words[:-1] == place.words != other.words
        ]
        seen = [f"__fish_seen_subcommand_from {word}" for word in place.words]
        if children:
            seen.append(f"not __fish_seen_subcommand_from {' '.join(children)}")
        where = f" -n {_quoted('; and '.join(seen))}" if seen else ""
        for offer in place.offers:
            text = f" -d {_quoted(offer.text)}" if offer.text else ""
            if offer.word.startswith("--"):
                value = " -r -F" if offer.takes_value else ""
                lines.append(f"{command}{where} -l {offer.word[2:]}{value}{text}")
            elif offer.word.startswith("-"):
                lines.append(f"{command}{where} -s {offer.word[1:]}{text}")
            else:
                lines.append(f"{command}{where} -a {offer.word}{text}")
        if place.files:
            lines.append(f"{command}{where} -F")
    return "\n".join([*lines, ""])


#: The end of a file's name -> what makes its text.
SHELLS = {"bash": bash, "zsh": zsh, "fish": fish}
