# SPDX-License-Identifier: LGPL-2.1-or-later
"""Room for several VMs: `init --vms`, `storage grow` and what they refuse, with a real sanlock."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.config.load import load
from broker.config.secrets import load_cluster_key
from broker.daemon.exit_codes import ExitCode
from broker.lockspace.lease_records import read_lease_records
from broker.registry.record import VmRecord
from broker.registry.volume import REGISTRY_BYTES, Registry
from broker.whiteboard.signatures import Signatures
from broker.whiteboard.volume import Volume
from tests.lab.real_sanlock import Daemon, needs_sanlock
from tests.unit import commands

pytestmark = needs_sanlock
XML = "<domain type='kvm'><name>vm</name><memory unit='MiB'>64</memory><devices/></domain>"
MIB = 1 << 20


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    found = Daemon(tmp_path_factory.mktemp("sanlock") / "run", "vms")
    yield found
    found.kill()


class Host:
    """A host, and what it says."""

    def __init__(self, folder: Path, daemon: Daemon) -> None:
        self.shared, self.config = folder / "shared", folder / "etc" / "ha-agent.toml"
        self.shared.mkdir()
        self.config.parent.mkdir()
        (folder / "qemu.conf").write_text('lock_manager = "sanlock"\n')
        (folder / "qemu-sanlock.conf").write_text("require_lease_for_disks = 0\n")
        self.config.write_text(
            f'[libvirt]\nqemu-conf = "{folder}/qemu.conf"\n'
            f'[storage]\nsanlock-conf = "{folder}/sanlock.conf"\n'
        )
        (folder / "vm.xml").write_text(XML)
        self._domain = str(folder / "vm.xml")
        self.environment = {**daemon.environment, "HA_AGENT_CONFIG": str(self.config)}

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        done = commands.run("ha-agent", *arguments, env=self.environment)
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def init(self, *more: str) -> subprocess.CompletedProcess[str]:
        words = ("--storage", str(self.shared), "--domain", self._domain, "--local")
        return self.run("init", *words, "--yes", "--io-timeout", "1", *more)

    def verdicts(self, *arguments: str) -> dict[str, str]:
        done = self.run(*arguments, "--json")
        assert done.returncode == ExitCode.OK, done.stderr
        return {step["name"]: step["verdict"] for step in json.loads(done.stdout)["steps"]}

    @property
    def storage(self) -> dict[str, str]:
        found = tomllib.loads(self.config.read_text())["storage"]
        assert isinstance(found, dict)
        return found

    def lease_names(self, *units: int) -> list[str | None]:
        with Volume(self.shared / "leases", read_only=True) as volume:
            found = read_lease_records(volume, units).values()
            return [None if one is None else one.resource for one in found]


@pytest.fixture
def host(tmp_path: Path, daemon: Daemon) -> Host:
    return Host(tmp_path, daemon)


def test_init_for_several_vms_makes_the_registry_and_room_for_their_leases(host: Host) -> None:
    assert host.init("--vms", "5").returncode == ExitCode.OK
    assert host.storage["registry"] == f"{host.shared}/registry"
    assert (host.shared / "registry").stat().st_size == REGISTRY_BYTES
    assert (host.shared / "leases").stat().st_size == (15 + 5) * MIB
    assert host.lease_names(1, 2, 3, 16) == ["engine", "fence", "registry", None]
    done = host.init("--vms", "5", "--json")
    steps = {step["name"]: step["verdict"] for step in json.loads(done.stdout)["steps"]}
    assert {steps[name] for name in ("whiteboard", "leases", "registry", "config")} == {"ok"}


def test_init_for_one_vm_is_as_before(host: Host) -> None:
    assert host.init().returncode == ExitCode.OK
    assert "registry" not in host.storage and not (host.shared / "registry").exists()
    assert (host.shared / "leases").stat().st_size == 5 * MIB
    assert host.lease_names(3) == [None]


def test_a_cluster_that_was_made_before_grows(host: Host) -> None:
    assert host.init().returncode == ExitCode.OK
    before = (host.shared / "leases").read_bytes()
    would = host.verdicts("storage", "grow", "--vms", "50", "--dry-run")
    assert {would[name] for name in ("leases", "registry-lease", "registry", "config")} == {"would"}
    assert (host.shared / "leases").read_bytes() == before and "registry" not in host.storage
    done = host.run("storage", "grow", "--vms", "50")
    assert done.returncode == ExitCode.OK, done.stderr
    assert f'registry = "{host.shared}/registry"' in done.stdout and "restart" in done.stdout
    assert (host.shared / "leases").stat().st_size == 65 * MIB
    assert (host.shared / "leases").read_bytes()[: 3 * MIB] == before[: 3 * MIB]
    assert host.lease_names(1, 2, 3) == ["engine", "fence", "registry"]
    again = host.verdicts("storage", "grow", "--vms", "50")
    assert set(again.values()) == {"ok"}
    assert host.verdicts("storage", "grow", "--vms", "60")["leases"] == "done"
    assert (host.shared / "leases").stat().st_size == 75 * MIB


#: Mounts a file system of 64 MiB over the shared folder, with the volumes of the cluster.
SMALL = """
set -e
truncate -s 64M $1/small.img; mkfs.ext4 -q -F $1/small.img; mkdir -p $1/small
mount -o loop $1/small.img $1/small; rmdir $1/small/lost+found
cp -a --sparse=never $2/. $1/small/
mount --bind $1/small $2
[ -z "$3" ] || mount -o remount,bind,$3 $2
folder=$2; shift 3
set +e
before=$(ls -ls --time-style=+ $folder; cat $folder/* | md5sum)
"$@"; echo "=== $?"
after=$(ls -ls --time-style=+ $folder; cat $folder/* | md5sum)
[ "$before" = "$after" ] && echo same || echo "$before" "$after"
"""


@pytest.mark.parametrize(
    ("option", "vms", "said"),
    [
        ("", "100", "No space left on device; free space there"),
        ("ro", "5", "ead-only"),
    ],
)
def test_growing_where_the_storage_has_no_room_or_is_read_only_changes_nothing(
    host: Host, tmp_path: Path, option: str, vms: str, said: str
) -> None:
    assert host.init().returncode == ExitCode.OK
    config = host.config.read_text()
    agent = str(Path(sys.executable).parent / "ha-agent")
    done = subprocess.run(
        [
            *("unshare", "-m", "sh", "-c", SMALL, "-", str(tmp_path), str(host.shared), option),
            *(agent, "storage", "grow", "--vms", vms),
        ],
        capture_output=True,
        text=True,
        env=host.environment,
    )
    if "===" not in done.stdout:
        pytest.skip(f"no small file system can be mounted here: {done.stderr}")
    assert f"=== {int(ExitCode.STORAGE)}\n" in done.stdout, done.stdout + done.stderr
    assert said in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert done.stdout.endswith("same\n"), done.stdout
    assert host.config.read_text() == config


def test_growing_keeps_a_registry_that_holds_vms(host: Host) -> None:
    assert host.init("--vms", "2").returncode == ExitCode.OK
    path = host.shared / "registry"
    data = path.read_bytes()
    assert host.verdicts("storage", "grow", "--vms", "9")["registry"] == "ok"
    assert path.read_bytes() == data


@pytest.mark.parametrize("vms", ["0", "1", "129", "-3"])
def test_a_number_of_vms_that_is_not_possible(host: Host, vms: str) -> None:
    assert host.init().returncode == ExitCode.OK
    done = host.run("storage", "grow", f"--vms={vms}")
    assert done.returncode == ExitCode.USAGE and "2 to 128" in done.stderr


def test_init_again_with_more_vms_names_the_command_for_it(host: Host) -> None:
    assert host.init().returncode == ExitCode.OK
    done = host.init("--vms", "5")
    assert done.returncode == ExitCode.REFUSED and "storage grow --vms 5" in done.stderr


def test_grow_before_init(host: Host) -> None:
    done = host.run("storage", "grow", "--vms", "5")
    assert done.returncode == ExitCode.REFUSED and "ha-agent init" in done.stderr


@pytest.fixture
def small_device(tmp_path: Path) -> Iterator[str]:
    backing = tmp_path / "backing"
    backing.write_bytes(bytes(8 * MIB))
    made = subprocess.run(
        ["losetup", "--find", "--show", str(backing)], capture_output=True, text=True
    )
    if made.returncode:
        pytest.skip(f"no loop device here: {made.stderr.strip()}")
    device = made.stdout.strip()
    yield device
    subprocess.run(["losetup", "--detach", device], check=True)


def test_a_device_that_is_too_small_is_refused_with_both_sizes(
    host: Host, small_device: str
) -> None:
    for option in ("--leases", "--registry"):
        done = host.init("--vms", "20", option, small_device)
        assert done.returncode == ExitCode.STORAGE, done.stderr
        needed = 35 * MIB if option == "--leases" else REGISTRY_BYTES
        assert f"it has {8 * MIB} bytes, {needed} are needed" in done.stderr
        assert not (host.shared / "whiteboard").exists(), "a refusal leaves all as it was"
    host.init()
    done = host.run("storage", "grow", "--vms", "3", "--registry", small_device)
    assert done.returncode == ExitCode.STORAGE and f"{REGISTRY_BYTES} are needed" in done.stderr


def test_another_clusters_registry_is_refused(host: Host, tmp_path: Path, daemon: Daemon) -> None:
    (tmp_path / "other").mkdir()
    other = Host(tmp_path / "other", daemon)
    assert other.init("--vms", "2").returncode == ExitCode.OK
    assert host.init().returncode == ExitCode.OK
    theirs = other.storage["registry"]
    data = Path(theirs).read_bytes()
    done = host.run("storage", "grow", "--vms", "2", "--registry", theirs)
    assert done.returncode == ExitCode.STORAGE and "another cluster" in done.stderr
    assert Path(theirs).read_bytes() == data


def test_a_volume_with_something_else_is_left_alone(host: Host) -> None:
    assert host.init().returncode == ExitCode.OK
    path = host.shared / "precious"
    path.write_bytes(os.urandom(REGISTRY_BYTES))
    data = path.read_bytes()
    done = host.run("storage", "grow", "--vms", "2", "--registry", str(path))
    assert done.returncode == ExitCode.STORAGE and "cannot be read" in done.stderr
    assert path.read_bytes() == data


def test_a_lease_volume_is_made_anew_with_the_leases_of_all_vms(host: Host) -> None:
    assert host.init("--vms", "5").returncode == ExitCode.OK
    config = load(str(host.config))
    uuid = "00000000-1111-2222-3333-444444444444"
    record = VmRecord(number=4, name="db", uuid=uuid, generation=0, memory_mb=64)
    with Volume(config.storage.registry) as volume:
        registry = Registry(volume, config.cluster.id, Signatures(load_cluster_key(config)))
        registry.put(record, None, 1.0, "x")
    assert host.lease_names(18) == [None]
    text = host.config.read_text()
    host.config.write_text(text.replace("[libvirt]\n", '[libvirt]\nuri = "test:///default"\n'))
    done = host.run("reinitialize-lockspace", "--yes")
    assert done.returncode == ExitCode.OK, done.stderr
    found = host.lease_names(1, 2, 3, 17, 18)
    assert found == ["engine", "fence", "registry", None, record.resource]


def test_a_newcomer_takes_the_registry_over_and_refuses_another_clusters(
    host: Host, tmp_path: Path, daemon: Daemon
) -> None:
    assert host.init("--vms", "5").returncode == ExitCode.OK
    (tmp_path / "other").mkdir()
    newcomer = Host(tmp_path / "other", daemon)
    copies = str(host.config.parent)
    words = ("join", "--from", copies, "--dry-run")
    assert newcomer.verdicts(*words)["registry"] == "ok"
    path = host.shared / "registry"
    with path.open("r+b") as file:
        file.write(bytes(4096))
    done = newcomer.run(*words)
    assert done.returncode == ExitCode.STORAGE and "holds no registry" in done.stderr
