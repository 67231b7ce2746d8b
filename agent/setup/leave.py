# SPDX-License-Identifier: LGPL-2.1-or-later
"""`ha-agent leave` ends this host's membership. Never while the VM is here."""

from __future__ import annotations

import argparse
import subprocess
import time
from pathlib import Path

import libvirt
import sanlock

from agent.setup.answers import Asker
from agent.setup.membership import leave_lockspace, own_id
from agent.setup.undo import undo_steps, vms_with_a_lease
from agent.storage.identity import identity_step
from agent.storage.made import sanlock_errors
from agent.storage.watched import read_leases, read_slots, storage_error
from agent.terminal.columns import say
from agent.terminal.errors import CommandError
from agent.terminal.steps import Step, run_steps
from broker.client.ask import BrokerDown, BrokerRefused, ask
from broker.config.load import load
from broker.config.sections import Config
from broker.daemon.exit_codes import ExitCode
from broker.daemon.foreign import sentence
from broker.whiteboard.slot import EMPTY_SLOT
from broker.whiteboard.volume import Volume, VolumeError
from broker.wire.status import Status

UNITS = ("ha-agent.service", "ha-broker.service")
#: Is there where systemd is the first process.
SYSTEMD = Path("/run/systemd/system")
#: Longer than the units' own TimeoutStopSec, 30 s, for which systemd waits.
STOP_SECONDS_MAX = 60.0


def run(arguments: argparse.Namespace, as_json: bool) -> int:
    """Leave; OK, or REFUSED while the VM is here."""
    libvirt.registerErrorHandler(lambda context, error: None, None)
    config = load(arguments.config)
    only = bool(arguments.lockspace_only)
    steps = [
        *(() if only else (identity_step(config),)),
        Step("vm", lambda: vm_is_not_here(config), "", lambda: ""),
        _daemons_step(config, only),
    ]
    if not only:
        steps.append(_slot_step(config))
    steps.append(_lockspace_step(config))
    if arguments.undo:
        steps += undo_steps(config, Path(arguments.config).parent)
        if not arguments.dry_run:
            asker = Asker(arguments.yes, as_json)
            asker.confirm("Leave, and take back what was written for libvirt, sanlock and udev?")
    run_steps(steps, arguments.dry_run, as_json)
    if not as_json and not arguments.dry_run and not only:
        kept = "" if arguments.undo else " libvirt's definition of the VM,"
        say(
            f"left as they are: {arguments.config} and the files beside it,{kept} the volumes."
            " ha-agent join brings this host back"
        )
        if not arguments.undo:
            say("and lines for libvirt, sanlock and udev: ha-agent leave --undo takes them out")
    return ExitCode.OK


def vm_is_not_here(config: Config) -> str:
    """A sentence that no protected VM runs here; CommandError where one does, or libvirt fails.

    The engine is looked for by its name, with a lease or without; the others by their leases."""
    try:
        connection = libvirt.open(config.libvirt.uri)
        try:
            is_here = bool(connection.lookupByName(config.vm.name).isActive())
        finally:
            connection.close()
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
            raise CommandError(
                ExitCode.REFUSED,
                f"whether {config.vm.name} runs here is not known: libvirt at"
                f" {config.libvirt.uri}: {sentence(error)}",
            ) from None
        is_here = False
    if is_here:
        raise CommandError(
            ExitCode.REFUSED,
            f"{config.vm.name} runs here; move it away first: ha-agent maintenance local"
            " (then wait until ha-agent --status says LocalMaintenance)",
        )
    others = vms_with_a_lease(config.libvirt.uri, config.storage.lockspace)
    if others:
        raise CommandError(
            ExitCode.REFUSED,
            f"{', '.join(others)} runs here under a lease of this cluster; move it away first:"
            " ha-agent maintenance local --wait",
        )
    return f"{config.vm.name} does not run here, nor another VM of this cluster"


def broker_answers(config: Config) -> bool:
    """Whether this host's broker runs."""
    try:
        ask(config.daemon.socket, "GET", "/v1/status", Status)
    except BrokerDown:
        return False
    except BrokerRefused:
        return True
    return True


