# SPDX-License-Identifier: LGPL-2.1-or-later
"""Runs the operator's command: without a shell, with the message as JSON on its standard input.

The command gets a session of its own, which is killed as a whole when its time is up. It is
started by way of env(1): a program on a mount that hangs then hangs in that process, and not in
the broker, which waits until exec(2) has returned.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
from pathlib import Path

from broker.config.notify_section import CommandSection
from broker.notify.message import Message
from broker.notify.render import as_json
from broker.notify.sender import SendFailed
from broker.wire.kinds import Severity

_ENV = "/usr/bin/env"
#: How much of the end of its standard error is shown.
STDERR_CHARS = 120
#: A killed process that has not ended after this time waits inside the kernel.
GONE_S = 1.0
#: Time to read what the command wrote, once it has ended.
LAST_WORDS_S = 0.5
#: Longer than `timeout_s`, so that the process is killed here and not given up by the caller.
MARGIN_S = 2 * GONE_S


class CommandSender:
    """Sender port: runs the command of `[notify.command]`."""

    def __init__(self, given: CommandSection) -> None:
        self.timeout_s = given.timeout + MARGIN_S
        self.severity = Severity[given.severity.upper()]
        self._given = given
        self._left: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()

    async def send(self, message: Message) -> None:
        """Run the command, one at a time; an exit code other than 0 is a failure."""
        async with self._turn:
            await self._run(message)

    async def _run(self, message: Message) -> None:
        given = self._given
        if self._left is not None and self._left.returncode is None:
            raise SendFailed(f"an earlier {given.argv[0]} was killed and has not ended")
        starting = asyncio.ensure_future(
            asyncio.create_subprocess_exec(
                _ENV,
                "--",
                *given.argv,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                env=environment(message),
                cwd="/",
                start_new_session=True,
            )
        )
        try:
            process = await asyncio.shield(starting)
        except asyncio.CancelledError:
            # By then it may have children, which asyncio would neither kill nor stop waiting for.
            await _killed(await starting)
            raise
        self._left = process
        said = _Tail()
        talking = [
            asyncio.create_task(_feed(process.stdin, as_json(message))),
            asyncio.create_task(said.follow(process.stderr)),
        ]
        try:
            async with asyncio.timeout(given.timeout):
                code = await process.wait()
            # By now the output has been read, or a child that the command left behind still writes.
            await asyncio.wait(talking, timeout=LAST_WORDS_S)
        except TimeoutError:
            raise SendFailed(
                f"{given.argv[0]}: not done within {given.timeout:g} s, killed"
            ) from None
        finally:
            for task in talking:
                task.cancel()
            # Processes that an ended command leaves running on purpose are left alone.
            if process.returncode is None:
                await _killed(process)
        if code != 0:
            name = Path(given.argv[0]).name
            raise SendFailed(f"{name}: exit code {code} {said.text}".rstrip())


async def _killed(process: asyncio.subprocess.Process) -> None:
    """Kill the command and its children; return when it has ended, or after GONE_S."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    ending = asyncio.ensure_future(process.wait())
    # Not asyncio.timeout: up to Python 3.11.3 it raises no TimeoutError in a cancelled task.
    await asyncio.wait((ending,), timeout=GONE_S)
    ending.cancel()


async def _feed(stdin: asyncio.StreamWriter | None, data: bytes) -> None:
    """Write `data` to the command; one that does not read it is no error."""
    assert stdin is not None
    with contextlib.suppress(OSError):
        stdin.write(data)
        await stdin.drain()
        stdin.close()


class _Tail:
    """The last characters of a stream, however long the stream is."""

    def __init__(self) -> None:
        self._end = b""

    async def follow(self, stream: asyncio.StreamReader | None) -> None:
        assert stream is not None
        while part := await stream.read(4096):
            self._end = (self._end + part)[-STDERR_CHARS:]

    @property
    def text(self) -> str:
        return self._end.decode(errors="replace").strip()


def environment(message: Message) -> dict[str, str]:
    """The command's environment: short, and nothing of the broker's own environment is in it."""
    out = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "LANG": "C.UTF-8",
        "HA_CLUSTER": message.cluster,
        "HA_HOST": message.host,
        "HA_KIND": message.kind,
        "HA_SEVERITY": message.severity.word,
        "HA_TEXT": message.subject,
    }
    if message.is_single:
        notice = message.notices[0].notice
        out |= {"HA_SUBJECT": notice.subject, "HA_DETAIL": notice.detail}
        for name, value in notice.facts.items():
            key = re.sub("[^A-Z0-9]", "_", name.upper())
            out[f"HA_FACT_{key}"] = "" if value is None else str(value)
    return out
