# SPDX-License-Identifier: LGPL-2.1-or-later
"""`ha-agent maintenance global|local|none`."""

from __future__ import annotations

from broker.client import ask
from broker.exit_codes import ExitCode
from broker.wire import Maintenance


def run(socket_path: str, mode: str) -> int:
    """Set a mode, or end both; setting one leaves the other as it is. Raises as `ask` does."""
    if mode == "none":
        ask(socket_path, "PUT", "/v1/maintenance/local", Maintenance, Maintenance(False))
        ask(socket_path, "PUT", "/v1/maintenance/global", Maintenance, Maintenance(False))
        print("no maintenance: neither global nor local on this host")
        return ExitCode.OK
    ask(socket_path, "PUT", f"/v1/maintenance/{mode}", Maintenance, Maintenance(True))
    what = {
        "global": "nothing starts, stops or moves on any host",
        "local": "this host does not start the VM and is drained",
    }
    print(f"{mode} maintenance is set: {what[mode]}; end it with: ha-agent maintenance none")
    return ExitCode.OK
