# SPDX-License-Identifier: LGPL-2.1-or-later
"""Reads the configuration file: `/etc/ha-agent/ha-agent.toml`, the same for both daemons."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from broker.config.engine_file import engine_file
from broker.config.errors import ConfigError
from broker.config.explain import explain
from broker.config.relations import check_relations
from broker.config.sections import ClusterSection, Config, DaemonSection
from broker.config.shared import TABLES, SharedCopy, parsed, read_copy, together
from broker.daemon.errors import why
from broker.daemon.foreign_toml import tables
from broker.daemon.regular_file import read_bytes, read_text


def socket_path(path: str, warn: Callable[[str], None]) -> str:
    """The path of the broker's socket, for commands that only ask the broker.

    A mistake in the file must not hide a broker that runs on with an older file: the mistake goes
    to `warn`, and the result is the socket that the file names all the same, or the default.
    ConfigError where the file, or that socket, does not exist.
    """
    try:
        return load(path).daemon.socket
    except ConfigError as error:
        try:
            text = read_bytes(path).decode(errors="replace")
        except OSError:
            raise error from None
        named = re.search(r'^socket\s*=\s*"(/[^"]+)"', text, re.MULTILINE)
        socket = named.group(1) if named is not None else DaemonSection().socket
        if not Path(socket).is_socket():
            raise
        warn(str(error))
        return socket


class _Places(msgspec.Struct):
    """What is needed to find the copy of the shared part."""

    cluster: ClusterSection = ClusterSection()
    daemon: DaemonSection = DaemonSection()


def read_file(path: str) -> dict[str, Any]:
    """The tables of a host's own file; ConfigError."""
    try:
        return tables(read_text(path))
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: no such file: this host is not set up; ha-agent init makes a new cluster,"
            " ha-agent join makes this host a member of one"
        ) from None
    except OSError as error:
        step = "; run as root" if isinstance(error, PermissionError) else ""
        raise ConfigError(f"{path}: cannot be read: {why(error)}{step}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not TOML: it is no text in UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: is not TOML: {error}") from None


def shared_for(path: str, own: Mapping[str, Any]) -> SharedCopy | None:
    """The copy of the shared part that counts with this file; None: there is none. ConfigError."""
    try:
        config = msgspec.convert(own, _Places)
    except msgspec.ValidationError:
        return None  # the whole is refused, and with a better sentence
    if not config.cluster.id:
        return None
    return read_copy(config.daemon.state_dir, config.cluster.id)


def load(path: str, shared: str | None = None) -> Config:
    """Read and check the file, together with the part that all hosts share; ConfigError where they
    cannot be used. `shared`: its text, None: this host's copy. `vm.definition` is the one that
    counts (engine_file.py)."""
    own = read_file(path)
    copy = shared_for(path, own) if shared is None else SharedCopy("", 0, shared)
    data = own
    if copy is not None:
        data = together(parsed(copy.text), own)
        path = f"{path} with the shared configuration"
    try:
        config = msgspec.convert(data, Config)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {explain(str(error), Config)}") from None
    check_relations(path, config)
    place = engine_file(config.vm.definition, config.storage.registry, config.daemon.state_dir)
    vm = msgspec.structs.replace(config.vm, definition=place)
    return msgspec.structs.replace(config, vm=vm)


def load_shared(path: str, text: str) -> Config:
    """The configuration of a host like this one whose own file sets none of the shared tables:
    what a value of this file hides here counts on other hosts. ConfigError where a value does not
    fit; how the values go together depends on each host's file and is not checked."""
    own = {name: value for name, value in read_file(path).items() if name not in TABLES}
    try:
        return msgspec.convert(together(parsed(text), own), Config)
    except msgspec.ValidationError as error:
        raise ConfigError(f"the shared configuration: {explain(str(error), Config)}") from None
