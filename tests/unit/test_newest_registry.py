# SPDX-License-Identifier: LGPL-2.1-or-later
"""A start takes no older registry than any host shows: the agent tells the port the newest."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import cast

from agent.actions import ActionRunner
from agent.beat import Agent
from agent.ports import FenceDevices, FenceLog, Hypervisors, Leases
from broker.client.link import Link
from tests.fakes.broker import registry_of
from tests.fakes.cluster_of_vms import RECORDS, VmCluster
from tests.unit.builders import RULES


class Nothing:
    """Leases and fence devices of a host that fences nobody."""

    fence_held = False
    hosts: frozenset[int] = frozenset()

    def know(self, system_uuids: object) -> None:
        """Whose they are does not matter here."""


def test_the_newest_registry_that_any_host_shows_counts(tmp_path: Path) -> None:
    async def main() -> None:
        cluster = VmCluster(tmp_path)
        own = cluster.brokers[1].registry.cached.generation
        cluster.brokers[3].registry.cached = registry_of(*RECORDS, generation=own + 6).cached
        for now_s in (10.0, 11.0, 12.0):
            await cluster.beat(now_s)
        nothing = Nothing()
        runner = ActionRunner(
            cast(Hypervisors, None),
            cast(Leases, nothing),
            cast(FenceDevices, nothing),
            cast(FenceLog, None),
        )
        agent = Agent(RULES, cast(Link, None), runner, "kvm", migration_possible=False)
        view = cluster.brokers[1].view(12.0)
        assert view.registry == own
        agent._decide(view)
        assert runner.registry == own + 6

    asyncio.run(main())
