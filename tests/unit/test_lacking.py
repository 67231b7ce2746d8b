# SPDX-License-Identifier: LGPL-2.1-or-later
"""What makes a takeover worse than it could be is wrong while all is calm, on all hosts."""

from __future__ import annotations

import asyncio
import datetime
from pathlib import Path

import msgspec
import pytest

from agent.certificates.authority import AUTHORITY_LASTS, certificate_of, new_authority
from agent.commands.why import explain
from agent.status.troubles import REACH_LOST_S, troubles
from broker.broker import Broker
from broker.config.cluster_key import ClusterKey
from broker.config.host_certificates import AUTHORITY
from broker.status.certificates import watch_certificates
from broker.wire.lacking import LackingStatus
from broker.wire.status import CertificateStatus, EngineSummary, OutsideStatus, PenaltyOnWire
from scoring.rules import Rules
from scoring.vm_facts import EngineStatus, Health, VmStatus
from tests.fakes.broker import make_broker
from tests.fakes.slot_store import MemoryVolume
from tests.fakes.statuses import UP, host, status

WELL = (host(1, UP, state="EngineUp", local=True), host(2), host(3))
ILL = EngineStatus(VmStatus.UP, Health.BAD, "up", "no answer")


NOW = datetime.datetime.now(datetime.UTC)


def brokers(tmp_path: Path, count: int) -> list[Broker]:
    """Brokers of one whiteboard, each of which has seen all others write."""
    volume = MemoryVolume()
    made = [make_broker(tmp_path, volume, host_id) for host_id in range(1, count + 1)]

    async def run() -> None:
        for now_s in (1.0, 2.0, 3.0):
            for broker in made:
                await broker.beat(now_s)

    asyncio.run(run())
    return made


def test_every_host_says_what_the_cluster_was_never_given(tmp_path: Path) -> None:
    one, two = brokers(tmp_path, 2)
    for broker, own in ((one, 1), (two, 2)):
        found = broker.status(3.0).lacking
        assert found == LackingStatus(fence_device=(1, 2), migration=(own,))
        assert any(
            line.startswith("NO FENCE DEVICE of host1, host2")
            for line in troubles(broker.status(3.0))
        )


def test_who_knowingly_has_no_fence_devices_is_not_reminded(tmp_path: Path) -> None:
    one, _ = brokers(tmp_path, 2)
    fence = msgspec.structs.replace(one.config.fence, expected=False)
    one.reconfigure(msgspec.structs.replace(one.config, fence=fence))
    assert one.status(4.0).lacking == LackingStatus(migration=(1,))


def test_a_cluster_of_one_lacks_nothing(tmp_path: Path) -> None:
    (alone,) = brokers(tmp_path, 1)
    assert alone.status(3.0).lacking == LackingStatus()


def test_a_host_that_publishes_no_address_has_no_heartbeat(tmp_path: Path) -> None:
    one, _ = brokers(tmp_path, 2)
    one.heartbeats.key = ClusterKey(b"k" * 32)
    assert one.status(3.0).lacking.heartbeat == (1, 2)


def test_what_was_configured_is_not_missed(tmp_path: Path) -> None:
    one, _ = brokers(tmp_path, 2)
    path = tmp_path / "1.toml"
    path.write_text(
        path.read_text()
        + '[libvirt]\nmigration-uri = "qemu+tls://{host}/system"\n'
        + "".join(
            f'[[fence.device]]\nhost = {number}\ntype = "ipmi"\naddress = "192.0.2.{number}"\n'
            for number in (1, 2)
        )
    )
    from broker.config.load import load

    one.reconfigure(load(str(path)))
    assert one.status(3.0).lacking == LackingStatus()


@pytest.mark.parametrize(
    ("lacking", "line"),
    [
        (LackingStatus(fence_device=(2, 3)), "NO FENCE DEVICE of host2, host3: nobody could prove"),
        (LackingStatus(heartbeat=(3,)), "NO HEARTBEAT of host3: it publishes no address"),
        (LackingStatus(migration=(1,)), "NO MIGRATION: the VM can leave this host only by a"),
    ],
)
def test_each_is_a_line_with_what_to_do(lacking: LackingStatus, line: str) -> None:
    found = [each for each in troubles(status(*WELL, lacking=lacking)) if each.startswith(line)]
    assert len(found) == 1 and found[0].endswith(")")
    assert not troubles(status(*WELL))


