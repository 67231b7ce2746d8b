# SPDX-License-Identifier: LGPL-2.1-or-later
"""Redfish: sushy-tools' emulator, and the moods that real services are known for."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import ssl
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bcrypt
import pytest
import trustme

from agent.fence.driver import Pointless, always
from agent.fence.guarded import DeviceSetting, GuardedDevice, Identity, Privilege
from agent.fence.levels import FenceLevels
from agent.fence.redfish import RedfishDriver
from scoring.observation import Power
from tests.fakes.redfish_bmc import PASSWORD, SESSIONS, RedfishBmc
from tests.fakes.waiting import was_given_up

MACHINE = uuid.UUID("0a0b0c0d-1111-2222-3333-000000000002")
NEIGHBOUR = uuid.UUID("0a0b0c0d-1111-2222-3333-000000000009")


@pytest.fixture
def bmc(tmp_path: Path) -> Iterator[RedfishBmc]:
    bmc = RedfishBmc(tmp_path / "bmc", str(MACHINE))
    yield bmc
    bmc.silent = False
    bmc.close()


def device(bmc: RedfishBmc, **more: Any) -> GuardedDevice:
    more = {"ca_file": str(bmc.ca_file)} | more
    driver = RedfishDriver("127.0.0.1", bmc.port, "admin", PASSWORD, **more)
    return GuardedDevice(
        2, "bmc", driver, DeviceSetting(timeout_s=5, username="admin", secrets=[PASSWORD])
    )


def test_a_reading_is_one_request_once_the_system_is_known(bmc: RedfishBmc) -> None:
    async def run() -> None:
        mine = device(bmc)
        await mine.read(str(MACHINE))
        bmc.requests.clear()
        assert (await mine.read(str(MACHINE))).power is Power.ON

    asyncio.run(run())
    assert len(bmc.requests) == 1


def test_409_from_a_system_that_is_off_is_a_success(bmc: RedfishBmc) -> None:
    bmc.on, bmc.off_answer = False, 409
    bmc.show_on_until_ordered()
    found = asyncio.run(device(bmc).switch(str(MACHINE), on=False))
    assert bmc.orders == ["ForceOff"]
    assert found.power is Power.OFF and found.usable


def test_an_error_from_a_system_that_stays_on_is_none(bmc: RedfishBmc) -> None:
    bmc.on, bmc.off_answer = False, 409
    bmc.show_on(60)
    found = asyncio.run(device(bmc).switch(str(MACHINE), on=False))
    assert not found.ordered and "409" in found.detail and "already off" in found.detail


def test_a_power_state_that_lies_late_is_told_as_it_is(bmc: RedfishBmc) -> None:
    bmc.late_s = 600.0

    async def run() -> None:
        mine = device(bmc)
        assert (await mine.switch(str(MACHINE), on=False)).ordered
        assert (await mine.read(str(MACHINE))).power is Power.ON
        bmc.show_now()
        assert (await mine.read(str(MACHINE))).power is Power.OFF

    asyncio.run(run())


def test_where_basic_is_not_taken_a_session_is_made_and_ended(bmc: RedfishBmc) -> None:
    bmc.basic = False
    found = asyncio.run(device(bmc).check(str(MACHINE)))
    assert found.power is Power.ON and found.privilege is Privilege.ENOUGH
    assert "POST /redfish/v1/SessionService/Sessions" in bmc.requests
    assert bmc.requests[-1].startswith("DELETE ") and not bmc.sessions


def switched_off(bmc: RedfishBmc, **more: Any) -> tuple[bool, str]:
    found = asyncio.run(device(bmc, **more).switch(str(MACHINE), on=False))
    return found.ordered, found.detail


@pytest.mark.parametrize("slash", [(301, 308), (302, 307), (308, 308)])
def test_redirections_within_the_service_are_followed_for_each_method(
    bmc: RedfishBmc, slash: tuple[int, int]
) -> None:
    """A service whose redirections are not followed would rehearse well and obey no order."""
    bmc.slash = slash
    assert switched_off(bmc) == (True, "")
    assert bmc.orders == ["ForceOff"]
    bmc.slash, bmc.elsewhere = slash, f"https://127.0.0.1:{bmc.port}"
    assert asyncio.run(device(bmc).check(str(MACHINE))).privilege is Privilege.ENOUGH


@pytest.mark.parametrize(
    "elsewhere", ["https://localhost:{port}", "http://127.0.0.1:{port}", "https://127.0.0.1:1"]
)
def test_a_redirection_to_another_service_is_not_followed(bmc: RedfishBmc, elsewhere: str) -> None:
    bmc.slash, bmc.elsewhere = (301, 308), elsewhere.format(port=bmc.port)
    ordered, detail = switched_off(bmc)
    assert not ordered and "another service" in detail
    assert bmc.orders == []


@pytest.mark.parametrize("place", ["", "https://[", "?"])
def test_a_redirection_that_leads_nowhere_ends(bmc: RedfishBmc, place: str) -> None:
    bmc.answer = lambda method, path, body: (301, None, {"Location": place})  # type: ignore[method-assign]
    assert not switched_off(bmc)[0]
    assert len(bmc.requests) < 20


@pytest.mark.parametrize("sessions_at", [SESSIONS, "/redfish/v1/Sessions"])
def test_a_401_without_a_challenge_tries_a_session_where_the_root_says(
    bmc: RedfishBmc, sessions_at: str
) -> None:
    bmc.basic = bmc.challenge = False
    bmc.sessions_at = sessions_at
    assert switched_off(bmc) == (True, "")
    assert not bmc.sessions, "it is ended"


def test_a_limit_of_sessions_passes_and_is_no_refusal(bmc: RedfishBmc) -> None:
    bmc.basic, bmc.full = False, 1
    found = asyncio.run(device(bmc).switch(str(MACHINE), on=False))
    assert found.ordered and bmc.orders == ["ForceOff"]


def test_a_wrong_password_is_told_as_that_with_a_session_too(bmc: RedfishBmc) -> None:
    bmc.basic = bmc.challenge = False
    driver = RedfishDriver("127.0.0.1", bmc.port, "admin", "wrong", ca_file=str(bmc.ca_file))
    found = asyncio.run(
        GuardedDevice(2, "bmc", driver, DeviceSetting(timeout_s=5)).read(str(MACHINE))
    )
    assert "the login is refused (401)" in found.detail


def overtaken(bmc: RedfishBmc, from_question: int) -> tuple[bool, str]:
    """Switch it off; the host lives from the n-th time on that it is asked."""
    questions = iter(range(1, 100))

    def still() -> str:
        return "it lives" if next(questions) >= from_question else ""

    found = asyncio.run(device(bmc).switch(str(MACHINE), False, still))
    assert not found.ordered
    return found.withdrawn, found.detail


def test_an_order_that_was_overtaken_is_not_sent(bmc: RedfishBmc) -> None:
    assert overtaken(bmc, 1) == (True, "bmc: the order was withdrawn: it lives")
    assert bmc.orders == [] and not any("Actions" in asked for asked in bmc.requests)


def test_an_order_that_a_busy_service_put_off_is_not_sent_again(bmc: RedfishBmc) -> None:
    """A repeated order would come after the wait that the service asks for, to a living host."""
    bmc.busy_orders = 1
    assert overtaken(bmc, 2)[0]
    assert bmc.orders == [] and sum("Actions" in asked for asked in bmc.requests) == 1


def test_a_busy_service_is_asked_again(bmc: RedfishBmc) -> None:
    bmc.busy = 3
    assert asyncio.run(device(bmc).read(str(MACHINE))).power is Power.ON
    bmc.busy = 1000
    assert "503" in asyncio.run(device(bmc).read(str(MACHINE))).detail


def test_an_answer_without_a_body_is_none_and_is_asked_for_again(bmc: RedfishBmc) -> None:
    bmc.blank = 1
    driver = RedfishDriver("127.0.0.1", bmc.port, "admin", PASSWORD, ca_file=str(bmc.ca_file))
    again = GuardedDevice(2, "bmc", driver, DeviceSetting(timeout_s=5, retries=1))
    assert asyncio.run(again.read(str(MACHINE))).power is Power.ON
    bmc.blank = 2
    assert "without a body" in asyncio.run(again.read(str(MACHINE))).detail


def test_a_dripping_answer_is_cut_off_and_leaves_the_device_free(bmc: RedfishBmc) -> None:
    async def run() -> None:
        driver = RedfishDriver("127.0.0.1", bmc.port, "admin", PASSWORD, ca_file=str(bmc.ca_file))
        mine = GuardedDevice(2, "bmc", driver, DeviceSetting(timeout_s=0.6))
        bmc.drip_s = 0.1
        assert was_given_up((await mine.read(str(MACHINE))).detail)
        bmc.drip_s, mine._given = 0.0, DeviceSetting(timeout_s=60.0)
        for _ in range(100):  # its thread, on a busy machine, may be on its way back still
            if (await mine.read(str(MACHINE))).power is Power.ON:
                return
            await asyncio.sleep(0.05)
        pytest.fail("the device is not free again")

    asyncio.run(run())


@pytest.mark.parametrize("state", ["Reset", "Unknown", ""])
def test_a_power_that_is_neither_on_nor_off_is_told(bmc: RedfishBmc, state: str) -> None:
    bmc.state = state
    found = asyncio.run(device(bmc).read(str(MACHINE)))
    assert (found.power, found.identity) == (Power.UNKNOWN, Identity.PROVEN)
    assert found.detail == "bmc: its power is neither on nor off"


@pytest.mark.parametrize("info", [False, True])
def test_a_system_that_cannot_be_switched_off_hard_fails_the_check(
    bmc: RedfishBmc, info: bool
) -> None:
    bmc.kinds, bmc.info = ["On", "GracefulShutdown"], info
    found = asyncio.run(device(bmc).check(str(MACHINE)))
    assert found.privilege is Privilege.LACKING and "ForceOff" in found.detail
    bmc.kinds = ["On", "ForceOff"]
    assert asyncio.run(device(bmc).check(str(MACHINE))).privilege is Privilege.ENOUGH


@pytest.mark.parametrize(("allow", "enough"), [("GET", False), ("POST", True), (None, True)])
def test_the_check_walks_the_way_of_the_order(
    bmc: RedfishBmc, allow: str | None, enough: bool
) -> None:
    bmc.allow = allow
    found = asyncio.run(device(bmc).check(str(MACHINE)))
    assert (found.privilege is Privilege.ENOUGH) is enough
    assert bmc.orders == []


def test_a_user_who_may_only_read(bmc: RedfishBmc) -> None:
    bmc.role = "ReadOnly"

    async def run() -> None:
        mine = device(bmc)
        found = await mine.check(str(MACHINE))
        assert found.privilege is Privilege.LACKING and "ConfigureComponents" in found.detail
        assert "403" in (await mine.switch(str(MACHINE), on=False)).detail

    asyncio.run(run())
    assert bmc.on and bmc.orders == []


@pytest.mark.parametrize("text", [None, "", "no uuid"])
def test_a_service_without_uuid_proves_nothing(bmc: RedfishBmc, text: str | None) -> None:
    bmc.uuid = text
    found = asyncio.run(device(bmc).switch(str(MACHINE), on=False))
    assert found.identity is Identity.UNKNOWN and "trusted" in found.detail
    assert bmc.orders == []


def test_the_other_byte_order_is_the_same_machine(bmc: RedfishBmc) -> None:
    bmc.uuid = str(uuid.UUID(bytes=MACHINE.bytes_le))
    assert asyncio.run(device(bmc).read(str(MACHINE))).identity is Identity.PROVEN


def test_a_password_in_its_errors_is_taken_out(bmc: RedfishBmc) -> None:
    bmc.leak, bmc.role = True, "ReadOnly"
    found = asyncio.run(device(bmc).switch(str(MACHINE), on=False))
    assert "password ***" in found.detail and PASSWORD not in found.detail


def fingerprint(bmc: RedfishBmc) -> str:
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(bmc.certificate.decode())).hexdigest()


def test_a_pinned_certificate(bmc: RedfishBmc) -> None:
    pinned = fingerprint(bmc).upper()
    colons = ":".join(pinned[i : i + 2] for i in range(0, 64, 2))
    mine = device(bmc, ca_file=None, fingerprint=colons)
    assert asyncio.run(mine.read(str(MACHINE))).power is Power.ON


@pytest.mark.parametrize("more", [{}, {"fingerprint": "00" * 32}])
def test_a_strange_certificate_is_told_nothing(bmc: RedfishBmc, more: dict[str, str]) -> None:
    found = asyncio.run(device(bmc, ca_file=None, **more).read(str(MACHINE)))
    assert found.power is Power.UNKNOWN and "certificate" in found.detail
    assert bmc.requests == []


def test_unverified_only_where_it_is_said(bmc: RedfishBmc) -> None:
    mine = device(bmc, ca_file=None, verify=False)
    assert asyncio.run(mine.read(str(MACHINE))).power is Power.ON


def test_the_name_must_be_in_the_certificate(bmc: RedfishBmc) -> None:
    driver = RedfishDriver("localhost", bmc.port, "admin", PASSWORD, ca_file=str(bmc.ca_file))
    found = asyncio.run(
        GuardedDevice(2, "bmc", driver, DeviceSetting(timeout_s=5)).read(str(MACHINE))
    )
    assert "certificate" in found.detail and bmc.requests == []


def test_a_ca_file_that_is_none() -> None:
    with pytest.raises(Pointless, match="/etc/hostname"):
        RedfishDriver("127.0.0.1", 443, "admin", PASSWORD, ca_file="/etc/hostname")


def test_nobody_there() -> None:
    driver = RedfishDriver("127.0.0.1", 1, "admin", PASSWORD, verify=False)
    found = asyncio.run(
        GuardedDevice(2, "bmc", driver, DeviceSetting(timeout_s=5)).read(str(MACHINE))
    )
    assert "refused" in found.detail


# --- sushy-tools' emulator -----------------------------------------------------------------


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, str]]:
    """The emulator's port and CA file: two systems, one service, basic authentication, HTTPS."""
    place = tmp_path_factory.mktemp("sushy")
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(str(place / "ca.pem"))
    certificate.cert_chain_pems[0].write_to_path(str(place / "cert.pem"))
    certificate.private_key_pem.write_to_path(str(place / "key.pem"))
    hashed = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()
    (place / "htpasswd").write_text(f"admin:{hashed}\n")
    systems = [
        {"uuid": str(which), "name": name, "power_state": power, "nics": []}
        for which, name, power in ((MACHINE, "host2", "On"), (NEIGHBOUR, "host9", "Off"))
    ]
    (place / "conf.py").write_text(
        f"SUSHY_EMULATOR_AUTH_FILE = {str(place / 'htpasswd')!r}\n"
        f"SUSHY_EMULATOR_STATE_DIR = {str(place)!r}\n"
        f"SUSHY_EMULATOR_FAKE_SYSTEMS = {systems!r}\n"
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    arguments = ["--fake", "--interface", "127.0.0.1", "--port", str(port), "--config", "conf.py"]
    arguments += ["--ssl-certificate", "cert.pem", "--ssl-key", "key.pem"]
    with (place / "log").open("wb") as log:
        process = subprocess.Popen(
            [Path(sys.executable).parent / "sushy-emulator", *arguments],
            cwd=place,
            stdout=log,
            stderr=log,
        )
        try:
            _await(port, process, place / "log")
            yield port, str(place / "ca.pem")
        finally:
            process.kill()
            process.wait()


def _await(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(300):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert process.poll() is None, log.read_text()
        time.sleep(0.05)
    raise AssertionError(log.read_text())


def emulated(emulator: tuple[int, str], system: str, password: str = PASSWORD) -> GuardedDevice:
    port, ca_file = emulator
    driver = RedfishDriver("127.0.0.1", port, "admin", password, system=system, ca_file=ca_file)
    return GuardedDevice(
        2, "bmc", driver, DeviceSetting(timeout_s=8, username="admin", secrets=[password])
    )


def test_the_emulator_is_read_and_switched_off(emulator: tuple[int, str]) -> None:
    async def run() -> None:
        levels = FenceLevels([emulated(emulator, str(MACHINE))], own_host=1)
        assert (await levels.rehearse(2, str(MACHINE))).ok
        answer = await levels.read_power(2, str(MACHINE))
        assert answer.power is Power.ON and answer.identity_proven
        ended = await levels.power_off(2, str(MACHINE), attempt=0, still=always)
        assert ended.ok, ended.detail
        # The emulated power follows an order after 1 to 11 s.
        for _ in range(60):
            if (await levels.read_power(2, str(MACHINE))).power is Power.OFF:
                return
            await asyncio.sleep(0.25)
        pytest.fail("it never read off")

    asyncio.run(run())


def test_the_emulators_other_system_is_another_machine(emulator: tuple[int, str]) -> None:
    found = asyncio.run(emulated(emulator, str(NEIGHBOUR)).switch(str(MACHINE), on=False))
    assert found.identity is Identity.OTHER and NEIGHBOUR.hex in found.detail


def test_of_several_systems_one_must_be_named(emulator: tuple[int, str]) -> None:
    assert "2 systems" in asyncio.run(emulated(emulator, "").read(str(MACHINE))).detail
    assert "no system 'x'" in asyncio.run(emulated(emulator, "x").read(str(MACHINE))).detail


def test_the_emulator_refuses_a_wrong_password(emulator: tuple[int, str]) -> None:
    found = asyncio.run(emulated(emulator, str(MACHINE), "hunter2").read(str(MACHINE)))
    assert "401" in found.detail and "hunter2" not in found.detail
