# SPDX-License-Identifier: LGPL-2.1-or-later
"""What happens to a VM of the registry is an event with its name."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from agent.commands.events import as_line
from agent.commands.why_vm import explain
from agent.status.text import what_is_wrong
from broker.broker import Broker
from broker.events.detector import EventDetector
from broker.events.notice import Notice
from broker.events.of_slots import PeerVms
from broker.notify.folding import Folding
from broker.notify.message import StampedNotice
from broker.whiteboard.slot import SlotReport
from broker.whiteboard.vm_lines import UNPROTECTED, numbers_in
from broker.wire.exchange import BegunReason, Report, VmReportOnWire
from broker.wire.kinds import Kind
from broker.wire.status import ReasonOnWire
from scoring.vm_facts import EngineStatus, Health, VmHere, VmStatus
from tests.fakes.broker import FakeVms, make_broker, record, registry_of, report
from tests.fakes.slot_store import MemoryVolume

UP = EngineStatus(VmStatus.UP, Health.GOOD, "up")
BOOTS = EngineStatus(VmStatus.UP, Health.UNKNOWN, "up")
DIED = EngineStatus(VmStatus.DOWN_UNEXPECTED, Health.BAD, "its process died")
LEFT = EngineStatus(VmStatus.DOWN, Health.BAD, "migrated")
DOWN = EngineStatus(VmStatus.DOWN, Health.BAD, "shut down")
UNKNOWN = EngineStatus(VmStatus.UNKNOWN, Health.UNKNOWN, "unknown")


def made() -> tuple[EventDetector, list[Notice]]:
    sent: list[Notice] = []
    detector = EventDetector(sent.append, 1, "host1")
    detector.vms.names = {2: "db", 3: "web"}
    return detector, sent


def saying(beat: int, *vms: VmReportOnWire, begun: tuple[BegunReason, ...] = ()) -> Report:
    return msgspec.structs.replace(report(), vms=vms, beat=beat, begun=begun)


def vm(state: str, number: int = 2) -> VmReportOnWire:
    return VmReportOnWire(number, state, reasons=(ReasonOnWire("engine-booting", "it boots"),))


def test_a_transition_names_its_vm_and_has_the_shape_of_the_engine_s() -> None:
    detector, sent = made()
    for beat, state in enumerate(("EngineStart", "EngineStarting", "EngineStarting"), 2):
        detector.reported(saying(beat, vm(state)), 1.0, 0.0)
    (notice,) = sent
    assert (notice.kind, notice.subject) == (Kind.STATE_TRANSITION, "host1")
    assert notice.detail == "EngineStart-EngineStarting"
    assert notice.facts == {
        "vm": "db",
        "from": "EngineStart",
        "to": "EngineStarting",
        "reason": "it boots",
        "code": "engine-booting",
    }


def test_a_machine_that_was_not_there_began_down_unless_the_agent_is_another_one() -> None:
    detector, sent = made()
    detector.reported(saying(7), 1.0, 0.0)
    detector.reported(saying(8, vm("EngineStart"), vm("EngineDown", 3)), 1.0, 0.0)
    assert [notice.detail for notice in sent] == ["EngineDown-EngineStart"]
    detector.reported(saying(9), 1.0, 0.0)
    detector.reported(saying(1, vm("EngineUp")), 1.0, 0.0)
    assert len(sent) == 1


def test_that_a_vm_elsewhere_is_unknown_for_a_moment_is_no_transition() -> None:
    """Each broker that starts has not sampled its VMs yet: that was two mails for each of them."""
    detector, sent = made()
    detector.reported(saying(1), 1.0, 0.0)
    for beat, state in enumerate(("UnknownLocalVmState", "EngineDown", "EngineStart"), 2):
        detector.reported(saying(beat, vm(state)), 1.0, 0.0)
    assert [notice.detail for notice in sent] == ["EngineDown-EngineStart"]
    detector.vms.look([VmHere(UP, 1.0, number=2)])
    detector.reported(saying(9, vm("UnknownLocalVmState")), 1.0, 0.0)
    assert sent[-1].detail == "EngineStart-UnknownLocalVmState"


def test_a_reason_with_a_notice_of_its_own_names_its_vm() -> None:
    detector, sent = made()
    failed = BegunReason(7, "start-failed", "start number 1 failed: no bridge", 3)
    for beat in (7, 8):
        detector.reported(saying(beat, begun=(failed,)), 1.0, 0.0)
    (notice,) = sent
    assert notice.kind is Kind.START_FAILED
    assert notice.facts == {"vm": "web", "code": "start-failed"}


@pytest.mark.parametrize(
    ("samples", "kinds"),
    [
        ((UP, UP), []),  # it ran before this broker did
        ((DOWN, BOOTS, UP, UP), [Kind.VM_UP]),
        ((DOWN, UP, BOOTS, UP), [Kind.VM_UP]),
        ((UP, DIED, DIED), [Kind.VM_DOWN]),
        ((UP, DOWN), [Kind.VM_DOWN]),
        ((UP, LEFT), []),  # the target reports it
        ((UP, UNKNOWN, UP), []),
        ((UP, UNKNOWN, DIED), [Kind.VM_DOWN]),
        ((DOWN, DIED), []),
    ],
)
def test_a_vm_that_comes_up_or_ends_here_is_an_event(
    samples: tuple[EngineStatus, ...], kinds: list[Kind]
) -> None:
    detector, sent = made()
    for sample in samples:
        detector.vms.look([VmHere(sample, 1.0, number=2)])
    assert [notice.kind for notice in sent] == kinds
    assert all(notice.facts["vm"] == "db" for notice in sent)


def test_the_same_sentence_on_two_vms_is_two_notices() -> None:
    folding = Folding(10)

    def take(name: str) -> StampedNotice | None:
        notice = Notice(Kind.STATE_TRANSITION, "host1", "EngineDown-EngineStart", {"vm": name})
        return folding.take(StampedNotice(notice, 0.0), 1.0)

    assert [take(name) is not None for name in ("db", "web", "db")] == [True, True, False]


def test_events_of_a_vm_are_kept_and_shown_with_its_name(tmp_path: Path) -> None:
    async def run() -> None:
        vms = FakeVms(VmHere(DOWN, 1.0, number=2))
        registry = registry_of(record(2, "db"))
        broker = make_broker(tmp_path, MemoryVolume(), registry=registry, vms=vms)
        await broker.beat(1.0)
        broker.take_report(saying(1), 1.0)
        broker.take_report(saying(2, vm("EngineStart")), 1.5)
        vms.find(VmHere(UP, 2.0, number=2))
        await broker.beat(2.0)
        found = {event.kind: event for event in broker.events.after(0).events}
        assert found["vm-up"].text == "db is up and healthy on host1"
        moved = found["state-transition"]
        assert (moved.host, moved.host_id, moved.facts["vm"]) == ("host1", 1, "db")
        line = as_line(moved)
        assert line.endswith("db: EngineDown -> EngineStart because it boots")

    asyncio.run(run())


# --- on the other hosts -------------------------------------------------------------------------


def moves(broker: Broker) -> list[tuple[str, int | None, object, str]]:
    return [
        (event.host, event.host_id, event.facts["vm"], event.text)
        for event in broker.events.after(0).events
        if event.kind == Kind.STATE_TRANSITION
    ]


def test_each_host_has_the_transitions_of_every_vm_on_every_host(tmp_path: Path) -> None:
    """A failover happens on two hosts; a third is asked for its events."""

    async def run() -> None:
        volume = MemoryVolume()
        vms = FakeVms(VmHere(DOWN, 1.0, number=2))
        runs = make_broker(
            tmp_path, volume, 1, registry=registry_of(record(2, "db")), vms=vms, boot_id="a"
        )
        other = make_broker(tmp_path, volume, 2, registry=registry_of(record(2, "db")))
        # The reason to stay comes first; the one that led there is the cause.
        reasons = (ReasonOnWire("unexpected-down-waiting", "for 9 s"), ReasonOnWire("a", "it died"))
        dying = VmReportOnWire(2, "EngineUnexpectedlyDown", reasons=reasons)
        for beat, sample, *said in (
            (1, DOWN),
            (2, DOWN, vm("EngineStart")),
            (3, BOOTS, vm("EngineStarting")),
            (4, UP, vm("EngineUp")),
            (5, UP, vm("EngineUp")),
            (6, DIED, dying),
            (7, DOWN),
        ):
            vms.find(VmHere(sample, float(beat), number=2))
            runs.take_report(saying(beat, *said), float(beat))
            await runs.beat(float(beat))
            await other.beat(float(beat))
        assert moves(other) == [
            ("host1", 1, "db", "EngineDown-EngineStart"),
            ("host1", 1, "db", "EngineStart-EngineStarting"),
            ("host1", 1, "db", "EngineStarting-EngineUp"),
            ("host1", 1, "db", "EngineUp-EngineUnexpectedlyDown"),
            ("host1", 1, "db", "EngineUnexpectedlyDown-EngineDown"),
        ]
        for broker in (runs, other):
            events = [e for e in broker.events.after(0).events if e.kind == Kind.STATE_TRANSITION]
            causes = [event.facts["reason"] for event in events]
            assert causes[:4] == ["it boots", "it boots", "it boots", "it died"]

    asyncio.run(run())


def states(*entries: str, boot: str = "a", speaks: str = "2", **more: str) -> SlotReport:
    """Host 2's slot with these entries of VMs."""
    extra = {"boot-id": boot, "registry": "1", "vms": " ".join(entries), "speaks": speaks} | more
    return SlotReport(2, 1, 3400, DOWN, "host2", extra=extra, extra_trusted=True)


