# SPDX-License-Identifier: LGPL-2.1-or-later
"""The VM asked from another host: what is seen, how often it is asked, and who is in doubt."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from agent.commands.why import explain
from agent.status.sentences import outside
from agent.status.text import as_text
from agent.status.troubles import troubles
from broker.config.sections import HealthSection, NetworkSection
from broker.monitors.bridge import UplinkMonitor, vm_bridges
from broker.monitors.network import NetworkMonitor
from broker.monitors.outside import IDLE_S, LATE_S, OutsideMonitor, Place, is_local
from broker.monitors.runner import Unknown
from broker.monitors.vms_outside import VmsOutside
from broker.monitors.way_out import ASKED_S, FAILURES, WayOutMonitor
from broker.peers.outside_watch import ASKERS_MAX, STAYS_S, OutsideWatch, Plan, reached
from broker.whiteboard.lines import (
    outside_line,
    outside_of,
    uplink_line,
    uplink_of,
    way_out_line,
    way_out_of,
)
from broker.wire.status import EngineSummary, HostStatus, OutsideStatus
from scoring.rules import Rules
from scoring.vm_facts import OutsideView, PeerVm
from tests.fakes.broker import make_broker, record, report, up
from tests.fakes.slot_store import MemoryVolume
from tests.fakes.statuses import UP as UP_THERE
from tests.fakes.statuses import host, status
from tests.fakes.tcp import NOWHERE, free_port, listening, take
from tests.unit.builders import DOWN, NOW_S, SICK, TIMING, UP, peer
from tests.unit.namespace import card, made

OFTEN, SELDOM = TIMING.outside_interval, TIMING.outside_seldom


class Page:
    """OutsideProbe: answers as the test sets it."""

    def __init__(self) -> None:
        self.answer: str | None = None
        self.meanwhile: Callable[[], object] = lambda: None

    async def problem(self) -> str | None:
        self.meanwhile()
        return self.answer


# --- what is seen -------------------------------------------------------------------------------


def test_it_is_asked_only_while_the_vm_is_up_on_another_host() -> None:
    async def run() -> None:
        page = Page()
        monitor = OutsideMonitor(page, 5.0)
        with pytest.raises(Unknown):
            await monitor.sample()
        assert monitor.watch(Place(1, 7), OFTEN) and monitor.interval_s == OFTEN
        assert await monitor.sample() and monitor.judge(True) == ""
        assert monitor.seen is not None and monitor.seen.good_s is not None
        monitor.watch(None, OFTEN)
        assert monitor.seen is None and monitor.interval_s == IDLE_S
        with pytest.raises(Unknown):
            await monitor.sample()

    asyncio.run(run())


def test_since_when_it_is_missed_is_the_first_question_without_an_answer() -> None:
    async def run() -> None:
        page = Page()
        monitor = OutsideMonitor(page, 5.0)
        monitor.watch(Place(1, 7), OFTEN)
        await monitor.sample()
        good = monitor.seen
        page.answer = "no answer"
        assert await monitor.sample() is False and monitor.judge(False) == "no answer"
        first = monitor.seen
        await monitor.sample()
        assert good is not None and first is not None and monitor.seen == first
        assert first.good_s == good.good_s and first.bad_since_s is not None
        page.answer = None
        await monitor.sample()
        assert monitor.seen is not None and monitor.seen.bad_since_s is None

    asyncio.run(run())


def test_a_question_that_waits_is_no_miss_and_a_reason_to_look_at_the_own_network() -> None:
    async def run() -> None:
        page, clock = Page(), asyncio.get_running_loop().time
        monitor = OutsideMonitor(page, 5.0)
        monitor.watch(Place(1, 7), OFTEN)
        late: list[bool] = []
        page.meanwhile = lambda: late.extend(
            (monitor.is_late(clock()), monitor.is_late(clock() + LATE_S))
        )
        await monitor.sample()
        await monitor.sample()
        assert late == [False, False, False, True], "not before it has answered once"
        assert not monitor.is_late(clock() + LATE_S), "nothing is asked now"
        assert monitor.seen is not None and monitor.seen.bad_since_s is None

    asyncio.run(run())


@pytest.mark.parametrize("place", [Place(2, 7), Place(1, 8)])
def test_another_place_is_seen_anew_and_at_once(place: Place) -> None:
    async def run() -> None:
        monitor = OutsideMonitor(Page(), 5.0)
        monitor.watch(Place(1, 7), OFTEN)
        await monitor.sample()
        assert not monitor.watch(Place(1, 7), OFTEN), "no reason to ask sooner"
        assert monitor.watch(place, OFTEN)
        assert monitor.seen == OutsideView(place.owner, place.stay)

    asyncio.run(run())


@pytest.mark.parametrize("now", [None, Place(2, 8)])
def test_an_answer_that_came_after_the_vm_moved_says_nothing(now: Place | None) -> None:
    async def run() -> None:
        page = Page()
        monitor = OutsideMonitor(page, 5.0)
        monitor.watch(Place(1, 7), OFTEN)
        page.meanwhile = lambda: monitor.watch(now, OFTEN)
        with pytest.raises(Unknown, match="moved"):
            await monitor.sample()
        assert monitor.seen is None or monitor.seen.good_s is None

    asyncio.run(run())


def test_to_be_asked_more_often_is_to_be_asked_now() -> None:
    monitor = OutsideMonitor(Page(), 5.0)
    monitor.watch(Place(1, 7), SELDOM)
    assert monitor.watch(Place(1, 7), OFTEN) and not monitor.watch(Place(1, 7), SELDOM)


def test_what_only_its_own_host_can_ask_is_not_asked() -> None:
    monitor = OutsideMonitor(None, 5.0)
    assert not monitor.watch(Place(1, 7), OFTEN) and monitor.seen is None


@pytest.mark.parametrize(
    ("given", "local"),
    [
        ({}, True),
        ({"guest_agent": True}, True),
        ({"url": "http://localhost/health"}, True),
        ({"url": "http://LOCALHOST:8080/"}, True),
        ({"url": "http://127.1.2.3/"}, True),
        ({"url": "http://[::1]/"}, True),
        ({"url": "http://a.localhost/"}, True),
        ({"tcp": "localhost:80"}, True),
        ({"tcp": "[::1]:80"}, True),
        ({"tcp": "192.0.2.1:80"}, False),
        ({"tcp": "[2001:db8::1]:80"}, False),
        ({"url": "https://engine.example/"}, False),
        ({"fqdn": "engine.example"}, False),
    ],
)
def test_which_checks_can_be_asked_from_outside(given: dict[str, object], local: bool) -> None:
    assert is_local(HealthSection(**given)) is local  # type: ignore[arg-type]


# --- the way out ----------------------------------------------------------------------------------


def test_no_way_out_takes_several_questions_and_one_answer_is_one() -> None:
    async def run() -> None:
        answers = [False] * FAILURES + [True, False]

        async def any_answers() -> bool:
            return answers.pop(0)

        monitor = WayOutMonitor(any_answers)
        with pytest.raises(Unknown, match="only while"):
            await monitor.sample()
        assert monitor.ask(True) and not monitor.ask(True) and monitor.interval_s == ASKED_S
        for _ in range(FAILURES - 1):
            with pytest.raises(Unknown, match="not known yet"):
                await monitor.sample()
        assert await monitor.sample() is False and "network.targets" in monitor.judge(False)
        assert await monitor.sample() is True and monitor.judge(True) == ""
        assert await monitor.sample() is True, "one lost packet is no lost network"
        assert not monitor.ask(False) and not monitor.is_asked

    asyncio.run(run())


def test_what_ceased_to_be_asked_meanwhile_is_not_told() -> None:
    async def run() -> None:
        async def any_answers() -> bool:
            monitor.ask(False)
            return True

        monitor = WayOutMonitor(any_answers)
        monitor.ask(True)
        with pytest.raises(Unknown):
            await monitor.sample()

    asyncio.run(run())


def test_one_target_that_answers_is_a_way_out() -> None:
    async def run() -> None:
        async with listening(take) as port:
            dead, alive = f"127.0.0.1:{free_port()}", f"127.0.0.1:{port}"
            for targets, expected in (((dead,), False), ((dead, alive), True)):
                given = NetworkSection(test="tcp", targets=targets)
                assert await NetworkMonitor(given).any_answers() is expected

    asyncio.run(run())


@pytest.mark.parametrize(
    "given", [NetworkSection(test="none", targets=(NOWHERE,)), NetworkSection(test="ping")]
)
def test_without_a_network_test_it_is_not_known(given: NetworkSection) -> None:
    with pytest.raises(Unknown, match=r"network\.targets"):
        asyncio.run(NetworkMonitor(given).any_answers())


def test_what_cannot_be_asked_says_nothing_of_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    async def no_right(self: NetworkMonitor, target: str) -> None:
        raise Unknown("no right to ping")

    monkeypatch.setattr(NetworkMonitor, "_ping", no_right)
    with pytest.raises(Unknown, match="no right"):
        asyncio.run(NetworkMonitor(NetworkSection(targets=(NOWHERE,))).any_answers())


# --- the VM's bridges -----------------------------------------------------------------------------


def test_the_uplinks_of_the_vms_bridges(tmp_path: Path) -> None:
    net = made(tmp_path)
    (net / "br1").mkdir()
    monitor = UplinkMonitor(("br0", "br1"), net=net)
    with pytest.raises(Unknown):
        asyncio.run(monitor.sample())
    card(net, "bond0", "br0", kind="bond", carrier="0")
    card(net, "vnet0", "br0")
    assert asyncio.run(monitor.sample()) is False and "br0, br1" in monitor.judge(False)
    card(net, "bond1", "br1", kind="bond")
    assert asyncio.run(monitor.sample()) is True and monitor.judge(True) == ""


def test_a_bridge_that_is_down_leads_nowhere_whatever_its_cable_does(tmp_path: Path) -> None:
    net = made(tmp_path)
    (net / "br0" / "bridge").mkdir()
    card(net, "bond0", "br0", kind="bond")
    monitor = UplinkMonitor(("br0",), net=net)
    assert asyncio.run(monitor.sample()) is True
    (net / "br0" / "flags").write_text("0x1002\n")
    assert asyncio.run(monitor.sample()) is False
    (net / "br0" / "flags").write_text("")
    assert asyncio.run(monitor.sample()) is True, "what cannot be read is not down"


def test_open_vswitch_goes_on_with_an_interface_that_is_down(tmp_path: Path) -> None:
    net = made(tmp_path)
    card(net, "bond0", "br0", kind="bond")
    (net / "br0" / "flags").write_text("0x1002\n")
    assert asyncio.run(UplinkMonitor(("br0",), net=net).sample()) is True


def test_a_bridge_that_is_not_there_leads_nowhere(tmp_path: Path) -> None:
    assert asyncio.run(UplinkMonitor(("br0",), net=tmp_path).sample()) is False
    with pytest.raises(Unknown):
        asyncio.run(UplinkMonitor((), net=tmp_path).sample())


@pytest.mark.parametrize("value", [True, False, None])
def test_the_bridge_survives_the_slot(value: bool | None) -> None:
    assert uplink_of(uplink_line(value)) is value
    assert uplink_of("upp") is None


def test_the_bridges_are_those_of_the_definition(tmp_path: Path) -> None:
    file = tmp_path / "engine.xml"
    assert vm_bridges(str(file)) == ()
    file.write_text("<domain>")
    assert vm_bridges(str(file)) == ()
    cards = "".join(
        f"<interface type='{kind}'><source {source}/></interface>"
        for kind, source in (
            ("bridge", "bridge='ovirtmgmt'"),
            ("bridge", "bridge='br1'"),
            ("bridge", "bridge='ovirtmgmt'"),
            ("bridge", "bridge='../x'"),
            ("network", "network='default' bridge='virbr0'"),
        )
    )
    file.write_text(f"<domain><devices>{cards}</devices></domain>")
    assert vm_bridges(str(file)) == ("ovirtmgmt", "br1")


# --- who asks, and who is in doubt --------------------------------------------------------------

OWNER = peer(1, engine=UP, last_ran=7)
HERE = Place(1, 7)


def missing(good_s: float | None = NOW_S - 20, stay: int = 7) -> OutsideView:
    return OutsideView(1, stay, good_s, NOW_S - 5)


def plan(
    *live: object,
    score: int = 3400,
    stay: int | None = None,
    view: OutsideView | None = None,
    uplink: bool | None = True,
    watch: OutsideWatch | None = None,
    now_s: float = NOW_S,
    late: bool = False,
) -> Plan:
    """The plan of host 2."""
    watch = watch or OutsideWatch(2)
    return watch.plan(live, score, stay, view, uplink, TIMING, now_s, late)  # type: ignore[arg-type]


def test_the_best_standby_asks_often_and_the_others_seldom() -> None:
    assert plan(OWNER, peer(3)) == Plan(HERE, OFTEN, False)
    assert plan(OWNER) == Plan(HERE, OFTEN, False)
    assert plan(OWNER, peer(3), score=3399) == Plan(HERE, SELDOM, False)
    assert OFTEN < SELDOM <= TIMING.isolation_after / 2


def test_nobody_asks_where_it_is_up_nowhere_or_here() -> None:
    assert plan(peer(1, engine=DOWN), peer(3)).place is None
    assert plan(peer(1), stay=7).place is None


def test_of_two_that_claim_it_the_healthy_one_is_asked() -> None:
    found = plan(peer(1, engine=SICK, last_ran=6), peer(3, engine=UP, last_ran=7)).place
    assert found == Place(3, 7)


def test_all_ask_often_as_soon_as_one_misses_it() -> None:
    worst = 100
    assert plan(OWNER, peer(3, outside=missing()), score=worst).every_s == OFTEN
    assert plan(OWNER, peer(3, outside=missing(stay=6)), score=worst).every_s == SELDOM
    assert plan(OWNER, peer(3, outside=missing(good_s=None)), score=worst).every_s == SELDOM
    found = plan(OWNER, peer(3), score=worst, view=missing())
    assert found == Plan(HERE, OFTEN, True), "and who misses it is in doubt"


def test_its_own_host_is_in_doubt_when_it_is_missed_or_has_no_carrier() -> None:
    def at_home(*live: object, uplink: bool = True) -> bool:
        return plan(*live, stay=7, uplink=uplink, watch=OutsideWatch(1)).is_in_doubt

    assert not at_home(peer(2), peer(3))
    assert at_home(peer(2), peer(3), uplink=False)
    assert at_home(peer(2, outside=missing()))
    assert not at_home(peer(2, outside=missing(stay=6)))
    assert not plan(OWNER, uplink=False).is_in_doubt, "elsewhere the carrier matters to nobody"


def test_a_host_whose_question_waits_is_in_doubt_but_asks_no_more_often() -> None:
    assert plan(OWNER, peer(3), score=100, late=True) == Plan(HERE, SELDOM, True)
    assert not plan(peer(1), stay=7, late=True).is_in_doubt, "the VM is here"


def test_doubt_stays_until_the_vm_has_its_place_again() -> None:
    watch = OutsideWatch(2)
    assert plan(OWNER, view=missing(), watch=watch).is_in_doubt
    assert plan(peer(1), watch=watch, now_s=NOW_S + STAYS_S - 1).is_in_doubt
    assert not plan(peer(1), watch=watch, now_s=NOW_S + STAYS_S).is_in_doubt


# --- VMs beside the engine ------------------------------------------------------------------------

DB_OWNER = peer(1, vms={5: PeerVm(UP, last_ran=7)}, speaks=2)


def db_plan(asker: int, *others: int, missed_by: int = 0, view: OutsideView | None = None) -> Plan:
    """The plan of a host, for VM 5 on host 1."""
    peers = [
        peer(other, reached={5: missing()} if other == missed_by else {}, speaks=2)
        for other in others
    ]
    watch = OutsideWatch(asker, 5)
    return watch.plan([DB_OWNER, *peers], 0, None, view, True, TIMING, NOW_S)


def test_a_vm_beside_the_engine_is_asked_by_a_few_hosts_and_by_one_of_them_often() -> None:
    hosts = range(2, 9)
    plans = [db_plan(h, *(o for o in hosts if o != h)) for h in hosts]
    asking = [plan for plan in plans if plan.place is not None]
    assert len(asking) == ASKERS_MAX and {plan.place for plan in asking} == {HERE}
    assert sorted(plan.every_s for plan in asking) == [OFTEN, SELDOM, SELDOM]


def test_all_hosts_ask_it_often_as_soon_as_one_misses_it() -> None:
    hosts = range(2, 9)
    for asker in hosts:
        missed_by = 3 if asker == 2 else 2
        found = db_plan(asker, *(o for o in hosts if o != asker), missed_by=missed_by)
        assert found == Plan(HERE, OFTEN, False), asker
    assert db_plan(2, view=missing()).is_in_doubt


def test_another_vm_of_that_host_does_not_count_for_it() -> None:
    assert db_plan(2, 3).place == HERE
    assert OutsideWatch(2, 6).plan([DB_OWNER], 0, None, None, True, TIMING, NOW_S).place is None


def test_each_vm_is_asked_while_it_has_a_place_by_a_monitor_of_its_own() -> None:
    async def run() -> None:
        pages = {"db": Page(), "web": Page()}
        changes: list[list[int]] = []
        pages["web"].answer = "503"
        asked = VmsOutside(
            lambda vm: pages.get(vm.name), 5.0, lambda: changes.append(sorted(asked.seen))
        )
        for number, name in ((2, "db"), (3, "web"), (4, "local")):
            asked.watch(record(number, name), Place(1, 7), OFTEN)
        for _ in range(10):
            await asyncio.sleep(0)
        seen = asked.seen
        assert sorted(seen) == [2, 3], "only its own host can ask the third"
        assert seen[2].good_s is not None and seen[2].bad_since_s is None
        assert seen[3].good_s is None and seen[3].bad_since_s is not None
        assert changes and not asked.is_late(2, NOW_S)
        asked.watch(record(2, "db"), Place(3, 8), OFTEN)
        assert asked.seen[2] == OutsideView(3, 8), "it has moved"
        asked.watch(record(2, "db"), None, OFTEN)
        asked.keep({4})
        assert asked.seen == {}
        asked.watch(record(2, "db"), Place(1, 7), OFTEN)
        asked.reload(6.0)
        assert asked.seen == {}

    asyncio.run(run())


# --- what is published ----------------------------------------------------------------------------

TIMES = st.none() | st.floats(NOW_S - 1e6, NOW_S)


@given(st.integers(1, 2000), st.integers(0, 10**15 - 1), TIMES, TIMES)
def test_what_is_seen_survives_the_slot(
    owner: int, stay: int, good_s: float | None, bad_s: float | None
) -> None:
    seen = OutsideView(owner, stay, good_s, bad_s)
    back = outside_of(outside_line(seen, NOW_S), NOW_S)
    if good_s is None and bad_s is None:
        assert back is None
        return
    assert back is not None and (back.owner, back.stay) == (owner, stay)
    for before, after in ((good_s, back.good_s), (bad_s, back.bad_since_s)):
        assert (before is None) is (after is None)
        assert before is None or after is None or abs(before - after) <= 0.051


@pytest.mark.parametrize(
    "line", ["", "1 7 1.0", "1 7 -1.0 -", "1 7 1e3 -", "x 7 1.0 -", "1 7 1.0 - ", "1 7 \u0663.0 -"]
)
def test_anything_else_says_nothing(line: str) -> None:
    assert outside_of(line, NOW_S) is None


@given(st.text(max_size=60))
def test_a_stranger_may_write_anything(line: str) -> None:
    outside_of(line, NOW_S)
    way_out_of(line)


@pytest.mark.parametrize("value", [True, False, None])
def test_the_way_out_survives_the_slot(value: bool | None) -> None:
    assert way_out_of(way_out_line(value)) is value


# --- what people are shown ------------------------------------------------------------------------


def looker(host_id: int, good: float | None, bad: float | None, **changes: object) -> HostStatus:
    return host(host_id, DOWN, outside=OutsideStatus(1, good, bad), **changes)


OWN = host(1, UP_THERE)


def test_reached_is_one_good_word_within_the_time() -> None:
    after = TIMING.isolation_after
    cases = (
        ((), None),
        ((looker(2, None, 30.0),), None),
        ((looker(2, 1.0, None),), True),
        ((looker(2, after - 1, 3.0),), True),
        ((looker(2, after, after - 1),), False),
        ((looker(2, after, after - 1), looker(3, after + 1, None)), False),
        ((looker(3, after + 1, None),), None),
        ((looker(2, after, after - 1), looker(3, 1.0, None, liveness="silent")), False),
    )
    for others, expected in cases:
        assert reached(OWN, (OWN, *others), after) is expected
    assert reached(None, (OWN,), after) is None
    assert reached(host(3, UP_THERE), (looker(2, 1.0, None),), after) is None


def test_the_status_and_why_say_who_reaches_it_from_where() -> None:
    fine = status(OWN, looker(2, 1.2, None), looker(3, 4.9, None))
    said = "by host2 1 s ago; by host3 4 s ago"
    assert outside(fine) == said and f"reached from outside: {said}" in as_text(fine)
    assert f"Reached from outside: {said}." in explain(fine, Rules())


def test_a_vm_that_nobody_reaches_is_not_simply_up() -> None:
    lost = status(
        OWN,
        looker(2, 20.0, 19.0, way_out=True),
        looker(3, 22.0, 21.0, way_out=False),
        looker(4, 22.0, 21.0),
        looker(5, None, 30.0),
        engine=EngineSummary(True, True, 1, "host1", 60.0, reached=False),
    )
    text = as_text(lost)
    assert "up, but NOT REACHED from outside, on host1 (id 1)" in text.splitlines()[0]
    (line,) = [line for line in troubles(lost) if line.startswith("NOT REACHED")]
    assert "not by host2 for 19 s, its network is good" in line
    assert "not by host3 for 21 s, its own network is bad; not by host4 for 21 s (" in line
    assert "host5" not in line


def test_why_says_of_this_host_that_its_storage_takes_no_writes() -> None:
    """Seen on a full file system: "3400 points worse; the VM moves there once it is 800 better"."""
    here, there = host(1, local=True), host(2, UP_THERE)
    engine = EngineSummary(True, False, 2, "host2", 60.0, False, 40.0, False)
    fine = status(here, there, engine=engine)
    full = structs.replace(fine.storage, state="error", problem="No space left on device")
    said = explain(structs.replace(fine, storage=full), Rules())
    assert "host1 is this host: its storage fails, it takes no VM over." in said
    assert not any("its storage fails" in line for line in explain(fine, Rules()))


def test_where_nobody_can_ask_nothing_is_said_of_it() -> None:
    quiet = status(OWN, host(2))
    assert "from outside" not in as_text(quiet)
    assert any("nobody misses it" in line for line in explain(quiet, Rules()))


def test_a_host_that_lets_go_of_the_vm_is_news_half_a_beat_before_the_beat(tmp_path: Path) -> None:
    async def run() -> None:
        volume = MemoryVolume()
        ours, other = make_broker(tmp_path, volume), make_broker(tmp_path, volume, 2)
        up(other, 1.0)
        for now_s in (1.0, 2.0):
            other.take_report(report("EngineStop"), now_s)
            await other.beat(now_s)
            await ours.beat(now_s)
        before = ours.news.version
        await ours._read_again(2.5)
        assert ours.news.version == before, "nothing has changed"
        other.take_report(report("EngineDown"), 2.6)
        await other.beat(2.6)
        await ours._read_again(2.7)
        assert ours.news.version > before

    asyncio.run(run())
