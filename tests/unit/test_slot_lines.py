# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a host tells of a move of the VM in its slot, and what the others make of it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.whiteboard.lines import (
    Others,
    hears_line,
    hears_of,
    intent_line,
    intent_of,
    memory_short_line,
    memory_short_of,
    peer_report,
)
from broker.whiteboard.sizes import SLOT_BYTES
from broker.whiteboard.slot import SlotReport, decode_slot
from broker.wire.status import MoveStatus, PenaltyOnWire
from scoring.hosts.state import Seen
from scoring.vm_facts import EngineStatus, Health, VmStatus
from tests.fakes.broker import make_broker, report
from tests.fakes.slot_store import MemoryVolume

MOVING = msgspec.structs.replace(
    report("EngineMigratingAway"), intent="migrate 3", moving_until_s=350.0
)


@given(st.integers(1, 2000), st.none() | st.integers(1, 2000), st.floats(0, 86_400))
def test_a_move_survives_the_slot_and_never_becomes_shorter(
    source: int, target: int | None, left_s: float
) -> None:
    words = "migrate away" if target is None else f"migrate {target}"
    told = msgspec.structs.replace(MOVING, intent=words, moving_until_s=1000.0 + left_s)
    shown, move = intent_of(intent_line(told, source, 1000.0), source)
    assert shown == words and move is not None
    assert (move.source, move.target) == (source, target)
    assert move.left_s is not None and -1e-6 < move.left_s - left_s < 1.001


def test_a_move_that_is_over_has_no_seconds_left() -> None:
    line = intent_line(MOVING, 1, 999.0)
    assert line == "migrate 3 from 1 within 0 s"
    assert intent_of("migrate 3 from 1 within 5 s", 1, age_s=7.0)[1] == MoveStatus(1, 3, 0.0)


def test_what_earlier_versions_wrote_is_a_move_without_an_end() -> None:
    assert intent_of("migrate 3", 1) == ("migrate 3", MoveStatus(1, 3, None))


@pytest.mark.parametrize(
    "line",
    [
        "",
        "fence 3",
        "switch on 3",
        "migrate",
        "migrate 3 from 2 within 340 s",  # of another host
        "migrate 3 from 1 within 9999999 s",
        "migrate 3 from 1 within -1 s",
        "migrate 3 from 1 within 1e3 s",
        "migrate \u0663 from 1 within 5 s",
        "migrate 3 from 1 within 5 s\n",
    ],
)
def test_anything_else_is_only_shown(line: str) -> None:
    assert intent_of(line, 1) == (line, None)


@given(st.text())
def test_any_text_is_read(line: str) -> None:
    shown, move = intent_of(line, 1)
    assert move is not None or shown == line


def test_the_end_of_a_move_is_by_the_readers_clock() -> None:
    def read(seen: Seen | None, **extra: str) -> float | None:
        slot = SlotReport(
            host_id=1,
            timestamp=7,
            score=0,
            engine_status=EngineStatus(VmStatus.UP, Health.GOOD),
            hostname="host1",
            maintenance=False,
            stopped=False,
            conf_on_shared_storage=False,
            local_conf_timestamp=0,
            extra=extra,
            extra_trusted=True,
        )
        return peer_report(slot, seen, Others()).engine.moving_until_s

    line = "migrate 3 from 1 within 340 s"
    assert read(Seen(7, 50.0, changed=True), intent=line) == 390.0
    assert read(Seen(6, 50.0, changed=True), intent=line) is None, "when it was read is not known"
    assert read(None, intent=line) is None
    assert read(Seen(7, 50.0, changed=True), intent="migrate 3") is None
    assert read(Seen(7, 50.0, changed=True)) is None


def test_a_move_is_in_the_slot_and_in_every_status(tmp_path: Path) -> None:
    async def run() -> None:
        volume = MemoryVolume()
        one, two = make_broker(tmp_path, volume, 1), make_broker(tmp_path, volume, 2)
        one.take_report(MOVING, 9.0)
        await one.beat(10.0)
        await two.beat(10.0)
        slot = decode_slot(1, bytes(volume.data[SLOT_BYTES : 2 * SLOT_BYTES]))
        assert slot is not None and slot.extra["intent"] == "migrate 3 from 1 within 340 s"
        assert two.view(10.0).peers[0].moving_until_s == 350.0
        for broker in (one, two):
            host = broker.status(11.5).hosts[1]
            assert host.intent == "migrate 3"
            assert host.move is not None
            assert (host.move.source, host.move.target) == (1, 3)
            assert host.move.left_s in (338.5, 339.0), "its own is in whole seconds"
        # An agent that is silent moves nothing.
        await one.beat(60.0)
        assert one.status(60.0).hosts[1].move is None

    asyncio.run(run())


def test_whom_a_host_hears_is_written_in_few_characters() -> None:
    assert hears_line([3, 1, 2, 9]) == "1-3,9"
    assert hears_of("1-3,9") == {1, 2, 3, 9}
    assert hears_line([]) == ""
    assert hears_of("") == hears_of("x,0,5-3,9999") == frozenset()


@pytest.mark.parametrize(
    ("extra", "is_short"),
    [
        ({"memory-short": "yes"}, True),
        ({"penalty-memory": "400 100 MiB are free, the VM needs 4096 MiB"}, True),
        ({"memory-short": "maybe"}, False),
        ({"penalty-cpu-load": "7 load"}, False),
    ],
)
def test_a_host_short_of_memory_says_so_as_earlier_versions_do_and_in_a_line_of_its_own(
    extra: dict[str, str], is_short: bool
) -> None:
    assert memory_short_of(extra) is is_short


def test_only_the_penalty_for_memory_is_written_as_being_short_of_it() -> None:
    assert memory_short_line([PenaltyOnWire("cpu-load", 7, "load")]) == ""
    assert memory_short_line([PenaltyOnWire("memory", 400, "100 MiB are free")]) == "yes"
