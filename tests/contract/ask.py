# SPDX-License-Identifier: LGPL-2.1-or-later
"""`python -m tests.contract.ask ACT [ARGUMENT…]`: what the real Hypervisor of this host answers, as
JSON. Run in a host of the lab, beside its daemons and by their configuration.

`start-together ENOUGH VM…` starts VMs of the registry at once: a line for each outcome, until the
start of VM ENOUGH has ended. What hangs is left behind with the process."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, cast

from agent.actions import ActionRunner
from agent.fence.devices import fence_devices
from agent.leases.sanlock import SanlockLeases
from agent.leases.vm_records import VmRecords
from agent.ports import FenceLog
from agent.vm.definition import load_definition
from agent.vm.hypervisor import LibvirtHypervisor
from agent.vm.hypervisors import LibvirtHypervisors
from agent.vm.protected import Engine
from broker.config.load import load
from broker.config.places import default_path
from scoring.decision import AskLease, StartVm
from scoring.observation import VmStartEnded

PATIENCE_S = 60.0


async def start_together(enough: int, vms: Sequence[int]) -> None:
    """Start VMs by the actions of an agent, and print each outcome as it comes, until the start of
    VM `enough` has ended."""
    config = load(default_path())
    definition = load_definition(config)
    records = VmRecords(config)
    leases = SanlockLeases(config, definition.lease_offset, records=records)
    engine = LibvirtHypervisor(config, Engine(config, definition), leases)
    hands = LibvirtHypervisors(config, engine, leases, records)
    runner = ActionRunner(hands, leases, fence_devices(config), cast(FenceLog, None))
    for vm in vms:
        runner.begin(AskLease(vm))
    for vm in vms:
        runner.begin(StartVm(vm))
    ended: set[int] = set()
    async with asyncio.timeout(PATIENCE_S):
        while enough not in ended:
            await runner.news.wait()
            runner.news.clear()
            for outcome in runner.take_outcomes():
                print(json.dumps({"kind": type(outcome).__name__, **asdict(outcome)}), flush=True)
                if isinstance(outcome, VmStartEnded):
                    ended.add(outcome.vm)
    # A thread that hangs in libvirt would keep the process from ending.
    os._exit(0)


async def ask(act: str, *arguments: str) -> Any:
    """The outcome of an act."""
    config = load(default_path())
    definition = load_definition(config)
    leases = SanlockLeases(config, definition.lease_offset)
    hypervisor = LibvirtHypervisor(config, Engine(config, definition), leases)
    match act, arguments:
        case "start", ():
            return await hypervisor.start()
        case "power-off", ():
            return await hypervisor.power_off()
        case "cancel", ():
            return await hypervisor.cancel_migration("a test")
        case "migrate", (hostname,):
            return await hypervisor.migrate(9, hostname)
    raise SystemExit(f"no such act: {act}")


if __name__ == "__main__":
    if sys.argv[1] == "start-together":
        enough, *numbers = map(int, sys.argv[2:])
        asyncio.run(start_together(enough, numbers))
    print(json.dumps(asdict(asyncio.run(ask(*sys.argv[1:])))))
