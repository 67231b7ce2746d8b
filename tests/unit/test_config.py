# SPDX-License-Identifier: LGPL-2.1-or-later
"""The configuration file: what is wrong is said with file, key and a way out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec
import pytest
from msgspec import inspect

from agent.setup.answers import Answers
from broker.config.errors import ConfigError
from broker.config.explain import in_words
from broker.config.load import load
from broker.config.machine import system_uuid
from broker.config.secrets import FenceSecret, load_fence_secrets, unused_fence_secrets
from broker.config.sections import Config

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
        (GOOD.replace("id = 1", "id = 0"), "host.id: must be at least 1"),
        (GOOD.replace("id = 1", "id = 2001"), "host.id: must be at most 2000"),
        (GOOD.replace("id = 1", "id = 1.5"), "host.id: must be a whole number"),
        (GOOD.replace('"/', '"'), "storage.whiteboard: must begin with / (an absolute path)"),
        (GOOD + "[network]\ntest = 'pign'\n", "network.test: must be ping, dns, tcp or none"),
        (
            GOOD + "[network]\ntargets = 'a'\n",
            'network.targets: must be a list, such as ["a", "b"], not text',
        ),
        (GOOD + "[[fence.device]]\nhost = 2\ntype = 'ilo'\n", "type: must be ipmi, redfish"),
        (GOOD + "[storage-fence]\nfile-system = ''\n", "must not be empty"),
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
        (GOOD.replace("/shared/leases", "/shared/whiteboard"), "must differ"),
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


def devices(*tables: str) -> str:
    """The smallest file with fence devices: `key = value; key = value` each."""
    return GOOD + "".join("[[fence.device]]\n" + t.replace("; ", "\n") + "\n" for t in tables)


BMC = 'host = 2; address = "a"'
AGENT = 'host = 2; type = "agent"; agent = "fence_apc"; identity = "trusted"; address = "p"'
REDFISH = 'host = 2; type = "redfish"; address = "a"'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (devices(BMC, 'host = 2; address = "b"'), "host 2 has two named ''"),
        (devices(BMC, 'host = 3; address = "A."'), "stands for two hosts"),
        (devices(BMC, 'host = 3; address = "a"; port = 623'), "stands for two hosts"),
        (devices(BMC, 'host = 2; address = "a"; name = "again"'), "stands for host 2 twice"),
        (
            devices('host = 2; address = "::1"', 'host = 3; address = "0:0:0:0:0:0:0:1"'),
            "stands for two hosts",
        ),
        (
            devices(
                AGENT + "\noptions = {plug = 7}",
                AGENT.replace("2", "3") + '\noptions = {plug = "7"}',
            ),
            "stands for two hosts",
        ),
        (devices(BMC + "; level = 2"), "levels [2]"),
        (devices(BMC, 'host = 2; address = "b"; name = "x"; level = 3'), "levels [1, 3]"),
        (devices(BMC + "; level = 0"), "fence.device[0].level"),
        (devices(BMC + '; type = "ilo"'), "fence.device[0].type"),
        (devices(BMC + "; verfy = false"), "did you mean verify?"),
        (devices("host = 2"), "address is missing"),
        (devices(BMC + "; verify = false"), "verify is for type redfish"),
        (devices(BMC + '; options = {plug = "1"}'), "options is for type agent"),
        (devices(REDFISH + '; privilege = "user"'), "privilege is for type ipmi"),
        (devices(REDFISH + '; fingerprint = "00"'), "fence.device[0].fingerprint"),
        (devices(REDFISH + f'; fingerprint = "{"00" * 32}"; ca-file = "/x"'), "exclude each other"),
        (devices(REDFISH + '; verify = false; ca-file = "/x"'), "contradicts"),
        (devices('host = 2; type = "agent"; identity = "trusted"'), "agent is missing"),
        (devices(AGENT.replace("fence_apc", "reboot")), "fence.device[0].agent"),
        (devices(AGENT.replace('; identity = "trusted"', "")), 'identity = "trusted"'),
        (devices(AGENT + '; options = {action = "reboot"}'), "options.action"),
        (devices(AGENT + '; options = {ipaddr = "x"}'), "options.ipaddr: the key address"),
        (devices(AGENT + '; options = {passwd = "x"}'), "belongs into the secrets file"),
        (devices(AGENT + '; options = {community = "x"}'), "belongs into the secrets file"),
        (devices(AGENT + '; options = {plug = "1\\naction=off"}'), "cannot be printed"),
    ],
)
def test_fence_devices_that_do_not_fit(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert str(caught.value).startswith(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_name_that_cannot_stand_in_a_uri_is_refused_at_the_start(tmp_path: Path) -> None:
    uri = '[libvirt]\nmigration-uri = "qemu+tls://{host}/system"\n'
    text = GOOD.replace("[host]\n", '[host]\nname = "höst"\n')
    load(write(tmp_path, text))
    with pytest.raises(ConfigError, match=r"host\.name: 'höst' cannot stand for"):
        load(write(tmp_path, text + uri))
    for name in ("kvm_1", "kvm1.example.com.", "2001:db8::7"):
        load(write(tmp_path, text.replace("höst", name) + uri))


def test_fence_devices_that_fit(tmp_path: Path) -> None:
    config = load(
        write(
            tmp_path,
            devices(
                BMC,
                'host = 2; name = "pdu-a"; type = "agent"; agent = "fence_apc"; level = 2;'
                ' identity = "trusted"; address = "p"; options = {plug = 7, ssh = true}',
                'host = 2; name = "pdu-b"; type = "agent"; agent = "fence_apc"; level = 2;'
                ' identity = "trusted"; address = "q"; options = {plug = 7}',
                AGENT.replace("2", "3") + "; options = {plug = 8}",
            ),
        )
    )
    assert [device.key for device in config.fence.device] == ["2", "2/pdu-a", "2/pdu-b", "3"]
    assert config.fence.device[0].title == "ipmi a port 623 of host 2"
    assert config.fence.device[1].title == "agent pdu-a fence_apc p of host 2"


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
    assert load_fence_secrets(config) == {"2": FenceSecret("secret")}


def test_each_device_of_a_host_has_its_own_password(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(
        '[fence-passwords]\n2 = "one"\n"2/pdu" = "two"\n"3/x" = "three"\n'
        '[fence-options."2/pdu"]\ncommunity = "four"\n'
    )
    (tmp_path / "s.toml").chmod(0o600)
    pdu = AGENT + '; name = "pdu"; level = 2'
    config = load(write(tmp_path, devices(BMC, pdu) + f'[daemon]\nsecrets = "{tmp_path}/s.toml"\n'))
    secrets = load_fence_secrets(config)
    assert secrets["2"] == FenceSecret("one")
    assert secrets["2/pdu"] == FenceSecret("two", {"community": "four"})
    assert "one" not in repr(secrets) and "four" not in repr(secrets)
    assert unused_fence_secrets(config) == 1


def test_a_systemd_credential_goes_before_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    (tmp_path / "fence-password.2").write_text("from systemd\n")
    (tmp_path / "fence-password.2.pdu").write_text("another")
    pdu = AGENT + '; name = "pdu"; level = 2; username = "u"'
    text = devices(BMC + '; username = "u"', pdu) + f'[daemon]\nsecrets = "{tmp_path}/gone"\n'
    secrets = load_fence_secrets(load(write(tmp_path, text)))
    assert secrets["2"].password == "from systemd"
    assert secrets["2/pdu"].password == "another"
    (tmp_path / "fence-password.2").unlink()
    with pytest.raises(ConfigError, match="gone: cannot be read: No such file"):
        load_fence_secrets(load(write(tmp_path, text)))


def test_root_finds_the_credentials_of_the_running_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    monkeypatch.setattr("broker.config.secrets.SERVICE_CREDENTIALS", str(tmp_path))
    (tmp_path / "fence-password.2").write_text("of the service")
    text = devices(BMC + '; username = "u"') + f'[daemon]\nsecrets = "{tmp_path}/gone"\n'
    assert load_fence_secrets(load(write(tmp_path, text)))["2"].password == "of the service"


def test_a_secrets_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    config = load(secrets(tmp_path, '[fence-passwords]\n2 = "secret"\n', 0o644))
    with pytest.raises(ConfigError, match="chmod 0600"):
        load_fence_secrets(config)


@pytest.mark.parametrize(
    "text", ["[fence-passwords]\n2 = hunter2\n", '[fence-passwords]\nx = "hunter2"\n', "[a]\n"]
)
def test_a_broken_secrets_file_is_not_quoted(tmp_path: Path, text: str) -> None:
    config = load(secrets(tmp_path, text))
    with pytest.raises(ConfigError) as caught:
        load_fence_secrets(config)
    assert "hunter2" not in str(caught.value)


def test_the_configured_machine_uuid_goes_before_the_machines(tmp_path: Path) -> None:
    uuid = "0A0B0C0D-0000-0000-0000-000000000001"
    config = load(write(tmp_path, GOOD.replace("id = 1", f'id = 1\nsystem-uuid = "{uuid}"')))
    assert system_uuid(config) == uuid.lower()


@pytest.mark.parametrize(
    ("api", "listens", "published"),
    [
        ("", (), ()),
        ('listen = ["10.0.0.1:8765"]', ("10.0.0.1:8766",), ("10.0.0.1:8766",)),
        (
            'listen = ["[fd00::1]:9000", "127.0.0.1:9000"]',
            ("[fd00::1]:8766",),
            ("[fd00::1]:8766",),
        ),
        ('listen = ["0.0.0.0:8765"]', ("0.0.0.0:8766",), ("one:8766",)),
        (
            'listen = ["0.0.0.0:8765"]\nadvertise = ["10.0.0.1:8765"]',
            ("0.0.0.0:8766",),
            ("10.0.0.1:8766",),
        ),
        ('heartbeat-listen = ["10.0.0.1:9"]', ("10.0.0.1:9",), ("10.0.0.1:9",)),
        ('listen = ["10.0.0.1:8765"]\nheartbeat-listen = []', (), ()),
        (
            'heartbeat-listen = ["0.0.0.0:9"]\nheartbeat-advertise = ["host.example:10"]',
            ("0.0.0.0:9",),
            ("host.example:10",),
        ),
    ],
)
def test_heartbeats_are_answered_where_others_reach_this_host(
    tmp_path: Path, api: str, listens: tuple[str, ...], published: tuple[str, ...]
) -> None:
    text = GOOD.replace("id = 1\n", 'id = 1\nname = "one"\n')
    config = load(write(tmp_path, f"{text}[api]\n{api}\n"))
    assert config.heartbeat_listen() == listens
    assert config.heartbeat_advertised() == published


@pytest.mark.parametrize("key", ["heartbeat-listen", "heartbeat-advertise"])
def test_an_address_of_heartbeats_is_checked(tmp_path: Path, key: str) -> None:
    with pytest.raises(ConfigError, match=f"api.{key}: 'nowhere' is not host:port"):
        load(write(tmp_path, f'{GOOD}[api]\n{key} = ["nowhere"]\n'))


def test_no_more_addresses_of_heartbeats_are_published_than_are_read(tmp_path: Path) -> None:
    many = ", ".join(f'"10.0.0.{n}:8766"' for n in range(1, 6))
    with pytest.raises(ConfigError, match=re.escape("api.heartbeat-advertise: more than 4")):
        load(write(tmp_path, f"{GOOD}[api]\nheartbeat-advertise = [{many}]\n"))


def patterns(kind: inspect.Type) -> Iterator[str]:
    """The patterns of all texts in a type."""
    match kind:
        case inspect.StrType(pattern=str(pattern)):
            yield pattern
        case inspect.StructType(fields=fields):
            for field in fields:
                yield from patterns(field.type)
        case inspect.VarTupleType(item_type=item):
            yield from patterns(item)
        case inspect.UnionType(types=types):
            for each in types:
                yield from patterns(each)
        case inspect.DictType(key_type=key, value_type=value):
            yield from (*patterns(key), *patterns(value))


@pytest.mark.parametrize("file", [Config, Answers])
def test_no_value_is_refused_with_a_regular_expression(file: type[msgspec.Struct]) -> None:
    found = set(patterns(inspect.type_info(file)))
    assert found, "the file has such texts"
    for pattern in found:
        with pytest.raises(msgspec.ValidationError) as refused:
            msgspec.convert("\0", Annotated[str, msgspec.Meta(pattern=pattern)])
        assert in_words(str(refused.value)).startswith("must "), pattern
