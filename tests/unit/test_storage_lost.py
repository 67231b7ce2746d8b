# SPDX-License-Identifier: LGPL-2.1-or-later
"""A host that alone has lost the storage: when it ends its VM, what it says, and what the others
make of it."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from msgspec import json, structs

from agent.report import report_of
from broker.config.cluster_key import ClusterKey
from broker.peers.asker import Pulse, _word
from broker.peers.heartbeat import Heartbeat, heard, signed
from broker.whiteboard.lost import lost_since_s
from broker.whiteboard.store import StorageTrouble
from scoring.decision import Code, DropFenceLease, PowerOffHost, PowerOffVm, TakeFenceLease
from scoring.hosts.evidence import may_power_off
from scoring.hosts.state import Takeover
from scoring.hosts.storage_lost import AHEAD_S, ENDING_S, WORD_FRESH_S, gives_up
from scoring.observation import HostShutdown, OnHostShutdown, Power, PowerAnswer
from scoring.storage_word import StorageWord
from scoring.timing import Timing
from scoring.vm.state import StateName
from scoring.vm_facts import DomainHere, EngineStatus, Health, Leftover, Pause, VmStatus
from tests.fakes.broker import make_broker, report, up
from tests.fakes.slot_store import MemoryVolume
from tests.unit.builders import (
    DEAD,
    DOWN,
    NOW_S,
    RULES,
    SICK,
    TIMING,
    UP,
    Fall,
    codes,
    evidence,
    in_state,
    kinds,
    local,
    peer,
)

_S = StateName
PATIENCE_S = TIMING.storage_patience
HAS_IT = StorageWord(NOW_S - 1, writes=True, global_maintenance=False)
GONE = StorageWord(NOW_S - 1, lost_s=PATIENCE_S, is_empty=True)
PAUSED = EngineStatus(VmStatus.UP, Health.UNKNOWN, "paused")


def blind(
    engine: EngineStatus = SICK,
    words: tuple[StorageWord | None, ...] = (HAS_IT,),
    lost_s: float | None = PATIENCE_S,
    state: StateName = _S.ENGINE_UP_BAD_HEALTH,
    here: dict[str, Any] | None = None,
    **observed: Any,
) -> Any:
    """A host that runs the VM and has read nothing for `lost_s`; what the others say."""
    since_s = None if lost_s is None else NOW_S - lost_s
    given = {"storage_lost_since_s": since_s, "lease_held": True} | (here or {})
    peers = tuple(peer(2 + n, storage_word=word) for n, word in enumerate(words))
    observed = {"fence_devices": frozenset({2}), "storage_good_since_s": None} | observed
    return in_state(state, local(engine, **given), uncertain=peers, for_s=5.0, **observed)


@pytest.mark.parametrize(
    "state", [_S.ENGINE_UP_BAD_HEALTH, _S.ENGINE_UP, _S.ENGINE_STARTING, _S.ENGINE_STOP]
)
def test_its_sick_vm_is_ended_where_another_host_has_the_storage(state: StateName) -> None:
    decision = blind(state=state)
    assert PowerOffVm in kinds(decision)
    assert Code.STORAGE_LOST in codes(decision)


def test_so_is_one_that_stands_still_since_its_disk_fails() -> None:
    decision = blind(PAUSED, here={"domain": DomainHere(pause=Pause.IO_ERROR)})
    assert Code.STORAGE_LOST in codes(decision)


@pytest.mark.parametrize(
    "given",
    [
        {"lost_s": None},
        {"lost_s": PATIENCE_S - 1},
        {"engine": UP},
        {"engine": EngineStatus(VmStatus.UP, Health.UNKNOWN, "up")},
        {"words": ()},
        {"words": (None,)},
        {"words": (replace(HAS_IT, writes=False),)},
        {"words": (replace(HAS_IT, heard_s=NOW_S - WORD_FRESH_S - 1),)},
        {"words": (replace(HAS_IT, global_maintenance=None),)},
        {"words": (HAS_IT, replace(HAS_IT, global_maintenance=True))},
        {"fence_devices": frozenset()},
        {"here": {"maintenance": True}},
        {"remembered": {"rules": replace(RULES, fence_power_off=False)}},
        {"remembered": {"rules": replace(RULES, timing=Timing(storage_patience=0))}},
        {"global_maintenance": True},
        {"global_maintenance": None},
    ],
)
def test_else_it_is_left_to_sanlock(given: dict[str, Any]) -> None:
    decision = blind(**given)
    assert PowerOffVm not in kinds(decision)
    assert Code.STORAGE_LOST not in codes(decision)


def test_a_host_that_shuts_down_ends_nothing_for_it() -> None:
    shutdown = HostShutdown(NOW_S - 1, OnHostShutdown.MIGRATE)
    assert Code.STORAGE_LOST not in codes(blind(here={"shutdown": shutdown}))


# --- what it says ---------------------------------------------------------------------------------


def life_of(broker: Any, now_s: float) -> Heartbeat:
    life = broker.sign_of_life._made("0" * 32, now_s)
    assert isinstance(life, Heartbeat)
    return life


def test_it_says_since_when_and_that_nothing_is_left(tmp_path: Path) -> None:
    async def story() -> None:
        broker = make_broker(tmp_path, MemoryVolume())
        broker.take_report(report("EngineUp"), 1.0)
        up(broker, 1.0)
        await broker.beat(1.0)
        life = life_of(broker, 1.5)
        assert (life.lost_ms, life.empty) == (None, False)
        assert life.global_maintenance is broker.board.global_maintenance
        assert broker.view(1.5).local.unwritten_since_s is None
        broker.board.write_problem = "no answer"
        assert lost_since_s(broker.board) is None, "it is read"
        assert broker.view(9.0).local.unwritten_since_s == 1.0
        broker.board.read_problem = "no answer"
        up(broker, 9.0)
        life = life_of(broker, 9.0)
        assert (life.lost_ms, life.empty, life.global_maintenance) == (8000, False, None)
        assert broker.view(9.0).local.storage_lost_since_s == 1.0
        sample = broker.monitors.latest["engine"]
        broker.monitors.latest["engine"] = replace(sample, value=DOWN)
        assert life_of(broker, 9.0).empty
        broker.this_host.vm.watched.vm.facts = DomainHere(leftover=Leftover.CRASHED)
        assert not life_of(broker, 9.0).empty, "a process is there, whatever it is good for"

    asyncio.run(story())


def test_a_vm_that_cannot_be_ended_is_given_up(tmp_path: Path) -> None:
    """The VM's process waits in the kernel for the storage: only the loss of power ends it."""

    async def story() -> None:
        broker = make_broker(tmp_path, MemoryVolume())
        broker.take_report(report("EngineUp"), 1.0)
        up(broker, 1.0)
        await broker.beat(1.0)
        broker.board.write_problem = broker.board.read_problem = "no answer"
        up(broker, 30.0)
        ending = structs.replace(report("EngineForceStop"), given_up_since_s=27.0)
        broker.take_report(ending, 30.0)
        assert not life_of(broker, 30.0).empty, "it may end within a second"
        broker.take_report(ending, 31.0)
        broker.take_report(ending, 27.0 + ENDING_S)
        assert life_of(broker, 27.0 + ENDING_S).empty
        assert not life_of(broker, 45.0).empty, "an agent that is silent ends nothing"
        broker.take_report(report("EngineForceStop"), 46.0)
        assert not life_of(broker, 46.0).empty, "it is ended for another reason"

    asyncio.run(story())


