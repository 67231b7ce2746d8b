# SPDX-License-Identifier: LGPL-2.1-or-later
"""VMs and hosts by the names that people type."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

from agent.storage.watched import read_slots
from agent.terminal.errors import CommandError
from broker.config.sections import Config
from broker.daemon.exit_codes import ExitCode
from broker.registry.record import VmRecord
from broker.wire.status import Status
from scoring.vm_facts import VmSpec

ENGINE = "engine"


class Names:
    """The VMs of the cluster. `engine`: the engine's name. `hosts`: names by host id."""

    def __init__(
        self, vms: Mapping[int, VmRecord], engine: str, hosts: Mapping[int, str] | None = None
    ) -> None:
        self.vms = dict(vms)
        self.engine = engine
        self.hosts = dict(hosts or {})

    def number(self, name: str) -> int:
        """The VM of that name or number; 1: the engine. CommandError, with what was meant."""
        for number, record in self.vms.items():
            if name in (record.name, str(number)):
                return number
        if name in (ENGINE, self.engine, "1"):
            return 1
        known = [self.engine, *(record.name for record in self.vms.values())]
        raise CommandError(ExitCode.USAGE, f"no VM {name!r}{_near(name, known)}")

    def record(self, name: str) -> VmRecord:
        """The record of the VM of that name or number; CommandError, for the engine too while it is
        not in the registry."""
        number = self.number(name)
        if number in self.vms:
            return self.vms[number]
        raise CommandError(
            ExitCode.REFUSED,
            f"{self.engine} is not in the registry: its definition and settings are in this host's"
            " configuration; to move them: ha-agent vm define engine FILE",
        )

    def name_of(self, number: int) -> str:
        """A VM's name."""
        if number in self.vms:
            return self.vms[number].name
        return self.engine if number == 1 else str(number)

    def numbers(self, text: str) -> tuple[int, ...]:
        """VMs in a list with commas; CommandError."""
        return tuple(dict.fromkeys(self.number(each) for each in _parts(text)))

    def host(self, name: str) -> int:
        """The host of that name or id; CommandError, with what was meant."""
        found = [host for host, its in self.hosts.items() if name in (its, str(host))]
        if len(found) == 1:
            return found[0]
        if found:
            raise CommandError(
                ExitCode.USAGE, f"more than one host is called {name!r}: give its id"
            )
        raise CommandError(ExitCode.USAGE, f"no host {name!r}{_near(name, self.hosts.values())}")

    def host_ids(self, text: str) -> tuple[int, ...]:
        """Hosts in a list with commas; CommandError."""
        return tuple(dict.fromkeys(self.host(each) for each in _parts(text)))

    def host_name(self, host: int) -> str:
        """A host's name, or its id."""
        return self.hosts.get(host) or str(host)

    def specs(self) -> tuple[VmSpec, ...]:
        """All VMs, the engine too."""
        own = () if 1 in self.vms else (VmSpec(1, self.engine, 0),)
        return (*own, *(record.spec() for record in self.vms.values()))


def hosts_of(config: Config, status: Status | None) -> dict[int, str]:
    """The hosts' names by id: as the broker knows them, else as the whiteboard has them."""
    if status is not None:
        return {host.host_id: host.hostname for host in status.hosts.values()}
    reports = read_slots(config.storage.whiteboard).reports
    return {host: report.hostname for host, report in reports.items()}


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _near(name: str, known: Iterable[str]) -> str:
    names = [each for each in known if each]
    near = difflib.get_close_matches(name, names, n=2)
    if near:
        return f"; did you mean {' or '.join(near)}?"
    return f"; there are: {', '.join(sorted(names))}" if names else ""
