# SPDX-License-Identifier: LGPL-2.1-or-later
"""What happens to a VM of the registry is an event with its name."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from agent.commands.events import as_line
from broker.events.detector import EventDetector
from broker.events.notice import Notice, StampedNotice
from broker.notify.folding import Folding
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
