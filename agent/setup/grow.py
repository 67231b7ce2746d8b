# SPDX-License-Identifier: LGPL-2.1-or-later
"""`ha-agent storage grow --vms N`: room for further VMs in a cluster that was made before.

The daemons run on meanwhile: the registry is a new volume, the lease volume grows at its end, and
the lease `registry` gets a unit that nothing used.
"""

from __future__ import annotations

import argparse
import stat
from pathlib import Path

from agent.setup.toml_text import Value, with_keys
from agent.setup.written import Files, checked, config_step
from agent.storage.device_rule import devices_step
from agent.storage.identity import identity_step, sized
from agent.storage.made import volume_errors, write_lease
from agent.storage.registry import registry_step
from agent.storage.room import allocate, check_device, check_room
from agent.terminal.columns import say
from agent.terminal.errors import CommandError
from agent.terminal.steps import Step, run_steps
from broker.config.sections import Config
from broker.daemon.exit_codes import ExitCode
from broker.lockspace.lease_records import LeaseRecord, read_lease_records
from broker.registry.record import REGISTRY_RESOURCE, REGISTRY_UNIT, units_for
from broker.whiteboard.identity import VolumeKind
from broker.whiteboard.lease_sectors import ALIGN_OF_SECTOR, sector_of_leases
from broker.whiteboard.volume import Volume
from broker.wire.limits import VMS_MAX


def run(arguments: argparse.Namespace, as_json: bool) -> int:
    """Make the registry, and room for the leases; OK, or CommandError."""
    files = Files(Path(arguments.config).absolute())
    if files.host_id() is None:
        raise CommandError(
            ExitCode.REFUSED, f"{files.config}: this host is not configured; use: ha-agent init"
        )
    check_vms(arguments.vms)
    old = checked(files.text(), files.config)
    values = _values(old, arguments.registry)
    config = checked(with_keys(files.text(), values), files.config)
    steps = [
        identity_step(config),
        *devices_step(config.storage),
        _room_step(config, arguments.vms),
        _lease_step(config),
        registry_step(config, ours=bool(old.storage.registry)),
        config_step(files, values),
    ]
    run_steps(steps, arguments.dry_run, as_json)
    if not as_json and not arguments.dry_run:
        say(
            "next: the same command on every other host, which sets registry ="
            f' "{config.storage.registry}" below [storage] there; then on each host, one after the'
            " other: systemctl restart ha-broker ha-agent; then: ha-agent vm add FILE"
        )
    return ExitCode.OK


def check_vms(vms: int) -> None:
    """CommandError where a cluster cannot have so many VMs."""
    if not 2 <= vms <= VMS_MAX:
        raise CommandError(
            ExitCode.USAGE, f"--vms {vms}: 2 to {VMS_MAX}, the engine among them, are possible"
        )


def registry_beside(whiteboard: str) -> str:
    """The usual path of the registry."""
    return str(Path(whiteboard).with_name("registry"))


def _values(config: Config, path: str | None) -> dict[str, Value | None]:
    now = config.storage.registry
    if now and path not in (None, now):
        raise CommandError(
            ExitCode.REFUSED, f"--registry {path}: the registry of this cluster is {now} already"
        )
    board = config.storage.whiteboard
    if not now and path is None and stat.S_ISBLK(Path(board).stat().st_mode):
        raise CommandError(
            ExitCode.USAGE, "--registry is missing: the whiteboard is a device, so name one too"
        )
    return {"storage.registry": now or path or registry_beside(board)}


def _room_step(config: Config, vms: int) -> Step:
    path = config.storage.leases

    def look() -> str | None:
        size, has = _sizes(path, vms)
        if has >= size:
            return f"{path} has room for the leases of {vms} VMs"
        if stat.S_ISBLK(Path(path).stat().st_mode):
            check_device(path, size)
        check_room(path, size)
        return None

    def act() -> str:
        size, _ = _sizes(path, vms)
        allocate(path, size)
        sized(path, VolumeKind.LEASES, size)
        return f"{path} has {size} bytes now: leases of {vms} VMs"

    return Step("leases", look, f"enlarging {path} for the leases of {vms} VMs", act)


def _sizes(path: str, vms: int) -> tuple[int, int]:
    """The size that the lease volume needs, and that it has, in bytes."""
    with volume_errors(), Volume(path, read_only=True) as volume:
        return units_for(vms) * ALIGN_OF_SECTOR[sector_of_leases(volume)], volume.size_bytes


def _lease_step(config: Config) -> Step:
    """The lease that who changes the registry holds."""
    path, storage = config.storage.leases, config.storage

    def look() -> str | None:
        found = _found(path)
        is_there = found is not None and found.resource == REGISTRY_RESOURCE
        return f"{path} has the lease {REGISTRY_RESOURCE}" if is_there else None

    def act() -> str:
        with volume_errors(), Volume(path, read_only=True) as volume:
            sector = sector_of_leases(volume)
        write_lease(storage, path, REGISTRY_UNIT, REGISTRY_RESOURCE, sector)
        return f"{path} has the lease {REGISTRY_RESOURCE} now"

    return Step("registry-lease", look, f"writing the lease {REGISTRY_RESOURCE} to {path}", act)


def _found(path: str) -> LeaseRecord | None:
    with volume_errors(), Volume(path, read_only=True) as volume:
        return read_lease_records(volume, [REGISTRY_UNIT])[REGISTRY_UNIT]
