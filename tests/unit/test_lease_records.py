# SPDX-License-Identifier: LGPL-2.1-or-later
"""Leases read from the volume itself, held to what a real sanlock writes there."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from agent.leases.sanlock import SanlockLeases
from broker.config.sections import Config, HostSection, StorageSection
from broker.lockspace.lease_records import LeaseRecord, decode, read_lease_records
from broker.registry.record import number_of, unit_of, units_for
from broker.whiteboard.sizes import SLOT_BYTES
from broker.whiteboard.volume import Volume
from scoring.observation import LeaseAnswer, Standing
from tests.lab.real_sanlock import Daemon, needs_sanlock

MIB = 1 << 20
UNITS = {16: "vm-a", 17: "vm-b", 18: "vm-c"}
# sanlock's library looks for its daemon once in a process, so each host is one.
MAKE = """
import sanlock, sys
path = sys.argv[1]
for unit, name in ((16, b"vm-a"), (17, b"vm-b"), (18, b"vm-c")):
    sanlock.write_resource(b"space", name, [(path, unit << 20)])
sanlock.write_lockspace(b"space", path, iotimeout=1)
"""
#: A host that joins, takes a lease, says so, and lives until its input ends.
HOLD = """
import sanlock, sys
path, host, unit, name = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
sanlock.add_lockspace(b"space", host, path, iotimeout=1, wait=True)
taken = sanlock.register()
sanlock.acquire(b"space", name.encode(), [(path, unit << 20)], slkfd=taken)
print("taken", flush=True)
sys.stdin.read()
"""
ASK = """
import asyncio, msgspec, sys
from agent.leases.sanlock import SanlockLeases
from broker.config.sections import Config
config = msgspec.convert(
    {
        "host": {"id": 1, "name": "one"},
        "storage": {
            "whiteboard": "/no/whiteboard",
            "leases": sys.argv[1],
            "lockspace": "space",
            "io-timeout": 1,
        },
    },
    Config,
)
names = msgspec.json.decode(sys.argv[2], type=dict[int, str])
found = asyncio.run(SanlockLeases(config, 1 << 20).owners(names))
print(msgspec.json.encode(found).decode())
"""


def test_each_vm_has_a_unit_of_its_own_behind_the_kept_ones() -> None:
    assert [unit_of(n) for n in (1, 2, 3, 128)] == [1, 16, 17, 142]
    assert [number_of(unit_of(n)) for n in (1, 2, 3, 128)] == [1, 2, 3, 128]
    assert units_for(50) == 65


class Leases:
    """A lease volume, and the daemons of two hosts."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "leases")
        with open(self.path, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, 19 * MIB)
        self.hosts = [Daemon(folder / name, name) for name in ("one", "two")]

    def read(self, *units: int) -> dict[int, LeaseRecord | None]:
        with Volume(self.path, read_only=True) as volume:
            return read_lease_records(volume, units)

    def run(self, script: str, *words: str) -> str:
        argv = [sys.executable, "-c", script, self.path, *words]
        done = subprocess.run(
            argv, env=self.hosts[0].environment, capture_output=True, text=True, check=True
        )
        return done.stdout

    def asked(self, names: dict[int, str]) -> dict[int, LeaseAnswer]:
        said = self.run(ASK, msgspec.json.encode(names).decode())
        return msgspec.json.decode(said, type=dict[int, LeaseAnswer])

    @contextlib.contextmanager
    def held(self, host: int, unit: int) -> Iterator[None]:
        argv = [sys.executable, "-c", HOLD, self.path, str(host), str(unit), UNITS[unit]]
        with subprocess.Popen(
            argv,
            env=self.hosts[host - 1].environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None and process.stdin is not None
            assert process.stdout.readline() == "taken\n"
            yield
            process.stdin.close()


@pytest.fixture
def leases(tmp_path: Path) -> Iterator[Leases]:
    found = Leases(tmp_path)
    try:
        found.run(MAKE)
        yield found
    finally:
        for host in found.hosts:
            host.kill()


@needs_sanlock
def test_who_holds_which_lease(leases: Leases) -> None:
    assert leases.read(15, 16, 142) == {
        15: None,
        16: LeaseRecord("space", "vm-a", 0, 0, held=False),
        142: None,
    }
    with leases.held(1, 16), leases.held(2, 17):
        assert leases.read(16, 17) == {
            16: LeaseRecord("space", "vm-a", 1, 1, held=True),
            17: LeaseRecord("space", "vm-b", 2, 1, held=True),
        }
        mine, theirs, free = leases.asked(UNITS).values()
        assert (mine.owner, mine.vm, theirs.owner, theirs.vm) == (1, 2, 2, 3)
        assert mine.standing is Standing.LIVE and not mine.owner_is_gone
        assert theirs.known and theirs.current_generation == theirs.owner_generation == 1
        assert theirs.owner_timestamp > 0 and free.known and free.owner is None
        wrong = leases.asked({16: "vm-z", 15: "vm-y"})
        assert [answer.known for answer in wrong.values()] == [False, False]
        assert "unit 16 holds lease vm-a, not vm-z" in wrong[16].detail
        assert "unit 15 holds no lease that can be read" in wrong[15].detail
    deadline = time.monotonic() + 10
    while leases.read(16)[16] == LeaseRecord("space", "vm-a", 1, 1, held=True):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert leases.read(16)[16] == LeaseRecord("space", "vm-a", 1, 1, held=False)


@needs_sanlock
def test_a_damaged_record_is_no_free_lease(leases: Leases) -> None:
    with Volume(leases.path) as volume:
        good = volume.read_at(16 * MIB)
        for at in (32, 57, 105, 152, 168):
            bad = bytearray(good)
            bad[at] ^= 1
            assert decode(bytes(bad)) is None, at
        assert decode(good) is not None and decode(good[:100]) is None
        volume.write_at(16 * MIB, bytes(SLOT_BYTES))
    answer = leases.asked({16: "vm-a"})[16]
    assert not answer.known and answer.vm == 2


def test_a_volume_that_is_away_answers_nothing() -> None:
    storage = StorageSection(whiteboard="/no/whiteboard", leases="/no/leases")
    leases = SanlockLeases(Config(host=HostSection(id=1), storage=storage), MIB)
    found = asyncio.run(leases.owners({16: "vm-a", 17: "vm-b"}))
    assert [answer.known for answer in found.values()] == [False, False]
    assert "/no/leases" in found[16].detail