@pytest.mark.parametrize(
    ("slots", "found"),
    [
        ((states("2:Ug1"), states("2:Ug1")), []),
        ((states(), states("2:Ug1=B"), states("2:Ug1")), ["Down-Starting", "Starting-Up"]),
        ((states("2:Ug1"), states()), ["Up-Down"]),
        # Unknown, and an agent that is away, change nothing.
        ((states("2:Ug1"), states("2:K1"), states("2:Ug1")), []),
        ((states("2:Ug1"), states("2:K1"), states("2:X1")), ["Up-UnexpectedlyDown"]),
        ((states("2:Ug1"), states("2:Ug1", agent="silent 5"), states("2:Ug1")), []),
        ((states("2:K1"), states("2:Ug1")), []),
        ((states("2:Ug1", agent="stopped"), states("2:Ug1")), []),
        # A slot that lacks a line lists not all VMs.
        ((states("2:Ug1"), states(speaks=""), states("2:Ug1")), []),
        ((states(speaks=""), states("2:Ug1")), []),
        # What ran before a boot has ended with the host.
        ((states("2:Ug1"), states(boot="b"), states("2:Ug2", boot="b")), ["Down-Up"]),
        ((states("2:Ug1"), replace(states(), extra_trusted=False), states("2:Ug1")), []),
    ],
)
def test_what_another_host_says_of_a_vm_is_an_event_where_it_is_news(
    slots: tuple[SlotReport, ...], found: list[str]
) -> None:
    peers = PeerVms()
    changed = [each for slot in slots for each in peers.look(slot)]
    said = [f"{each.before}-{each.state}".replace("Engine", "") for each in changed]
    assert said == found
    assert all(each.number == 2 for each in changed)


