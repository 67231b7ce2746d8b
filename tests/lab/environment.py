# SPDX-License-Identifier: LGPL-2.1-or-later
"""The environment variables of a host's programs: few, and none of the caller's own."""

from __future__ import annotations

import os
import sys

from .layout import HostLayout

#: Names the folder with the ha-broker and ha-agent of another installation.
COMMANDS_VARIABLE = "HA_LAB_COMMANDS"


def commands() -> str:
    """Where the product's commands are: the checkout's own unless HA_LAB_COMMANDS says else."""
    return os.environ.get(COMMANDS_VARIABLE) or f"{sys.prefix}/bin"


def search_path() -> str:
    """PATH with the product's commands and this interpreter's environment first."""
    return f"{commands()}:{sys.prefix}/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def clean(host: HostLayout | None = None) -> dict[str, str]:
    """What a service manager would give; with the config's place if it is for a host."""
    environment = {
        "PATH": search_path(),
        "LANG": "C.UTF-8",
        "HOME": "/root",
        "PYTHONUNBUFFERED": "1",
    }
    if COMMANDS_VARIABLE in os.environ:
        environment[COMMANDS_VARIABLE] = os.environ[COMMANDS_VARIABLE]
    if host is not None:
        environment["HA_AGENT_CONFIG"] = str(host.config)
    return environment
