# SPDX-License-Identifier: LGPL-2.1-or-later
"""The identities of whiteboard and lease volume for the commands: written to a volume, and compared
with the configuration before anything is done."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from agent.storage.room import sector_of
from agent.storage.watched import storage_error
from agent.terminal.steps import Step
from broker.config.sections import Config, StorageSection
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


def written_to(path: str, kind: VolumeKind, config: Config, size: int) -> None:
    """Write a volume's identity, as the configuration names it, to its place; CommandError.
    `size`: the bytes of the volume that the cluster uses."""
    given = expected(config, kind)
    now_s = int(time.time())
    put(path, Identity(kind, given.cluster, given.volume, now_s, size, sector_of(path)))


def sized(path: str, kind: VolumeKind, size: int) -> None:
    """Write into an identity that is there how much the cluster uses; CommandError. A volume
    without one stays without."""
    found = found_at(path, kind)
    if found is not None and found.bytes != size:
        put(path, replace(found, bytes=size, sector=sector_of(path)))


def put(path: str, identity: Identity) -> None:
    """Write an identity to its place on the volume; CommandError."""
    kind = identity.kind
    try:
        with Volume(path) as volume:
            volume.write_at(place_of(volume, kind), encode(identity))
    except VolumeError as error:
        raise storage_error(error) from None
