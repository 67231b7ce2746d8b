# SPDX-License-Identifier: LGPL-2.1-or-later
"""Several devices per host: which one is asked, ordered and believed, and in which order."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from agent.fence.driver import DeviceError, Pointless, Refused, always, go
from agent.fence.guarded import DeviceSetting, Finding, GuardedDevice, Identity
from agent.fence.levels import FenceLevels, together
from agent.ports import Still
from scoring.observation import Power
from tests.fakes.waiting import until

MACHINE, OTHER = (uuid.UUID(f"0a0b0c0d-1111-2222-3333-00000000000{n}") for n in (2, 3))


class Scripted:
    """A device that does as the test sets it; it is its own login too."""

    def __init__(self, power: Power = Power.ON, guid: uuid.UUID | None = MACHINE) -> None:
        self.state = power
        self.machine = guid
        self.fails: list[Exception] = []
        self.deaf = False
        self.wants = ""
        self.logins = 0
        self.orders: list[bool] = []
        self.wait: threading.Event | None = None
        self.name = ""
        self.log: list[str] = []

    @contextmanager
    def login(self, timeout_s: float) -> Iterator[Scripted]:
        self.logins += 1
        if self.wait is not None:
            self.wait.wait(30)
        if self.fails:
            raise self.fails.pop(0)
        yield self

    def guid(self) -> bytes | None:
        return self.machine.bytes if self.machine else None

    def power(self) -> Power:
        return self.state

    def lacks(self) -> str | None:
        return self.wants

    def switch(self, on: bool, still: Still) -> None:
        go(still)
        self.orders.append(on)
        self.log.append(self.name)
        if self.deaf:
            raise DeviceError("refused")
        self.state = Power.ON if on else Power.OFF


def levels(*by_level: list[Scripted], trusted: bool = False, retries: int = 0) -> FenceLevels:
    """Devices of host 2; this host is 1."""
    devices = [
        GuardedDevice(
            2,
            f"device {number}.{nth}",
            driver,
            DeviceSetting(level=number, trusted=trusted, timeout_s=1.0, retries=retries),
        )
        for number, drivers in enumerate(by_level, 1)
        for nth, driver in enumerate(drivers, 1)
    ]
    return FenceLevels(devices, own_host=1)


def failing() -> Scripted:
    device = Scripted()
    device.fails = [DeviceError("down")] * 99
    return device


UUID = str(MACHINE)

# --- reading -----------------------------------------------------------------------------


def test_the_first_level_that_can_tell_is_believed_and_the_next_not_asked() -> None:
    bmc, pdu = Scripted(Power.OFF), Scripted(Power.ON)
    answer = asyncio.run(levels([bmc], [pdu]).read_power(2, UUID))
    assert answer.power is Power.OFF and answer.identity_proven
    assert pdu.logins == 0


def test_a_level_that_fails_is_passed_over_and_named() -> None:
    answer = asyncio.run(levels([failing()], [Scripted(Power.OFF)]).read_power(2, UUID))
    assert answer.power is Power.OFF and answer.identity_proven
    assert "device 1.1: down" in answer.detail


def test_a_level_that_proves_nothing_is_passed_over() -> None:
    stranger, pdu = Scripted(Power.OFF, guid=OTHER), Scripted(Power.ON)
    answer = asyncio.run(levels([stranger], [pdu]).read_power(2, UUID))
    assert answer.power is Power.ON and answer.identity_proven


def test_an_unproven_word_is_passed_on_as_such() -> None:
    answer = asyncio.run(levels([Scripted(Power.OFF, guid=None)], [failing()]).read_power(2, UUID))
    assert answer.power is Power.OFF and not answer.identity_proven


def test_where_none_can_tell_it_is_unknown() -> None:
    answer = asyncio.run(levels([failing()], [failing()]).read_power(2, UUID))
    assert answer.power is Power.UNKNOWN
    assert "device 1.1" in answer.detail and "device 2.1" in answer.detail


def test_a_reading_is_as_old_as_the_question_that_was_answered() -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        slow = failing()
        slow.wait = threading.Event()
        begun_s = loop.time()
        loop.call_later(0.2, slow.wait.set)
        answer = await levels([slow], [Scripted()]).read_power(2, UUID)
        assert 0.15 < answer.read_s - begun_s <= loop.time() - begun_s
        assert answer.answered_s is not None
        assert answer.read_s <= answer.answered_s <= loop.time()

    asyncio.run(run())


POWERS = [Power.ON, Power.OFF, Power.UNKNOWN]


@pytest.mark.parametrize(("first", "second"), [*itertools.product(POWERS, POWERS)])
def test_two_supplies_are_off_only_together(first: Power, second: Power) -> None:
    power, proven = together([Finding(p, Identity.PROVEN) for p in (first, second)])
    if Power.ON in (first, second):
        assert (power, proven) == (Power.ON, True)
    elif first is second is Power.OFF:
        assert (power, proven) == (Power.OFF, True)
    else:
        assert (power, proven) == (Power.UNKNOWN, False)


def test_off_is_proven_only_when_each_supply_is() -> None:
    found = [Finding(Power.OFF, Identity.PROVEN), Finding(Power.OFF, Identity.UNKNOWN)]
    assert together(found) == (Power.OFF, False)


# --- switching ---------------------------------------------------------------------------


@pytest.mark.parametrize(("attempt", "asked"), [(0, 0), (1, 1), (2, 2), (3, 0), (7, 1)])
def test_each_attempt_begins_at_another_level(attempt: int, asked: int) -> None:
    devices = [Scripted() for _ in range(3)]
    ended = asyncio.run(levels(*([d] for d in devices)).power_off(2, UUID, attempt, always))
    assert ended.ok
    assert [bool(device.orders) for device in devices] == [n == asked for n in range(3)]


def test_an_order_that_fails_goes_to_the_next_level_and_round() -> None:
    deaf, broken, good = Scripted(), failing(), Scripted()
    deaf.deaf = True
    ended = asyncio.run(levels([good], [deaf], [broken]).power_off(2, UUID, 1, always))
    assert ended.ok and good.orders == [False] and deaf.orders == [False]
    assert "device 2.1: refused" in ended.detail and "device 3.1: down" in ended.detail
    assert "device 1.1 took the order off" in ended.detail


def test_where_all_fail_it_has_failed() -> None:
    ended = asyncio.run(levels([failing()], [failing()]).power_off(2, UUID, 0, always))
    assert not ended.ok and "device 1.1" in ended.detail and "device 2.1" in ended.detail


def test_off_already_is_a_success_without_an_order() -> None:
    bmc = Scripted(Power.OFF)
    assert asyncio.run(levels([bmc]).power_off(2, UUID, 0, always)).ok
    assert bmc.orders == []


def test_both_supplies_must_take_the_order() -> None:
    left, right, bmc = Scripted(), failing(), Scripted()
    assert asyncio.run(levels([left, right], [bmc]).power_off(2, UUID, 0, always)).ok
    assert left.orders == [False] and bmc.orders == [False]


def test_a_stranger_is_never_switched_and_is_named(caplog: pytest.LogCaptureFixture) -> None:
    stranger = Scripted(guid=OTHER)

    async def run() -> None:
        both = levels([stranger])
        for _ in range(3):
            ended = await both.power_off(2, UUID, 0, always)
            assert not ended.ok and OTHER.hex in ended.detail and UUID in ended.detail
        assert not (await both.power_on(2, UUID, always)).ok

    with caplog.at_level(logging.ERROR):
        asyncio.run(run())
    assert stranger.orders == [] and stranger.logins == 1, "it is not asked again"
    (record,) = caplog.records
    assert OTHER.hex in record.message and UUID in record.message


def test_a_stranger_is_asked_again_when_the_host_publishes_another_machine() -> None:
    moved = Scripted(Power.OFF, guid=OTHER)

    async def run() -> None:
        mine = levels([moved])
        assert not (await mine.read_power(2, UUID)).identity_proven
        assert (await mine.read_power(2, str(OTHER))).identity_proven

    asyncio.run(run())


def test_a_known_neighbour_is_named() -> None:
    async def run() -> None:
        devices = [
            GuardedDevice(2, "device of host 2", Scripted(guid=OTHER)),
            GuardedDevice(3, "device of host 3", Scripted(guid=OTHER)),
        ]
        both = FenceLevels(devices, own_host=1)
        both.know({3: str(OTHER)})
        ended = await both.power_off(2, UUID, 0, always)
        assert "that is host 3: are their addresses swapped?" in ended.detail

    asyncio.run(run())


def test_a_uuid_that_two_hosts_published_proves_nothing() -> None:
    bmc = Scripted()

    async def run() -> None:
        both = FenceLevels(
            [GuardedDevice(2, "a", bmc), GuardedDevice(3, "b", Scripted())], own_host=1
        )
        await both.read_power(3, UUID)
        ended = await both.power_off(2, UUID, 0, always)
        assert not ended.ok and "host 3 published the same UUID" in ended.detail

    asyncio.run(run())
    assert bmc.orders == []


@pytest.mark.parametrize("empty", [uuid.UUID(int=0), uuid.UUID(int=2**128 - 1)])
def test_an_empty_guid_proves_nothing(empty: uuid.UUID) -> None:
    bmc = Scripted(guid=empty)
    assert (
        not asyncio.run(levels([bmc]).power_off(2, str(empty), 0, always)).ok and bmc.orders == []
    )


def test_one_that_cannot_tell_is_used_only_when_it_is_trusted() -> None:
    pdu = Scripted(guid=None)
    assert not asyncio.run(levels([pdu]).power_off(2, UUID, 0, always)).ok and pdu.orders == []
    assert asyncio.run(levels([pdu], trusted=True).power_off(2, UUID, 0, always)).ok
    assert pdu.orders == [False]


@pytest.mark.parametrize("published", ["", "not a uuid"])
def test_without_a_published_uuid_nothing_is_switched(published: str) -> None:
    bmc = Scripted()
    ended = asyncio.run(levels([bmc]).power_off(2, published, 0, always))
    assert not ended.ok and "published" in ended.detail and bmc.orders == []


def test_this_host_is_not_among_those_to_be_switched() -> None:
    mine = FenceLevels([GuardedDevice(1, "own", Scripted())], own_host=1)
    assert mine.hosts == frozenset()
    with pytest.raises(AssertionError):
        asyncio.run(mine.power_off(1, UUID, 0, always))
    assert asyncio.run(mine.rehearse(1, UUID)).ok


def test_power_comes_back_from_the_last_level_to_the_first() -> None:
    pdu, bmc = Scripted(Power.OFF), Scripted(Power.OFF)
    bmc.log = pdu.log = []
    bmc.name, pdu.name = "bmc", "pdu"
    assert asyncio.run(levels([bmc], [pdu]).power_on(2, UUID, always)).ok
    assert bmc.log == ["pdu", "bmc"]


def test_power_on_where_the_first_level_is_on_already() -> None:
    assert asyncio.run(levels([Scripted()], [failing()]).power_on(2, UUID, always)).ok
    assert not asyncio.run(levels([failing()], [Scripted()]).power_on(2, UUID, always)).ok


# --- an order that was overtaken ----------------------------------------------------------


class Lives:
    """A Still: the host lives from the n-th question on."""

    def __init__(self, from_question: int) -> None:
        self.left = from_question

    def __call__(self) -> str:
        self.left -= 1
        return "it lives" if self.left <= 0 else ""


def test_an_order_that_was_overtaken_is_not_given_and_is_no_attempt() -> None:
    bmc, pdu = Scripted(), Scripted()
    ended = asyncio.run(levels([bmc], [pdu], retries=1).power_off(2, UUID, 0, Lives(1)))
    assert not ended.ok and ended.withdrawn
    assert "device 1.1: the order was withdrawn: it lives" in ended.detail
    assert bmc.orders == pdu.orders == [] and (bmc.logins, pdu.logins) == (1, 0)


def test_it_is_asked_anew_for_each_level() -> None:
    """The first level refused the order: what came of that nobody knows, so it was one."""
    bmc, pdu = Scripted(), Scripted()
    bmc.deaf = True
    ended = asyncio.run(levels([bmc], [pdu]).power_off(2, UUID, 0, Lives(2)))
    assert not ended.ok and not ended.withdrawn
    assert "refused" in ended.detail and "withdrawn" in ended.detail
    assert (bmc.orders, pdu.orders) == ([False], [])


def test_it_is_asked_anew_for_each_retry() -> None:
    bmc = Scripted()
    bmc.deaf = True
    ended = asyncio.run(levels([bmc], retries=3).power_off(2, UUID, 0, Lives(2)))
    assert not ended.ok and not ended.withdrawn, "the first one was sent"
    assert bmc.orders == [False]


def test_an_order_in_a_login_that_hangs_was_perhaps_given() -> None:
    """What hung before its order is no attempt of ours to be sure of: it is told as it is."""
    bmc = failing()
    ended = asyncio.run(levels([bmc]).power_off(2, UUID, 0, always))
    assert not ended.ok and not ended.withdrawn


def test_one_of_two_supplies_was_ordered_before_the_other_was_overtaken() -> None:
    left, right = Scripted(), Scripted()
    right.wait = held_up = threading.Event()

    async def run() -> None:
        asked = asyncio.Event()
        loop = asyncio.get_running_loop()

        def still() -> str:
            loop.call_soon_threadsafe(asked.set)
            return "it lives" if left.orders else ""

        ending = asyncio.ensure_future(levels([left, right]).power_off(2, UUID, 0, still))
        await asked.wait()
        while not left.orders:
            await asyncio.sleep(0.001)
        held_up.set()
        ended = await ending
        assert not ended.ok and not ended.withdrawn and "withdrawn" in ended.detail

    asyncio.run(run())
    assert (left.orders, right.orders) == ([False], [])


def test_a_host_that_is_back_is_not_switched_on() -> None:
    pdu, bmc = Scripted(Power.OFF), Scripted(Power.OFF)
    ended = asyncio.run(levels([bmc], [pdu]).power_on(2, UUID, Lives(1)))
    assert not ended.ok and "withdrawn: it lives" in ended.detail
    assert bmc.orders == pdu.orders == [] and bmc.logins == 0


# --- trouble -----------------------------------------------------------------------------


def test_a_hung_device_holds_up_no_other_and_is_not_piled_upon() -> None:
    async def run() -> None:
        hung, well = Scripted(), Scripted()
        hung.wait = threading.Event()
        both = FenceLevels(
            [
                GuardedDevice(2, "hung", hung, DeviceSetting(timeout_s=0.2)),
                GuardedDevice(3, "well", well, DeviceSetting(timeout_s=60.0)),
            ],
            own_host=1,
        )
        waiting = asyncio.create_task(both.read_power(2, UUID))
        assert (await both.read_power(3, UUID)).power is Power.ON
        assert "has not answered" in (await waiting).detail
        assert "has not answered" in (await both.read_power(2, UUID)).detail
        assert hung.logins == 1
        hung.wait.set()

    asyncio.run(run())


def test_no_thread_is_kept_for_an_idle_device() -> None:
    async def run() -> None:
        await levels([Scripted()]).read_power(2, UUID)

    asyncio.run(run())
    gc.collect()
    for thread in threading.enumerate():
        if thread.name.startswith("device "):
            thread.join(5.0)
            assert not thread.is_alive()


def test_questions_to_one_device_take_turns() -> None:
    bmc = Scripted()

    async def run() -> None:
        mine = levels([bmc])
        bmc.wait = threading.Event()
        asked = [asyncio.create_task(mine.read_power(2, UUID)) for _ in range(3)]
        await until(lambda: bmc.logins)
        # Time for what must not be done.
        await asyncio.sleep(0.05)
        assert bmc.logins == 1
        bmc.wait.set()
        assert [(await task).power for task in asked] == [Power.ON] * 3

    asyncio.run(run())


def test_a_failure_is_tried_again_as_often_as_configured() -> None:
    bmc = Scripted()
    bmc.fails = [DeviceError("reset"), DeviceError("reset")]
    assert asyncio.run(levels([bmc], retries=2).read_power(2, UUID)).power is Power.ON
    bmc.fails = [DeviceError("reset"), DeviceError("reset")]
    assert asyncio.run(levels([bmc], retries=1).read_power(2, UUID)).power is Power.UNKNOWN


def test_what_cannot_help_is_not_tried_again() -> None:
    bmc = Scripted()
    bmc.fails = [Pointless("wrong certificate")]
    assert asyncio.run(levels([bmc], retries=5).read_power(2, UUID)).power is Power.UNKNOWN
    assert bmc.logins == 1


@pytest.mark.parametrize(
    ("error", "logins"), [(DeviceError("no answer"), 2), (Refused("wrong password"), 1)]
)
def test_an_order_is_given_once_more_unless_the_login_was_refused(
    error: DeviceError, logins: int
) -> None:
    bmc = Scripted()
    bmc.fails = [error]
    mine = GuardedDevice(2, "bmc", bmc)
    found = asyncio.run(mine.switch(UUID, on=False))
    assert found.ordered is (logins == 2) and bmc.logins == logins


class Minutes:
    """A clock that stands until the test sets it."""

    now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


def test_a_device_that_refuses_the_login_is_asked_less_and_less_often() -> None:
    """Many BMCs lock an account after three wrong passwords (seen in a simulation: a login every
    9 s, from two hosts, without end)."""
    bmc, clock = Scripted(), Minutes()
    bmc.fails = [Refused("wrong password") for _ in range(100)]
    mine = GuardedDevice(2, "bmc", bmc, clock=clock)
    asked_s = []
    for now_s in range(300):
        clock.now_s, before = float(now_s), bmc.logins
        found = asyncio.run(mine.read(UUID))
        assert (found.power, found.detail) == (Power.UNKNOWN, "bmc: wrong password")
        if bmc.logins > before:
            asked_s.append(now_s)
    assert asked_s == [0, 10, 30, 70, 130, 190, 250]
    bmc.fails, clock.now_s = [], 310.0
    assert asyncio.run(mine.read(UUID)).power is Power.ON
    bmc.fails, clock.now_s = [Refused("wrong password")], 320.0
    asyncio.run(mine.read(UUID))
    clock.now_s = 330.0
    assert asyncio.run(mine.read(UUID)).power is Power.ON, "the pauses begin anew"


SECRET = 'pä"ss wörd/+\\'


@pytest.mark.parametrize(
    "said",
    [
        SECRET,
        repr(SECRET),
        repr(SECRET.encode()),
        '"p\\u00e4\\"ss w\\u00f6rd/+\\\\"',
        "p%C3%A4%22ss%20w%C3%B6rd%2F%2B%5C",
        "Basic YWRtaW46cMOkInNzIHfDtnJkLytc",
        "p&#x27;" + SECRET,
    ],
)
def test_no_spelling_of_a_password_gets_out(said: str) -> None:
    bmc = Scripted()
    bmc.fails = [ValueError(f"login {said} failed")]
    mine = GuardedDevice(2, "bmc", bmc, DeviceSetting(username="admin", secrets=[SECRET]))
    detail = asyncio.run(mine.read(UUID)).detail
    assert "login" in detail and "***" in detail and "failed" in detail
    assert said not in detail and "wörd" not in detail and "YWRtaW46" not in detail


# --- rehearsal ---------------------------------------------------------------------------


def test_a_rehearsal_looks_at_every_device_and_changes_nothing() -> None:
    bmc, pdu = Scripted(), Scripted()
    path = asyncio.run(levels([bmc], [pdu]).rehearse(2, UUID))
    assert path.ok and path.detail == ""
    assert bmc.logins == pdu.logins == 1 and bmc.orders == pdu.orders == []


def test_one_good_level_is_a_way_and_the_bad_one_is_named() -> None:
    path = asyncio.run(levels([failing()], [Scripted()]).rehearse(2, UUID))
    assert path.ok and "device 1.1: down" in path.detail


@pytest.mark.parametrize("trouble", ["privilege", "stranger", "no power"])
def test_what_makes_a_rehearsal_fail(trouble: str) -> None:
    bmc = Scripted(Power.UNKNOWN if trouble == "no power" else Power.ON)
    if trouble == "stranger":
        bmc.machine = OTHER
    if trouble == "privilege":
        bmc.wants = "operator is needed"
    path = asyncio.run(levels([bmc]).rehearse(2, UUID))
    assert not path.ok and path.detail


def test_a_level_of_two_needs_both() -> None:
    assert not asyncio.run(levels([Scripted(), failing()]).rehearse(2, UUID)).ok
