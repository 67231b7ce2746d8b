# SPDX-License-Identifier: LGPL-2.1-or-later
"""The paths that a command needs before it has read the configuration.

This module imports nothing that is slow to load: `ha-agent --status` starts with it.
"""

from __future__ import annotations

import os

DEFAULT_PATH = "/etc/ha-agent/ha-agent.toml"
PATH_VARIABLE = "HA_AGENT_CONFIG"
DEFAULT_SOCKET = "/run/ha-agent/broker.sock"


def default_path() -> str:
    """The configuration file where no --config is given."""
    return os.environ.get(PATH_VARIABLE) or DEFAULT_PATH


def plainly_named_socket(text: str) -> str | None:
    """The path of the broker's socket in the text of a configuration file; None where only a full
    parse of the file can find it.

    No other key of the file is called `socket` (held by a test), so one plain line is enough.
    """
    named = [line for line in map(str.strip, text.splitlines()) if _may_name_it(line)]
    if not named:
        return DEFAULT_SOCKET
    key, _, value = named[0].partition("=")
    value = value.strip()
    path = value[1:-1]
    if len(named) > 1 or key.strip() != "socket" or not value[:1] == value[-1:] == '"':
        return None
    return path if path.startswith("/") and '"' not in path and "\\" not in path else None


def _may_name_it(line: str) -> bool:
    """Whether the line may set a key of that name: by itself, dotted, or in an inline table."""
    key = line.partition("=")[0]
    return not line.startswith("#") and "socket" in (line if "{" in line else key)


def changed_s(path: str) -> float | None:
    """When a file was changed last, UTC seconds since 1970; None where that cannot be read."""
    try:
        return os.stat(path).st_mtime  # noqa: PTH116
    except OSError:
        return None
