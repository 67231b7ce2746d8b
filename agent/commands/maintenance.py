# SPDX-License-Identifier: LGPL-2.1-or-later
"""`ha-agent maintenance global|local|none [--for TIME | --no-expiry] [--reason TEXT]`, and with
`local` also `--release-id`."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta

from agent.terminal.columns import say
from agent.terminal.errors import CommandError
from agent.terminal.times import duration_s, shown
from broker.client.ask import BrokerDown, BrokerRefused, ask
from broker.daemon.exit_codes import ExitCode
from broker.wire.limits import REASON_CHARS_MAX
from broker.wire.status import Maintenance, Status

#: A working day: the default end, since a mode without one may be forgotten.
DEFAULT_FOR = "8h"
#: How long the command watches the VM leave; a live migration takes a few seconds.
DRAIN_PATIENCE_S = 5.0
DRAIN_LOOK_S = 0.25
#: Reasons of the agent that end the watch: the VM stays, at least for now.
_STAYS = frozenset({"drain-stuck", "drain-waiting", "move-impossible", "global-maintenance"})


def run(
    socket_path: str,
    mode: str,
    lasts: str | None,
    no_expiry: bool,
    reason: str | None,
    release_id: bool = False,
    as_json: bool = False,
) -> int:
    """Set a mode, or end both; setting one leaves the other as it is. Raises as `ask` does."""
    if release_id and mode != "local":
        raise CommandError(ExitCode.USAGE, "--release-id belongs to: maintenance local")
    if mode == "none":
        if lasts is not None or no_expiry or reason is not None:
            raise CommandError(ExitCode.USAGE, "maintenance none takes no --for and no --reason")
        ask(socket_path, "PUT", "/v1/maintenance/local", Maintenance, Maintenance(False))
        ask(socket_path, "PUT", "/v1/maintenance/global", Maintenance, Maintenance(False))
        return _show(mode, ["no maintenance: neither global nor local on this host"], as_json)
    if lasts is not None and no_expiry:
        raise CommandError(ExitCode.USAGE, "--for and --no-expiry exclude each other")
    if reason is not None and len(reason) > REASON_CHARS_MAX:
        raise CommandError(ExitCode.USAGE, f"--reason: at most {REASON_CHARS_MAX} characters")
    for_s = None if no_expiry else duration_s(lasts or DEFAULT_FOR)
    wanted = Maintenance(True, reason or "", for_s, release_id)
    ask(socket_path, "PUT", f"/v1/maintenance/{mode}", Maintenance, wanted)
    what = {
        "global": "nothing starts, stops or moves on any host",
        "local": "this host does not start the VM and is drained",
    }
    lines = [f"{mode} maintenance is set: {what[mode]}"]
    if mode == "local" and (said := drained(socket_path)):
        lines.append(said)
    if release_id:
        lines.append(
            "its host id is given back once it is empty; the status then says LOCKSPACE: given"
            " back. Stop both daemons before the storage is unmounted"
        )
    if for_s is None:
        lines.append("it has no end; end it with: ha-agent maintenance none")
    else:
        end = shown(datetime.now(UTC) + timedelta(seconds=for_s))
        lines.append(f"it ends by itself at {end}, or with: ha-agent maintenance none")
        if lasts is None:
            lines.append(
                f"no end was given, {DEFAULT_FOR} was taken; say it by --for TIME or --no-expiry"
            )
    return _show(mode, lines, as_json, for_s)


def _show(mode: str, lines: list[str], as_json: bool, for_s: int | None = None) -> int:
    """Print the sentences, or all of it in JSON."""
    if as_json:
        print(json.dumps({"version": 1, "mode": mode, "for_s": for_s, "sentences": lines}))
    else:
        for line in lines:
            say(line, 2)
    return ExitCode.OK


def drained(socket_path: str, patience_s: float = DRAIN_PATIENCE_S) -> str:
    """What happens to this host's VM within `patience_s`, in a sentence; empty where it does not
    run here, or that is unknown. The command does not wait longer: a drain may take its time."""
    until_s = time.monotonic() + patience_s
    was_here = False
    while True:
        try:
            status = ask(socket_path, "GET", "/v1/status", Status)
        except (BrokerDown, BrokerRefused):
            return ""
        is_here = status.engine.host == status.host_id and status.engine.up is True
        if not is_here:
            left = was_here and status.engine.up is True
            return f"the VM has left, and is up on {status.engine.hostname}" if left else ""
        was_here = True
        stays = next((reason.text for reason in status.reasons if reason.code in _STAYS), "")
        if stays:
            return f"NOT DRAINED: {stays}"
        if time.monotonic() >= until_s:
            return "the VM is still here; how far that is: ha-agent why"
        time.sleep(DRAIN_LOOK_S)
