# SPDX-License-Identifier: LGPL-2.1-or-later
"""The cloud-init example of the quick start does what the page's commands do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from tests.unit import commands

PAGE = (Path(__file__).parents[2] / "docs" / "quickstart.md").read_text()


def example() -> dict[str, Any]:
    (text,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    assert text.startswith("#cloud-config\n"), "by this line cloud-init knows it"
    found: dict[str, Any] = yaml.safe_load(text)
    return found


def typed() -> set[str]:
    """The commands that the page has typed on the second host."""
    return {line.removeprefix("host2# ") for line in PAGE.splitlines() if line.startswith("host2#")}


def test_each_line_is_one_command_of_the_page_but_for_the_package() -> None:
    lines = example()["runcmd"]
    assert all(isinstance(line, str) for line in lines), "YAML has taken one for something else"
    rest = [line for line in lines if line not in typed()]
    assert rest == ["apt-get install -y /srv/ha/ha-agent.deb"]


def test_it_mounts_what_the_page_has_mounted() -> None:
    ((_, place, kind, options, *_),) = example()["mounts"]
    assert f"(here `{place}`; {kind.upper()} with `{options}` in `/etc/fstab`)" in PAGE


def test_the_command_takes_the_words_of_the_join() -> None:
    (join,) = [line for line in example()["runcmd"] if line.startswith("ha-agent join")]
    done = commands.run(*join.split(), "--dry-run")
    assert "usage:" not in done.stderr and "unrecognized" not in done.stderr
    assert "token" in done.stderr.lower(), done.stderr
