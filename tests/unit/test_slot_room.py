# SPDX-License-Identifier: LGPL-2.1-or-later
"""What of a host's slot gives way when there is no room, and that nothing that decides does."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from broker.config.agreement import DIGEST_LINE, KEYS_LINE
from broker.monitors.runner import Sample
from broker.peers.fence_paths import APART_MAX, DETAIL_CHARS_MAX, path_lines, paths_of
from broker.whiteboard.extra import EXTRA_LINE_BYTES_MAX, LEFT_OUT_KEY
from broker.whiteboard.room import DECIDES, PROSE, SHOWN, fit
from broker.whiteboard.sizes import SLOT_BYTES
from broker.whiteboard.slot import decode_slot
from broker.wire.exchange import VmReportOnWire
from broker.wire.status import FencePathOnWire, PenaltyOnWire, ReasonOnWire
from scoring.vm_facts import (
    DETAIL_MIGRATION_SOURCE,
    Claim,
    EngineStatus,
    Health,
    VmHere,
    VmStatus,
)
from tests.fakes.broker import FakeVms, make_broker, record, registry_of, report, up
from tests.fakes.slot_store import MemoryVolume

FINE = FencePathOnWire(True, 1_800_000_000.0, 1_800_000_300.0, 0.31)
BROKEN = FencePathOnWire(False, None, 1_800_000_300.0, 5.0, "x" * 200)


def test_facts_come_first_and_sentences_last() -> None:
    lines = {
        "reason": "it is so",
        "state": "EngineUp",
        "path-3": "why",
        "new-fact": "1",
        "x-y": "2",
    }
    kept, left_out = fit(lines)
    assert list(kept) == ["state", "new-fact", "x-y", "reason", "path-3"]
    assert not left_out


def test_what_has_no_room_is_named_and_counted() -> None:
    lines = {f"path-{n}": "x" * 900 for n in range(1, 6)} | {"state": "EngineUp"}
    kept, left_out = fit(lines)
    assert "state" in kept
    assert left_out == ("path-4", "path-5")
    assert kept[LEFT_OUT_KEY] == "2"


def test_no_key_stands_twice_in_the_order() -> None:
    every = (*DECIDES, *SHOWN, *PROSE)
    assert len(set(every)) == len(every)


@pytest.mark.parametrize("fails", ["all", "every other", "none"])
def test_in_the_worst_slot_of_200_hosts_nothing_that_decides_is_missing(
    tmp_path: Path, fails: str
) -> None:
    """26 devices that fail, or 70 that are fine, once pushed out what decides. All 50 VMs of the
    cluster are on this one."""

    async def run() -> None:
        volume = MemoryVolume()
        running = EngineStatus(VmStatus.UP, Health.GOOD, DETAIL_MIGRATION_SOURCE)
        vms = FakeVms(*(VmHere(running, 1.0, number=n) for n in range(79, 129)))
        registry = registry_of(*(record(n, f"vm{n}") for n in range(79, 129)), generation=2**53)
        broker = make_broker(tmp_path, volume, 1, registry=registry, vms=vms)
        reader = make_broker(tmp_path, volume, 2)
        broker.own_slot.advertised = tuple(
            f"{'n' * 63}.{'n' * 63}.{n}.example.org:8765" for n in range(4)
        )
        memory = Sample(100.0, 1.0)
        broker.monitors.latest["memory"] = memory
        is_broken = {"all": {0, 1}, "every other": {1}, "none": set[int]()}[fails]
        paths = {n: BROKEN if n % 2 in is_broken else FINE for n in range(1, 201)}
        full = msgspec.structs.replace(
            report("EngineDown"),
            reasons=(ReasonOnWire("busy-elsewhere", "é" * 2000),),
            penalties=(
                *(PenaltyOnWire(f"part-{n}", 100, "y" * 300) for n in range(10)),
                PenaltyOnWire("memory", 400, "y" * 300),
            ),
            unknown=("network", "bridge", "load", "memory"),
            intent="migrate 1999",
            fence_paths=paths,
            freeing=1999,
            freeing_fencer=True,
            unstopped_since_s=-86_400.0,
            vms=tuple(
                VmReportOnWire(n, "EngineMigratingAway", 9999, moving_to=1999, moving_until_s=999.0)
                for n in range(79, 129)
            ),
            claims=tuple(Claim(n, 1999, 1, 999.0) for n in range(2, 12)),
        )
        broker.take_report(full, 1.0)
        up(broker, 1.0)
        await broker.beat(1.0)
        slot = decode_slot(1, bytes(volume.data[SLOT_BYTES : 2 * SLOT_BYTES]))
        assert slot is not None and slot.extra_trusted
        extra = slot.extra
        assert extra["mem-free"] == "100"
        assert "penalty-memory" not in extra, "its sentence gave way"
        assert extra["state"] == "EngineDown"
        assert extra["intent"] == "migrate 1999"
        assert extra["freeing"] == "1999"
        assert extra["freeing-fencer"] == "yes"
        assert extra["fence-ask"] == "unstopped 86401"
        assert len(extra[DIGEST_LINE]) == len(extra[KEYS_LINE]) == 8
        assert extra["api"].count(",") == 3
        assert extra["speaks"] == "2", "and so all of its VMs are there"
        seen = paths_of(extra)
        assert {n: path.ok for n, path in seen.items()} == {n: path.ok for n, path in paths.items()}
        assert int(extra[LEFT_OUT_KEY]) > 0

        await reader.beat(1.0)
        (own,) = (host for host in broker.status(1.0).hosts.values() if host.local)
        assert own.left_out == int(extra[LEFT_OUT_KEY])
        assert reader.status(1.0).hosts[1].left_out == own.left_out
        (peer,) = reader.view(1.0).peers
        assert (peer.memory_short, peer.speaks, len(peer.vms)) == (True, 2, 50)

    asyncio.run(run())


def test_few_failures_stand_apart_with_their_sentences() -> None:
    paths = dict.fromkeys(range(1, 26), FINE) | {
        26: FencePathOnWire(False, 1_700_000_000.0, 1_800_000_000.0, 5.0, "wrong password"),
        27: FencePathOnWire(False, None, 1_800_000_100.0, 5.0, "no route"),
        29: FINE,
    }
    lines = path_lines(paths)
    assert lines == {
        "paths": "bad 26 1700000000 1800000000 5.00;bad 27 - 1800000100 5.00;"
        "ok 1-25,29 1800000000 1800000300 0.31",
        "path-26": "wrong password",
        "path-27": "no route",
    }
    assert paths_of(lines) == paths


def test_many_failures_stand_together_with_the_oldest_of_their_times() -> None:
    paths = {
        n: FencePathOnWire(False, None, 1_800_000_000.0 + n, 5.0, f"why {n}")
        for n in range(1, APART_MAX + 2)
    }
    lines = path_lines(paths)
    assert lines["paths"] == f"bad 1-{APART_MAX + 1} - 1800000001 5.00"
    assert paths_of(lines)[3] == FencePathOnWire(False, None, 1_800_000_001.0, 5.0, "why 3")


def test_groups_that_have_no_room_in_a_line_go_on_in_the_next() -> None:
    paths = {
        n: FencePathOnWire(True, 1_800_000_000.0, 1_800_000_000.0, float(n % 100))
        for n in range(1, 2000, 2)
    }
    lines = path_lines(paths)
    assert "paths-2" in lines
    assert all(len(line) < EXTRA_LINE_BYTES_MAX - len("paths-99=") for line in lines.values())
    assert paths_of(lines) == paths


def test_a_slow_device_does_not_make_the_others_slow() -> None:
    slow = FencePathOnWire(True, 1_800_000_000.0, 1_800_000_000.0, 8.5)
    seen = paths_of(path_lines({1: FINE, 2: slow, 3: FINE}))
    assert (seen[1].took_s, seen[2].took_s) == (0.31, 8.5)


def test_the_lines_of_an_earlier_version_are_read() -> None:
    extra = {
        "fence-path-3": "bad - 1800000000 8.00 wrong password",
        "fence-path-4": "ok 1800000000 1800000000 0.31",
        "fence-path-x": "ok 1800000000 1800000000 0.31",
        "fence-path-9999": "ok 1800000000 1800000000 0.31",
        "fence-path-5": "fine",
    }
    assert paths_of(extra) == {
        3: FencePathOnWire(False, None, 1_800_000_000.0, 8.0, "wrong password"),
        4: FencePathOnWire(True, 1_800_000_000.0, 1_800_000_000.0, 0.31),
    }


@pytest.mark.parametrize(
    "line",
    ["", ";;;", "ok 0 - 1 0.00", "ok 5-3 - 1 0.00", "ok 1-9999 - 1 0.00", "ok x - 1 0.00", "ok 1"],
)
def test_what_is_no_way_is_left_out(line: str) -> None:
    assert paths_of({"paths": line}) == {}


def test_a_sentence_is_cut() -> None:
    assert len(path_lines({1: BROKEN})["path-1"]) == DETAIL_CHARS_MAX


def test_a_family_of_keys_has_one_place() -> None:
    lines = dict.fromkeys(("path-7", "config", "penalty-load", "unheard-of", "paths-2"), "1")
    kept, _ = fit(lines)
    assert list(kept) == ["paths-2", "unheard-of", "penalty-load", "config", "path-7"]
