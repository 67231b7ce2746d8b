# SPDX-License-Identifier: LGPL-2.1-or-later
"""The identities that a new cluster's volumes get, and `ha-agent init --identity`, which gives them
to the volumes of a cluster that an earlier version made."""

from __future__ import annotations

import argparse
import uuid
from pathlib import Path

from agent.setup.toml_text import Value, with_keys
from agent.setup.written import Files, checked, config_step
from agent.storage.identity import (
    KINDS,
    check_volumes,
    found_at,
    path_of,
    sized,
    written_to,
)
from agent.storage.registry import vm_leases
from agent.storage.room import bytes_of, check_room, make_room
from agent.storage.watched import read_slots, storage_error
from agent.terminal.columns import say
from agent.terminal.errors import CommandError
from agent.terminal.steps import Step, run_steps
from broker.config.sections import Config, StorageSection
from broker.daemon.exit_codes import ExitCode
from broker.registry.record import number_of
from broker.whiteboard.identity import BadIdentity, VolumeKind, decode, expected, read
from broker.whiteboard.volume import Volume, VolumeError

#: With a cluster's id after it a lockspace's name is unique; 48 bytes at most (sanlock's
#: SANLK_NAME_LEN).
LOCKSPACE_PREFIX = "ha-"


def new_ids(storage: StorageSection) -> dict[str, Value | None]:
    """The keys that name a new cluster and its volumes. Those of an interrupted attempt, before
    any host wrote to the whiteboard, are used again."""
    board, leases = (found_at(path_of(storage, kind), kind) for kind in KINDS)
    if board is not None and read_slots(storage.whiteboard).reports:
        board = None
    cluster = str(uuid.uuid4()) if board is None else board.cluster
    if leases is not None and leases.cluster != cluster:
        leases = None
    return {
        "cluster.id": cluster,
        "storage.whiteboard-id": str(uuid.uuid4()) if board is None else board.volume,
        "storage.leases-id": str(uuid.uuid4()) if leases is None else leases.volume,
    }


def give(arguments: argparse.Namespace, as_json: bool) -> int:
    """`ha-agent init --identity`: give the volumes of an earlier version's cluster their
    identities, while it runs; a later host takes them over into its configuration.
    """
    files = Files(Path(arguments.config).absolute())
    if files.host_id() is None:
        raise CommandError(
            ExitCode.REFUSED, f"{files.config}: this host is not configured; use: ha-agent init"
        )
    old = checked(files.text(), files.config)
    values = _named(old)
    config = checked(with_keys(files.text(), values), files.config)
    steps = [*(_give_step(config, kind) for kind in KINDS), config_step(files, values)]
    run_steps(steps, arguments.dry_run, as_json)
    if not as_json and not arguments.dry_run:
        say(
            "next: systemctl restart ha-broker ha-agent; then the same on every other host,"
            " one after the other"
        )
    return ExitCode.OK


def _named(config: Config) -> dict[str, Value | None]:
    """The keys that name the volumes: as configured, else as the volumes have them, else new."""
    given = config.storage
    if config.cluster.id:
        check_volumes(config)
        return {}
    board, leases = (found_at(path_of(given, kind), kind) for kind in KINDS)
    if board is not None and leases is not None and board.cluster != leases.cluster:
        raise CommandError(
            ExitCode.STORAGE,
            f"{given.whiteboard} is of cluster {board.cluster}, {given.leases} of cluster"
            f" {leases.cluster}; check what is mounted there",
        )
    known = board or leases
    return {
        "cluster.id": str(uuid.uuid4()) if known is None else known.cluster,
        "storage.whiteboard-id": str(uuid.uuid4()) if board is None else board.volume,
        "storage.leases-id": str(uuid.uuid4()) if leases is None else leases.volume,
    }


def _give_step(config: Config, kind: VolumeKind) -> Step:
    path = path_of(config.storage, kind)

    def look() -> str | None:
        _refuse_data(path, kind)
        found = found_at(path, kind)
        if found is not None and found.bytes:
            return f"{path} is {kind} {found.volume}"
        check_room(path, _used_bytes(config, path, kind))
        return None

    def act() -> str:
        size = _used_bytes(config, path, kind)
        make_room(path, kind)
        found = found_at(path, kind)
        if found is None:
            written_to(path, kind, config, size)
        else:
            sized(path, kind, size)
        return f"{path} is {kind} {expected(config, kind).volume}"

    return Step(str(kind), look, f"writing the identity to {path}", act)


def _used_bytes(config: Config, path: str, kind: VolumeKind) -> int:
    """The size that the cluster uses of a volume that is there."""
    vms = 1
    if kind is VolumeKind.LEASES:
        vms = max(map(number_of, vm_leases(config)), default=1)
    return bytes_of(path, kind, vms)


def _refuse_data(path: str, kind: VolumeKind) -> None:
    """CommandError where something lies in the header's place that is no header: nothing is
    written over it."""
    try:
        with Volume(path, read_only=True) as volume:
            decode(read(volume, kind))
    except BadIdentity as error:
        raise CommandError(
            ExitCode.STORAGE, f"{path}: {error}; it is left alone: look with ha-agent storage show"
        ) from None
    except VolumeError as error:
        raise storage_error(error) from None
