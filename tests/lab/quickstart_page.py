# SPDX-License-Identifier: LGPL-2.1-or-later
"""A page of the documents as a script: its commands, and what each must print."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from .layout import CHECKOUT

PAGE = CHECKOUT / "docs" / "quickstart.md"
#: For the page's prompt.
PASSWORD = "secret"


@dataclass(frozen=True, slots=True)
class Command:
    """A line of the page, and the lines that it must print in this order; … is anything."""

    host: str
    text: str
    output: tuple[str, ...]


def commands(page: Path = PAGE) -> list[Command]:
    """The commands of a page; of the quick start only those of its main way, a shared folder."""
    return _commands_in(page.read_text().partition("\n## Block devices\n")[0])


def commands_for_devices() -> list[Command]:
    """The commands of the main way, with those of the section on block devices in their places."""
    others = _commands_in(_section("Block devices"))
    found = commands()
    for other in others:
        same = [
            n for n, each in enumerate(found) if each.text.split()[:2] == other.text.split()[:2]
        ]
        (place,) = same
        found[place] = other
    return found


def commands_by_ansible() -> list[Command]:
    """The commands of the section on Ansible."""
    return _commands_in(_section("By Ansible"))


def commands_of(page: str, title: str) -> list[Command]:
    """The commands of a section of another page."""
    return _commands_in(_section(title, CHECKOUT / "docs" / page))


def _section(title: str, page: Path = PAGE) -> str:
    found = re.search(rf"^## {title}\n(.*?)^## ", page.read_text(), re.MULTILINE | re.DOTALL)
    assert found is not None, title
    return found[1]


def _commands_in(text: str) -> list[Command]:
    """The commands in the console blocks of a text."""
    found: list[tuple[str, str, list[str]]] = []
    for block in re.findall(r"```console\n(.*?)```", text, re.DOTALL):
        for line in block.splitlines():
            if prompt := re.match(r"(host\d|controller)# (.*)", line):
                found.append((prompt[1], prompt[2], []))
            else:
                found[-1][2].append(line)
    return [Command(host, text, tuple(output)) for host, text, output in found]


def fits(output: str, wanted: tuple[str, ...]) -> bool:
    """Whether it printed the lines of the page."""
    text = "\n".join(" ".join(line.split()) for line in output.splitlines())
    parts = [re.escape(" ".join(line.split())).replace("…", ".*") for line in wanted]
    return re.fullmatch("\n*".join(parts), text, re.DOTALL) is not None
