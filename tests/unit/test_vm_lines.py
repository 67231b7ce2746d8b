# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a host's slot says of the VMs beside the engine, and what a reader makes of it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.whiteboard.extra import line_bytes
from broker.whiteboard.room import fit
from broker.whiteboard.sizes import SLOT_BYTES
from broker.whiteboard.slot import SlotReport, decode_slot, encode_slot
from broker.whiteboard.vm_lines import (
    NOTHING,
    Memory,
    SlotVms,
    claims_in,
    decode,
    lines,
    reached_in,
    reached_lines,
)
from broker.wire.exchange import VmReportOnWire
from broker.wire.limits import VMS_MAX
from broker.wire.status import ReasonOnWire
from scoring.vm.seen import NOT_LISTED, NOTHING_SAID, at
from scoring.vm.state import StateName
from scoring.vm_facts import (
    Claim,
    EngineStatus,
    Health,
    OutsideView,
    PeerVm,
    VmHere,
    VmStatus,
)
from tests.unit.builders import peer

UP = EngineStatus(VmStatus.UP, Health.GOOD, "up")
SICK = EngineStatus(VmStatus.UP, Health.BAD, "up", "the health page answers 503")
MOVING = EngineStatus(VmStatus.UP, Health.GOOD, "migration source")
DOWN = EngineStatus(VmStatus.DOWN, Health.BAD, "shut down")
DIED = EngineStatus(VmStatus.DOWN_UNEXPECTED, Health.BAD, "its process died")
NOT_KNOWN = EngineStatus(VmStatus.UNKNOWN, Health.UNKNOWN, "unknown", "libvirt does not answer")
MEMORY = Memory(131_072.0, 98_304.9, 0.0)


def here(number: int, report: EngineStatus, last_ran: int = 0) -> VmHere:
    return VmHere(report, 10.0, last_ran=last_ran, number=number)


def made(
    *vms: VmHere,
    said: tuple[VmReportOnWire, ...] = (),
    claims: tuple[Claim, ...] = (),
    elsewhere: dict[int, int] | None = None,
    now_s: float = 10.0,
) -> dict[str, str]:
    reported = {each.number: each for each in said}
    return lines(14, MEMORY, vms, reported, claims, elsewhere or {}, now_s)


def read(extra: Mapping[str, str], read_s: float | None = 1000.0, away: bool = False) -> SlotVms:
    found = decode(extra, 3, read_s, away)
    assert claims_in(extra, 3, read_s) == found.claims, "the claims alone are the same"
    return found


def test_the_lines_are_those_of_the_design() -> None:
    vms = (here(2, UP, 17), here(5, MOVING, 9), here(7, DOWN, 4), here(9, DIED))
    said = (
        VmReportOnWire(2, "EngineUp", 17),
        VmReportOnWire(5, "EngineMigratingAway", 9, moving_to=3, moving_until_s=250.0),
        VmReportOnWire(7, "EngineDown", 4),
        VmReportOnWire(9, "EngineUnexpectedlyDown", barred_until_s=422.0),
    )
    extra = made(*vms, said=said, claims=(Claim(8, 1, 3, 70.0),))
    assert extra == {
        "registry": "14",
        "mem": "131072/98304/0",
        "claims": "8>1/60",
        "vms": "2:Ug17 5:Mg9>3/240 7:D4 9:X0!412",
        "speaks": "2",
    }
    found = read(extra)
    assert found == SlotVms(
        {
            2: PeerVm(UP, "EngineUp", 17),
            5: PeerVm(MOVING, "EngineMigratingAway", 9, 1240.0, target=3),
            7: PeerVm(EngineStatus(VmStatus.DOWN, Health.BAD), "EngineDown", 4),
            9: PeerVm(
                EngineStatus(VmStatus.DOWN_UNEXPECTED, Health.BAD),
                "EngineUnexpectedlyDown",
                0,
                barred_until_s=1412.0,
            ),
        },
        (Claim(8, 1, 3, 1060.0),),
        2,
        14,
        Memory(131_072.0, 98_304.0, 0.0),
    )


