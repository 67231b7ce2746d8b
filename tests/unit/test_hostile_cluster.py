# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whatever lies on the shared storage, a host goes on with its beat, and nothing of it steers a
terminal, a log, a page or a metric.

HA_HOSTILE_CLUSTERS=1000 tries a thousand of them.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.journal.records import Record, decode, encode, plain
from agent.status.text import as_text
from broker.api.metrics import Metrics
from broker.api.socket import serve
from broker.broker import Broker
from broker.config.load import load
from broker.lockspace.hosts import Witness
from broker.monitors.runner import MonitorRunner
from broker.monitors.watched import Watched
from broker.whiteboard.board import Board
from broker.wire.exchange import View
from broker.wire.status import Status
from scoring.decide import Decision, decide
from scoring.observation import Observation
from scoring.rules import Rules
from scoring.state import AgentState
from tests.fakes.broker import Engine, make_broker, report, up
from tests.fakes.hostile import NUMBERS, Hostile
from tests.fakes.lockspace import FakeLockspace
from tests.fakes.slot_store import MemoryStore, MemoryVolume
from tests.unit import commands

#: A few here; see above for more.
CLUSTERS = int(os.environ.get("HA_HOSTILE_CLUSTERS", "40"))
BEATS = 4


def strings(value: Any) -> list[str]:
    """All texts in plain data, keys as well."""
    match value:
        case str():
            return [value]
        case dict():
            return [text for item in value.items() for each in item for text in strings(each)]
        case list() | tuple():
            return [text for each in value for text in strings(each)]
    return []


def assert_clean(texts: list[str]) -> None:
    for text in texts:
        assert text.isprintable(), ascii(text)


def put(volume: MemoryVolume, slots: dict[int, bytes]) -> None:
    for slot, data in slots.items():
        start = slot * 4096
        if len(volume.data) < start:
            volume.data.extend(bytes(start - len(volume.data)))
        volume.data[start : start + 4096] = data


def observed(view: View) -> Observation:
    """What the agent decides on (agent/beat.py)."""
    return replace(
        view.observed(),
        fence_devices=frozenset(peer.host_id for peer in view.peers),
        migration_possible=True,
    )


class Host:
    """A host of that cluster: its broker, and what its agent would decide."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.metrics = Metrics(broker, lambda: self.now_s)
        self.now_s = 0.0
        self.state = AgentState(Rules(vm_memory_mb=4096))
        self.written = 0

    async def turn(self, now_s: float) -> None:
        """A beat, a decision on it, and all that is shown."""
        self.now_s = now_s
        self.broker.take_report(report("EngineDown"), now_s)
        await self.broker.beat(now_s)
        assert self.broker.board.write_problem == ""
        assert self.broker.board.written > self.written
        self.written = self.broker.board.written
        made = msgspec.json.decode(msgspec.json.encode(self.broker.view(now_s)), type=View)
        self.decide(observed(made), now_s)
        raw = self.broker.shown.as_json(now_s)
        assert_clean(strings(json.loads(raw)))
        assert_clean(as_text(msgspec.json.decode(raw, type=Status)).splitlines())
        text, _ = self.metrics.text("")
        assert_clean(text.decode().splitlines())
        events = msgspec.to_builtins(self.broker.events.after(0))
        assert_clean(strings(events))

    def decide(self, observation: Observation, now_s: float) -> None:
        before = self.state
        decision = decide(before, observation, now_s)
        assert_clean([reason.text for reason in decision.reasons])
        record = decode(encode(Record(0.0, now_s, observation, plain(decision), before)))
        assert record.state is not None
        again: Decision = decide(record.state, record.observation, record.now_s)
        assert plain(again) == plain(decision) == record.decision
        self.state = decision.state


@pytest.mark.parametrize("part", range(8))
def test_a_host_lives_and_shows_clean_text_whatever_the_storage_holds(
    part: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Seen to fail before text and numbers were bounded where they are decoded: 2**53 in the own
    slot, a fence record of 3,900 digits, an escape in the name of a peer."""
    caplog.set_level(logging.DEBUG)

    async def run(seed: int) -> None:
        cluster, volume = Hostile(seed), MemoryVolume()
        put(volume, cluster.slots())
        (folder := tmp_path / str(seed)).mkdir()
        broker = make_broker(folder, volume)
        if seed % 2:
            up(broker, 1.0)
        lockspace = broker.lockspace
        assert isinstance(lockspace, FakeLockspace)
        host = Host(broker)
        for beat in range(1, BEATS + 1):
            now_s = 4.0 * beat
            for peer in (2, 3, 2000):
                count = abs(NUMBERS[(seed + beat + peer) % len(NUMBERS)])
                lockspace.witnesses[peer] = Witness("live", count, count, now_s)
                lockspace.renewals.learn({peer: (count % 2**64, count % 2**64)}, now_s)
            await host.turn(now_s)
            slots = cluster.slots()
            slots.pop(broker.config.host.id, None)
            put(volume, slots)

    for seed in range(part, CLUSTERS, 8):
        try:
            asyncio.run(run(seed))
        except BaseException as error:
            error.add_note(f"hostile cluster of seed {seed}")
            raise
    for log in caplog.records:
        assert_clean([log.getMessage()])


