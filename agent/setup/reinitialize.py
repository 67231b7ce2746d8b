# SPDX-License-Identifier: LGPL-2.1-or-later
"""`ha-agent reinitialize-lockspace` writes the lease volume anew, in its place.

It does so only where no host can still be in the old lockspace: a host that gave its id back is
not; any other one must have been seen not to renew it for sanlock's whole host-dead time, since its
VM may live until then.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import libvirt

from agent.setup.answers import Asker
from agent.setup.leave import broker_answers, vm_is_not_here
from agent.setup.membership import leave_lockspace, own_id
from agent.storage.identity import found_at, identity_step
from agent.storage.made import check_leases_can_be_made, make_leases
from agent.storage.registry import vm_leases
from agent.storage.watched import lease_watch_s, read_leases, watch
from agent.terminal.errors import CommandError
from agent.terminal.progress import progress
from agent.terminal.steps import Step, run_steps
from broker.config.load import load
from broker.config.sections import Config
from broker.daemon.exit_codes import ExitCode
from broker.registry.record import number_of
from broker.whiteboard.identity import VolumeKind, expected


def run(arguments: argparse.Namespace, as_json: bool) -> int:
    """Write the volume anew; OK, or REFUSED while any host may be using it."""
    libvirt.registerErrorHandler(lambda context, error: None, None)
    config = load(arguments.config)
    given = config.storage
    # A VM's lease has the unit of its number: what the registry has is written anew too.
    vms_leases = vm_leases(config)
    vms = max(map(number_of, vms_leases), default=1)
    if not arguments.dry_run:
        Asker(arguments.yes, as_json).confirm(f"Write {given.leases} anew, with all its leases?")

    def act() -> str:
        here = own_id(given)
        if here is not None:
            leave_lockspace(given, here)
        make_leases(config, vms_leases, vms)
        return f"{given.leases} is made anew: lockspace {given.lockspace}"

    run_steps(
        [
            identity_step(config, VolumeKind.WHITEBOARD),
            Step("leases-identity", lambda: _look_identity(config), "", lambda: ""),
            Step("vm", lambda: vm_is_not_here(config), "", lambda: ""),
            Step("daemons", lambda: _look_daemons(config), "", lambda: ""),
            Step("hosts", lambda: _look_hosts(config), "", lambda: ""),
            Step(
                "leases",
                lambda: check_leases_can_be_made(config, vms=vms),
                f"writing {given.leases} anew",
                act,
            ),
        ],
        arguments.dry_run,
        as_json,
    )
    return ExitCode.OK


def _look_identity(config: Config) -> str:
    """Check the old volume: it may be damaged or gone, but never another cluster's."""
    path, wanted = config.storage.leases, expected(config, VolumeKind.LEASES)
    found = found_at(path, VolumeKind.LEASES)
    if found is not None and wanted.volume and found.volume != wanted.volume:
        raise CommandError(
            ExitCode.STORAGE,
            f"{path}: is {found.kind} {found.volume} of cluster {found.cluster}, not"
            f" {wanted.volume}; check what is mounted there",
        )
    return f"{path} is no other cluster's"


def _look_daemons(config: Config) -> str:
    if broker_answers(config):
        raise CommandError(
            ExitCode.REFUSED,
            "ha-broker runs on this host; on every host: systemctl stop ha-agent ha-broker, then:"
            " ha-agent leave --lockspace-only",
        )
    return "they do not run here"


def _look_hosts(config: Config) -> str:
    """Check that no host writes, none renews, and all that did not give their id back are dead."""
    given = config.storage
    own = own_id(given)
    is_there = Path(given.leases).exists()
    head, used = read_leases(given.leases) if is_there else (None, {})
    seconds = lease_watch_s(head, used, given.io_timeout, own)
    whiteboard = given.whiteboard if Path(given.whiteboard).exists() else None
    users = watch(whiteboard, given.leases if is_there else None, seconds, progress, but=own)
    if users:
        raise CommandError(
            ExitCode.REFUSED,
            f"{given.leases} is in use: {users}; there: systemctl stop ha-agent ha-broker, then:"
            " ha-agent leave --lockspace-only",
        )
    stale = f"; ids {', '.join(map(str, users.stale))} are dead" if users.stale else ""
    return f"nobody used it for {seconds:.0f} s{stale}"