def test_without_a_registry_there_is_no_line() -> None:
    assert lines(0, MEMORY, (here(2, UP),), {}, (), {}, 1.0) == {}
    assert read({"speaks": "2", "vms": "2:Ug17"}) == NOTHING


@pytest.mark.parametrize(
    ("report", "last_ran", "elsewhere", "state", "is_there"),
    [
        (UP, 0, 9, "EngineUp", True),
        (DOWN, 0, 0, "EngineDown", False),
        (DOWN, 4, 3, "EngineDown", True),  # it ran here last
        (DOWN, 4, 5, "EngineDown", False),
        (DOWN, 4, 5, "EngineStart", True),
        (DOWN, 0, 0, "LocalMaintenance", False),
        (DOWN, 0, 0, "AgentStopped", False),
        (NOT_KNOWN, 0, 9, "EngineDown", True),  # unknown is not down
        (DIED, 0, 9, "EngineDown", True),
    ],
)
def test_a_host_lists_what_is_up_acting_or_unknown_there_and_what_ran_there_last(
    report: EngineStatus, last_ran: int, elsewhere: int, state: str, is_there: bool
) -> None:
    extra = made(
        here(2, report, last_ran), said=(VmReportOnWire(2, state),), elsewhere={2: elsewhere}
    )
    assert ("vms" in extra) is is_there
    assert at(peer(3, vms=read(extra).vms, speaks=2), 2).report.vm is report.vm


def test_a_vm_that_is_barred_is_listed_until_it_is_not() -> None:
    barred = (VmReportOnWire(2, "EngineDown", barred_until_s=20.0),)
    assert made(here(2, DOWN), said=barred, now_s=19.5)["vms"] == "2:D0!1"
    assert "vms" not in made(here(2, DOWN), said=barred, now_s=20.0)


def test_a_claim_that_is_over_is_not_written() -> None:
    assert "claims" not in made(claims=(Claim(2, 1, 3, 10.0),), now_s=10.0)


def test_an_agent_that_is_away_does_nothing_but_its_claims_stand_until_they_end() -> None:
    moving = VmReportOnWire(5, "EngineMigratingAway", moving_to=3, moving_until_s=250.0)
    extra = made(here(5, MOVING), said=(moving,), claims=(Claim(8, 1, 3, 70.0),))
    found = read(extra, away=True)
    assert found.vms[5] == PeerVm(MOVING)
    assert found.claims == (Claim(8, 1, 3, 1060.0),)


def test_when_lines_were_read_at_an_unknown_time_no_time_follows_from_them() -> None:
    moving = VmReportOnWire(5, "EngineMigratingAway", moving_to=3, moving_until_s=250.0)
    extra = made(here(5, MOVING), said=(moving,), claims=(Claim(8, 1, 3, 70.0),))
    found = read(extra, read_s=None)
    assert found.vms[5].moving_until_s is None
    assert (found.claims, found.speaks) == ((), 1), "a claim that is not understood hides room"


def test_why_a_vm_is_not_well_stands_in_a_sentence_that_gives_way_first() -> None:
    starting = VmReportOnWire(8, "EngineStarting", reasons=(ReasonOnWire("x", "it boots"),))
    extra = made(here(5, SICK), here(8, UP), here(9, UP), said=(starting,))
    assert (extra["vm-5"], extra["vm-8"]) == ("the health page answers 503", "it boots")
    assert "vm-9" not in extra
    assert list(fit(extra)[0])[-2:] == ["vm-5", "vm-8"]
    assert read(extra).vms[5].report.reason == "the health page answers 503"


def test_a_reader_that_misses_a_line_takes_no_vm_for_down() -> None:
    """`speaks` is the last of the lines, so that it is dropped with the first of them."""
    extra = made(*(here(number, UP) for number in range(2, 12)))
    kept, left_out = fit(extra | {"x": "y"})
    assert list(kept)[:4] == ["registry", "mem", "vms", "speaks"] and not left_out
    del extra["speaks"]
    half = peer(3, vms=read(extra).vms, speaks=read(extra).speaks)
    assert at(half, 5).report == UP
    assert at(half, 90) == NOTHING_SAID
    whole = peer(3, vms=read(extra).vms, speaks=2)
    assert at(whole, 90) == NOT_LISTED


