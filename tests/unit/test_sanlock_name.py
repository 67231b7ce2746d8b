# SPDX-License-Identifier: LGPL-2.1-or-later
"""The fixed name of a host's sanlock: written once, never over another, and alone its."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sanlock

from agent.doctor.host import sanlock_name
from agent.setup import sanlock_name as module
from agent.setup.sanlock_name import IN_USE, named_in, no_twin, sanlock_name_step
from agent.terminal.errors import CommandError
from broker.config.load import load
from broker.config.sections import Config
from broker.lockspace.rejoin import own_name
from broker.whiteboard.lease_sectors import DELTA_MAGIC

UUID = "36a5c4e0-0000-4000-8000-000000000001"
OURS = own_name(UUID)
MakeHost = Callable[..., Config]


@pytest.fixture
def host(site: Path, monkeypatch: pytest.MonkeyPatch) -> MakeHost:
    """A host with these leases and this sanlock.conf."""
    monkeypatch.setattr(sanlock, "get_lockspaces", list)

    def make(leases: dict[int, tuple[str, int]], conf: str = "", uuid: str = UUID) -> Config:
        data = bytearray(1 << 20)
        for host_id in (1, *leases):
            name, timestamp = leases.get(host_id, ("", 0))
            at = (host_id - 1) * 512
            struct.pack_into("<I", data, at, DELTA_MAGIC)
            struct.pack_into("<I", data, at + 12, 512)
            struct.pack_into("<QQ", data, at + 32, host_id if name else 0, 4)
            data[at + 104 : at + 104 + len(name)] = name.encode()
            struct.pack_into("<Q", data, at + 152, timestamp)
        (site.parent / "leases").write_bytes(data)
        if conf:
            (site.parent / "sanlock.conf").write_text(conf)
        text = site.read_text()
        text = text.replace("[host]\n", f'[host]\nsystem-uuid = "{uuid}"\n')
        text = text.replace(
            "[storage]\n", f'[storage]\nsanlock-conf = "{site.parent}/sanlock.conf"\n'
        )
        site.write_text(text)
        return load(str(site))

    return make


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("", ""),
        ("our_host_name = one\n", "one"),
        ("#our_host_name = one\n", ""),
        ("use_watchdog = 1\n our_host_name=one\nour_host_name = two\n", "two"),
        ("our_host_names = one\n", ""),
    ],
)
def test_the_last_line_counts_as_for_sanlock(text: str, name: str) -> None:
    assert named_in(text) == name


def test_a_name_is_added_once_and_all_else_is_kept(host: MakeHost) -> None:
    config = host({}, "use_watchdog = 1")
    step = sanlock_name_step(config)
    assert step.look() is None
    assert step.act().endswith(IN_USE), "only where sanlock is the system's own is it restarted"
    path = Path(config.storage.sanlock_conf)
    assert path.read_text() == f"use_watchdog = 1\nour_host_name = {OURS}\n"
    assert path.stat().st_mode & 0o777 == 0o644
    assert sanlock_name_step(config).look() == f"{path} names {OURS}"


@pytest.mark.parametrize(
    ("name", "said"), [("mine", f"names mine, not this machine's own {OURS}"), (UUID, UUID)]
)
def test_a_name_that_is_there_is_the_administrators(host: MakeHost, name: str, said: str) -> None:
    found = sanlock_name_step(host({}, f"our_host_name = {name}\n")).look()
    assert found is not None and found.endswith(said)


def test_a_file_that_cannot_be_written_is_found_before_anything_is_done(
    host: MakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.setup.written.os.access", lambda path, mode: False)
    with pytest.raises(CommandError, match=r"sanlock.conf: cannot be written: .*; run as root"):
        sanlock_name_step(host({})).look()


@pytest.mark.parametrize(
    ("spaces", "restarted"), [([], True), ([{"lockspace": b"x", "host_id": 1, "flags": 0}], False)]
)
def test_sanlock_is_restarted_only_outside_every_lockspace(
    monkeypatch: pytest.MonkeyPatch, spaces: list[Any], restarted: bool
) -> None:
    ran: list[list[str]] = []

    def run(argv: list[str], **_: Any) -> Any:
        ran.append(argv)
        return type("Done", (), {"returncode": 0, "stderr": ""})

    monkeypatch.setattr("agent.setup.sanlock_name.Path.is_dir", lambda path: True)
    monkeypatch.setattr("agent.setup.sanlock_name.subprocess.run", run)
    monkeypatch.setattr(sanlock, "get_lockspaces", lambda: spaces)
    said = module._in_use(Path(module._DEFAULT))
    assert bool(ran) is restarted
    assert said == ("sanlock is restarted" if restarted else IN_USE)


def test_another_host_with_our_name_is_refused(host: MakeHost) -> None:
    config = host({2: (OURS, 0), 3: (OURS, 77), 4: ("ha-of-another", 77)})
    with pytest.raises(CommandError, match="the lease of host id 3 has the sanlock name of this"):
        no_twin(config, (1, None))
    assert no_twin(config, (3,)), "its own old id"


# --- doctor -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("leases", "conf", "uuid", "verdicts", "text"),
    [
        ({1: (OURS, 77)}, f"our_host_name = {OURS}\n", UUID, ["ok"], "has its fixed name"),
        ({}, f"our_host_name = {OURS}\n", UUID, [], ""),
        ({1: ("x.host1", 77)}, "", UUID, ["warn"], "gives sanlock no name"),
        ({}, "our_host_name = mine\n", UUID, ["warn"], "not this machine's own"),
        (
            {1: ("x", 77)},
            f"our_host_name = {OURS}\n",
            UUID,
            ["warn"],
            "uses the name x",
        ),
        ({2: (OURS, 77)}, f"our_host_name = {OURS}\n", UUID, ["fail"], "the lease of host id 2"),
        ({}, "", "", ["warn"], "no UUID to make a name"),
    ],
)
def test_doctor(
    host: MakeHost,
    leases: dict[int, tuple[str, int]],
    conf: str,
    uuid: str,
    verdicts: list[str],
    text: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = host(leases, conf, uuid)
    if not uuid:
        monkeypatch.setattr("agent.doctor.host.machines_name", lambda config: "")
    found = list(sanlock_name(config))
    assert [verdict for verdict, _, _ in found] == verdicts
    assert all(text in said for _, said, _ in found)
    assert all(fix for verdict, _, fix in found if verdict != "ok")
