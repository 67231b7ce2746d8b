# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every answer in JSON has a version, and every failure its error, since one place prints them."""

from __future__ import annotations

import ast
import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import msgspec
import pytest

from agent.terminal import in_json
from broker.broker import Broker
from broker.daemon.exit_codes import ExitCode
from scoring.vm.state import OrderAnswer
from tests.fakes.broker import report, served
from tests.unit import commands

ROOT = Path(__file__).parents[2]
PRINTS = "agent/terminal/in_json.py"
#: What else prints JSON, and why.
OTHERS = {
    "agent/commands/config_show.py": "a value as it stands in a file, for people",
    "agent/commands/config_shared.py": "the same",
    "agent/commands/replay.py": "a recorded decision behind its words, for people",
    "agent/status/command.py": "the broker's own answer, which has its version",
}


def printed(text: str) -> Iterator[int]:
    """The lines that print JSON."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id not in ("print", "_print"):
                continue
            for inner in ast.walk(node):
                if isinstance(inner, ast.Attribute) and inner.attr in ("dumps", "encode", "format"):
                    yield inner.lineno


def test_one_module_prints_the_answers_in_json() -> None:
    found = {
        str(path.relative_to(ROOT))
        for path in sorted((ROOT / "agent").rglob("*.py"))
        if any(printed(path.read_text()))
    }
    assert found - set(OTHERS) == {PRINTS}
    assert list(printed('print(json.dumps({"done": 1}))')) == [1], "the rule sees one"


@pytest.mark.parametrize(("as_list", "shown"), [(False, {"version": 1, "a": 1}), (True, None)])
def test_an_answer_has_its_version(
    as_list: bool, shown: object, capsys: pytest.CaptureFixture[str]
) -> None:
    in_json.show_all([{"a": 1}], as_list)
    one = {"version": 1, "a": 1}
    assert json.loads(capsys.readouterr().out) == ([one] if as_list else one)


@pytest.mark.parametrize(("ok", "code"), [(True, ExitCode.OK), (False, ExitCode.REFUSED)])
def test_an_order_that_is_refused_has_its_error(tmp_path: Path, ok: bool, code: int) -> None:
    """Before, the answer had neither a version nor an error, and one that took too long was two
    objects behind each other."""
    line = ("ha-agent", "--config", tmp_path / "1.toml", "vm", "start", "--json")

    async def test(broker: Broker, path: str, session: aiohttp.ClientSession) -> None:
        running = asyncio.create_task(asyncio.to_thread(commands.run, *line))
        clock = asyncio.get_running_loop().time
        while (order := broker.orders.pending(clock())) is None:
            await asyncio.sleep(0.01)
        answers = (OrderAnswer(order.number, ok, "so"),)
        broker.take_report(msgspec.structs.replace(report(), answers=answers), clock())
        done = await running
        shown = json.loads(done.stdout)
        assert (done.returncode, shown["version"], shown["text"]) == (code, 1, "so")
        assert shown.get("error") == (None if ok else {"code": "refused", "message": "so"})

    served(tmp_path, test)