@pytest.mark.parametrize(
    "entry",
    [
        "1:Ug3",  # the engine stands elsewhere
        "0:Ug3",
        "129:Ug3",
        "2:U3",  # up without a health
        "2:Dg3",
        "2:Qg3",
        "2:Ug3>2001/5",
        "2:Ug3>0/5",
        "2:Ug3=Q",
        "2:Ug3 2:D4",
        "2:Ug1234567890123456",
        "2",
        ":",
        "\u0662:Ug3",
    ],
)
def test_an_entry_that_cannot_be_read_makes_what_is_not_listed_unknown(entry: str) -> None:
    found = read({"registry": "14", "speaks": "2", "vms": f"3:Ug1 {entry}"})
    assert found.speaks == 1
    assert found.vms[3] == PeerVm(UP, "EngineUp", 1)


@given(
    st.dictionaries(
        st.sampled_from(["registry", "mem", "claims", "vms", "vms-2", "speaks", "vm-2"]), st.text()
    ),
    st.booleans(),
)
def test_any_text_is_read(extra: dict[str, str], away: bool) -> None:
    assert read({"registry": "1", **extra}, away=away).registry >= 0


@given(st.binary(max_size=SLOT_BYTES - 512))
def test_any_bytes_are_read(data: bytes) -> None:
    slot = encode_slot(_slot({"registry": "1"}))
    report = decode_slot(3, slot[:512] + data.ljust(SLOT_BYTES - 512, b"\0"))
    assert report is not None
    assert read(report.extra).speaks in (1, 2)


NUMBERS = st.integers(2, VMS_MAX)
PAUSED = EngineStatus(VmStatus.UP, Health.UNKNOWN, "paused", "paused by somebody")
LOST = EngineStatus(VmStatus.DOWN, Health.BAD, "already_locked")
VANISHED = EngineStatus(VmStatus.DOWN_MISSING, Health.BAD, "vanished")
REPORTS = st.sampled_from([UP, SICK, MOVING, DOWN, DIED, NOT_KNOWN, PAUSED, LOST, VANISHED])
SAID = st.builds(
    VmReportOnWire,
    st.just(0),
    st.sampled_from([state.value for state in StateName]),
    moving_to=st.none() | st.integers(1, 2000),
    moving_until_s=st.none() | st.floats(10.0, 3600.0),
    barred_until_s=st.none() | st.floats(10.5, 600.0),
)


@given(
    st.lists(st.tuples(NUMBERS, REPORTS, st.integers(0, 10**15), SAID), unique_by=lambda v: v[0]),
    st.lists(
        st.builds(
            Claim,
            st.integers(1, VMS_MAX),
            st.integers(1, 2000),
            st.just(3),
            st.floats(10.5, 90_000.0),
        ),
        max_size=20,
    ),
)
def test_what_is_written_is_read_and_no_time_becomes_shorter(
    vms: list[tuple[int, EngineStatus, int, VmReportOnWire]], claims: list[Claim]
) -> None:
    written = [here(number, report, ran) for number, report, ran, _ in vms]
    said = {
        number: VmReportOnWire(
            number,
            each.state,
            moving_to=each.moving_to if each.moving_until_s is not None else None,
            moving_until_s=each.moving_until_s,
            barred_until_s=each.barred_until_s,
        )
        for number, _, _, each in vms
    }
    extra = lines(14, MEMORY, written, said, claims, {}, 10.0)
    assert all(len(value) <= 1000 for value in extra.values())
    found = read(extra, read_s=10.0)
    assert found.speaks == 2
    assert [(c.number, c.host_id) for c in found.claims] == [(c.number, c.host_id) for c in claims]
    for one, other in zip(claims, found.claims, strict=True):
        assert other.until_s == 10.0 + math.ceil(one.until_s - 10.0)
    for vm in written:
        seen, each = at(peer(3, vms=found.vms, speaks=2), vm.number), said[vm.number]
        assert (seen.report.vm, seen.report.health) == (vm.report.vm, vm.report.health)
        if vm.report.detail in ("paused", "already_locked", "migration source"):
            assert seen.report.detail == vm.report.detail
        if vm.number in found.vms:
            assert seen.state == each.state
            assert seen.last_ran == min(vm.last_ran, 5 * 10**14)
            assert seen.target == each.moving_to
            for one_s, other_s in (
                (each.moving_until_s, seen.moving_until_s),
                (each.barred_until_s, seen.barred_until_s),
            ):
                assert (one_s is None) is (other_s is None)
                assert one_s is None or other_s is None or one_s <= other_s < one_s + 1.0


