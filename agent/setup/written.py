# SPDX-License-Identifier: LGPL-2.1-or-later
"""Writes the files under /etc/ha-agent completely, with their modes: configuration, secrets,
definition."""

from __future__ import annotations

import os
import secrets
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.setup.toml_text import Value, with_keys
from agent.terminal.errors import CommandError
from agent.terminal.steps import Step
from broker.config.errors import ConfigError
from broker.config.load import load
from broker.config.places import DEFAULT_PATH
from broker.config.sections import Config
from broker.daemon import regular_file
from broker.daemon.atomic_file import write_atomically
from broker.daemon.errors import why
from broker.daemon.exit_codes import ExitCode
from broker.daemon.foreign_toml import tables

SERVICE_GROUP = "ha-agent"
#: The template of a new configuration file: every key, commented. The path is relative to this file
#: in an installed tree; a checkout has no template, and begins with an empty file.
COMMENTED = Path(__file__).resolve().parents[2].parent.parent / "share/ha-agent/ha-agent.toml"
KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class Files:
    """The paths of this host's files. Where the configuration is not at its usual path, secrets,
    definition and state lie beside it."""

    config: Path

    @property
    def secrets(self) -> Path:
        return self.config.with_name("secrets.toml")

    @property
    def definition(self) -> Path:
        return self.config.with_name("engine.xml")

    @property
    def folder(self) -> Path:
        """The folder of the configuration."""
        return self.config.parent

    def own_keys(self) -> dict[str, Value | None]:
        """The keys that name these paths, where they are not the usual ones."""
        if str(self.config) == DEFAULT_PATH:
            return {}
        return {
            "vm.definition": str(self.definition),
            "daemon.secrets": str(self.secrets),
            "daemon.state-dir": str(self.config.with_name("state")),
            "libvirt.pki-dir": str(self.config.with_name("pki")),
        }

    def text(self) -> str:
        """The text of the configuration file, empty where there is none; CommandError."""
        return read_text(self.config, ExitCode.CONFIG)

    def host(self) -> dict[str, Any]:
        """The table `host` of the configuration file, empty where there is none; CommandError."""
        try:
            found = tables(self.text()).get("host")
        except tomllib.TOMLDecodeError as error:
            raise CommandError(ExitCode.CONFIG, f"{self.config}: is not TOML: {error}") from None
        return found if isinstance(found, dict) else {}

    def host_id(self) -> int | None:
        """The host id that is configured already; None: there is none. CommandError."""
        found = self.host().get("id")
        return found if isinstance(found, int) else None


def read_text(path: Path, code: ExitCode = ExitCode.FILE) -> str:
    """A file's text; empty where there is no file; CommandError with `code` where it cannot be
    read: CONFIG for a file of this host's own configuration, as in every other command."""
    try:
        return regular_file.read_text(path)
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        step = "; run as root" if isinstance(error, PermissionError) else ""
        raise CommandError(code, f"{path}: cannot be read: {why(error)}{step}") from None


def check_place(path: Path) -> None:
    """CommandError where a file could not be written there; changes nothing."""
    folder = next(each for each in path.absolute().parents if each.exists())
    if not folder.is_dir():
        raise CommandError(ExitCode.FILE, f"{path}: cannot be written: {folder} is no folder")
    if not os.access(folder, os.W_OK | os.X_OK) or os.statvfs(folder).f_flag & os.ST_RDONLY:
        raise CommandError(ExitCode.FILE, f"{path}: cannot be written: {folder}; run as root")


def place(path: Path, text: str, mode: int, group: str = "") -> None:
    """Write a complete file that never has wider permissions than `mode`; CommandError."""
    try:
        write_atomically(path, text.encode(), mode, group)
    except OSError as error:
        step = "free space there" if error.errno == 28 else "run as root"
        raise CommandError(
            ExitCode.FILE, f"{path}: cannot be written: {error.strerror}; {step}"
        ) from None


def checked(text: str, path: Path) -> Config:
    """The configuration that the text makes; CommandError names the file at `path`."""
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as probe:
        probe.write(text)
        probe.flush()
        try:
            return load(probe.name)
        except ConfigError as error:
            said = str(error).replace(probe.name, str(path))
            raise CommandError(ExitCode.CONFIG, said) from None


def config_step(files: Files, values: dict[str, Value | None]) -> Step:
    """Set the keys in the configuration file, its comments kept; a new file is made from the
    packages' commented one."""
    old = files.text()
    text = with_keys(old or read_text(COMMENTED), values)
    known = ", ".join(sorted(values))

    def act() -> str:
        checked(text, files.config)
        place(files.config, text, 0o644)
        return f"{files.config} is written"

    def look() -> str | None:
        if text == old:
            return f"{files.config} says so"
        checked(text, files.config)
        check_place(files.config)
        return None

    return Step(
        "config",
        look,
        f"setting {known} in {files.config}",
        act,
    )


def key_step(files: Files, key: str = "") -> Step:
    """The cluster's key in the secrets file: a new one, or the given one of the cluster."""
    old = read_text(files.secrets, ExitCode.CONFIG)
    found = _key_of(old, files.secrets)

    def look() -> str | None:
        if key and found and found != key:
            raise CommandError(
                ExitCode.REFUSED,
                f"{files.secrets}: has another cluster-key than the cluster; remove the line",
            )
        if not found:
            check_place(files.secrets)
        return f"{files.secrets} has one" if found else None

    def act() -> str:
        text = with_keys(old, {"cluster-key": key or secrets.token_hex(KEY_BYTES)})
        place(files.secrets, text, 0o640, SERVICE_GROUP)
        return f"{files.secrets} is written"

    plan = f"writing {'the cluster’s' if key else 'a new'} cluster-key to {files.secrets}"
    return Step("cluster-key", look, plan, act)


def _key_of(text: str, path: Path) -> str:
    try:
        found = tables(text).get("cluster-key", "")
    except tomllib.TOMLDecodeError:
        # The text of the error could hold a password.
        raise CommandError(ExitCode.CONFIG, f"{path}: is not TOML; mend or remove it") from None
    return found if isinstance(found, str) else ""
