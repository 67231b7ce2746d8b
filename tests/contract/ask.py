# SPDX-License-Identifier: LGPL-2.1-or-later
"""`python -m tests.contract.ask ACT [ARGUMENT…]`: what the real Hypervisor of this host answers, as
JSON. Run in a host of the lab, beside its daemons and by their configuration."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import asdict
from typing import Any

from agent.leases.sanlock import SanlockLeases
from agent.vm.definition import load_definition
from agent.vm.hypervisor import LibvirtHypervisor
from agent.vm.protected import Engine
from broker.config.places import default_path
from broker.config.sections import load


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
    print(json.dumps(asdict(asyncio.run(ask(*sys.argv[1:])))))
