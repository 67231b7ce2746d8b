# SPDX-License-Identifier: LGPL-2.1-or-later
"""`ha-agent notify test`: sends a test notice by each channel and prints the results."""

from __future__ import annotations

import msgspec

from agent.terminal import in_json
from broker.client.ask import ask
from broker.daemon.exit_codes import ExitCode
from broker.wire.notify import NotifyTest

#: Longer than the longest timeout of a channel (broker/config/notify_section.py, SendTimeout).
TEST_TIMEOUT_S = 90.0


def run(socket_path: str, as_json: bool) -> int:
    """OK only where every channel took the notice. Raises as `ask` does."""
    result = ask(socket_path, "POST", "/v1/notify/test", NotifyTest, timeout_s=TEST_TIMEOUT_S)
    if as_json:
        in_json.show(msgspec.to_builtins(result))
    else:
        for name, outcome in sorted(result.outcomes.items()):
            print(f"{name:8} {outcome.error or 'ok'} ({outcome.took_s:.1f} s)")
    went = all(outcome.ok for outcome in result.outcomes.values())
    return ExitCode.OK if went else ExitCode.NOT_SENT
