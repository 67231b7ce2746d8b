# SPDX-License-Identifier: LGPL-2.1-or-later
"""`ha-agent --status --watch`: the status again and again, until Ctrl-C.

On a terminal the text is redrawn; elsewhere each status follows the one before it, and with
--json each is one line. When an answer is missing, a line above the last one says so.
"""

from __future__ import annotations

import sys
import time

from agent.status.fetch import fetch, shown
from agent.status.sentences import duration
from agent.terminal.columns import wants_colour
from broker.client.ask import BrokerError
from broker.daemon.exit_codes import ExitCode

#: The interval at which a broker has news by default.
EVERY_S = 1.0


def run(socket: str, as_json: bool) -> int:
    """Show the status until interrupted, which is a normal end. Raises as `ask` does where the
    first answer does not come."""
    raw = fetch(socket)
    try:
        if as_json or not sys.stdout.isatty():
            _print_on(socket, raw, as_json)
        else:
            _redraw(socket, raw)
    except KeyboardInterrupt:
        pass
    return ExitCode.OK


def _print_on(socket: str, raw: bytes, as_json: bool) -> None:
    while True:
        print(raw.decode() if as_json else shown(raw, None, False)[0] + "\n", flush=True)
        time.sleep(EVERY_S)
        raw = fetch(socket)


def _redraw(socket: str, raw: bytes) -> None:
    try:
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text
    except ImportError:
        from agent.terminal.errors import CommandError

        raise CommandError(
            ExitCode.FAILED, "--watch needs rich (python3-rich), which is not installed"
        ) from None
    console = Console()
    colour = wants_colour()
    answered_s = time.monotonic()
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            text = shown(raw, console.width, colour)[0]
            age_s = time.monotonic() - answered_s
            if problem := "" if age_s < EVERY_S else duration(age_s):
                text = f"NO ANSWER from the broker for {problem}: what follows is old\n\n{text}"
            picture = Text.from_ansi(text, no_wrap=True, overflow="ellipsis")
            live.update(picture, refresh=True)
            time.sleep(EVERY_S)
            try:
                raw = fetch(socket)
                answered_s = time.monotonic()
            except BrokerError:
                pass
