# SPDX-License-Identifier: LGPL-2.1-or-later
"""`ha-agent clean-metadata HOST` empties the slot of a host that is gone. The host id is not freed:
sanlock does that by itself, when it is certain."""

from __future__ import annotations

import argparse

import sanlock

from agent.setup.leave import check_slots_can_be_written, empty_slot, is_used
from agent.setup.membership import own_id
from agent.storage.identity import check_volumes
from agent.storage.made import sanlock_errors
from agent.storage.watched import SLOT_WATCH_S, read_slots, watch
from agent.terminal.errors import CommandError
from agent.terminal.progress import progress
from agent.terminal.steps import Step, run_steps
from broker.config.load import load
from broker.config.sections import Config
from broker.daemon.exit_codes import ExitCode
from scoring.lease_times import host_dead_s

_GONE = {sanlock.HOST_FREE: "free", sanlock.HOST_DEAD: "dead"}


def run(arguments: argparse.Namespace, as_json: bool) -> int:
    """Empty the slot; OK, or REFUSED while that host may live."""
    config = load(arguments.config)
    check_volumes(config)
    host_id = _host_id(config, arguments.host)
    path = config.storage.whiteboard

    def look() -> str | None:
        if not is_used(config, host_id):
            return f"slot {host_id} of {path} is empty"
        check_slots_can_be_written(config)
        _refuse_live(config, host_id)
        return None

    def act() -> str:
        empty_slot(config, host_id)
        return f"slot {host_id} of {path} is empty"

    run_steps(
        [Step("slot", look, f"emptying slot {host_id} of {path}", act)],
        arguments.dry_run,
        as_json,
    )
    return ExitCode.OK


def _host_id(config: Config, host: str) -> int:
    if host.isascii() and host.isdigit() and 1 <= int(host) <= 2000:
        found = [int(host)]
    else:
        reports = read_slots(config.storage.whiteboard).reports
        found = [i for i, report in reports.items() if report.hostname == host]
    if len(found) != 1:
        raise CommandError(ExitCode.USAGE, f"{host}: no host of that name, or several; give its id")
    if found[0] == config.host.id:
        raise CommandError(ExitCode.REFUSED, f"{host} is this host; use: ha-agent leave")
    return found[0]


def _refuse_live(config: Config, host_id: int) -> None:
    given = config.storage
    if own_id(given) is None:
        raise CommandError(
            ExitCode.LOCKSPACE,
            f"this host is not in lockspace {given.lockspace}, so sanlock does not know whether"
            f" host {host_id} is gone; run it where ha-broker runs",
        )
    users = watch(given.whiteboard, None, SLOT_WATCH_S, progress)
    if host_id in users.hosts:
        raise CommandError(
            ExitCode.REFUSED, f"host {host_id} ({users.hosts[host_id]}) lives: it writes its slot"
        )
    with sanlock_errors(given.leases):
        hosts = sanlock.get_hosts(given.lockspace.encode(), host_id)
    flags = hosts[0]["flags"] if hosts else sanlock.HOST_FREE
    if flags not in _GONE:
        wait_s = host_dead_s(given.io_timeout)
        raise CommandError(
            ExitCode.REFUSED,
            f"sanlock does not hold host {host_id} for dead yet: {wait_s:.0f} s after its last"
            " renewal it does; or it gives its id back there: ha-agent leave",
        )