@pytest.mark.parametrize(
    ("days", "problem", "line"),
    [
        (29, "", "CERTIFICATE: /c.pem ends in 29 days, and was not renewed"),
        (-2, "", "CERTIFICATE: /c.pem has ended 2 days ago: no VM can be migrated"),
        (None, "Permission denied", "CERTIFICATE: /c.pem Permission denied"),
    ],
)
def test_a_certificate_that_ends_soon_is_wrong(days: int | None, problem: str, line: str) -> None:
    ends = None if days is None else 1.0
    soon = CertificateStatus("/c.pem", ends, days, problem)
    good = CertificateStatus("/good.pem", 1.0, 30)
    (found,) = troubles(status(*WELL, certificates=(soon, good)))
    assert found.startswith(line) and "ha-agent certificates renew" in found


def test_the_broker_looks_at_its_certificates_again_and_again(tmp_path: Path) -> None:
    (one,) = brokers(tmp_path, 1)
    authority = new_authority("ha", NOW)
    path = tmp_path / "pki" / AUTHORITY
    path.parent.mkdir(parents=True)
    path.write_bytes(certificate_of(authority))
    libvirt = msgspec.structs.replace(
        one.config.libvirt,
        migration_uri="qemu+tls://{host}/system",
        pki_dir=str(tmp_path / "pki"),
    )
    one.reconfigure(msgspec.structs.replace(one.config, libvirt=libvirt))

    async def run() -> None:
        task = asyncio.create_task(watch_certificates(one.in_force))
        while not one.in_force.certificates:
            await asyncio.sleep(0.01)
        task.cancel()

    asyncio.run(run())
    (shown,) = one.status(4.0).certificates
    assert (shown.file, shown.problem) == (str(path), "")
    assert shown.ends == pytest.approx((NOW + AUTHORITY_LASTS).timestamp(), abs=1)


def test_an_older_definition_on_another_host_is_wrong_here_too() -> None:
    older = PenaltyOnWire("config", 1000, "this host's VM definition is older than the shared one")
    assert troubles(status(*WELL[:2], host(3, penalties=(older,)))) == [
        "DEFINITION on host3: this host's VM definition is older than the shared one"
        " (ha-agent doctor there)"
    ]


def test_a_page_that_is_bad_from_one_host_alone_is_wrong_here_too() -> None:
    def seen(bad_s: float | None) -> OutsideStatus:
        return OutsideStatus(owner=1, good_age_s=90.0, bad_s=bad_s)

    reached = EngineSummary(True, True, 1, "host1", 60.0, False, 60.0, False, reached=True)
    for bad_s, said in ((None, 0), (REACH_LOST_S - 1, 0), (REACH_LOST_S, 1)):
        found = troubles(
            status(*WELL[:2], host(3, outside=seen(bad_s), way_out=True), engine=reached)
        )
        assert len(found) == said, found
    assert found[0].startswith("NOT REACHED from host3 for 30 s: the VM does not answer it")
    nobody = msgspec.structs.replace(reached, reached=False)
    found = troubles(status(*WELL[:2], host(3, outside=seen(40.0)), engine=nobody))
    assert [line[:12] for line in found] == ["NOT REACHED:"], "one cause, one line"


# --- the times of the state the VM is in --------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "line"),
    [
        ("EngineStarting", "It boots: it has 10 min 0 s to become healthy, then it is stopped; so"),
        ("EngineUpBadHealth", "If it stays unhealthy for 5 min 0 s it is stopped and started anew"),
        ("EngineStop", "It is being stopped: the guest has 5 min 0 s to shut down, then it is"),
    ],
)
def test_why_says_the_times_of_the_state_the_vm_is_in(state: str, line: str) -> None:
    engine = EngineSummary(True, False, 1, "host1", 60.0, False, 40.0, False)
    said = explain(status(host(1, ILL, state=state, local=True), host(2), engine=engine), Rules())
    assert sum(each.startswith(line) for each in said) == 1, said
    assert said[0].startswith("The VM is up and not healthy on host1 for 1 min 0 s, since 20")
    assert said[0].endswith(" UTC.")


def test_of_a_vm_that_is_well_no_limit_is_said() -> None:
    said = explain(status(*WELL), Rules())
    assert not any("stopped" in each for each in said)
