# SPDX-License-Identifier: LGPL-2.1-or-later
"""`ha-agent --status`: the cluster as this host's broker sees it, for people or as JSON.

People in a hurry type it and scripts run it every few seconds: a module that the answer does not
need is not imported.
"""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING

from agent.status.fetch import SHORT_BYTES, does_not_fit, fetch, shown
from agent.terminal.columns import wants_colour
from broker.client.quick import BrokerDown
from broker.config.places import changed_s, plainly_named_socket
from broker.daemon.exit_codes import ExitCode
from broker.daemon.regular_file import read_text

if TYPE_CHECKING:
    from collections.abc import Callable


def run(config_path: str, as_json: bool, watch: bool, warn: Callable[[str], None]) -> int:
    """Print the status; the exit code is `code_of` its engine. Raises as `ask` does.

    `warn` gets the fault of the configuration file, where the broker answers all the same; the file
    is checked only where it was changed since the broker read it.
    """
    socket = _plain_socket(config_path)
    is_plain = socket is not None
    if socket is None:
        socket = _checked_socket(config_path, warn)
    if watch:
        from agent.status import watch as watching

        return watching.run(socket, as_json)
    try:
        raw = fetch(socket)
    except BrokerDown:
        if is_plain:
            _checked_socket(config_path, warn)
        raise
    if as_json:
        try:
            answer = json.loads(raw)
            up, read_s = answer["engine"]["up"], answer.get("config_file_s")
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
            raise does_not_fit(raw) from None
        text = json.dumps(answer, indent=2, ensure_ascii=False) if len(raw) < SHORT_BYTES else ""
        text = text or _formatted(raw)
    else:
        on_terminal = sys.stdout.isatty()
        width = os.get_terminal_size(1).columns if on_terminal else None
        text, status = shown(raw, width, on_terminal and wants_colour())
        up, read_s = status.engine.up, status.config_file_s
    if is_plain and read_s != changed_s(config_path):
        _checked_socket(config_path, warn)
    print(text)
    return code_of(up)


def code_of(up: bool | None) -> ExitCode:
    """OK: some host has the VM up; ENGINE_DOWN: it runs nowhere; ENGINE_UNKNOWN: unknown."""
    if up is None:
        return ExitCode.ENGINE_UNKNOWN
    return ExitCode.OK if up else ExitCode.ENGINE_DOWN


def _formatted(raw: bytes) -> str:
    import msgspec

    return msgspec.json.format(raw, indent=2).decode()


def _plain_socket(config_path: str) -> str | None:
    """The broker's socket, where a plain line of the file names it; None: a full parse is
    needed."""
    try:
        return plainly_named_socket(read_text(config_path))
    except (OSError, ValueError):
        return None


def _checked_socket(config_path: str, warn: Callable[[str], None]) -> str:
    """The broker's socket by a full parse of the file. Raises and warns as `socket_path` does."""
    from broker.config.load import socket_path

    return socket_path(config_path, warn)
