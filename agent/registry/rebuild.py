# SPDX-License-Identifier: LGPL-2.1-or-later
"""`ha-agent vm rebuild`: writes what was lost of the registry anew, from this host's copy.

Each host keeps a copy of the registry and of the shared configuration (broker/registry/cache.py).
While the registry is damaged, the VMs run on by these copies, but no command can change it.

Rules:

1. What can be read on the volume, is signed and is not older than the copy stays. Only the rest is
   written anew: the header, records, definitions, the shared configuration.
2. The copy must be as new as what any host shows in its slot; else the command names a host with a
   newer one.
3. A volume that nothing proves to be this cluster's registry is overwritten only if that is said
   (`--overwrite`), and never one of another cluster or one that holds something else.
4. The lease of a VM is written anew only while that VM is known to be down.
5. A record that cannot be read and that no copy knows is emptied: it can be of no VM.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from agent.registry.change import kept_of, status_of
from agent.registry.lease import Leases, held
from agent.storage import held as held_volumes
from agent.storage.made import LOCAL, write_lease, written
from agent.storage.registry import registry_error, signatures_of
from agent.storage.watched import read_slots
from agent.terminal.errors import CommandError
from broker.config.sections import Config, StorageSection
from broker.config.shared import read_copy
from broker.daemon.exit_codes import ExitCode
from broker.daemon.foreign import whole
from broker.lockspace.lost_leases import why_lost
from broker.registry.cache import Cached, merged
from broker.registry.record import COUNT_MAX, RegistryError, VmRecord, is_unused
from broker.registry.shared import SharedConfig, SharedHead
from broker.registry.volume import REGISTRY_BYTES, BadRegistry, Registry
from broker.whiteboard import vm_lines
from broker.whiteboard.mounts import file_system
from broker.whiteboard.volume import Volume, VolumeError
from broker.wire.status import Status
from scoring.vm_facts import ENGINE


@dataclass(slots=True)
class Rebuilt:
    """What was written anew, or would be. `lost`: the VMs whose definition neither the volume nor
    the copy has. `leases`: the VMs whose leases were; `not_down`: those whose leases are lost and
    must not be written anew yet."""

    header: bool = False
    records: list[str] = field(default_factory=list)
    emptied: list[int] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    leases: list[str] = field(default_factory=list)
    not_down: list[str] = field(default_factory=list)
    shared: str = ""

    def in_words(self) -> str:
        """All of it in one sentence."""
        parts = ["the header"] * self.header
        parts += [f"the records of {', '.join(self.records)}"] * bool(self.records)
        parts += [f"the leases of {', '.join(self.leases)}"] * bool(self.leases)
        parts += [self.shared] * bool(self.shared)
        if self.emptied:
            parts.append(f"{len(self.emptied)} records that nobody knows, emptied")
        return ", ".join(parts)


def rebuilt(config: Config, overwrite: bool, dry_run: bool) -> Rebuilt:
    """Write what is lost of the registry anew; CommandError where that must not or cannot be."""
    path = config.storage.registry
    kept = kept_of(config)
    _check_copy(config, kept)
    with held(config) as leases:
        if not Path(path).exists():
            _make(path, dry_run)
            overwrite = True
        try:
            with Volume(path, read_only=dry_run) as volume:
                return _Rebuilding(config, volume, leases, kept, dry_run).run(overwrite)
        except VolumeError as error:
            raise registry_error(error) from None
        except RegistryError as error:
            raise CommandError(ExitCode.STORAGE, str(error)) from None


def _check_copy(config: Config, kept: Cached) -> None:
    """CommandError where this host has no copy, or another one a newer copy."""
    if not kept.records:
        raise CommandError(
            ExitCode.REFUSED,
            f"{config.daemon.state_dir}: has no copy of the registry; type this on a host that has"
            " one (ha-agent vm list)",
        )
    for host_id, report in sorted(read_slots(config.storage.whiteboard).reports.items()):
        shown = report.extra.get(vm_lines.REGISTRY, "") if report.extra_trusted else ""
        generation = whole(shown, COUNT_MAX) or 0
        if generation > kept.generation:
            raise CommandError(
                ExitCode.REFUSED,
                f"{report.hostname or host_id} (host {host_id}) knows generation {generation} of"
                f" the registry, and this host {kept.generation}: type this there",
            )


def _make(path: str, dry_run: bool) -> None:
    """Make an empty file where the registry's is gone; CommandError on a disk of this host."""
    kind = file_system(path)
    if kind in LOCAL:
        raise CommandError(
            ExitCode.STORAGE,
            f"{path}: is not there, and its folder lies on {kind}, a file system of this host"
            " alone; mount the shared storage",
        )
    if dry_run:
        raise CommandError(ExitCode.STORAGE, f"{path}: is not there; it would be made anew")
    with written(path, REGISTRY_BYTES):
        pass


