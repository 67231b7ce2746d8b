# SPDX-License-Identifier: LGPL-2.1-or-later
"""The registry's volume for the commands: made, opened, and its leases in the lease volume."""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from agent.storage import held
from agent.storage.made import (
    LOCAL,
    has_room,
    refuse_held,
    refuse_loss,
    volume_errors,
    written,
)
from agent.storage.room import check_room
from agent.terminal.errors import CommandError
from agent.terminal.steps import Step
from broker.config.secrets import load_cluster_key
from broker.config.sections import Config
from broker.daemon.exit_codes import ExitCode
from broker.registry.record import RegistryError, is_unused
from broker.registry.shared import SharedConfig
from broker.registry.volume import REGISTRY_BYTES, Contents, Registry
from broker.whiteboard.mounts import file_system
from broker.whiteboard.signatures import Signatures, Unsigned
from broker.whiteboard.volume import Volume, VolumeError

_ANOTHER = "name another device, or wipe this one first (wipefs)"


def signatures_of(config: Config) -> Signatures:
    """Signs and checks as the configuration says; ConfigError where the key cannot be used."""
    return Signatures(load_cluster_key(config), Unsigned(config.storage.unsigned))


@contextlib.contextmanager
def registry_at(config: Config, path: str, read_only: bool) -> Iterator[Registry]:
    """The registry on the volume at `path`; CommandError where it cannot be used."""
    try:
        with Volume(path, read_only=read_only) as volume:
            yield Registry(volume, config.cluster.id, signatures_of(config))
    except VolumeError as error:
        raise registry_error(error) from None
    except RegistryError as error:
        raise CommandError(ExitCode.STORAGE, str(error)) from None


def opened(config: Config, read_only: bool = True) -> contextlib.AbstractContextManager[Registry]:
    """The registry of the configuration; CommandError, as it is used too."""
    path = config.storage.registry
    if not path:
        raise CommandError(
            ExitCode.CONFIG,
            "storage.registry is not set: this cluster has one VM; for more:"
            " ha-agent storage grow --vms N",
        )
    return registry_at(config, path, read_only)


@contextlib.contextmanager
def shared_opened(config: Config, read_only: bool) -> Iterator[SharedConfig]:
    """The shared configuration on the registry's volume; CommandError."""
    path = config.storage.registry
    if not path:
        raise CommandError(
            ExitCode.CONFIG,
            "storage.registry is not set, and the shared configuration lies there: ha-agent storage"
            " grow --vms 2 makes it; or for this host alone: --host-only",
        )
    try:
        with Volume(path, read_only=read_only) as volume:
            signatures = signatures_of(config)
            Registry(volume, config.cluster.id, signatures).generation()  # the right volume?
            yield SharedConfig(volume, config.cluster.id, signatures)
    except VolumeError as error:
        raise registry_error(error) from None


def registry_error(error: VolumeError) -> CommandError:
    """An error of the registry's volume as the error of a command."""
    return CommandError(ExitCode.STORAGE, f"registry {error.path}: {error.what}; {error.step}")


def contents_of(config: Config) -> Contents:
    """What the registry holds; CommandError."""
    with opened(config) as registry:
        return registry.read()


def vm_leases(config: Config) -> Mapping[int, str]:
    """The name of each VM's lease by its unit, the engine's apart; none without a registry."""
    if not config.storage.registry:
        return {}
    vms = contents_of(config).vms
    return {one.unit: one.resource for number, one in vms.items() if number > 1}


def check_registry(config: Config) -> str:
    """CommandError where the registry cannot be read, or is another cluster's; else what is there,
    in words."""
    path = config.storage.registry
    if not path:
        return "none: the engine is the only VM"
    return f"{path}: {_vms(len(contents_of(config).vms))}"


def registry_step(
    config: Config, is_local_fine: bool = True, overwrite: int = 0, ours: bool = False
) -> Step:
    """Make an empty registry where none is. `overwrite`, `ours`: as in agent/storage/made.py: one
    that a configured host had before is not made anew unless that is said."""
    path = config.storage.registry

    def look() -> str | None:
        kind = file_system(path)
        is_there = Path(path).exists()
        is_device = is_there and stat.S_ISBLK(Path(path).stat().st_mode)
        if is_there and not _is_empty(path):
            if what := held.contents(path):
                raise CommandError(ExitCode.REFUSED, f"{path}: holds {what}; {_ANOTHER}")
            with registry_at(config, path, read_only=True) as registry:
                found = len(registry.read().vms)
            if has_room(path, REGISTRY_BYTES):
                return f"{path} is there: {_vms(found)}"
        elif ours and not overwrite:
            state = "its header is empty" if is_there else "is not there"
            refuse_loss(path, state, "ha-agent vm rebuild; an empty one: ha-agent init --overwrite")
        elif kind in LOCAL and not is_local_fine and not is_device:
            raise CommandError(
                ExitCode.REFUSED,
                f"{path}: lies on {kind}, a file system of this host alone; mount the shared"
                " storage there, or where every host does see this very file: --local",
            )
        refuse_held(path, config.cluster.id, overwrite)
        check_room(path, REGISTRY_BYTES)
        return None

    def act() -> str:
        with (
            written(path, REGISTRY_BYTES) as (place, _),
            registry_at(config, place, read_only=False) as registry,
        ):
            registry.make()
        return f"{path} is made"

    return Step("registry", look, f"making {path} ({REGISTRY_BYTES} bytes)", act)


def _is_empty(path: str) -> bool:
    with volume_errors(), Volume(path, read_only=True) as volume:
        return is_unused(volume.read_at(0))


def _vms(count: int) -> str:
    return f"{count} VM" if count == 1 else f"{count} VMs"
