# SPDX-License-Identifier: LGPL-2.1-or-later
"""Reads the configuration file: `/etc/ha-agent/ha-agent.toml`, the same for both daemons."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import msgspec

from broker.config.engine_file import engine_file
from broker.config.errors import ConfigError
from broker.config.explain import explain
from broker.config.relations import check_relations
from broker.config.sections import Config, DaemonSection


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
            text = Path(path).read_text(errors="replace")
        except OSError:
            raise error from None
        named = re.search(r'^socket\s*=\s*"(/[^"]+)"', text, re.MULTILINE)
        socket = named.group(1) if named is not None else DaemonSection().socket
        if not Path(socket).is_socket():
            raise
        warn(str(error))
        return socket


def load(path: str) -> Config:
    """Read and check the file; ConfigError where it cannot be used. `vm.definition` is the one that
    counts (engine_file.py)."""
    try:
        data = tomllib.loads(Path(path).read_bytes().decode())
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: no such file: this host is not set up; ha-agent init makes a new cluster,"
            " ha-agent join makes this host a member of one"
        ) from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}; run as root") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: is not TOML: {error}") from None
    try:
        config = msgspec.convert(data, Config)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {explain(str(error), Config)}") from None
    check_relations(path, config)
    place = engine_file(config.vm.definition, config.storage.registry, config.daemon.state_dir)
    vm = msgspec.structs.replace(config.vm, definition=place)
    return msgspec.structs.replace(config, vm=vm)
