# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the shells offer at a TAB, in the shells themselves and with a broker that answers."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from pathlib import Path

import aiohttp
import pytest
from argcomplete.shell_integration import shellcode

from broker.broker import Broker
from tests.fakes.broker import served
from tests.unit import commands

BIN = Path(sys.executable).parent
#: Each shell's own way to ask, without a terminal: what it would offer, a line for each.
ASK = {
    "bash": (
        "source {page}; COMP_LINE='{line}' COMP_POINT={length}; _python_argcomplete ha-agent;"
        " printf '%s\\n' \"${{COMPREPLY[@]}}\""
    ),
    "zsh": (
        "compdef() {{ :; }}; _describe() {{ print -l -- ${{${{(P)2}}%%:*}} }}; source {page};"
        " words=({line}); BUFFER='{line}'; CURSOR={length}; _python_argcomplete"
    ),
    "fish": "source {page}; complete -C'{line}'",
}
FLAGS = {"zsh": ["-f"], "fish": ["--no-config"]}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file for each shell, as the packages have it."""
    folder = tmp_path_factory.mktemp("pages")
    for shell in ASK:
        (folder / shell).write_text(shellcode(["ha-agent"], shell=shell))
    return folder


@pytest.mark.parametrize("shell", ASK)
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("ha-agent mainten", {"maintenance"}),
        ("ha-agent maintenance lo", {"local"}),
        ("ha-agent whiteboard ", {"dump"}),
        ("ha-agent events --f", {"--follow"}),
        ("ha-agent --config /x whiteboard dump --j", {"--json"}),
    ],
)
def test_each_shell_offers_what_may_come_here(
    shell: str, line: str, offered: set[str], pages: Path
) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    script = ASK[shell].format(page=pages / shell, line=line, length=len(line))
    done = subprocess.run(
        [shell, *FLAGS.get(shell, []), "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "HOME": "/nonexistent"},
    )
    # What fish offers has its help behind a tab.
    found = {text.split("\t")[0].strip() for text in done.stdout.split("\n")}
    assert offered <= found, done.stdout + done.stderr
    assert "dump" not in found or "whiteboard" in line, "only what may come here"


def offers(config: Path, line: str, answer: Path) -> set[str]:
    """What the command itself answers a shell."""
    answer.write_text("")
    environment = {
        **os.environ,
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_SHELL": "bash",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "HA_AGENT_CONFIG": str(config),
    }
    done = commands.run("ha-agent", env=environment)
    assert (done.stdout, done.stderr) == ("", "")
    return {each.strip() for each in answer.read_text().split("\n")} - {""}


def test_hosts_are_those_that_the_broker_knows(tmp_path: Path) -> None:
    async def test(broker: Broker, path: str, session: aiohttp.ClientSession) -> None:
        answer = tmp_path / "answer"
        for line, others in (
            ("ha-agent fence test ", {"all", "--json", "-h", "--help"}),
            ("ha-agent migrate --to ", set()),
            ("ha-agent config diff h", set()),
        ):
            found = await asyncio.to_thread(offers, tmp_path / "1.toml", line, answer)
            assert found == {"host1"} | others

    served(tmp_path, test)


@pytest.mark.parametrize("config", ["none.toml", "no-broker.toml"])
def test_where_nobody_answers_nothing_is_offered_and_nothing_said(
    tmp_path: Path, config: str
) -> None:
    (tmp_path / "no-broker.toml").write_text(f'[daemon]\nsocket = "{tmp_path}/none.sock"\n')
    answer = tmp_path / "answer"
    assert offers(tmp_path / config, "ha-agent migrate --to ", answer) == set()
    assert offers(tmp_path / config, "ha-agent events --since ", answer) == {"30m", "2h", "1d"}


def test_files_and_folders_are_offered_where_they_are_meant(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    answer = tmp_path.parent / f"{tmp_path.name}-answer"
    found = offers(tmp_path / "x", f"ha-agent whiteboard dump {tmp_path}/f", answer)
    assert found == {f"{tmp_path}/folder/", f"{tmp_path}/file"}
    found = offers(tmp_path / "x", f"ha-agent init --storage {tmp_path}/f", answer)
    assert found == {f"{tmp_path}/folder/"}


@pytest.mark.parametrize("shell", ASK)
def test_the_file_of_each_shell_is_sound(shell: str, pages: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    done = subprocess.run([shell, "-n", pages / shell], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
