# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every command ends on a storage that does not answer, and says on what it hung.

The commands are those of the parser: a new verb is among them by itself.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import aiohttp
import pytest

from agent.main import _parser
from agent.terminal import hanging
from broker.broker import Broker
from broker.daemon.exit_codes import ExitCode
from tests.fakes.broker import report, served, up
from tests.fakes.hanging_storage import hanging_storage
from tests.fakes.waiting import stop
from tests.unit import commands

#: What stands for a positional argument, by its destination or its metavar; `{place}` is a file on
#: the storage.
WORDS = {
    "file": "{place}/whiteboard",
    "FILE": "{place}/whiteboard",
    "host": "2",
    "HOST|all": "2",
    "mode": "local",
    "key": "storage.io-timeout",
    "value": "10",
    "token": "ha1-nonsense",
    "host_id": "2",
    "settings": "priority=5",
}
#: The agent itself is no command that ends.
ENDLESS = {("run",)}
#: What a command needs beside its arguments to come as far as the storage.
WITH = {
    ("init",): ["--storage", "{place}", "--yes", "--domain", "{place}/engine.xml"],
    ("join",): ["--from", "{place}", "--yes"],
}


def verbs(parser: argparse.ArgumentParser, before: tuple[str, ...] = ()) -> Iterator[list[str]]:
    """Each command of a parser, with words for its positional arguments."""
    below = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    for action in below:
        for name, sub in action.choices.items():
            yield from verbs(sub, (*before, name))
    if not below and before:
        words = []
        for positional in parser._actions:
            if positional.option_strings or positional.nargs == "?":
                continue
            choices = sorted(map(str, positional.choices or ()))
            known = WORDS.get(positional.dest, WORDS.get(str(positional.metavar), "db"))
            words.append(known if known in choices or not choices else choices[0])
        yield [*before, *words]


#: Some that surely come as far as the storage.
REACH_THE_STORAGE = (
    "storage show",
    "config diff 2",
    "config history",
    "vm list",
    "whiteboard dump {place}/whiteboard",
    "replay {place}/whiteboard",
    "reinitialize-lockspace",
)
COMMANDS = [words for words in verbs(_parser()) if tuple(words[:1]) not in ENDLESS]


