# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the shell offers at a TAB: argcomplete asks the parsers of `--help`, and where a host or a
VM is wanted, the broker. The shell runs the command itself for that, with `_ARGCOMPLETE` set.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import Any

from broker.client.quick import BrokerDown, get
from broker.config.places import DEFAULT_SOCKET, plainly_named_socket
from broker.daemon.regular_file import read_text

#: Nobody waits longer at a TAB.
ASK_TIMEOUT_S = 1.0
_TIMES = ("30m", "2h", "1d")


def complete(parser: argparse.ArgumentParser) -> None:
    """Answer the shell and end the process; returns where no shell asks."""
    try:
        from argcomplete import autocomplete
        from argcomplete.completers import DirectoriesCompleter, FilesCompleter, SuppressCompleter
    except ImportError:
        return  # the shell falls back to files
    files, folders = FilesCompleter(), DirectoriesCompleter()
    by_value: dict[str, Any] = {
        **dict.fromkeys(("FILE", "OUT", "file", "config"), files),
        **dict.fromkeys(("FOLDER", "storage"), folders),
        "HOST": hosts,
        "HOST|all": lambda **asked: ["all", *hosts(**asked)],
        **dict.fromkeys(("VM", "vm"), vms),
        "TIME": lambda **_: _TIMES,
    }
    for action in _actions(parser):
        found = by_value.get(str(action.metavar), by_value.get(action.dest))
        if found is not None and action.choices is None:
            action.completer = found  # type: ignore[attr-defined]
    autocomplete(parser, default_completer=SuppressCompleter())


def hosts(parsed_args: argparse.Namespace, **_: object) -> list[str]:
    """The names of the cluster's hosts."""
    return [host["hostname"] for host in _status(parsed_args).get("hosts", {}).values()]


def vms(parsed_args: argparse.Namespace, **_: object) -> list[str]:
    """The names of the VMs."""
    found = _status(parsed_args).get("vms", ())
    return [vm["name"] for vm in found if isinstance(vm, dict) and "name" in vm]


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """The options and positionals of a parser and of all below it."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                yield from _actions(sub)


def _status(arguments: argparse.Namespace) -> dict[str, Any]:
    """The broker's status; empty where nobody answers in time, or this user may not ask."""
    try:
        socket = plainly_named_socket(read_text(arguments.config)) or DEFAULT_SOCKET
        code, raw = get(socket, "/v1/status", ASK_TIMEOUT_S)
        found = json.loads(raw)
    except (OSError, ValueError, BrokerDown):
        return {}
    return found if code == 200 and isinstance(found, dict) else {}