class _Rebuilding:
    """One rebuilding, on the open volume and under the lease."""

    def __init__(
        self, config: Config, volume: Volume, leases: Leases, kept: Cached, dry_run: bool
    ) -> None:
        signatures = signatures_of(config)
        self._config, self._volume, self._lease_volume = config, volume, leases
        self._kept, self._dry_run = kept, dry_run
        self._registry = Registry(volume, config.cluster.id, signatures)
        self._shared_config = SharedConfig(volume, config.cluster.id, signatures)
        self._done = Rebuilt()

    def run(self, overwrite: bool) -> Rebuilt:
        """Write what is lost; CommandError, VolumeError, RegistryError."""
        self._check_size()
        found = self._registry.salvaged()
        if found is None:
            found = self._registry.read()
        else:
            if not found.records:
                self._check_ours(overwrite)
            self._done.header = True
            if not self._dry_run:
                self._registry.write_header(max(self._kept.generation, found.generation))
        known = merged(self._kept, found)
        for _, record in sorted(known.records.items()):
            self._record(record, found.records.get(record.number))
        self._done.emptied = sorted(found.damaged - known.records.keys())
        for number in [] if self._dry_run else self._done.emptied:
            self._registry.forget(number)
        self._shared()
        self._leases(known.vms.values())
        return self._done

    def _check_size(self) -> None:
        size, path = self._volume.size_bytes, self._volume.path
        if size < REGISTRY_BYTES:
            raise CommandError(
                ExitCode.STORAGE,
                f"registry {path}: has {size} bytes, and a registry takes {REGISTRY_BYTES}: make"
                " it larger",
            )

    def _check_ours(self, overwrite: bool) -> None:
        """CommandError where the volume, of which nothing can be read, may be something else."""
        path = self._volume.path
        if what := held_volumes.contents(path):
            raise CommandError(ExitCode.REFUSED, f"{path}: holds {what}; it is left alone")
        other = held_volumes.header(path)
        if other is not None:
            raise CommandError(
                ExitCode.REFUSED, f"{path}: is {other.kind} {other.volume}; it is left alone"
            )
        if not is_unused(self._volume.read_at(0)) and not overwrite:
            raise CommandError(
                ExitCode.REFUSED,
                f"{path}: neither its header nor a record can be read, so nothing proves that it is"
                " this cluster's registry; if you know that it is: ha-agent vm rebuild --overwrite",
            )

    def _record(self, record: VmRecord, stands: VmRecord | None) -> None:
        """Write a record anew that is lost, or whose newest definition is. `stands`: the one on the
        volume."""
        intact = self._registry.intact(record)
        has_newest = intact[:1] == record.definitions[:1]
        if stands == record and (has_newest or record.removed):
            return
        xml = None if has_newest else self._kept.definitions.get(record.number)
        if xml is None and not has_newest and not record.removed:
            self._done.lost.append(record.name)
            return
        self._done.records.append(record.name)
        if not self._dry_run:
            record = msgspec.structs.replace(record, definitions=intact)
            data = None if xml is None else xml.encode()
            by, above = self._config.host_name, self._kept.generation
            self._registry.put(record, data, time.time(), by, above)

    def _shared(self) -> None:
        """Write the shared configuration anew, if it is lost."""
        cluster, shared = self._config.cluster.id, self._shared_config
        copy = read_copy(self._config.daemon.state_dir, cluster)
        generation = 0 if copy is None else copy.generation
        try:
            head = shared.head()
            if head.texts:
                shared.text(head.texts[0])
            if head.generation >= generation:
                return
        except BadRegistry:
            pass
        if copy is None:
            self._done.shared = "the shared configuration, which no copy has, emptied"
            if not self._dry_run:
                shared.empty()
            return
        self._done.shared = f"the shared configuration of generation {generation}"
        if not self._dry_run:
            head = SharedHead(cluster=cluster, generation=generation)
            by = self._config.host_name
            shared.write(head, copy.text, time.time(), by, "rebuilt from a copy")

    def _leases(self, vms: Iterable[VmRecord]) -> None:
        """Write the leases of VMs anew that are lost, and whose VMs are known to be down.

        A lease that is written anew is free. While the VM runs, another host could take it as soon
        as this VM's host is silent, without any proof that it is dead.
        """
        storage, leases = self._config.storage, self._lease_volume
        lost = [one for one in vms if is_lost(storage, leases, one)]
        status = status_of(self._config) if lost else None
        for record in lost:
            if why := not_down(status, record):
                self._done.not_down.append(why)
                continue
            self._done.leases.append(record.name)
            if not self._dry_run:
                write_lease(storage, storage.leases, record.unit, record.resource, leases.sector)


def is_lost(storage: StorageSection, leases: Leases, record: VmRecord) -> bool:
    """Whether something else stands where the VM's lease must be; not of the engine, whose lease
    is none of the registry."""
    found = leases.at(record.unit)
    return record.number != ENGINE and why_lost(found, storage.lockspace, record.resource) != ""


def not_down(status: Status | None, record: VmRecord) -> str:
    """Why the lost lease of a VM must not be written anew; "": the VM is known to be down.
    `status`: None: no broker answers here."""
    lost = f"{record.name}: its lease is lost, and"
    if status is None:
        return f"{lost} no broker says here whether it is down"
    for vm in status.vms:
        if vm.number == record.number and vm.up is None:
            return f"{lost} whether it is down is not known: ha-agent why {record.name}"
        if vm.number == record.number and vm.up:
            return (
                f"{lost} it is {vm.state} on {vm.hostname}: ha-agent vm stop {record.name}, then"
                f" this again, then ha-agent vm start {record.name}"
            )
    return ""
