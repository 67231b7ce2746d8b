# SPDX-License-Identifier: LGPL-2.1-or-later
"""TOML that a person wrote: whatever it is, its error is one line."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from agent.commands.config_shared import value_of
from agent.setup.toml_text import with_keys
from agent.setup.written import Files
from agent.terminal.errors import CommandError
from broker.config.errors import ConfigError
from broker.config.load import load
from broker.config.shared import parsed
from broker.daemon.foreign_toml import tables

ROOT = Path(__file__).parents[2]
LONG = "9" * 5000
DEEP = "x = " + "[" * 20_000
BAD = [f"x = {LONG}", DEEP, "x = ", "\0"]


@pytest.mark.parametrize("text", BAD)
def test_what_is_no_toml_is_one_error(text: str) -> None:
    with pytest.raises(tomllib.TOMLDecodeError):
        tables(text)


def test_nothing_else_decodes_toml() -> None:
    """tomllib itself lets two more errors through: who calls it must know both."""
    found = [
        str(path.relative_to(ROOT))
        for package in ("agent", "broker", "scoring")
        for path in (ROOT / package).rglob("*.py")
        if re.search(r"tomllib\.load|from tomllib", path.read_text())
    ]
    assert found == ["broker/daemon/foreign_toml.py"]


@pytest.mark.parametrize("text", BAD)
def test_a_configuration_that_is_no_toml_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "ha-agent.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="is not TOML"):
        load(str(path))
    with pytest.raises(ConfigError, match="is not TOML"):
        parsed(text)
    with pytest.raises(CommandError, match="is not TOML"):
        with_keys(text, {"score.base-score": 3000})
    with pytest.raises(CommandError, match="is not TOML"):
        Files(path).host_id()


def test_a_value_that_is_no_number_any_more_is_a_text() -> None:
    assert value_of(LONG) == LONG


@pytest.mark.parametrize("text", ["host = 3\n", "[[host]]\nid = 3\n", "[host]\nid = 'x'\n"])
def test_a_host_section_of_another_shape_has_no_id(text: str, tmp_path: Path) -> None:
    path = tmp_path / "ha-agent.toml"
    path.write_text(text)
    assert Files(path).host_id() is None
