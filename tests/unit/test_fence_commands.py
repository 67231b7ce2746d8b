# SPDX-License-Identifier: LGPL-2.1-or-later
"""`ha-agent fence test` and `ha-agent config check`, run as a user would."""

from __future__ import annotations

import json
import os
import re
import socketserver
import subprocess
import threading
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import msgspec
import pytest

from broker.daemon.exit_codes import ExitCode
from broker.wire.exchange import View
from broker.wire.hosts import LocalOnWire
from scoring.vm_facts import EngineStatus, Health, VmStatus
from tests.fakes.ipmi_bmc import PASSWORD, IpmiBmc
from tests.unit import commands

FAKE_AGENT = Path(__file__).parents[1] / "fakes" / "fence_fake"
OWN, MACHINE, OTHER = (str(uuid.UUID(f"0a0b0c0d-1111-2222-3333-00000000000{n}")) for n in (1, 2, 3))
DOMAIN = """<domain type='kvm'><name>HostedEngine</name>
<uuid>6e67696e-0000-4000-8000-000000000001</uuid><memory unit='MiB'>256</memory>
<devices><lease><lockspace>hosted-engine</lockspace><key>engine</key>
<target path='{leases}' offset='1048576'/></lease></devices></domain>"""


class Site:
    """A configuration with host 2's BMC, which is real, and its power strip."""

    def __init__(self, directory: Path, bmc: IpmiBmc) -> None:
        self.directory, self.bmc = directory, bmc
        self.config = directory / "ha-agent.toml"
        self.secrets = directory / "secrets.toml"
        self.socket = directory / "broker.sock"
        (directory / "strip").mkdir()
        (directory / "strip" / "power").write_text("1")
        (directory / "engine.xml").write_text(DOMAIN.format(leases="/shared/leases"))
        self.write()

    def write(self, host_2: int = 2, more: str = "") -> None:
        self.config.write_text(
            f'[host]\nid = 1\nname = "host1"\nsystem-uuid = "{OWN}"\n'
            '[storage]\nwhiteboard = "/shared/whiteboard"\nleases = "/shared/leases"\n'
            f'[vm]\ndefinition = "{self.directory}/engine.xml"\n'
            f'[daemon]\nsocket = "{self.socket}"\nsecrets = "{self.secrets}"\n'
            f'[[fence.device]]\nhost = {host_2}\naddress = "127.0.0.1"\nport = {self.bmc.port}\n'
            'username = "admin"\n'
            f'[[fence.device]]\nhost = {host_2}\nname = "strip"\nlevel = 2\ntype = "agent"\n'
            f'agent = "{FAKE_AGENT}"\nidentity = "trusted"\nusername = "admin"\n'
            f'options = {{state = "{self.directory}/strip"}}\n' + more
        )
        self.write_secrets(PASSWORD)

    def write_secrets(self, password: str, mode: int = 0o600) -> None:
        self.secrets.write_text(
            f'[fence-passwords]\n2 = "{password}"\n"2/strip" = "{PASSWORD}"\n'
            f'3 = "{password}"\n"3/strip" = "{PASSWORD}"\n'
        )
        self.secrets.chmod(mode)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "HA_AGENT_CONFIG": str(self.config)}
        result = commands.run("ha-agent", *arguments, env=environment)
        assert "Traceback" not in result.stderr, result.stderr
        assert PASSWORD not in result.stdout + result.stderr
        assert "hunter2" not in result.stdout + result.stderr
        return result


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    bmc = IpmiBmc(tmp_path / "bmc", uuid.UUID(MACHINE).hex)
    yield Site(tmp_path, bmc)
    assert bmc.orders == [] and not (tmp_path / "strip" / "orders").exists(), "nothing is switched"
    bmc.close()