def test_since_when_a_vm_is_given_up_is_in_the_report() -> None:
    decision = blind()
    assert decision.state.engine.given_up_since_s == NOW_S
    assert report_of(decision).given_up_since_s == NOW_S


@pytest.mark.parametrize(
    ("now", "is_kept"),
    [
        ({}, True),
        ({"engine": EngineStatus(VmStatus.UNKNOWN, Health.UNKNOWN, "libvirt hangs")}, True),
        ({"engine": UP}, False),
        ({"engine": DOWN}, False),
        ({"lost_s": None}, False),
    ],
)
def test_it_is_remembered_until_the_vm_is_gone_or_well_or_the_storage_is_back(
    now: dict[str, Any], is_kept: bool
) -> None:
    since_s = NOW_S - 7.0
    decision = blind(remembered={"given_up_since_s": since_s}, **now)
    assert decision.state.engine.given_up_since_s == (since_s if is_kept else None)


def test_a_storage_that_never_gave_anything_is_lost_since_it_was_first_asked(
    tmp_path: Path,
) -> None:
    board = make_broker(tmp_path, MemoryVolume()).board
    board._failed(StorageTrouble("no answer", hung=True), 3.0)
    board.read_problem = board.write_problem = "no answer"
    assert lost_since_s(board) == 3.0


