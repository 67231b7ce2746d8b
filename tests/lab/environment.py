# SPDX-License-Identifier: LGPL-2.1-or-later
"""The environment variables of a host's programs: few, and none of the caller's own."""

from __future__ import annotations

import sys

from .layout import HostLayout


def search_path() -> str:
    """PATH with the console scripts of this interpreter's environment first."""
    return f"{sys.prefix}/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def clean(host: HostLayout | None = None) -> dict[str, str]:
    """What a service manager would give; with the config's place if it is for a host."""
    environment = {
        "PATH": search_path(),
        "LANG": "C.UTF-8",
        "HOME": "/root",
        "PYTHONUNBUFFERED": "1",
    }
    if host is not None:
        environment["HA_AGENT_CONFIG"] = str(host.config)
    return environment
