# SPDX-License-Identifier: LGPL-2.1-or-later
"""`ha-agent fence add`: a device and its password, without an editor; what was there stays."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from broker.config.load import load
from broker.config.secrets import load_fence_secrets
from broker.daemon.exit_codes import ExitCode

AGENT = Path(sys.executable).parent / "ha-agent"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "ha-agent.toml"
    file.write_text(
        f'# mine\n[host]\nid = 1\n[daemon]\nsecrets = "{tmp_path}/secrets.toml"\n'
        '[storage]\nwhiteboard = "/w"\nleases = "/l"\n# the end'
    )
    (tmp_path / "secrets.toml").write_text(f'cluster-key = "{"0" * 64}"\n')
    (tmp_path / "secrets.toml").chmod(0o600)
    return file


def add(path: Path, *words: str, password: str = 'p"w 1') -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [AGENT, "--config", path, "fence", "add", *words],
        input=f"{password}\n",
        capture_output=True,
        text=True,
    )


def test_two_devices_and_their_passwords_are_written_and_nothing_else_changes(path: Path) -> None:
    old, old_secrets = path.read_text(), path.with_name("secrets.toml").read_text()
    for host in ("1", "2"):
        done = add(path, host, "--address", f"192.0.2.{host}", "--username", "admin")
        assert done.returncode == ExitCode.OK, done.stderr
        assert 'p"w' not in done.stdout + done.stderr
    done = add(path, "2", "--address", "192.0.2.9", "--name", "pdu", "--type", "redfish")
    assert done.returncode == ExitCode.OK, done.stderr
    assert path.read_text().startswith(old)
    assert path.with_name("secrets.toml").read_text().startswith(old_secrets)
    assert path.with_name("secrets.toml").stat().st_mode & 0o777 == 0o640
    config = load(str(path))
    assert [each.key for each in config.fence.device] == ["1", "2", "2/pdu"]
    assert {each.password for each in load_fence_secrets(config).values()} == {'p"w 1'}


@pytest.mark.parametrize(
    ("words", "password", "code", "said"),
    [
        (("2", "--address", ""), "x", ExitCode.CONFIG, "address"),
        (("two", "--address", "192.0.2.2"), "x", ExitCode.USAGE, "'two' is no host id"),
        (("2001", "--address", "192.0.2.2"), "x", ExitCode.USAGE, "'2001' is no host id"),
        (("2", "--address", "192.0.2.2"), "", ExitCode.USAGE, "no password"),
        (("2", "--address", "192.0.2.2", "--port", "0"), "x", ExitCode.CONFIG, "port"),
    ],
)
def test_what_is_wrong_changes_nothing(
    path: Path, words: tuple[str, ...], password: str, code: int, said: str
) -> None:
    before = {each: each.read_bytes() for each in path.parent.iterdir()}
    done = add(path, *words, password=password)
    assert (done.returncode, said in done.stderr) == (code, True), done.stderr
    assert {each: each.read_bytes() for each in path.parent.iterdir()} == before


def test_a_device_of_that_name_is_not_written_twice(path: Path) -> None:
    assert add(path, "2", "--address", "192.0.2.2").returncode == ExitCode.OK
    done = add(path, "2", "--address", "192.0.2.3")
    assert done.returncode == ExitCode.REFUSED and "has a fence device 2 already" in done.stderr
