# SPDX-License-Identifier: LGPL-2.1-or-later
"""`ha-agent maintenance global|local|none [--for TIME | --no-expiry] [--reason TEXT]`, and with
`local` also `--release-id` and `--restart`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from agent.commands.drained import PATIENCE_S, drained
from agent.commands.other_host import OtherHost
from agent.terminal import in_json
from agent.terminal.columns import say
from agent.terminal.errors import CommandError
from agent.terminal.times import duration_s, shown
from broker.client.ask import ask
from broker.daemon.exit_codes import ExitCode
from broker.wire.limits import REASON_CHARS_MAX
from broker.wire.status import Maintenance, Status

#: A working day: the default end, since a mode without one may be forgotten.
DEFAULT_FOR = "8h"
#: With --wait it watches longer than any migration takes.
WAIT_S = 3600.0


@dataclass(frozen=True, slots=True)
class Asked:
    """What was typed. `mode`: global, local or none; `lasts`: how long; `host`: `--host`."""

    mode: str
    lasts: str | None = None
    no_expiry: bool = False
    reason: str | None = None
    release_id: bool = False
    wait: bool = False
    host: str | None = None
    restart: bool = False


def run(
    socket_path: str, asked: Asked, as_json: bool = False, other: OtherHost | None = None
) -> int:
    """Set a mode, or end both; setting one leaves the other as it is. `other`: the host whose local
    mode is meant, None: this one. FAILED where the VM was waited for and stays. Raises as `ask`
    does."""
    _check(asked)
    if asked.mode == "none":
        _set_local(socket_path, other, Maintenance(False))
        ask(socket_path, "PUT", "/v1/maintenance/global", Maintenance, Maintenance(False))
        where = "this host" if other is None else other.host.hostname
        return _show("none", [f"no maintenance: neither global nor local on {where}"], as_json)
    for_s = None if asked.no_expiry else duration_s(asked.lasts or DEFAULT_FOR)
    wanted = Maintenance(True, asked.reason or "", for_s, asked.release_id, asked.restart)
    is_out, said_already = True, 0
    if asked.mode == "global":
        ask(socket_path, "PUT", "/v1/maintenance/global", Maintenance, wanted)
        lines = ["global maintenance is set: nothing starts, stops or moves on any host"]
    else:
        _set_local(socket_path, other, wanted)
        where = "this host" if other is None else other.host.hostname
        lines = [f"local maintenance is set: {where} starts no VM and is being drained"]
        if asked.restart:
            place = "here" if other is None else "there"
            lines.append(
                f"what cannot be migrated is stopped {place} in order, with the outage of a boot,"
                " once another host can start it"
            )
        if not as_json:
            # At once: the mode stays set when somebody ends the wait.
            _say(lines)
        said_already = len(lines)
        look = status_of(socket_path) if other is None else other.status
        patience_s = WAIT_S if asked.wait else PATIENCE_S
        is_out, said = drained(look, patience_s, asked.host, asked.restart)
        if asked.wait and not is_out and not said:
            said = "whether it is empty is not known: ha-agent why"
        lines += [said] if said else []
    if asked.release_id:
        lines.append(
            "its host id is given back once it is empty; the status then says LOCKSPACE: given"
            " back. Stop both daemons before the storage is unmounted"
        )
    lines += _how_it_ends(asked, for_s)
    code = ExitCode.OK if is_out or not asked.wait else ExitCode.FAILED
    return _show(asked.mode, lines, as_json, code, for_s, said_already)


def _check(asked: Asked) -> None:
    """CommandError where the words do not fit each other."""
    wrong = ""
    if asked.release_id and asked.mode != "local":
        wrong = "--release-id belongs to: maintenance local"
    elif asked.restart and asked.mode != "local":
        wrong = "--restart belongs to: maintenance local"
    elif asked.wait and asked.mode != "local":
        wrong = "--wait belongs to: maintenance local"
    elif asked.host is not None and asked.mode == "global":
        wrong = "global maintenance is every host's: leave --host away"
    elif asked.mode == "none" and (
        asked.lasts is not None or asked.no_expiry or asked.reason is not None
    ):
        wrong = "maintenance none takes no --for and no --reason"
    elif asked.lasts is not None and asked.no_expiry:
        wrong = "--for and --no-expiry exclude each other"
    elif asked.reason is not None and len(asked.reason) > REASON_CHARS_MAX:
        wrong = f"--reason: at most {REASON_CHARS_MAX} characters"
    if wrong:
        raise CommandError(ExitCode.USAGE, wrong)


def _set_local(socket_path: str, other: OtherHost | None, wanted: Maintenance) -> None:
    if other is None:
        ask(socket_path, "PUT", "/v1/maintenance/local", Maintenance, wanted)
    else:
        other.set_local(wanted)


def status_of(socket_path: str) -> Callable[[], Status]:
    """A look at this host's broker; raises as `ask` does."""
    return lambda: ask(socket_path, "GET", "/v1/status", Status)


def _how_it_ends(asked: Asked, for_s: int | None) -> list[str]:
    there = "" if asked.host is None else f" --host {asked.host}"
    if for_s is None:
        return [f"it has no end; end it with: ha-agent maintenance none{there}"]
    end = shown(datetime.now(UTC) + timedelta(seconds=for_s))
    lines = [f"it ends by itself at {end}, or with: ha-agent maintenance none{there}"]
    if asked.lasts is None:
        lines.append(
            f"no end was given, {DEFAULT_FOR} was taken; say it by --for TIME or --no-expiry"
        )
    return lines


def _show(
    mode: str,
    lines: list[str],
    as_json: bool,
    code: int = ExitCode.OK,
    for_s: int | None = None,
    said_already: int = 0,
) -> int:
    """Print the sentences but for the first ones, `said_already`, or all of it in JSON; returns
    `code`."""
    if as_json:
        in_json.show({"mode": mode, "for_s": for_s, "sentences": lines}, indent=None)
    else:
        _say(lines[said_already:])
    return code


def _say(lines: list[str]) -> None:
    for line in lines:
        say(line, 2)