def _systemctl(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603  our own words
        ["systemctl", *words, *UNITS],  # noqa: S607
        capture_output=True,
        text=True,
        timeout=STOP_SECONDS_MAX,
    )


def systemd_keeps_them(only: bool) -> bool:
    """Whether systemd runs a daemon, or is to start it anew: a broker that has just died answers
    nobody, and is back in a second. Unless `only`: or starts it at the next boot."""
    kept = set(_systemctl("is-active").stdout.split()) - {"inactive", "failed", "unknown"}
    return bool(kept) or (not only and "enabled" in _systemctl("is-enabled").stdout.split())


def _daemons_step(config: Config, only: bool) -> Step:
    by_systemd = SYSTEMD.is_dir()
    verb = ("stop",) if only else ("disable", "--now")

    def look() -> str | None:
        if by_systemd:
            return None if systemd_keeps_them(only) else "they do not run"
        if broker_answers(config):
            raise CommandError(
                ExitCode.REFUSED, "ha-broker and ha-agent run on this host; stop both first"
            )
        return "ha-broker does not run"

    def act() -> str:
        done = _systemctl(*verb)
        if done.returncode != 0:
            raise CommandError(ExitCode.FAILED, f"systemctl: {done.stderr.strip()}")
        return "stopped" if only else "stopped and disabled"

    return Step("daemons", look, f"systemctl {' '.join((*verb, *UNITS))}", act)


def empty_slot(config: Config, host_id: int) -> None:
    """Write a host's slot as it was before the host joined; CommandError."""
    try:
        with Volume(config.storage.whiteboard) as volume:
            volume.write_slot(host_id, EMPTY_SLOT)
    except VolumeError as error:
        raise storage_error(error) from None


def is_used(config: Config, host_id: int) -> bool:
    """Whether the slot holds anything."""
    sweep = read_slots(config.storage.whiteboard)
    return host_id in sweep.reports or host_id in sweep.bad


def _slot_step(config: Config) -> Step:
    own, path = config.host.id, config.storage.whiteboard

    def look() -> str | None:
        if not is_used(config, own):
            return f"slot {own} of {path} is empty"
        check_slots_can_be_written(config)
        return None

    def act() -> str:
        if own_id(config.storage) not in (own, None):
            raise CommandError(ExitCode.REFUSED, f"host id {own} is not this host's any more")
        # The broker's last write may still be under way: wait a beat.
        time.sleep(config.timing_rules().beat)
        empty_slot(config, own)
        return f"slot {own} of {path} is empty"

    return Step("slot", look, f"emptying slot {own} of {path}", act)


def check_slots_can_be_written(config: Config) -> None:
    """CommandError where the whiteboard cannot be opened for writing."""
    try:
        Volume(config.storage.whiteboard).close()
    except VolumeError as error:
        raise storage_error(error) from None


def _refuse_holder(config: Config, here: int) -> None:
    """Refuse where a lease is held under this host's id, which keeps it in the lockspace: before
    the daemons are stopped."""
    given = config.storage
    head, used = read_leases(given.leases)
    generation = used.get(here, (0, 0))[0]
    if head is None:
        return
    for offset, name in head.resources.items():
        with sanlock_errors(given.leases):
            owners = sanlock.read_resource_owners(
                given.lockspace.encode(),
                name.encode(),
                [(given.leases, offset)],
                align=head.align,
                sector=head.sector,
            )
        if any((o["host_id"], o["generation"]) == (here, generation) for o in owners):
            raise CommandError(
                ExitCode.REFUSED,
                f"lockspace {given.lockspace}: a process here holds lease {name} in it; move the VM"
                " away first (ha-agent maintenance local), or let a fencing end",
            )


def _lockspace_step(config: Config) -> Step:
    given = config.storage

    def look() -> str | None:
        here = own_id(given)
        if here is None:
            return f"this host is not in lockspace {given.lockspace}"
        _refuse_holder(config, here)
        return None

    def act() -> str:
        here = own_id(given)
        if here is not None:
            leave_lockspace(given, here)
        return f"host id {here} is given back"

    return Step("host-id", look, f"giving it back in lockspace {given.lockspace}", act)
