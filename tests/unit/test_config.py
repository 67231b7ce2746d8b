# SPDX-License-Identifier: LGPL-2.1-or-later
"""The configuration file: what is wrong is said with file, key and a way out."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker.config import ConfigError, load, load_fence_passwords, system_uuid

GOOD = """
[host]
id = 1
[storage]
whiteboard = "/shared/whiteboard"
leases = "/shared/leases"
"""


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "ha-agent.toml"
    path.write_text(text)
    return str(path)


def test_the_smallest_file_has_the_reference_defaults(tmp_path: Path) -> None:
    config = load(write(tmp_path, GOOD))
    rules = config.rules(vm_memory_mb=4096)
    assert rules.weights.base_score == 3400
    assert rules.timing.beat == 1.0
    assert config.vm.name == "HostedEngine"
    assert config.storage.lockspace == "hosted-engine"
    assert rules.io_timeout_s == 10


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD.replace("id = 1", "id = 0"), "host.id"),
        (GOOD.replace("id = 1", "id = 2001"), "host.id"),
        (GOOD.replace("id = 1", "id = true"), "host.id"),
        (GOOD.replace("id = 1", 'id = "1"'), "host.id"),
        (GOOD.replace("id = 1", ""), "host.id is missing"),
        (GOOD.replace("[host]\nid = 1", ""), "host is missing"),
        (GOOD + "[timing]\nsuspectafter = 3\n", "did you mean suspect-after?"),
        (GOOD + "[scores]\n", "did you mean score?"),
        (GOOD + "[timing]\nsuspect-after = 1\n", "at least two beats"),
        (GOOD + "[timing]\nbeat = 0\n", "timing.beat"),
        (GOOD + "[timing]\nbeat = nan\n", "timing.beat"),
        (GOOD + "[timing]\nfence-after = 3\nsuspect-after = 4\n", "fence-after"),
        (GOOD + "[score]\ncpu-load-penalty-min = 0.95\n", "cpu-load-penalty-min is above"),
        (GOOD + "[score]\nbase-score = -1\n", "score.base-score"),
        (GOOD + '[health]\nexpect = "("\n', "health.expect: not a regular expression"),
        (GOOD + '[health]\nurl = "ftp://x/"\n', "health.url"),
        (GOOD + '[libvirt]\nmigration-uri = "qemu://{hots}/"\n', "libvirt.migration-uri"),
        (
            GOOD + '[[fence.device]]\nhost = 2\naddress = "a"\n' * 2,
            "host 2 has two",
        ),
        (
            GOOD
            + '[[fence.device]]\nhost = 2\naddress = "a"\n'
            + '[[fence.device]]\nhost = 3\naddress = "a"\n',
            "stands for two hosts",
        ),
        (GOOD.replace("/shared/leases", "/shared/whiteboard"), "are the same"),
        (GOOD.replace("/shared/leases", "leases"), "storage.leases"),
        ("host = [", "is not TOML"),
        ("\x00", "is not TOML"),
    ],
)
def test_what_does_not_fit_names_file_and_key(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert str(caught.value).startswith(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load(str(tmp_path / "gone"))
    with pytest.raises(ConfigError, match="cannot be read"):
        load(str(tmp_path))
    path = tmp_path / "binary"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not TOML"):
        load(str(path))


def secrets(tmp_path: Path, text: str, mode: int = 0o600) -> str:
    path = tmp_path / "secrets.toml"
    path.write_text(text)
    path.chmod(mode)
    device = '[[fence.device]]\nhost = 2\naddress = "a"\n'
    return write(tmp_path, GOOD + device + f'[daemon]\nsecrets = "{path}"\n')


def test_passwords_come_from_their_own_file(tmp_path: Path) -> None:
    config = load(secrets(tmp_path, '[fence-passwords]\n2 = "secret"\n'))
    assert load_fence_passwords(config) == {2: "secret"}


def test_a_secrets_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    config = load(secrets(tmp_path, '[fence-passwords]\n2 = "secret"\n', 0o644))
    with pytest.raises(ConfigError, match="chmod 0600"):
        load_fence_passwords(config)


@pytest.mark.parametrize(
    "text", ["[fence-passwords]\n2 = hunter2\n", '[fence-passwords]\nx = "hunter2"\n', "[a]\n"]
)
def test_a_broken_secrets_file_is_not_quoted(tmp_path: Path, text: str) -> None:
    config = load(secrets(tmp_path, text))
    with pytest.raises(ConfigError) as caught:
        load_fence_passwords(config)
    assert "hunter2" not in str(caught.value)


def test_the_configured_machine_uuid_goes_before_the_machines(tmp_path: Path) -> None:
    uuid = "0A0B0C0D-0000-0000-0000-000000000001"
    config = load(write(tmp_path, GOOD.replace("id = 1", f'id = 1\nsystem-uuid = "{uuid}"')))
    assert system_uuid(config) == uuid.lower()
