# SPDX-License-Identifier: LGPL-2.1-or-later
"""What every kind of fence device does alike, each kind on a device that answers for real."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import pytest

from agent.fence.driver import Driver, Login
from agent.fence.guarded import DeviceSetting, GuardedDevice, Identity, Privilege
from agent.fence.ipmi import IpmiDriver
from agent.fence.program import AgentDriver
from agent.fence.redfish import RedfishDriver
from scoring.observation import Power
from tests.fakes.ipmi_bmc import PASSWORD, IpmiBmc
from tests.fakes.redfish_bmc import RedfishBmc
from tests.fakes.waiting import was_given_up

MACHINE = uuid.UUID("0a0b0c0d-1111-2222-3333-000000000002")
OTHER = uuid.UUID("0a0b0c0d-1111-2222-3333-000000000003")
FAKE_AGENT = str(Path(__file__).parents[1] / "fakes" / "fence_fake")


class Site(Protocol):
    """A device and the machine behind it."""

    knows_guid: bool

    @property
    def on(self) -> bool: ...

    @property
    def orders(self) -> list[str]: ...

    def driver(self, password: str = PASSWORD) -> Driver: ...

    def hang(self) -> None: ...

    def close(self) -> None: ...


class IpmiSite(IpmiBmc):
    knows_guid = True

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, MACHINE.hex)

    def driver(self, password: str = PASSWORD) -> Driver:
        return IpmiDriver("127.0.0.1", self.port, "admin", password)


class RedfishSite(RedfishBmc):
    knows_guid = True

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, str(MACHINE))

    def driver(self, password: str = PASSWORD) -> Driver:
        return RedfishDriver("127.0.0.1", self.port, "admin", password, ca_file=str(self.ca_file))

    def close(self) -> None:
        self.silent = False
        super().close()


class AgentSite:
    knows_guid = False

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self.directory, self.mood = directory, ""
        (directory / "power").write_text("1")

    @property
    def on(self) -> bool:
        return (self.directory / "power").read_text() == "1"

    @property
    def orders(self) -> list[str]:
        path = self.directory / "orders"
        return path.read_text().split() if path.exists() else []

    def driver(self, password: str = PASSWORD) -> Driver:
        options = {"username": "admin", "password": password, "state": str(self.directory)}
        return AgentDriver(FAKE_AGENT, {**options, "mood": self.mood})

    def hang(self) -> None:
        self.mood = "hang"

    def close(self) -> None:
        pass


@pytest.fixture(params=[IpmiSite, RedfishSite, AgentSite])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    make: Callable[[Path], Site] = request.param
    site = make(tmp_path / "site")
    yield site
    site.close()


def device(site: Site, password: str = PASSWORD, timeout_s: float = 8.0) -> GuardedDevice:
    return GuardedDevice(
        2,
        "the device",
        site.driver(password),
        DeviceSetting(
            trusted=not site.knows_guid, timeout_s=timeout_s, username="admin", secrets=[password]
        ),
    )


def test_it_reads_switches_off_and_on_again(site: Site) -> None:
    async def run() -> None:
        mine = device(site)
        found = await mine.read(str(MACHINE))
        assert found.power is Power.ON and found.usable and found.detail == ""
        assert (await mine.switch(str(MACHINE), on=False)).ordered
        assert not site.on
        assert (await mine.read(str(MACHINE))).power is Power.OFF
        assert (await mine.switch(str(MACHINE), on=True)).ordered
        assert site.on

    asyncio.run(run())
    assert len(site.orders) == 2


def test_what_is_off_already_is_not_ordered_off(site: Site) -> None:
    async def run() -> None:
        mine = device(site)
        await mine.switch(str(MACHINE), on=False)
        again = await mine.switch(str(MACHINE), on=False)
        assert again.power is Power.OFF and again.usable and not again.ordered

    asyncio.run(run())
    assert len(site.orders) == 1


def test_what_reads_on_already_is_ordered_on_all_the_same(site: Site) -> None:
    """The reading may be an old one: for it a host stayed off that nobody had switched on."""
    found = asyncio.run(device(site).switch(str(MACHINE), on=True))
    assert found.power is Power.ON and found.usable
    assert len(site.orders) == 1 and site.on


def test_an_order_to_a_host_that_lives_again_is_withdrawn_and_it_is_on(site: Site) -> None:
    found = asyncio.run(device(site).switch(str(MACHINE), on=True, still=lambda: "it lives"))
    assert found.power is Power.ON and found.usable and not found.withdrawn
    assert site.orders == []


def test_a_check_changes_nothing(site: Site) -> None:
    found = asyncio.run(device(site).check(str(MACHINE)))
    assert found.power is Power.ON and found.usable and found.detail == ""
    assert found.privilege is (Privilege.ENOUGH if site.knows_guid else Privilege.UNKNOWN)
    assert site.orders == [] and site.on


def test_an_identity_is_proven_or_trusted(site: Site) -> None:
    found = asyncio.run(device(site).read(str(MACHINE)))
    assert found.identity is (Identity.PROVEN if site.knows_guid else Identity.TRUSTED)


def test_one_that_is_neither_proven_nor_trusted_is_not_switched(site: Site) -> None:
    mine = GuardedDevice(2, "the device", site.driver(), DeviceSetting(timeout_s=8.0))
    found = asyncio.run(mine.switch(str(OTHER), on=False))
    assert not found.usable and not found.ordered and found.detail
    assert site.orders == [] and site.on


def test_one_whose_host_published_nothing_is_not_switched(site: Site) -> None:
    mine = GuardedDevice(2, "the device", site.driver(), DeviceSetting(timeout_s=8.0))
    found = asyncio.run(mine.switch("", on=False))
    assert found.identity is Identity.UNKNOWN and not found.ordered
    assert site.orders == [] and site.on


def test_a_wrong_password_fails_and_is_shown_nowhere(
    site: Site, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    async def run() -> str:
        mine = device(site, password="hunter2%+ü")
        texts = [(await mine.read(str(MACHINE))).detail]
        texts.append((await mine.check(str(MACHINE))).detail)
        texts.append((await mine.switch(str(MACHINE), on=False)).detail)
        assert all(texts)
        return "\n".join(texts)

    with caplog.at_level(logging.DEBUG):
        text = asyncio.run(run())
    captured = capfd.readouterr()
    assert "hunter2" not in text + caplog.text + captured.out + captured.err
    assert site.orders == []


class CountedDriver:
    """A driver, and how often its device was asked to let somebody in."""

    def __init__(self, driver: Driver) -> None:
        self.driver, self.logins = driver, 0

    def login(self, timeout_s: float) -> AbstractContextManager[Login]:
        self.logins += 1
        return self.driver.login(timeout_s)


def test_a_refused_password_is_not_tried_again_within_an_order(site: Site) -> None:
    """Many BMCs lock an account after three wrong ones."""
    driver = CountedDriver(site.driver("wrong"))
    given = DeviceSetting(trusted=not site.knows_guid, timeout_s=60.0, retries=3)
    mine = GuardedDevice(2, "the device", driver, given)
    found = asyncio.run(mine.switch(str(MACHINE), on=False))
    assert found.power is Power.UNKNOWN and found.detail and site.orders == []
    # The program of a fence agent does not say why it failed.
    assert driver.logins == (1 if site.knows_guid else 1 + given.retries)


def test_one_that_hangs_costs_its_deadline(site: Site) -> None:
    site.hang()
    mine = device(site, timeout_s=0.7)
    found = asyncio.run(mine.read(str(MACHINE)))
    assert found.power is Power.UNKNOWN and was_given_up(found.detail)
