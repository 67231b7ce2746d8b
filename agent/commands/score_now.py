# SPDX-License-Identifier: LGPL-2.1-or-later
"""`ha-agent score` without a file: what each host scores now, and how fit it is for each VM."""

from __future__ import annotations

from typing import Any

import msgspec

from agent.commands.why_vm import fits, obstacle
from agent.terminal import in_json
from broker.client.ask import ask
from broker.config.sections import Config
from broker.daemon.exit_codes import ExitCode
from broker.wire.status import HostStatus, Status
from broker.wire.vms import VmEntry
from scoring.vm_facts import ENGINE


def run(config: Config, as_json: bool) -> int:
    """Print the scores of all hosts by this host's status. Raises as `ask` does."""
    hosts = scores(ask(config.daemon.socket, "GET", "/v1/status", Status))
    if as_json:
        in_json.show({"hosts": hosts}, indent=None)
    else:
        print("\n\n".join(as_text(host) for host in hosts))
    return ExitCode.OK


def scores(status: Status) -> list[dict[str, Any]]:
    """For each host its score with the parts, and its fitness for each VM of the registry."""
    return [
        {
            "host_id": host.host_id,
            "host": host.hostname,
            "liveness": host.liveness,
            "score": host.score,
            "penalties": [msgspec.to_builtins(each) for each in host.penalties],
            "unknown": list(host.unknown),
            "vms": [_fitness(status, vm, host) for vm in status.vms if vm.number != ENGINE],
        }
        for _, host in sorted(status.hosts.items())
    ]


def as_text(host: dict[str, Any]) -> str:
    """One host: its score, a line for each part, and a line for each VM."""
    silent = "" if host["liveness"] == "live" else f" ({host['liveness']})"
    lines = [f"{host['host']}: score {host['score']}{silent}"]
    lines += [f"  -{part['points']:<5} {part['name']}: {part['why']}" for part in host["penalties"]]
    lines += [f"  unknown: {name} (costs nothing)" for name in host["unknown"]]
    lines += [f"  {vm['vm']}: {vm['why']}" for vm in host["vms"]]
    return "\n".join(lines)


def _fitness(status: Status, vm: VmEntry, host: HostStatus) -> dict[str, Any]:
    """How fit a host is for a VM. `here`: the VM runs on it. `place`: its position among the hosts
    that may take the VM, from 1 on (None: it may not, and `why` says why)."""
    place = vm.order.index(host.host_id) + 1 if host.host_id in vm.order else None
    here = vm.host == host.host_id
    if here:
        why = f"{vm.state.value} here"
    elif place is None:
        why = f"no, {obstacle(status, vm, host)}"
    else:
        why = f"{'may take it' if vm.up else 'may start it'}, number {place}: {fits(host)}"
    return {"number": vm.number, "vm": vm.name, "here": here, "place": place, "why": why}