LIFE = Heartbeat(2, "a-boot", 7, VmStatus.DOWN, "0" * 32, written=6)


@pytest.mark.parametrize(
    ("said", "word"),
    [
        ({}, None),
        ({"written_ago_ms": 800}, StorageWord(5.0, writes=True)),
        ({"written_ago_ms": 3001}, StorageWord(5.0)),
        (
            {"written_ago_ms": 9000, "lost_ms": 9000, "empty": True},
            StorageWord(5.0, 9.0, is_empty=True),
        ),
        ({"written_ago_ms": 8, "lost_ms": 0}, StorageWord(5.0, 0.0)),
    ],
)
def test_what_an_answer_says(said: dict[str, Any], word: StorageWord | None) -> None:
    assert _word(structs.replace(LIFE, **said), 5.0) == word


def test_over_http_nothing_is_said_of_it() -> None:
    """There no MAC covers it."""
    key = ClusterKey(b"k" * 32)
    more = {"lost_ms": 9000, "empty": True, "global_maintenance": False, "others_up": True}
    by_itself = signed(key, structs.replace(LIFE, **more))
    added = json.encode({**json.decode(by_itself), **more, "written_ago_ms": 5})
    for raw in (by_itself, added):
        found = heard(key, raw, 2, "0" * 32)
        assert isinstance(found, Heartbeat)
        assert (found.lost_ms, found.empty, found.global_maintenance) == (None, False, None)
        assert (found.written_ago_ms, found.others_up) == (None, False)


def test_the_agent_learns_it_where_somebody_has_lost_the_storage(tmp_path: Path) -> None:
    async def story() -> None:
        volume = MemoryVolume()
        one, two = (make_broker(tmp_path, volume, host_id) for host_id in (1, 2))
        for now_s in (1.0, 2.0):
            await two.beat(now_s)
            await one.beat(now_s)
        pulse = one.heartbeats.pulses[2] = Pulse(word=HAS_IT)
        assert one.view(2.1).peers[0].storage_word is None
        pulse.word = GONE
        assert one.view(2.2).peers[0].storage_word == GONE
        pulse.unanswered_since_s = 2.0
        assert one.view(2.3).peers[0].storage_word is None
        pulse.unanswered_since_s, pulse.word = None, HAS_IT
        one.board.read_problem = one.board.write_problem = "no answer"
        assert one.view(2.4).peers[0].storage_word == HAS_IT
        assert one.heartbeats.storage_word(9) is None

    asyncio.run(story())


# --- what the others do ---------------------------------------------------------------------------