def test_a_timestamp_at_its_end_in_the_own_slot_is_counted_anew(tmp_path: Path) -> None:
    from broker.whiteboard.slot import SlotReport, encode_slot
    from broker.wire.limits import TIMESTAMP_MAX
    from scoring.vm_facts import (
        EngineStatus,
        Health,
        VmStatus,
    )

    async def run() -> None:
        volume = MemoryVolume()
        down = EngineStatus(VmStatus.DOWN, Health.BAD, "")
        await MemoryStore(volume).write(
            1, encode_slot(SlotReport(1, TIMESTAMP_MAX, 0, down, "host1"))
        )
        broker = make_broker(tmp_path, volume)
        await broker.beat(5.0)
        assert broker.board.written == 5
        await broker.beat(6.0)
        assert broker.board.written == 6

    asyncio.run(run())


COMMANDS = (
    ("status",),
    ("--status",),
    ("vm", "adopt", "--yes"),
    ("vm", "keep", "--yes"),
    ("vm", "start", "--yes"),
    ("fence", "test", "all"),
    ("config", "check"),
    ("why",),
    ("events",),
    ("check-liveliness",),
    ("whiteboard", "dump", "{whiteboard}"),
    ("config", "diff", "2000"),
    ("doctor",),
    ("clean-metadata", "nobody"),
    ("migrate", "--to", "nobody"),
)


def test_no_command_shows_what_steers_a_terminal(site: Path) -> None:
    """Each command in both forms, on a broker that has read hostile clusters."""

    async def printed(*arguments: str) -> tuple[str, str]:
        words = [each.format(whiteboard=site.parent / "whiteboard") for each in arguments]
        environment = {**os.environ, "HA_AGENT_CONFIG": str(site)}
        done = await asyncio.to_thread(commands.run, "ha-agent", *words, env=environment)
        return done.stdout, done.stderr

    async def run() -> None:
        volume = MemoryVolume()
        broker = Broker(
            load(str(site)),
            Board(MemoryStore(volume), 1),
            FakeLockspace(),
            Watched(MonitorRunner([]), Engine()),
        )
        runner = await serve(broker, broker.config.daemon.socket)
        try:
            for seed in (1, 2, 3):
                cluster = Hostile(seed)
                for beat in range(3):
                    put(volume, {slot: data for slot, data in cluster.slots().items() if slot != 1})
                    broker.take_report(report("EngineDown"), 10.0 * seed + beat)
                    await broker.beat(10.0 * seed + beat)
            Path(broker.config.storage.whiteboard).write_bytes(volume.data)
            asked = [command for each in COMMANDS for command in (each, (*each, "--json"))]
            for command, found in zip(
                asked, await asyncio.gather(*(printed(*c) for c in asked)), strict=True
            ):
                out, err = found
                assert "Traceback" not in err, (command, err)
                assert out or err, command
                for line in (*out.split("\n"), *err.split("\n")):
                    assert line.isprintable(), (command, ascii(line))
                if command[-1] == "--json" and out:
                    for text in strings(json.loads(out)):
                        assert text.isprintable(), (command, ascii(text))
        finally:
            await runner.cleanup()

    asyncio.run(run())
