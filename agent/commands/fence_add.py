# SPDX-License-Identifier: LGPL-2.1-or-later
"""`ha-agent fence add HOST`: writes a fence device into this host's files, its password into the
secrets file. What a member has before it invites, a new host gets with its invitation."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from agent.setup.toml_text import with_keys
from agent.setup.written import SERVICE_GROUP, Files, checked, place, read_text
from agent.terminal import in_json
from agent.terminal.errors import CommandError
from agent.terminal.secret import asked
from broker.config.sealed import SECRET_CHARS_MAX
from broker.daemon.exit_codes import ExitCode
from broker.wire.limits import HOST_ID_MAX


def run(arguments: argparse.Namespace, files: Files, as_json: bool) -> int:
    """Add it; OK, or CommandError with nothing changed."""
    old = files.text()
    if not old:
        raise CommandError(ExitCode.CONFIG, f"{files.config}: is not there; ha-agent init first")
    config = checked(old, files.config)
    host = _host(arguments.host)
    key = f"{host}/{arguments.name}" if arguments.name else f"{host}"
    if key in {each.key for each in config.fence.device}:
        raise CommandError(
            ExitCode.REFUSED,
            f"{files.config}: has a fence device {key} already; edit it, or give this one another"
            " --name",
        )
    text = f"{old.rstrip()}\n\n{_table(host, arguments)}"
    (made,) = [each for each in checked(text, files.config).fence.device if each.key == key]
    secrets = Path(config.daemon.secrets)
    named = {f"fence-passwords.{key}": asked(f"Password of {made.title}", SECRET_CHARS_MAX)}
    place(secrets, with_keys(read_text(secrets), dict(named)), 0o640, SERVICE_GROUP)
    place(files.config, text, 0o644)
    if as_json:
        in_json.show({"key": key, "device": made.title})
    else:
        print(
            f"{made.title} is written; where the daemons run: systemctl reload ha-broker ha-agent"
        )
    return ExitCode.OK


def _host(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= HOST_ID_MAX:
        raise CommandError(
            ExitCode.USAGE,
            f"HOST: {text!r} is no host id; init takes 1, and the hosts that join"
            " the next free one",
        )
    return int(text)


def _table(host: int, arguments: argparse.Namespace) -> str:
    """The table as it stands in the file. JSON's strings and numbers are TOML's too."""
    given = {"host": host}
    for name in ("name", "type", "address", "port", "username"):
        if (value := getattr(arguments, name)) is not None:
            given[name] = value
    lines = [f"{name} = {json.dumps(value)}" for name, value in given.items()]
    return "\n".join(["[[fence.device]]", *lines]) + "\n"
