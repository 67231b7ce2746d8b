# SPDX-License-Identifier: LGPL-2.1-or-later
"""Proves that no host starts a VM any more, before it leaves the registry.

A start takes a second, and until it has the lease, that VM's lease is free. A VM that is taken out
of the registry meanwhile would run, and nobody would watch it; who believes that it is down starts
it elsewhere without a lease, on the same disks. So it is first wanted down, then every host has
read that, and then no host is about to start it: only then does a free lease mean that it is down.
"""

from __future__ import annotations

import time

from agent.terminal.errors import CommandError
from broker.client.ask import BrokerError, ask
from broker.config.sections import Config
from broker.daemon.exit_codes import ExitCode
from broker.registry.record import VmRecord
from broker.wire.status import Status
from broker.wire.vms import VmWord
from scoring.vm_facts import Want

#: How long the hosts are waited for: they read the registry within 10 s (broker/registry/cache.py).
PATIENCE_S = 12.0
LOOK_S = 0.5


def wait_until_down(config: Config, record: VmRecord) -> None:
    """Wait until that is proven; CommandError where the VM is wanted up, or where it takes longer
    than PATIENCE_S. Where no broker answers here nothing more can be asked: the lease alone
    counts."""
    if record.want is Want.UP:
        text = f"{record.name} is wanted up: ha-agent vm stop {record.name} first"
        raise CommandError(ExitCode.REFUSED, text)
    until_s = time.monotonic() + PATIENCE_S
    while why := _not_yet(config, record):
        if time.monotonic() >= until_s:
            raise CommandError(ExitCode.REFUSED, f"{why}; try it again in a moment")
        time.sleep(LOOK_S)


def _not_yet(config: Config, record: VmRecord) -> str:
    try:
        status = ask(config.daemon.socket, "GET", "/v1/status", Status)
    except BrokerError:
        return ""
    for host in status.hosts.values():
        # A host that starts no VM of the registry has nothing to read there.
        starts = host.liveness == "live" and not host.stopped and not host.engine_only
        if starts and host.registry < record.generation:
            return f"{host.hostname} has not read yet that {record.name} is wanted down"
    for vm in status.vms:
        if vm.number == record.number and vm.state is not VmWord.OFF:
            where = "" if vm.hostname is None else f" on {vm.hostname}"
            return f"{record.name} is not down: {vm.state}{where}"
    return ""
