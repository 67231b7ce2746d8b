# SPDX-License-Identifier: LGPL-2.1-or-later
"""A real IPMI 2.0 BMC (ipmi_sim) and all that can be wrong with one."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.fence.driver import always
from agent.fence.guarded import DeviceSetting, Finding, GuardedDevice, Identity, Privilege
from agent.fence.ipmi import IpmiDriver, password_problem
from agent.fence.levels import FenceLevels
from scoring.observation import Power
from tests.fakes.ipmi_bmc import PASSWORD, IpmiBmc
from tests.fakes.waiting import was_given_up

MACHINE = uuid.UUID("0a0b0c0d-1111-2222-3333-000000000002")
OTHER = uuid.UUID("0a0b0c0d-1111-2222-3333-000000000003")


@pytest.fixture
def bmc(tmp_path: Path) -> Iterator[IpmiBmc]:
    bmc = IpmiBmc(tmp_path / "bmc", MACHINE.hex)
    yield bmc
    bmc.close()


def device(
    bmc: IpmiBmc, username: str = "admin", password: str = PASSWORD, timeout_s: float = 5.0
) -> GuardedDevice:
    driver = IpmiDriver("127.0.0.1", bmc.port, username, password)
    return GuardedDevice(
        2, "bmc", driver, DeviceSetting(timeout_s=timeout_s, username=username, secrets=[password])
    )


def test_power_and_identity_are_read_in_one_login(bmc: IpmiBmc) -> None:
    found = asyncio.run(device(bmc).read(str(MACHINE)))
    assert found == Finding(Power.ON, Identity.PROVEN)


def test_both_byte_orders_are_the_same_machine(tmp_path: Path) -> None:
    bmc = IpmiBmc(tmp_path, MACHINE.bytes_le.hex())
    try:
        assert asyncio.run(device(bmc).read(str(MACHINE))).identity is Identity.PROVEN
    finally:
        bmc.close()


def test_off_is_hard_and_ordered_once(bmc: IpmiBmc) -> None:
    async def run() -> None:
        mine = device(bmc)
        first = await mine.switch(str(MACHINE), on=False)
        assert first.ordered and not bmc.on
        again = await mine.switch(str(MACHINE), on=False)
        assert not again.ordered and again.power is Power.OFF
        assert (await mine.switch(str(MACHINE), on=True)).ordered and bmc.on

    asyncio.run(run())
    assert bmc.orders == ["power 0", "power 1"]


def test_another_machine_is_told_apart_before_any_order(bmc: IpmiBmc) -> None:
    found = asyncio.run(device(bmc).switch(str(OTHER), on=False))
    assert found.identity is Identity.OTHER and not found.ordered
    assert MACHINE.hex in found.detail and str(OTHER) in found.detail
    assert bmc.orders == [] and bmc.on


def test_a_wrong_password_is_not_shown(bmc: IpmiBmc) -> None:
    found = asyncio.run(device(bmc, password="hunter2").read(str(MACHINE)))
    assert found.power is Power.UNKNOWN and found.detail
    assert "hunter2" not in found.detail


def test_a_password_that_ipmi_cannot_carry_is_told_as_that_and_not_tried(bmc: IpmiBmc) -> None:
    found = asyncio.run(device(bmc, password="correct-horse-battery-staple").read(str(MACHINE)))
    assert found.power is Power.UNKNOWN
    assert "28 bytes" in found.detail and "20 at most" in found.detail


def test_the_bytes_of_a_password_count_and_not_its_letters() -> None:
    assert password_problem("ä" * 10) == ""
    assert "22 bytes" in password_problem("ä" * 11)


def test_an_unknown_user(bmc: IpmiBmc) -> None:
    found = asyncio.run(device(bmc, username="nobody").read(str(MACHINE)))
    assert found.power is Power.UNKNOWN and "name" in found.detail


def test_a_login_that_may_not_switch_reads_and_fails_the_check(bmc: IpmiBmc) -> None:
    async def run() -> None:
        driver = IpmiDriver("127.0.0.1", bmc.port, "admin", PASSWORD, privilege="user")
        mine = GuardedDevice(2, "bmc", driver, DeviceSetting(timeout_s=5))
        assert await mine.read(str(MACHINE)) == Finding(Power.ON, Identity.PROVEN)
        assert "operator is needed" in (await mine.check(str(MACHINE))).detail
        ended = await mine.switch(str(MACHINE), on=False)
        assert not ended.ordered and "privilege" in ended.detail

    asyncio.run(run())
    assert bmc.orders == [] and bmc.on


def test_the_check_changes_nothing(bmc: IpmiBmc) -> None:
    found = asyncio.run(device(bmc).check(str(MACHINE)))
    assert found == Finding(Power.ON, Identity.PROVEN, privilege=Privilege.ENOUGH)
    assert bmc.orders == []


def test_one_that_does_not_answer_costs_its_deadline_and_can_be_asked_again(bmc: IpmiBmc) -> None:
    async def run() -> None:
        mine = device(bmc, timeout_s=0.5)
        bmc.hang()
        found = await mine.read(str(MACHINE))
        assert found.power is Power.UNKNOWN and was_given_up(found.detail)
        bmc.go_on()
        # While the thread of the call that was given up runs on, the answer is "unknown" at once; a
        # busy machine also misses half a second now and then.
        for _ in range(600):
            found = await mine.read(str(MACHINE))
            if found.power is not Power.UNKNOWN:
                break
            await asyncio.sleep(0.1)
        assert found.power is Power.ON

    asyncio.run(run())


def test_nobody_there(bmc: IpmiBmc) -> None:
    bmc.close()
    found = asyncio.run(device(bmc, timeout_s=0.5).read(str(MACHINE)))
    assert found.power is Power.UNKNOWN and found.detail


def test_an_address_that_is_no_name(bmc: IpmiBmc) -> None:
    driver = IpmiDriver("no-such-host.invalid", bmc.port, "admin", PASSWORD)
    found = asyncio.run(
        GuardedDevice(2, "bmc", driver, DeviceSetting(timeout_s=5)).read(str(MACHINE))
    )
    assert found.power is Power.UNKNOWN and found.detail


def test_a_hung_one_holds_up_no_other(bmc: IpmiBmc, tmp_path: Path) -> None:
    other = IpmiBmc(tmp_path / "other", OTHER.hex)

    async def run() -> None:
        hung, well = device(bmc, timeout_s=1.0), device(other)
        bmc.hang()
        waiting = asyncio.create_task(hung.read(str(MACHINE)))
        await asyncio.sleep(0.1)
        for _ in range(10):
            assert (await well.read(str(OTHER))).power is Power.ON
            if waiting.done():
                break
        assert (await waiting).power is Power.UNKNOWN

    try:
        asyncio.run(run())
    finally:
        other.close()


def test_swapped_addresses_switch_nothing_and_name_both(bmc: IpmiBmc, tmp_path: Path) -> None:
    other = IpmiBmc(tmp_path / "other", OTHER.hex)

    def at(host: int, where: IpmiBmc) -> GuardedDevice:
        driver = IpmiDriver("127.0.0.1", where.port, "admin", PASSWORD)
        return GuardedDevice(
            host, f"bmc of host {host}", driver, DeviceSetting(timeout_s=5, secrets=[PASSWORD])
        )

    async def run() -> None:
        levels = FenceLevels([at(2, other), at(3, bmc)], own_host=1)
        for host, machine, shown in ((2, MACHINE, OTHER), (3, OTHER, MACHINE)):
            ended = await levels.power_off(host, str(machine), attempt=0, still=always)
            assert not ended.ok
            assert str(machine) in ended.detail and shown.hex in ended.detail
            answer = await levels.read_power(host, str(machine))
            assert not answer.identity_proven

    try:
        asyncio.run(run())
        assert bmc.orders == other.orders == []
    finally:
        other.close()
