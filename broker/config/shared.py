# SPDX-License-Identifier: LGPL-2.1-or-later
"""The shared part of the configuration: which tables it may have, how it is put together with a
host's own file, and the copy of it on each host.

A key in a host's own file counts before the shared one: a host that needs another value has it, and
a cluster whose files say everything goes on as it was. `config show` says where a value is from.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from broker.config.errors import ConfigError
from broker.daemon.foreign_json import decoded
from broker.daemon.foreign_toml import tables

#: The tables of the shared part; what else there is belongs to one host.
TABLES = (
    *("fence", "storage-fence", "timing", "score", "notify"),
    *("health", "monitors", "network", "libvirt", "vm", "sealed"),
)
#: The copy on each host, in the state folder.
FILE = "shared-config.json"
_CLUSTER, _HOST = "cluster", "host"


class SharedCopy(msgspec.Struct, frozen=True):
    """The copy: the cluster that it is of, its generation, its text (TOML)."""

    cluster: str
    generation: int
    text: str


def copy_at(state_dir: str) -> Path:
    """The path of the copy."""
    return Path(state_dir) / FILE


def read_copy(state_dir: str, cluster: str) -> SharedCopy | None:
    """The copy; None where there is none of this cluster. ConfigError where there is one that
    cannot be read: without it this host would decide by other values than the others."""
    path = copy_at(state_dir)
    try:
        found = decoded(path.read_bytes(), SharedCopy)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}; run as root") from None
    except msgspec.MsgspecError:
        raise ConfigError(
            f"{path}: is damaged; remove it: the broker makes it anew from the storage"
        ) from None
    return found if found.cluster == cluster else None


def parsed(text: str) -> dict[str, Any]:
    """The tables of a shared text; ConfigError where it is no TOML, or has a key of one host."""
    try:
        found = tables(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"the shared configuration is not TOML: {error}") from None
    for name, value in found.items():
        if name in TABLES and not isinstance(value, dict):
            raise ConfigError(f"{name}: is a table; name one of its keys, as {name}.KEY")
        if name not in TABLES:
            raise ConfigError(
                f"{name}: belongs to one host and cannot be shared; the tables that can be are"
                f" {', '.join(TABLES)}"
            )
    return found


def together(shared: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Both as one, the host's own keys first; an array counts as a whole."""
    both = dict(shared)
    for key, value in own.items():
        under = both.get(key)
        is_table = isinstance(value, Mapping) and isinstance(under, Mapping)
        both[key] = together(under, value) if is_table and under is not None else value
    return both


def origins(shared: Mapping[str, Any], own: Mapping[str, Any], above: str = "") -> dict[str, str]:
    """Each key that is set, as `table.key`, and whose word counts: "cluster" or "host"; where both
    set it "host, not the cluster's VALUE"."""
    found: dict[str, str] = {}
    for key in sorted({*shared, *own}):
        name = f"{above}.{key}" if above else key
        theirs, mine = shared.get(key), own.get(key)
        if isinstance(theirs, Mapping) or isinstance(mine, Mapping):
            found |= origins(_table(theirs), _table(mine), name)
        elif mine is None:
            found[name] = _CLUSTER
        elif theirs is None or theirs == mine:
            found[name] = _HOST
        else:
            shown = "list" if isinstance(theirs, list) else repr(theirs)
            found[name] = f"{_HOST}, not the cluster's {shown}"
    return found


def _table(found: object) -> Mapping[str, Any]:
    return found if isinstance(found, Mapping) else {}
