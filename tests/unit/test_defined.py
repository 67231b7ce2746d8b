# SPDX-License-Identifier: LGPL-2.1-or-later
"""libvirt's own definition of the VM is never put back without a word: libvirt's test driver."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import libvirt
import pytest

from agent.leases.sanlock import SanlockLeases
from agent.vm.defined import Defined
from agent.vm.definition import Definition
from agent.vm.hypervisor import LibvirtHypervisor
from agent.vm.protected import Engine
from broker.config.sections import Config
from broker.monitors.runner import Unknown
from broker.monitors.what_runs import WhatRunsMonitor
from broker.vm.domain_facts import Differs, read
from broker.wire.what_ran import WhatRan
from scoring.observation import StartResult
from tests.fakes.definitions import TWO, XML, Shared, config, vcpus

RAN = "<disk type='file'><driver type='qcow2'/><source file='/srv/over'/><target dev='vda'/></disk>"


def hypervisor(given: Config) -> LibvirtHypervisor:
    definition = Definition(XML, "vm", 64, 1048576, "test")
    return LibvirtHypervisor(given, Engine(given, definition), SanlockLeases(given, 0))


def test_what_libvirt_does_not_know_is_defined_at_the_agent_s_start(
    connection: Shared, tmp_path: Path
) -> None:
    asyncio.run(hypervisor(config(tmp_path)).check())
    assert vcpus(connection) == 1


def test_what_somebody_defined_stays_at_the_agent_s_start_and_is_told(
    connection: Shared, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    connection.defineXML(TWO)
    with caplog.at_level(logging.WARNING):
        asyncio.run(hypervisor(config(tmp_path)).check())
    assert vcpus(connection) == 2, "not put back in silence"
    assert "vCPUs: recorded 1, found 2" in caplog.text


def test_a_start_takes_the_recorded_one_and_says_what_it_put_back(
    connection: Shared, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The test driver has no process: the start itself fails behind that."""
    connection.defineXML(TWO)
    with caplog.at_level(logging.WARNING):
        ended = asyncio.run(hypervisor(config(tmp_path)).start())
    assert ended.result is StartResult.FAILED
    assert vcpus(connection) == 1
    assert "put back to the cluster's: vCPUs: recorded 1, found 2" in caplog.text


