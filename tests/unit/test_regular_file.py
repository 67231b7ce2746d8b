# SPDX-License-Identifier: LGPL-2.1-or-later
"""What lies where a file should be need not be one: no command waits for it, and each says so."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from broker.daemon.exit_codes import ExitCode
from broker.daemon.regular_file import BYTES_MAX, read_bytes
from tests.unit import commands

VERBS = (
    *("status", "doctor", "why", "config check", "config show", "config get timing.beat"),
    *("vm list", "storage show", "maintenance global", "init --yes", "leave"),
)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        # The name of a socket is short; pytest's folders are not.
        before = os.getcwd()
        os.chdir(path.parent)
        try:
            made.bind(path.name)
        finally:
            os.chdir(before)


MADE: dict[str, Callable[[Path], object]] = {
    "Is not a regular file": os.mkfifo,
    "Is a directory": Path.mkdir,
    "No such device or address": _socket,
    "Too many levels of symbolic links": lambda path: path.symlink_to(path),
}


@pytest.mark.parametrize("why", MADE)
@pytest.mark.parametrize("verb", VERBS)
def test_a_configuration_that_is_no_file(site: Path, verb: str, why: str) -> None:
    site.unlink()
    MADE[why](site)
    done = commands.run("ha-agent", "--config", site, *verb.split(), timeout_s=20)
    assert done.returncode in (ExitCode.FAILED, ExitCode.FILE, ExitCode.CONFIG), done
    assert f"{site}: cannot be read: {why}" in done.stdout + done.stderr
    assert "run as root" not in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["secrets.toml", "engine.xml"])
def test_another_file_that_is_none(site: Path, name: str) -> None:
    path = site.parent / name
    path.unlink(missing_ok=True)
    os.mkfifo(path, 0o600)
    site.write_text(site.read_text().replace("[daemon]", f'[daemon]\nsecrets = "{path}"'))
    done = commands.run("ha-agent", "--config", site, "config", "check", timeout_s=20)
    assert f"{path}" in done.stdout and "Is not a regular file" in done.stdout, done


def test_the_broker_does_not_wait_for_it_either(site: Path) -> None:
    site.unlink()
    os.mkfifo(site)
    done = commands.run("ha-broker", "--config", site, timeout_s=20)
    assert done.returncode == ExitCode.CONFIG and "Is not a regular file" in done.stderr


def test_a_file_has_an_end(tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.touch()
    os.truncate(large, BYTES_MAX + 1)
    for path, why in ((large, "File too large"), (Path("/dev/zero"), "Is not a regular file")):
        with pytest.raises(OSError, match=why):
            read_bytes(path)
    os.truncate(large, 3)
    assert read_bytes(large) == bytes(3)