def says_lost(fall: Fall, fell_s: float, empty_from_s: float) -> float:
    """The dead host's word that it has been without the storage since `fell_s`, with no VM left
    once that lasts longer than `empty_from_s`; how long it lasts."""
    now_s, lost_s = fall.life.now_s, fall.life.now_s - fell_s
    fall.life.change_peer(
        DEAD,
        heartbeat_s=now_s,
        renewal_s=fell_s - 5,
        renewal_timestamp=77,
        storage_word=StorageWord(now_s, lost_s=lost_s, is_empty=lost_s > empty_from_s),
    )
    return lost_s


def test_it_is_switched_off_by_the_usual_protocol_although_it_answers() -> None:
    fall = Fall()
    fall.power = Power.ON
    fall.life.world["fence_log"] = ()
    fell_s = fall.life.now_s
    while PowerOffHost not in {type(action) for action in fall.actions}:
        assert says_lost(fall, fell_s, empty_from_s=PATIENCE_S) < 45
        fall.beat()
    assert PATIENCE_S < fall.life.now_s - fell_s <= 28
    order = next(a for a in fall.actions if isinstance(a, PowerOffHost))
    assert not order.asked and "lost-its-storage" in order.evidence
    assert any("has given its VMs up" in r.text for r in fall.life.history[-1].reasons)


@pytest.mark.parametrize("empty_after_s", [ENDING_S, math.inf])
def test_the_fence_lease_is_taken_while_the_vm_there_is_still_being_ended(
    empty_after_s: float,
) -> None:
    """To take it may take as long as that (CephFS); a host that keeps its VM has it given back."""
    fall = Fall()
    fall.power = Power.ON
    fall.life.world["fence_log"] = ()
    fell_s = fall.life.now_s
    at_s: dict[type, list[float]] = {}
    for _ in range(45):
        lost_s = says_lost(fall, fell_s, empty_from_s=PATIENCE_S + empty_after_s)
        for action in fall.beat().actions:
            at_s.setdefault(type(action), []).append(lost_s)
    [taken_s] = at_s[TakeFenceLease]
    # What was said a beat ago has grown by that beat.
    assert PATIENCE_S - 1 <= taken_s < PATIENCE_S + ENDING_S
    assert (PowerOffHost in at_s) is (empty_after_s == ENDING_S)
    if empty_after_s == math.inf:
        [dropped_s] = at_s[DropFenceLease]
        assert PATIENCE_S + ENDING_S < dropped_s <= PATIENCE_S + AHEAD_S + 2


@pytest.mark.parametrize(
    "word",
    [
        None,
        replace(GONE, lost_s=None),
        replace(GONE, is_empty=False),
        replace(GONE, lost_s=PATIENCE_S - 2),
        replace(GONE, heard_s=NOW_S - WORD_FRESH_S - 1),
    ],
)
def test_no_other_word_is_one(word: StorageWord | None) -> None:
    assert gives_up(peer(2, storage_word=word), NOW_S, RULES) is None


def test_its_word_counts_only_for_its_silence_on_the_network() -> None:
    assert gives_up(peer(2, storage_word=GONE), NOW_S, RULES) == GONE
    assert gives_up(None, NOW_S, RULES) is None
    never = replace(RULES, timing=Timing(storage_patience=0))
    assert gives_up(peer(2, storage_word=GONE), NOW_S, never) is None
    on = PowerAnswer(2, Power.ON, NOW_S - 1, True, "on")
    takeover = Takeover(2, NOW_S - 60, power=on, fence_since_s=NOW_S - 5, renewal=(5, 77))
    known = evidence(word=GONE)
    missing = {c.name for c in may_power_off(takeover, known, NOW_S, RULES) if not c.holds}
    assert not missing
    for changed in (
        {"slot_since_s": NOW_S - 5},
        {"looked_since_s": NOW_S - 5},
        {"fence_lease_held": False},
        {"global_maintenance": True},
    ):
        its = may_power_off(takeover, replace(known, **changed), NOW_S, RULES)
        assert len([c for c in its if not c.holds]) == 1, changed
