# SPDX-License-Identifier: LGPL-2.1-or-later
"""One change of the registry by a command: under its lease, on what all hosts know of it.

Rules:

1. The lease of a VM is written before the record that names it: a command that ends in between
   leaves a lease that nobody knows.
2. A number is used again only where its lease is held by nobody; it gets a new lease.
3. A record that is damaged is still known by this host's copy: it can be written anew.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from agent.registry.lease import Leases, held
from agent.registry.names import Names, hosts_of
from agent.storage.made import write_lease
from agent.storage.registry import opened
from agent.terminal.errors import CommandError
from broker.client.ask import BrokerDown, BrokerRefused, ask
from broker.config.engine_file import FOLDER
from broker.config.sections import Config
from broker.daemon.exit_codes import ExitCode
from broker.registry.cache import Cached, merged, read_kept
from broker.registry.record import RecordTooLarge, VmRecord, number_of, unit_of
from broker.registry.rules import contradictions
from broker.registry.volume import Contents, Registry
from broker.wire.limits import VMS_MAX
from broker.wire.status import Status


def status_of(config: Config) -> Status | None:
    """The status; None where the broker does not answer."""
    with contextlib.suppress(BrokerDown, BrokerRefused):
        return ask(config.daemon.socket, "GET", "/v1/status", Status)
    return None


def kept_of(config: Config) -> Cached:
    """What this host knows of the registry by its copy."""
    return read_kept(Path(config.daemon.state_dir) / FOLDER, config.cluster.id)


class Change:
    """The registry while it may be changed. `known`: its VMs, those whose records are damaged
    among them; `names`: the same by name."""

    def __init__(
        self, config: Config, registry: Registry, leases: Leases, dry_run: bool = False
    ) -> None:
        self._config, self._registry, self.leases = config, registry, leases
        self._dry_run = dry_run
        self._kept = kept_of(config)
        self.contents: Contents = registry.read()
        self.known = merged(self._kept, self.contents)
        hosts = hosts_of(config, status_of(config))
        self.names = Names(self.known.vms, config.vm.name, hosts)

    def new_number(self) -> int:
        """The number for a new VM; CommandError where there is none."""
        free = [n for n in self.contents.free_numbers() if n not in self.known.vms]
        fits = [n for n in free if unit_of(n) < self.leases.units]
        for number in fits:
            if self.leases.holder(unit_of(number)) is None:
                return number
        if len(fits) < len(free):
            vms = number_of(self.leases.units - 1)
            raise CommandError(
                ExitCode.STORAGE,
                f"{self._config.storage.leases}: has no room for the lease of another VM: ha-agent"
                f" storage grow --vms {min(vms + 10, VMS_MAX)}",
            )
        text = "it holds 128 VMs, the most that there can be"
        if free:
            text = "the numbers that are free belong to removed VMs that still run somewhere"
        raise CommandError(ExitCode.STORAGE, f"registry {self._config.storage.registry}: {text}")

    def check(self, record: VmRecord) -> None:
        """CommandError where the record contradicts another one, or itself."""
        vms = {**self.names.vms, record.number: record}
        specs = Names(vms, self.names.engine).specs()
        before = set(contradictions(self.names.specs(), self.names.hosts))
        found = [each for each in contradictions(specs, self.names.hosts) if each not in before]
        if found:
            raise CommandError(ExitCode.REFUSED, "; ".join(found))

    def write_lease(self, record: VmRecord) -> None:
        """Write the VM's lease anew, which nobody holds."""
        if self._dry_run or record.number == 1:
            return
        storage = self._config.storage
        write_lease(storage, storage.leases, record.unit, record.resource, self.leases.sector)

    def put(self, record: VmRecord, xml: str | None = None) -> VmRecord:
        """Write the record, with a new definition or without; what then stands there."""
        if self._dry_run:
            return record
        try:
            return self._registry.put(
                record,
                None if xml is None else xml.encode(),
                time.time(),
                self._config.host_name,
                self.known.generation,
            )
        except RecordTooLarge as error:
            raise CommandError(
                ExitCode.REFUSED, f"{record.name}: its rules name too much: {error}"
            ) from None

    def definition(self, record: VmRecord, back: int = 0) -> str:
        """The XML of a VM; this host's copy where that is the same text."""
        if back == 0 and record.number in self._kept.definitions:
            mine = self._kept.records[record.number].definitions[:1]
            if mine == record.definitions[:1]:
                return self._kept.definitions[record.number]
        return self._registry.definition(record, back).decode()

    def sign_anew(self) -> int:
        """Sign all records with the present cluster key; how many blocks were signed."""
        return 0 if self._dry_run else self._registry.sign_anew()


@contextlib.contextmanager
def changing(config: Config, dry_run: bool = False) -> Iterator[Change]:
    """Hold the lease `registry` and change the registry; CommandError. With `dry_run` nothing is
    held and nothing written."""
    with contextlib.ExitStack() as stack:
        registry = opened(config, read_only=dry_run)  # first: whether there is one at all
        leases = Leases(config) if dry_run else stack.enter_context(held(config))
        yield Change(config, stack.enter_context(registry), leases, dry_run)
    if not dry_run:
        wake_broker(config)


def mended_header(config: Config) -> bool:
    """Write the registry's header anew where it cannot be read and its records prove that it is
    ours; whether that was needed; CommandError."""
    with opened(config, read_only=False) as registry, held(config):
        return registry.mend_header(kept_of(config).generation)


def wake_broker(config: Config) -> None:
    """Have the broker here read the registry now, which its slot shows to the others."""
    with contextlib.suppress(BrokerDown, BrokerRefused):
        ask(config.daemon.socket, "POST", "/v1/registry", dict[str, Any])
