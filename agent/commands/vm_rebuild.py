# SPDX-License-Identifier: LGPL-2.1-or-later
"""`ha-agent vm rebuild`: writes what is lost of the registry anew."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict

from agent.registry.change import wake_broker
from agent.registry.rebuild import Rebuilt, rebuilt
from agent.terminal import in_json
from agent.terminal.columns import say
from broker.config.sections import Config
from broker.daemon.exit_codes import ExitCode


def run(config: Config, arguments: argparse.Namespace, as_json: bool) -> int:
    """Write what is lost of the registry anew, from this host's copy."""
    done = rebuilt(config, arguments.overwrite, arguments.dry_run)
    if not arguments.dry_run:
        wake_broker(config)
    would = "would be " if arguments.dry_run else ""
    text = done.in_words()
    nothing = "nothing is written anew" if done.not_down else "nothing of the registry is lost"
    text = f"{would}written anew: {text}" if text else nothing
    if as_json:
        in_json.show({**asdict(done), "done": text}, indent=None)
        return _code(done)
    print(text)
    for why_not in done.not_down:
        say(f"warning: {why_not}", to=sys.stderr)
    for name in done.lost:
        say(
            f"warning: the definition of {name} is neither on the volume nor in this host's copy:"
            f" ha-agent vm define {name} FILE, or this command on another host",
            to=sys.stderr,
        )
    return _code(done)


def _code(done: Rebuilt) -> int:
    if done.lost:
        return ExitCode.DEFINITION
    return ExitCode.REFUSED if done.not_down else ExitCode.OK