def test_a_start_is_one_of_what_ran_last(
    connection: Shared, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = config(tmp_path)
    ran = WhatRan(3, 2, 1, "host1", 0.0, {"vda": RAN})
    with caplog.at_level(logging.WARNING):
        asyncio.run(hypervisor(given).start(ran))
    own = connection.lookupByName("vm").XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    assert read(own).disks["vda"].chain[0].place == "/srv/over"
    assert "started with what ran last (record 3 of host1): vda" in caplog.text
    caplog.clear()
    asyncio.run(hypervisor(given).start(None))
    assert "put back" not in caplog.text, "the agent's own older one is nobody's change"


def test_the_file_as_it_is_at_the_start_counts_and_a_bad_one_changes_nothing(
    connection: Shared, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = config(tmp_path)
    ours = hypervisor(given)
    Path(given.vm.definition).write_text(TWO)
    asyncio.run(ours.start())
    assert vcpus(connection) == 2
    Path(given.vm.definition).write_text("<domain")
    asyncio.run(ours.start())
    assert vcpus(connection) == 2
    assert "stays as it was read before" in caplog.text


OLD_UUID = "6e67696e-0000-4000-8000-00000000000f"
OLD_LEASE = "<key>vm-6e67696e00004000800000000000000f</key>"


@pytest.mark.parametrize(
    ("old", "gives_way"),
    [
        # Removed from the registry, and added anew without its UUID.
        (
            XML.replace(
                "vm</name><uuid>6e67696e-0000-4000-8000-000000000001", f"vm</name><uuid>{OLD_UUID}"
            ).replace("<key>engine</key>", OLD_LEASE),
            True,
        ),
        # Added under another name than libvirt had for it.
        (XML.replace("<name>vm<", "<name>before<"), True),
        # Somebody else's domain that has the name by chance.
        (
            XML.replace(
                "vm</name><uuid>6e67696e-0000-4000-8000-000000000001", f"vm</name><uuid>{OLD_UUID}"
            ),
            False,
        ),
    ],
)
@pytest.mark.parametrize("runs", [False, True])
def test_a_domain_of_earlier_days_gives_way(
    connection: Shared, tmp_path: Path, old: str, gives_way: bool, runs: bool
) -> None:
    before = connection.defineXML(old)
    if runs:
        before.create()
    defined = Defined("vm", tmp_path)
    if runs or not gives_way:
        with pytest.raises(libvirt.libvirtError, match="already"):
            defined.define(connection.real, XML)
        assert [each.UUIDString() for each in connection.listAllDomains()] == [before.UUIDString()]
        return
    defined.define(connection.real, XML)
    (now,) = connection.listAllDomains()
    assert (now.name(), now.UUIDString()) == ("vm", "6e67696e-0000-4000-8000-000000000001")


def test_what_cannot_be_remembered_or_compared_keeps_nothing_from_working(
    connection: Shared, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    defined = Defined("vm", tmp_path / "file" / "state")
    defined.define(connection.real, XML)
    assert "cannot be written" in caplog.text
    assert defined.changes(connection.real, "<domain") == ()
    assert "cannot be compared" in caplog.text
    connection.real.close()
    with pytest.raises(libvirt.libvirtError):
        defined.changes(connection.real, XML)
    connection.real = libvirt.openReadOnly("test:///default")


# --- the broker's look at the same ------------------------------------------------------------


def test_the_monitor_tells_what_runs_and_what_libvirt_would_start(
    connection: Shared, tmp_path: Path
) -> None:
    given = config(tmp_path)
    monitor = WhatRunsMonitor(given)

    async def run() -> None:
        seen = await monitor.sample()
        assert (seen.running, seen.problem) == (None, "")
        domain = connection.defineXML(TWO)
        assert [each.code for each in (await monitor.sample()).of_libvirt] == [Differs.VCPUS]
        assert monitor.judge(await monitor.sample()).startswith("libvirt's own definition: vCPUs")
        domain.create()
        seen = await monitor.sample()
        assert [each.code for each in seen.of_running] == [Differs.VCPUS]
        assert seen is await monitor.sample(), "nothing changed, nothing is made anew"
        domain.destroy()
        Defined("vm", Path(given.daemon.state_dir)).define(connection.real, XML)
        monitor.ran = lambda: {"vda": RAN}
        assert (await monitor.sample()).of_libvirt == (), "the agent made it so"
        connection.defineXML(XML.replace("/srv/base", "/srv/over"))
        assert (await monitor.sample()).of_libvirt == (), "what ran last is what a start takes"

    asyncio.run(run())


def test_a_snapshot_is_told_once_though_libvirt_writes_it_into_both(
    connection: Shared, tmp_path: Path
) -> None:
    """libvirt's own definition names the overlay too, before it is recorded."""
    monitor = WhatRunsMonitor(config(tmp_path))

    async def run() -> None:
        connection.defineXML(XML.replace("/srv/base", "/srv/over")).create()
        seen = await monitor.sample()
        assert [each.what for each in seen.of_running] == ["vda"]
        assert seen.of_libvirt == ()
        connection.defineXML(XML.replace("/srv/base", "/srv/third"))
        assert [each.found for each in (await monitor.sample()).of_libvirt] == [
            "/srv/third (qcow2)"
        ]

    asyncio.run(run())


def test_the_monitor_does_not_know_what_it_cannot_read(connection: Shared, tmp_path: Path) -> None:
    given = config(tmp_path)

    async def run() -> None:
        Path(given.vm.definition).write_text("<network/>")
        with pytest.raises(Unknown, match="holds <network>"):
            await WhatRunsMonitor(given).sample()
        Path(given.vm.definition).unlink()
        with pytest.raises(Unknown, match="No such file"):
            await WhatRunsMonitor(given).sample()
        Path(given.vm.definition).write_text(XML)
        monitor = WhatRunsMonitor(given)
        await monitor.sample()
        connection.real.close()
        with pytest.raises(Unknown, match="libvirt:"):
            await monitor.sample()
        connection.real = libvirt.open("test:///default")

    asyncio.run(run())
