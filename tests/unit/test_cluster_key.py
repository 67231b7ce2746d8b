# SPDX-License-Identifier: LGPL-2.1-or-later
"""The cluster key: in which forms it may come, and that no error shows it."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from broker.config import Config, ConfigError, DaemonSection, HostSection, StorageSection
from broker.secrets_file import load_cluster_key

KEY = bytes(range(32))


def config(path: Path) -> Config:
    return Config(
        host=HostSection(id=1),
        storage=StorageSection(whiteboard="/w", leases="/l"),
        daemon=DaemonSection(secrets=str(path)),
    )


def secrets(tmp_path: Path, text: str, mode: int = 0o600) -> Config:
    path = tmp_path / "secrets.toml"
    path.write_text(text)
    path.chmod(mode)
    return config(path)


@pytest.mark.parametrize(
    "text", [KEY.hex(), KEY.hex().upper(), base64.b64encode(KEY).decode(), "0" * 64]
)
def test_the_key_comes_in_hexadecimal_or_base64(tmp_path: Path, text: str) -> None:
    wanted = bytes(32) if set(text) == {"0"} else KEY
    assert load_cluster_key(secrets(tmp_path, f'cluster-key = "{text}"\n')) == wanted


def test_no_file_or_no_line_is_no_key(tmp_path: Path) -> None:
    assert load_cluster_key(config(tmp_path / "none")) is None
    assert load_cluster_key(secrets(tmp_path, '[fence-passwords]\n2 = "x"\n')) is None


@pytest.mark.parametrize(
    "line",
    [
        'cluster-key = "hunter2"',
        'cluster-key = "68756e74657232"',
        f'cluster-key = "{KEY.hex()[:62]}"',
        "cluster-key = hunter2",
        "cluster-key = 7",
    ],
)
def test_what_is_no_key_is_an_error_that_does_not_show_it(tmp_path: Path, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_cluster_key(secrets(tmp_path, line + "\n"))
    assert "secrets.toml" in str(caught.value) and "cluster-key" in str(caught.value)
    assert "hunter2" not in str(caught.value) and KEY.hex()[:62] not in str(caught.value)


def test_a_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="chmod 0600"):
        load_cluster_key(secrets(tmp_path, f'cluster-key = "{KEY.hex()}"\n', 0o644))


def test_a_credential_of_the_service_manager_goes_before_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    (tmp_path / "cluster-key").write_text(KEY.hex() + "\n")
    assert load_cluster_key(config(tmp_path / "none")) == KEY