def _slot(extra: dict[str, str]) -> SlotReport:
    return SlotReport(3, 7, 3400, UP, "host3", False, False, False, 0, extra)


BUSY = st.tuples(
    st.sampled_from([UP, SICK, MOVING, DIED]),
    st.integers(0, 9999),
    st.sampled_from(["EngineUp", "EngineStarting", "EngineStop", "GlobalMaintenance"]),
    st.booleans(),
)


@given(st.lists(BUSY, min_size=50, max_size=50))
def test_50_vms_take_at_most_1100_bytes_of_lines(
    vms: list[tuple[EngineStatus, int, str, bool]],
) -> None:
    """The largest numbers, any mixture of states; each of them migrates, or is barred."""
    written, said = [], []
    for number, (report, ran, state, moves) in enumerate(vms, 79):
        written.append(here(number, report, ran))
        is_moving = report is MOVING and moves
        state = "EngineMigratingAway" if is_moving else state
        until_s = 340.0 if is_moving else None
        barred_s = 600.0 if report is DIED else None
        said.append(
            VmReportOnWire(
                number,
                state,
                ran,
                moving_to=200 if is_moving else None,
                moving_until_s=until_s,
                barred_until_s=barred_s,
            )
        )
    claims = tuple(Claim(number, 200, 3, 340.0) for number in range(100, 104))
    extra = made(*written, said=tuple(said), claims=claims)
    facts = {key: value for key, value in extra.items() if not key.startswith("vm-")}
    assert sum(line_bytes(key, value) for key, value in facts.items()) <= 1100
    assert read(facts).speaks == 2


# --- as others reach them -------------------------------------------------------------------------


def test_how_a_vm_elsewhere_is_reached_survives_the_slot() -> None:
    seen = {2: OutsideView(3, 17, 8.8), 5: OutsideView(1, 9, None, 4.0), 7: OutsideView(1, 4)}
    extra = reached_lines(seen, 10.0)
    assert extra == {"reached": "2:3/17/1.2/- 5:1/9/-/6.0"}
    found = reached_in(extra, 1000.0)
    assert found == {2: OutsideView(3, 17, 998.8), 5: OutsideView(1, 9, None, 994.0)}
    assert reached_in(extra, None) == {}, "when it was written is not known"
    other = peer(3, reached=found, speaks=2)
    assert at(other, 2) == NOT_LISTED._replace(outside=found[2])
    assert at(other, 7) == NOT_LISTED


@pytest.mark.parametrize(
    "entry", ["", "2", "1:3/17/1.2/-", "129:3/1/-/-", "2:2001/1/1.0/-", "2:0/1/1.0/-", "2:3/1/1/-"]
)
def test_what_is_no_such_entry_says_nothing(entry: str) -> None:
    assert reached_in({"reached": f"{entry} 4:3/1/0.5/-"}, 1000.0) == {4: OutsideView(3, 1, 999.5)}


def test_where_there_is_no_room_the_word_on_vms_elsewhere_goes_first() -> None:
    seen = {n: OutsideView(2000, 10**14, 5.0, 6.0) for n in range(2, 129)}
    kept, left_out = fit({**made(here(2, UP, 17)), **reached_lines(seen, 10.0)})
    assert "speaks" in kept and set(left_out) <= {f"reached-{n}" for n in range(2, 9)}
