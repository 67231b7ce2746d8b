# SPDX-License-Identifier: LGPL-2.1-or-later
"""A host before its first command, with a sanlock daemon of its own; the fixtures `daemon` and
`host`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.daemon.exit_codes import ExitCode
from broker.whiteboard.slot import SlotReport, encode_slot
from scoring.vm_facts import EngineStatus, Health, VmStatus
from tests.unit import commands

AGENT = Path(sys.executable).parent / "ha-agent"
XML = "<domain type='kvm'><name>vm</name><memory unit='MiB'>64</memory><devices/></domain>"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A sanlock daemon; the environment in which it is found."""
    folder = tmp_path_factory.mktemp("sanlock")
    environment = {**os.environ, "SANLOCK_RUN_DIR": str(folder), "SANLOCK_PRIVILEGED": "0"}
    argv = ["sanlock", "daemon", "-D", "-w", "0", "-l", "0", "-h", "0", "-U", "root", "-G", "root"]
    with subprocess.Popen(
        [*argv, "-e", "unit"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        while not (folder / "sanlock.sock").exists():
            assert process.poll() is None
            time.sleep(0.02)
        yield environment
        process.kill()


class Host:
    """A host before its first command."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self.shared = folder / "shared"
        self.shared.mkdir()
        self.config = folder / "etc" / "ha-agent.toml"
        self.config.parent.mkdir()
        self.qemu_conf = folder / "qemu.conf"
        self.qemu_conf.write_text('lock_manager = "sanlock"\n')
        self.sanlock_conf = folder / "qemu-sanlock.conf"
        self.sanlock_conf.write_text("require_lease_for_disks = 0\n")
        #: sanlock's own file, and the machine's UUID of which its name is made.
        self.named = folder / "sanlock.conf"
        self.system_uuid = uuid.uuid4()
        self.seed()
        (folder / "vm.xml").write_text(XML)
        self._environment = {**environment, "HA_AGENT_CONFIG": str(self.config)}

    def seed(self) -> None:
        self.config.write_text(
            f'# mine\n[libvirt]\nqemu-conf = "{self.qemu_conf}"\n'
            f'[host]\nsystem-uuid = "{self.system_uuid}"\n'
            f'[storage]\nsanlock-conf = "{self.named}"\n'
        )

    def run(self, *arguments: str, enter: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        if not enter:
            done = commands.run("ha-agent", *arguments, env=self._environment)
        else:
            done = subprocess.run(
                [*enter, AGENT, *arguments],
                capture_output=True,
                text=True,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                timeout=60,
            )
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def init(self, *more: str) -> subprocess.CompletedProcess[str]:
        return self.run("init", *self.init_words(), *more)

    def init_words(self) -> tuple[str, ...]:
        return ("--storage", str(self.shared), *self.others())

    def others(self) -> tuple[str, ...]:
        return ("--domain", str(self.folder / "vm.xml"), "--yes", "--io-timeout", "1", "--local")

    def verdicts(self, *more: str) -> dict[str, str]:
        done = self.init("--json", *more)
        assert done.returncode == ExitCode.OK, done.stderr
        return {step["name"]: step["verdict"] for step in json.loads(done.stdout)["steps"]}

    def files(self) -> dict[str, bytes]:
        found = [*self.shared.iterdir(), *self.config.parent.rglob("*")]
        return {path.name: path.read_bytes() for path in found if path.is_file()}


@pytest.fixture
def host(tmp_path: Path, daemon: dict[str, str]) -> Host:
    return Host(tmp_path, daemon)


def report(timestamp: int) -> bytes:
    engine = EngineStatus(VmStatus.DOWN, Health.BAD)
    return encode_slot(SlotReport(2, timestamp, 3400, engine, "other"))
