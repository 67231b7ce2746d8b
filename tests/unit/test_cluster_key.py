# SPDX-License-Identifier: LGPL-2.1-or-later
"""The cluster key: in which forms it may come, that no error shows it, and that a second one is
accepted while it is changed."""

from __future__ import annotations

import asyncio
import base64
import itertools
from pathlib import Path

import pytest

from agent.commands.config_check import _cluster_key
from agent.status.troubles import troubles
from broker.config.cluster_key import ClusterKey
from broker.config.errors import ConfigError
from broker.config.secrets import load_cluster_key
from broker.config.sections import Config, DaemonSection, HostSection, StorageSection
from tests.fakes.broker import make_broker
from tests.fakes.slot_store import MemoryVolume

KEY, NEXT = bytes(range(32)), bytes(range(32, 64))


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
    assert load_cluster_key(secrets(tmp_path, f'cluster-key = "{text}"\n')) == ClusterKey(wanted)


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
    assert load_cluster_key(config(tmp_path / "none")) == ClusterKey(KEY)


def test_a_second_key_is_accepted_and_does_not_sign(tmp_path: Path) -> None:
    text = f'cluster-key = "{KEY.hex()}"\ncluster-key-accepted = "{NEXT.hex()}"\n'
    key = load_cluster_key(secrets(tmp_path, text))
    assert key == ClusterKey(KEY, NEXT)
    assert key.sign(b"x") == ClusterKey(KEY).sign(b"x")
    for other, wanted in ((ClusterKey(KEY), True), (ClusterKey(NEXT), True)):
        assert key.accepts(b"x", other.sign(b"x")) is wanted
    assert not key.is_written(b"x", ClusterKey(NEXT).sign(b"x"))
    assert not key.accepts(b"x", ClusterKey(bytes(32)).sign(b"x"))
    assert not ClusterKey(KEY).accepts(b"x", ClusterKey(NEXT).sign(b"x"))


def test_the_second_key_comes_as_a_credential_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    (tmp_path / "cluster-key-accepted").write_text(NEXT.hex() + "\n")
    assert load_cluster_key(secrets(tmp_path, f'cluster-key = "{KEY.hex()}"\n')) == ClusterKey(
        KEY, NEXT
    )


def test_an_accepted_key_alone_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no cluster-key to sign with"):
        load_cluster_key(secrets(tmp_path, f'cluster-key-accepted = "{NEXT.hex()}"\n'))


@pytest.mark.parametrize("mac", ["", "0" * 64, "\u00e4" * 64, "0" * 63 + "\n"])
def test_whatever_is_given_for_a_mac_is_compared(mac: str) -> None:
    assert not ClusterKey(KEY, NEXT).accepts(b"x", mac)


def test_no_key_shows_itself() -> None:
    shown = repr(ClusterKey(b"hunter2" * 5, b"hunter3" * 5))
    assert "hunter" not in shown


def test_during_a_change_of_the_key_everybody_accepts_everybody() -> None:
    """Each host takes each step by itself, in any order of hosts."""
    steps = (ClusterKey(KEY), ClusterKey(KEY, NEXT), ClusterKey(NEXT, KEY), ClusterKey(NEXT))
    for before, after in itertools.pairwise(steps):
        for one, other in itertools.permutations((before, after)):
            assert one.accepts(b"slot", other.sign(b"slot"))
    assert not steps[0].accepts(b"slot", steps[2].sign(b"slot")), "a step left out is seen"


def test_a_host_without_a_key_is_told_what_that_means_and_what_to_do(tmp_path: Path) -> None:
    """By the check of the configuration, which doctor makes too, and by the status."""

    def found(text: str) -> list[tuple[str, str]]:
        given = config(tmp_path / "secrets.toml")
        secrets(tmp_path, text)
        return [(each.verdict, each.text) for each in _cluster_key(given)]

    ((verdict, text),) = found("")
    assert verdict == "warning"
    assert "openssl rand -hex 32" in text and "systemctl restart ha-broker" in text
    assert found(f'cluster-key = "{KEY.hex()}"\n')[0][0] == "ok"


@pytest.mark.parametrize("has_key", [True, False])
def test_the_status_says_that_a_host_has_no_key(tmp_path: Path, has_key: bool) -> None:
    async def main() -> None:
        broker = make_broker(tmp_path, MemoryVolume())
        broker.heartbeats.key = ClusterKey(KEY) if has_key else None
        status = broker.status(1.0)
        assert status.storage.signed is has_key
        said = [line for line in troubles(status) if line.startswith("NO KEY: ")]
        assert len(said) == (0 if has_key else 1)

    asyncio.run(main())
