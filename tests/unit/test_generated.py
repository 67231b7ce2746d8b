# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the packages are built with says what the code says: the default configuration file and
the man pages. The shell completion is in test_completion.py."""

from __future__ import annotations

import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent import main as agent_main
from broker import main as broker_main
from broker.config.sections import Config
from broker.daemon.exit_codes import ExitCode
from scoring.timing import Timing
from tests.unit import commands

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    return runpy.run_path(str(DOCS / "generate_config.py"))


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything docs/generate_man.py makes."""
    folder = tmp_path_factory.mktemp("pages")
    subprocess.run([sys.executable, DOCS / "generate_man.py", folder], check=True)
    return folder


# --- the default configuration file ------------------------------------------------------------


def test_as_it_is_only_the_required_keys_are_missing(config: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError, match="missing required field `id`"):
        msgspec.convert(tomllib.loads(config["rendered"]()), Config)


def test_every_default_in_it_is_the_code_s(config: dict[str, Any]) -> None:
    # The tables that may be there several times are examples.
    text = re.sub(r"^#\[\[.*?(?=^#?\[[a-z]|\Z)", "", config["rendered"](), flags=re.M | re.S)
    data = tomllib.loads(re.sub(r"^#([a-z-]+ = )", r"\1", text, flags=re.MULTILINE))
    for table in config["tables"]():
        for setting in () if table.repeated else table.settings:
            if setting.default is None and not setting.required:
                place = data
                for name in table.name.split("."):
                    place = place[name]
                del place[setting.key]
    shown = msgspec.convert(data, Config)
    plain = msgspec.convert({name: data[name] for name in ("host", "storage")}, Config)
    assert shown.timing_rules() == Timing()
    assert msgspec.structs.replace(shown, timing=plain.timing) == plain


def test_every_key_is_in_it(config: dict[str, Any]) -> None:
    lines = config["rendered"]().splitlines()
    for table in config["tables"]():
        assert table.head in [line.lstrip("#") for line in lines]
        for setting in table.settings:
            assert any(line.startswith(f"#{setting.key} = ") for line in lines), setting.key


def test_uncommented_as_a_whole_it_is_a_configuration(config: dict[str, Any]) -> None:
    text = re.sub(r"^#(\[|[a-z-]+ = )", r"\1", config["rendered"](), flags=re.MULTILINE)
    tables = tomllib.loads(text)
    assert set(tables) == {item.encode_name for item in msgspec.structs.fields(Config)}


# --- man pages -----------------------------------------------------------------------------------


def readable(page: Path) -> str:
    return re.sub(r"\\&|\\e", "", page.read_text()).replace("\\-", "-")


@pytest.mark.parametrize("program", ["ha-agent", "ha-broker"])
@pytest.mark.slow
def test_every_option_and_verb_of_the_help_is_in_the_man_page(program: str, pages: Path) -> None:
    page = readable(pages / f"{program}.8")
    said = commands.run(program, "--help").stdout
    for option in re.findall(r"--[a-z-]+", said):
        assert option in page, option
    for verb in re.findall(r"^  ([a-z][a-z-]+)(?: |$)", said, re.MULTILINE):
        assert f".SS {verb}\n" in page, verb
        own = commands.run(program, verb, "--help").stdout
        for option in re.findall(r"--[a-z-]+", own):
            assert option in page, (verb, option)


def test_every_example_of_the_man_page_is_a_command_that_is_understood(pages: Path) -> None:
    examples = runpy.run_path(str(DOCS / "generate_man.py"))["EXAMPLES"]
    parsers = {"ha-agent": agent_main._parser(), "ha-broker": broker_main._parser()}
    for program, commands_of_it in examples.items():
        page = readable(pages / f"{program}.8")
        for command, _ in commands_of_it:
            assert command in page
            name, *words = shlex.split(command.partition(" | ")[0])
            parsers[name].parse_args(words)


def test_every_exit_code_is_in_the_man_page(pages: Path) -> None:
    status = readable(pages / "ha-agent.8").partition(".SH EXIT STATUS")[2].partition(".SH")[0]
    assert {str(code.value) for code in ExitCode} <= set(re.findall(r"\d+", status))


def test_every_key_is_in_the_man_page(config: dict[str, Any], pages: Path) -> None:
    page = readable(pages / "ha-agent.toml.5")
    for table in config["tables"]():
        assert f'.SH "{table.head}"' in page
        for setting in table.settings:
            assert f"\n.B {setting.key}\n" in page, setting.key


@pytest.mark.slow
def test_the_same_commit_makes_the_same_pages(
    pages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    made = []
    for name in ("one", "two"):
        subprocess.run([sys.executable, DOCS / "generate_man.py", tmp_path / name], check=True)
        made.append({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()})
    assert made[0] == made[1]
    assert set(made[0]) == {p.name for p in pages.iterdir()}
    assert b'"2023\\-11\\-14"' in made[0]["ha-agent.8"] or b'"2023-11-14"' in made[0]["ha-agent.8"]


@pytest.mark.skipif(shutil.which("man") is None, reason="man is not installed")
@pytest.mark.parametrize("name", ["ha-agent.8", "ha-broker.8", "ha-agent.toml.5"])
def test_man_has_nothing_to_complain_about(name: str, pages: Path) -> None:
    result = subprocess.run(
        ["man", "--warnings", "-l", pages / name],
        env={"LC_ALL": "C.UTF-8", "MANWIDTH": "80", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stderr) == (0, "")
