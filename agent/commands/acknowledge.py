# SPDX-License-Identifier: LGPL-2.1-or-later
"""`ha-agent acknowledge`: somebody has read why this host was switched off."""

from __future__ import annotations

import msgspec

from agent.status.sentences import switched_off
from agent.terminal import in_json
from agent.terminal.columns import say
from broker.client.ask import ask
from broker.daemon.exit_codes import ExitCode
from broker.wire.acknowledged import Acknowledged


def run(socket_path: str, as_json: bool) -> int:
    """Take the line SWITCHED OFF out of this host's status; the fence log and the events keep it.
    Raises as `ask` does."""
    found = ask(socket_path, "POST", "/v1/acknowledge", Acknowledged)
    if as_json:
        in_json.show(msgspec.to_builtins(found), indent=None)
    elif found.switched_off is None:
        say("there is nothing to acknowledge on this host")
    else:
        say(f"acknowledged: {switched_off(found.switched_off)}", 2)
    return ExitCode.OK