@pytest.fixture
def broker(site: Site) -> Iterator[None]:
    """Somebody on the broker's socket who knows hosts 2 and 3."""
    view = View(
        version=1,
        local=LocalOnWire(1, EngineStatus(VmStatus.DOWN, Health.BAD), 0.0),
        peers=(),
        storage_good_since_s=0.0,
        sweep=1,
        global_maintenance=False,
        newer_versions=(),
        lockspace_joined=True,
        system_uuids={2: MACHINE, 3: OTHER},
        hostnames={2: "host2", 3: "host3"},
    )

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(msgspec.json.encode(view))

        def address_string(self) -> str:
            return "somebody"

        def log_message(self, *_: object) -> None:
            pass

    with socketserver.ThreadingUnixStreamServer(str(site.socket), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield
        server.shutdown()
        thread.join()


def devices(result: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    answer = json.loads(result.stdout)
    assert answer["version"] == 1
    found: list[dict[str, Any]] = answer["devices"]
    return found


@pytest.mark.parametrize("host", ["2", "host2", "all"])
@pytest.mark.usefixtures("broker")
def test_a_fit_device(site: Site, host: str) -> None:
    result = site.run("fence", "test", host, "--json")
    assert result.returncode == ExitCode.OK, result.stdout + result.stderr
    bmc, strip = devices(result)
    assert (bmc["hostname"], bmc["level"], bmc["ok"]) == ("host2", 1, True)
    assert (bmc["power"], bmc["identity"], bmc["privilege"]) == ("on", "proven", "enough")
    assert (strip["level"], strip["ok"], strip["identity"]) == (2, True, "trusted")
    assert strip["privilege"] == "unknown" and bmc["took_s"] < 8


@pytest.mark.usefixtures("broker")
def test_as_text(site: Site) -> None:
    result = site.run("fence", "test", "2")
    assert result.returncode == ExitCode.OK
    head, bmc, strip = result.stdout.splitlines()
    assert head.split() == ["HOST", "LEVEL", "DEVICE", "POWER", "IDENTITY", "PRIVILEGE", "TIME"]
    assert re.match(r"ok +2 host2 +1 +ipmi 127\.0\.0\.1 port \d+ of host 2 +on +proven", bmc)
    assert re.match(r"ok +2 host2 +2 +agent strip fence_fake of host 2 +on +trusted", strip)


@pytest.mark.usefixtures("broker")
def test_a_wrong_password(site: Site) -> None:
    site.write_secrets("hunter2")
    result = site.run("fence", "test", "2")
    assert result.returncode == ExitCode.FENCE
    assert "FAIL" in result.stdout and "of host 2: Incorrect password" in result.stdout


@pytest.mark.usefixtures("broker")
def test_another_hosts_device(site: Site) -> None:
    site.write(host_2=3)
    result = site.run("fence", "test", "host3")
    assert result.returncode == ExitCode.FENCE
    assert uuid.UUID(MACHINE).hex in result.stdout and OTHER in result.stdout


def test_without_a_broker_no_other_machine_is_known(site: Site) -> None:
    result = site.run("fence", "test", "2", "--json")
    assert result.returncode == ExitCode.FENCE
    assert json.loads(result.stdout)["broker"] is False
    bmc, strip = devices(result)
    assert (bmc["ok"], bmc["power"], bmc["identity"]) == (False, "on", "unknown")
    assert strip["ok"]
    assert "broker.sock" in result.stderr


def test_hosts_that_are_not_there(site: Site) -> None:
    for host, code, word in (
        ("host9", ExitCode.USAGE, "there are 2"),
        ("9", ExitCode.CONFIG, "host 9 has no fence device"),
    ):
        result = site.run("fence", "test", host)
        assert result.returncode == code
        (line,) = result.stderr.splitlines()
        assert word in line


# --- config check -----------------------------------------------------------------------------


def verdicts(result: subprocess.CompletedProcess[str]) -> list[tuple[str, str, str]]:
    answer = json.loads(result.stdout)
    assert answer["version"] == 1
    return [(check["name"], check["verdict"], check["text"]) for check in answer["checks"]]


def test_a_sound_configuration(site: Site) -> None:
    result = site.run("config", "check")
    assert result.returncode == ExitCode.OK, result.stdout
    assert "fail" not in result.stdout
    for name in ("file", "identity", "definition", "secrets", "fence", "api"):
        assert re.search(rf"^ok +{name} ", result.stdout, re.MULTILINE), name
    assert re.search(r"^warning +fence +host 1, this one, has no device", result.stdout, re.M)


def test_any_file_can_be_checked(site: Site, tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    other.write_text("[hots]\n")
    result = site.run("config", "check", str(other), "--json")
    assert result.returncode == ExitCode.CONFIG
    ((name, verdict, text),) = verdicts(result)
    assert (name, verdict) == ("file", "fail") and "did you mean host?" in text


@pytest.mark.parametrize(
    ("trouble", "name", "word"),
    [
        ("secrets-mode", "secrets", "chmod 0600"),
        ("no-password", "secrets", '"2" in [fence-passwords]'),
        ("long-password", "fence", "the password has 28 bytes, IPMI 2.0 allows 20 at most"),
        ("no-lease", "definition", "no <lease>"),
        ("no-program", "fence", "fence_of_nobody is not installed"),
        ("no-ca", "fence", "no certificates"),
        ("short-token", "api", "openssl rand -hex 32"),
        ("no-certificate", "api", "api.certificate /none.pem"),
    ],
)
def test_what_fails(site: Site, trouble: str, name: str, word: str) -> None:
    match trouble:
        case "secrets-mode":
            site.write_secrets(PASSWORD, mode=0o644)
        case "no-password":
            site.secrets.write_text(f'[fence-passwords]\n"2/strip" = "{PASSWORD}"\n')
        case "long-password":
            site.write_secrets("correct-horse-battery-staple")
        case "no-lease":
            (site.directory / "engine.xml").write_text(DOMAIN.format(leases="/elsewhere"))
        case "no-program":
            site.config.write_text(site.config.read_text().replace("fence_fake", "fence_of_nobody"))
        case "short-token":
            before = site.secrets.read_text()
            site.secrets.write_text(f'api-token = "short"\n{before}')
        case "no-certificate":
            tls = 'tls-listen = ["127.0.0.1:1"]\ncertificate = "/none.pem"\nprivate-key = "/k"\n'
            site.write(more=f"[api]\n{tls}")
        case "no-ca":
            site.write(
                more='[[fence.device]]\nhost = 3\ntype = "redfish"\naddress = "a"\n'
                f'ca-file = "{site.secrets}"\n'
            )
    result = site.run("config", "check", "--json")
    assert result.returncode == ExitCode.CONFIG
    failed = [(n, text) for n, verdict, text in verdicts(result) if verdict == "fail"]
    assert [n for n, _ in failed] == [name], failed
    assert word in failed[0][1]


def test_warnings_fail_nothing(site: Site) -> None:
    site.secrets.write_text(
        f'[fence-passwords]\n2 = "{PASSWORD}"\n"2/strip" = "{PASSWORD}"\n7 = "hunter2"\n'
    )
    result = site.run("config", "check", "--json")
    assert result.returncode == ExitCode.OK
    warned = [text for _, verdict, text in verdicts(result) if verdict == "warning"]
    assert any("1 entries belong to no device" in text for text in warned)