@pytest.mark.parametrize(
    ("code", "text", "line"),
    [
        ("vm-unprotected", "without its lease", "UNPROTECTED: db runs on host1 without its lease"),
        (
            "drain-stuck",
            "it cannot be migrated",
            "NOT DRAINED: db stays on host1, which is in local",
        ),
    ],
)
def test_every_host_says_what_is_wrong_with_a_vm(
    tmp_path: Path, code: str, text: str, line: str
) -> None:
    """Before, only the host that ran it did, and of a VM of the registry not even that one."""

    async def run() -> None:
        volume, registry = MemoryVolume(), registry_of(record(2, "db"))
        vms = FakeVms(VmHere(UP, 1.0, number=2))
        runs = make_broker(tmp_path, volume, 1, registry=registry, vms=vms)
        other = make_broker(tmp_path, volume, 2, registry=registry)
        given = (ReasonOnWire(code, text),)
        for beat, reasons in ((1, given), (2, given), (3, ())):
            runs.take_report(saying(beat, VmReportOnWire(2, "EngineUp", reasons=reasons)), beat)
            await runs.beat(float(beat))
            await other.beat(float(beat))
            for broker in (runs, other):
                shown = broker.status(float(beat))
                said = [each for each in what_is_wrong(shown) if each.startswith(line)]
                # The first look at another host is no sign of life.
                is_seen = bool(reasons) and (broker is runs or beat > 1)
                assert len(said) == is_seen
                db = next(vm for vm in shown.vms if vm.number == 2)
                assert any(text in each for each in explain(shown, db)) is bool(reasons)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("line", "numbers"),
    [("", ()), ("1", (1,)), ("1,4-5", (1, 4, 5)), ("0,x,3,129-2000", (3,)), ("2,2", (2,))],
)
def test_a_foreign_line_of_unprotected_vms_is_read_with_care(
    line: str, numbers: tuple[int, ...]
) -> None:
    assert numbers_in({"unprotected": line}, UNPROTECTED) == numbers