@pytest.fixture
def hung_site(site: Path, tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """A configuration whose volumes lie on a file system that does not answer, and its place."""
    with hanging_storage(site, tmp_path) as place:
        yield site, place


def given(words: list[str], place: Path) -> list[str]:
    extra = next((more for first, more in WITH.items() if tuple(words[: len(first)]) == first), [])
    return [word.format(place=place) for word in [*words, *extra]]


def test_the_parser_has_all_commands() -> None:
    assert ["status"] in COMMANDS and ["vm", "list"] in COMMANDS and ["storage", "show"] in COMMANDS
    assert len(COMMANDS) > 40


def test_every_command_ends_on_a_storage_that_hangs(hung_site: tuple[Path, Path]) -> None:
    """All at once, since each that hangs takes the whole patience."""
    config, place = hung_site

    def outcome(words: list[str]) -> tuple[list[str], subprocess.CompletedProcess[str]]:
        return words, commands.run(
            "ha-agent", "--config", config, *given(words, place), timeout_s=120
        )

    with ThreadPoolExecutor(len(COMMANDS)) as pool:
        done = list(pool.map(outcome, COMMANDS))
    wrong = [words for words, ended in done if ended.returncode < 0 or "Traceback" in ended.stderr]
    assert wrong == []
    silent = [
        words for words, ended in done if ended.returncode and not ended.stderr + ended.stdout
    ]
    assert silent == [], "each says why it failed"
    hung = {" ".join(words): ended for words, ended in done if "it has hung" in ended.stderr}
    assert {*REACH_THE_STORAGE} <= hung.keys()
    for name, ended in hung.items():
        assert ended.returncode == ExitCode.STORAGE, name
        assert f"it has hung on {place}" in ended.stderr, name


def test_what_the_broker_knows_is_shown_all_the_same(
    hung_site: tuple[Path, Path], tmp_path: Path
) -> None:
    """Who looks at the cluster then needs it most."""
    config, _ = hung_site

    async def test(broker: Broker, path: str, session: aiohttp.ClientSession) -> None:
        text = config.read_text()
        config.write_text(text.replace(re.findall(r'socket = "(.*)"', text)[0], path))
        now_s = asyncio.get_running_loop().time()
        up(broker, now_s)
        broker.take_report(report(), now_s)
        await broker.beat(now_s)
        for words in (["status"], ["why"], ["events"], ["check-liveliness"], ["score"]):
            done = await asyncio.to_thread(commands.run, "ha-agent", "--config", config, *words)
            assert done.stdout and not done.stderr, (words, done.stderr)

    folder = tmp_path / "broker"
    folder.mkdir()
    served(folder, test)


def test_one_that_hangs_says_so_in_json_too(hung_site: tuple[Path, Path]) -> None:
    config, place = hung_site
    ended = commands.run("ha-agent", "--config", config, "storage", "show", "--json")
    assert json.loads(ended.stdout)["error"]["code"] == "storage"
    assert str(place) in json.loads(ended.stdout)["error"]["message"]


# --- what a command is in its child is what it would be without one ------------------------------

AS_CHILD = """
import os, signal, sys, time
from agent.terminal import hanging
hanging.HANGS_S, hanging.LOOK_S = 0.3, 0.05
try:
    code = hanging.run_in_child()
except hanging.CommandHangs as error:
    print(error)
    code = 7
if code is not None:
    hanging.end(code)
{body}
"""


def child(body: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", AS_CHILD.replace("{body}", body)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_its_output_and_its_exit_code_are_the_command_s() -> None:
    body = "print('out', flush=True); print('err', file=sys.stderr, flush=True); sys.exit(9)"
    with child(body) as process:
        assert process.communicate()[0] == "out\nerr\n" and process.returncode == 9


def test_the_signal_that_ended_it_too() -> None:
    with child("os.kill(os.getpid(), signal.SIGKILL)") as process:
        process.communicate()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_reaches_it(number: signal.Signals) -> None:
    body = f"""
signal.signal({int(number)}, lambda *_: os._exit(33))
print("ready", flush=True)
time.sleep(60)
"""
    with child(body) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        process.send_signal(number)
        process.communicate()
    assert process.returncode == 33


def test_it_ends_with_its_parent() -> None:
    body = "print(os.getpid(), flush=True); time.sleep(60)"
    with child(body) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        process.kill()
        descriptor = os.pidfd_open(pid)
        signal.pidfd_send_signal(descriptor, 0)
        process.communicate()
        for _ in itertools.repeat(None, 600):
            try:
                signal.pidfd_send_signal(descriptor, 0)
            except ProcessLookupError:
                break
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            if state == "Z":
                break
            time.sleep(0.05)
        else:
            pytest.fail("it goes on without its parent")
        os.close(descriptor)


def test_who_waits_for_something_else_than_a_file_is_waited_for() -> None:
    with child("time.sleep(1.5); print('done')") as process:
        assert process.communicate()[0] == "done\n" and process.returncode == 0


def test_who_is_stopped_and_goes_on_ends_as_if_it_had_not_been() -> None:
    """Ctrl-Z, and `fg` after a while. Several, since what sigtimedwait of Python 3.11 then makes up
    is another number in each process, and only half of them do harm."""
    body = "print('ready', flush=True); print(sys.stdin.readline()); sys.exit(9)"
    with ExitStack() as stack:
        processes = [stack.enter_context(child(body)) for _ in range(5)]
        for process in processes:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
            stop(process)
        time.sleep(0.2)  # longer than LOOK_S
        for process in processes:
            process.send_signal(signal.SIGCONT)
        time.sleep(0.2)
        ended = [(process.communicate("done")[0], process.returncode) for process in processes]
    assert ended == [("done\n", 9)] * 5


def test_a_file_that_hangs_is_named_and_left(hung_site: tuple[Path, Path]) -> None:
    _, place = hung_site
    for body in (f"open('{place}/leases')", f"os.stat('{place}/leases')"):
        with child(body) as process:
            said = process.communicate()[0]
            assert process.returncode == 7 and f"it has hung on {place}/leases" in said, said


def test_so_is_one_in_which_a_program_of_the_command_hangs(hung_site: tuple[Path, Path]) -> None:
    _, place = hung_site
    with child(f"import subprocess; subprocess.run(['cat', '{place}/leases'])") as process:
        said = process.communicate()[0]
    assert process.returncode == 7 and f"it has hung on {place}/leases" in said


def test_what_the_kernel_does_not_tell_is_left_out() -> None:
    no_file = 1 << 40
    assert hanging._file_of(os.getpid(), f"1 257 0xffffff9c {no_file:#x} 0x0") == ""
    assert hanging._waits(2**30) == [] and hanging._read("/proc/none") == ""


#: Interrupts itself, and once more while the interpreter ends.
INTERRUPTED_TWICE = """
import os, signal, sys, threading
from agent import main

def interrupted(*_):
    threading._register_atexit(lambda: os.kill(os.getpid(), signal.SIGINT))
    raise KeyboardInterrupt

main._in_child = lambda as_json: None
main._run = interrupted
sys.argv = ["ha-agent", "status"]
main.main()
"""


def test_a_second_ctrl_c_ends_a_command_at_once_and_leaves_no_traceback() -> None:
    done = subprocess.run([sys.executable, "-c", INTERRUPTED_TWICE], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")
