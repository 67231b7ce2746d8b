# SPDX-License-Identifier: LGPL-2.1-or-later
"""The identities of whiteboard and lease volume for the set-up commands: made with a new cluster,
given to volumes without one, and compared with the configuration before anything is done."""

from __future__ import annotations

import argparse
import time
import uuid
from pathlib import Path

from agent.setup.toml_text import Value, with_keys
from agent.setup.written import Files, checked, config_step
from agent.storage.room import bytes_of, check_room, make_room
from agent.storage.watched import read_slots, storage_error
from agent.terminal.errors import CommandError
from agent.terminal.steps import Step, run_steps
from broker.config.sections import Config, StorageSection
from broker.daemon.exit_codes import ExitCode
from broker.whiteboard.identity import (
    BadIdentity,
    Identity,
    VolumeKind,
    check_at,
    decode,
    encode,
    expected,
    place_of,
    read,
)
from broker.whiteboard.volume import Volume, VolumeError

IDENTITY_COMMAND = "ha-agent init --identity"
KINDS = (VolumeKind.WHITEBOARD, VolumeKind.LEASES)
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


def found_at(path: str, kind: VolumeKind) -> Identity | None:
    """The identity of the volume at `path`; None: there is no volume, or it has no readable
    identity; CommandError where the volume cannot be read."""
    if not Path(path).exists():
        return None
    try:
        with Volume(path, read_only=True) as volume:
            return decode(read(volume, kind))
    except BadIdentity:
        return None
    except VolumeError as error:
        raise storage_error(error) from None


def path_of(storage: StorageSection, kind: VolumeKind) -> str:
    """The configured path of the volume."""
    return storage.whiteboard if kind is VolumeKind.WHITEBOARD else storage.leases


def check_volumes(config: Config, *kinds: VolumeKind) -> str:
    """CommandError where one of them is not the volume that the configuration names; else the
    result in words. Without `kinds`: both."""
    for kind in kinds or KINDS:
        path = path_of(config.storage, kind)
        try:
            check_at(path, expected(config, kind))
        except VolumeError as error:
            raise storage_error(error) from None
    if not config.cluster.id:
        return f"the configuration names no ids: not checked ({IDENTITY_COMMAND})"
    return f"both are of cluster {config.cluster.id}"


def identity_step(config: Config, *kinds: VolumeKind) -> Step:
    """The first step of a command that uses the volumes."""
    return Step("identity", lambda: check_volumes(config, *kinds), "", lambda: "")


def written_to(path: str, kind: VolumeKind, config: Config) -> None:
    """Write a volume's identity, as the configuration names it, to its place; CommandError."""
    given = expected(config, kind)
    identity = Identity(kind, given.cluster, given.volume, int(time.time()))
    try:
        with Volume(path) as volume:
            volume.write_at(place_of(volume, kind), encode(identity))
    except VolumeError as error:
        raise storage_error(error) from None


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
        print(
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
        found = found_at(path, kind)
        if found is not None:
            return f"{path} is {kind} {found.volume}"
        check_room(path, bytes_of(path, kind))
        return None

    def act() -> str:
        make_room(path, kind)
        written_to(path, kind, config)
        return f"{path} is {kind} {expected(config, kind).volume}"

    return Step(str(kind), look, f"writing the identity to {path}", act)
