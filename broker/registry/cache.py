# SPDX-License-Identifier: LGPL-2.1-or-later
"""This host's copy of the registry: read from the volume, and kept in the state folder.

A VM that runs is watched without the storage, and a host that comes up while the storage is away
still knows its VMs. So the daemons work with a copy, which is read again when something changed.

Rules:

1. The header is read every 10 s, everything every minute, and at once when another host shows a
   larger generation in its slot.
2. A record never goes back: if the volume's one is older than the copy's, cannot be read, is not
   signed or is gone, the copy stays as it is and the VM is `damaged`: if it runs, it runs on, and
   no host starts it until it is defined anew.
3. A definition counts by its digest, which its record names: a copy with that digest is as good as
   the volume's. One that this host must not start (broker/registry/admitted.py) makes the VM
   `damaged` here.
4. The copy of another cluster is not used.
5. All calls that may block are made in one thread, with a deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import msgspec

from broker.config.engine_file import ENGINE_FILE
from broker.daemon.atomic_file import write_atomically
from broker.daemon.foreign import whole
from broker.daemon.foreign_json import decoded
from broker.daemon.worker import Hung, Worker
from broker.registry.record import COUNT_MAX, RegistryError, VmRecord
from broker.registry.volume import Blocks, Contents, Registry
from broker.whiteboard import vm_lines
from broker.whiteboard.signatures import Signatures
from broker.whiteboard.volume import STORAGE_DEADLINE_S, VolumeError
from broker.wire.limits import VMS_MAX
from scoring.vm_facts import VmSpec

log = logging.getLogger("ha-broker.registry")

#: The file of the records in FOLDER.
RECORDS_FILE = "registry.json"
HEADER_EVERY_S, WHOLE_EVERY_S = 10.0, 60.0
#: The least time between two readings, however often another host changes its line.
PAUSE_S = 0.5
#: More than the records of 128 VMs take.
RECORDS_FILE_BYTES_MAX = 4 * 1024 * 1024

T = TypeVar("T")
_ANEW = "define it anew: ha-agent vm define {name} FILE"


@dataclass(frozen=True, slots=True)
class Cached:
    """The registry as this host knows it. `records`: by VM number, those of removed VMs among them.
    `definitions`: libvirt's XML by VM number, where it is known. `damaged`: by VM number, why it
    cannot be started here, in a sentence. `problem`: why the registry could not be read, "": it
    could. `vms`: the records of the VMs that are protected, by number; `specs`: of all these, by
    number."""

    generation: int = 0
    records: Mapping[int, VmRecord] = field(default_factory=dict)
    definitions: Mapping[int, str] = field(default_factory=dict)
    damaged: Mapping[int, str] = field(default_factory=dict)
    problem: str = ""
    vms: Mapping[int, VmRecord] = field(init=False)
    specs: tuple[VmSpec, ...] = field(init=False)

    def __post_init__(self) -> None:
        # Both are asked for many times a beat, and follow from `records`, which does not change.
        vms = {number: one for number, one in self.records.items() if not one.removed}
        object.__setattr__(self, "vms", vms)
        object.__setattr__(self, "specs", tuple(one.spec() for _, one in sorted(vms.items())))

    def named(self, name: str) -> VmRecord | None:
        """The VM of that name, or number."""
        vms = self.vms
        found = next((one for one in vms.values() if one.name == name), None)
        return found or (vms.get(int(name)) if name.isascii() and name.isdecimal() else None)


class _Kept(msgspec.Struct, frozen=True):
    """RECORDS_FILE."""

    cluster: str
    generation: int
    records: tuple[VmRecord, ...]
    damaged: dict[int, str] = {}


def read_kept(folder: Path, cluster: str) -> Cached:
    """The copy in the folder `vms` of the state folder; an empty one where there is none that can
    be used. Blocks as long as the local disk does."""
    path = folder / RECORDS_FILE
    try:
        with path.open("rb") as file:
            kept = decoded(file.read(RECORDS_FILE_BYTES_MAX), _Kept)
    except FileNotFoundError:
        return Cached()
    except (OSError, msgspec.DecodeError) as error:
        # A command of somebody who is not root says in its own sentence what it lacks.
        level = logging.INFO if isinstance(error, PermissionError) else logging.WARNING
        log.log(level, "%s cannot be used: %s", path, getattr(error, "strerror", None) or error)
        return Cached()
    if kept.cluster != cluster:
        log.warning("%s is of another cluster and is not used", path)
        return Cached()
    records = {one.number: one for one in kept.records}
    definitions: dict[int, str] = {}
    for number, record in records.items():
        with contextlib.suppress(OSError, ValueError):
            data = (folder / _file_of(record)).read_bytes() if record.definitions else b""
            if record.definitions and _digest(data) == record.definitions[0].sha256:
                definitions[number] = data.decode()
    damaged = dict(kept.damaged)
    for number, record in records.items():
        if number not in definitions and not record.removed:
            damaged.setdefault(number, f"the copy of {record.name}'s definition here is damaged")
    return Cached(kept.generation, records, definitions, damaged)


def write_kept(folder: Path, cluster: str, cached: Cached) -> None:
    """Keep the copy; OSError. Each definition is there before the records that name it."""
    wanted = {RECORDS_FILE}
    engine = cached.definitions.get(1)
    if engine is not None:
        wanted.add(ENGINE_FILE)
        write_atomically(folder / ENGINE_FILE, engine.encode(), 0o640)
    for number, text in cached.definitions.items():
        name = _file_of(cached.records[number])
        wanted.add(name)
        if not (folder / name).exists():
            write_atomically(folder / name, text.encode(), 0o640)
    records = tuple(one for _, one in sorted(cached.records.items()))
    kept = _Kept(cluster, cached.generation, records, dict(cached.damaged))
    write_atomically(folder / RECORDS_FILE, msgspec.json.encode(kept), 0o640)
    for path in folder.iterdir():
        if path.name not in wanted:
            path.unlink(missing_ok=True)


def merged(known: Cached, found: Contents) -> Cached:
    """The records after a reading, without definitions: see rule 2."""
    records: dict[int, VmRecord] = {}
    damaged: dict[int, str] = {}
    for number in range(1, VMS_MAX + 1):
        old, new = known.records.get(number), found.records.get(number)
        record = new if old is None or (new and new.generation >= old.generation) else old
        if record is not None:
            records[number] = record
        why = _damage(number, old, new, found)
        if why and (old is None or not old.removed):
            name = str(number) if old is None else old.name
            damaged[number] = f"{why}; {_ANEW.format(name=name)}"
    problem = ""
    if found.generation < known.generation:
        problem = (
            f"the registry holds generation {found.generation}, and {known.generation} was read"
            " before: an older copy of the volume?"
        )
    generation = max(known.generation, found.generation)
    return Cached(generation, records, {}, damaged, problem)


def _damage(number: int, old: VmRecord | None, new: VmRecord | None, found: Contents) -> str:
    if number in found.damaged:
        return "its record in the registry cannot be read"
    if number in found.refused:
        return "its record in the registry is not signed with this cluster's key"
    if old is not None and new is None:
        return "its record is gone from the registry"
    if old is not None and new is not None and new.generation < old.generation:
        return (
            f"its record in the registry is of generation {new.generation}, and {old.generation}"
            " was read before"
        )
    return ""


class RegistryCache:
    """This host's knowledge of the registry; `cached` is what the daemons work with.

    `on_change`: called when something changed. Without a volume (`opened` None) nothing is read,
    and nothing known.
    """

    def __init__(
        self,
        opened: Callable[[], AbstractContextManager[Blocks]] | None,
        cluster: str,
        signatures: Signatures,
        folder: Path,
        worker: Worker | None = None,
    ) -> None:
        """`opened`: opens the volume. `folder`: of the copy."""
        self._opened, self._cluster, self._signatures = opened, cluster, signatures
        self._folder = folder
        self._worker = worker or Worker("registry")
        #: Why this host must not start such a definition; "": it may.
        self.refusal: Callable[[VmRecord, str], str] = lambda record, xml: ""
        self.on_change: Callable[[], None] = lambda: None
        #: Called with the open volume after the registry was read, in the thread.
        self.also: Callable[[Blocks], None] = lambda volume: None
        self.cached = Cached()
        #: The registry as it was read, before this host's own judgement of the definitions.
        self._plain = Cached()
        self._is_loaded = opened is None
        self._wake = asyncio.Event()
        self._heard = 0
        self._whole_s: float | None = None

    def heard(self, generation: int) -> None:
        """Another host shows that generation in its slot."""
        if generation > max(self._heard, self.cached.generation):
            self._heard = generation
            self._wake.set()

    def look_now(self) -> None:
        """Read again at once: a command has changed the registry."""
        self._whole_s = None
        self._wake.set()

    async def run(self) -> None:
        """Read for ever."""
        while self._opened is not None:
            await self.look(asyncio.get_running_loop().time())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HEADER_EVERY_S):
                    await self._wake.wait()
            self._wake.clear()
            await asyncio.sleep(PAUSE_S)
        await asyncio.Event().wait()

    async def look(self, now_s: float) -> None:
        """Look once whether something changed, and read what did."""
        if self._opened is None:
            return
        try:
            await self._load()
            is_due = self._whole_s is None or now_s - self._whole_s >= WHOLE_EVERY_S
            is_due = is_due or self._heard > self.cached.generation
            if is_due or await self._call("its header", self._header) != self.cached.generation:
                await self._read(now_s)
        except (Hung, VolumeError, RegistryError) as error:
            self._whole_s = None
            self._use(replace(self.cached, problem=sentence_of(error)))

    async def _load(self) -> None:
        """Take up the copy of an earlier broker, once."""
        if not self._is_loaded:
            kept = await self._call("the copy here", read_kept, self._folder, self._cluster)
            self._is_loaded, self._plain = True, kept
            self._use(self._checked(kept))

    async def _read(self, now_s: float) -> None:
        known = self._plain
        cached = merged(known, await self._call("the records", self._contents))
        definitions: dict[int, str] = {}
        damaged = dict(cached.damaged)
        for number, record in cached.vms.items():
            kept = _sha_of(record)
            before = known.records.get(number)
            if number in known.definitions and before is not None and kept == _sha_of(before):
                definitions[number] = known.definitions[number]
            elif number not in damaged:
                try:
                    what = f"the definition of {record.name}"
                    data = await self._call(what, self._definition, record)
                    definitions[number] = data.decode()
                except RegistryError as error:
                    damaged[number] = str(error)
                except UnicodeDecodeError:
                    damaged[number] = f"the definition of {record.name} is not UTF-8"
        self._whole_s = now_s
        cached = replace(cached, definitions=definitions, damaged=damaged)
        if replace(cached, problem="") != replace(self._plain, problem=""):
            await self._keep(cached)
        self._plain = cached
        self._use(self._checked(cached))

    async def _keep(self, cached: Cached) -> None:
        try:
            await self._call("the copy here", write_kept, self._folder, self._cluster, cached)
        except OSError as error:
            log.error("%s: the registry's copy cannot be written: %s", self._folder, error.strerror)

    def _checked(self, cached: Cached) -> Cached:
        damaged = dict(cached.damaged)
        for number, text in cached.definitions.items():
            why = self.refusal(cached.records[number], text)
            if why:
                damaged.setdefault(number, why)
        return replace(cached, damaged=damaged)

    def _use(self, cached: Cached) -> None:
        before, self.cached = self.cached, cached
        if cached == before:
            return
        for number, why in cached.damaged.items():
            if before.damaged.get(number) != why:
                log.error("VM %s: %s", _name(cached, number), why)
        if cached.problem != before.problem:
            log.log(
                logging.ERROR if cached.problem else logging.INFO,
                "%s",
                cached.problem or "the registry is read again",
            )
        if cached.generation != before.generation:
            log.info("registry of generation %d: %d VMs", cached.generation, len(cached.vms))
        self.on_change()

    # --- in the thread ------------------------------------------------------------------

    async def _call(self, what: str, function: Callable[..., T], *args: object) -> T:
        return await self._worker.call(f"reading {what}", STORAGE_DEADLINE_S, function, *args)

    def _with(
        self,
        function: Callable[[Registry], T],
        also: Callable[[Blocks], None] = lambda volume: None,
    ) -> T:
        assert self._opened is not None
        with self._opened() as volume:
            found = function(Registry(volume, self._cluster, self._signatures))
            also(volume)
            return found

    def _header(self) -> int:
        return self._with(Registry.generation, self.also)

    def _contents(self) -> Contents:
        return self._with(Registry.read, self.also)

    def _definition(self, record: VmRecord) -> bytes:
        return self._with(lambda registry: registry.definition(record))


def no_registry() -> RegistryCache:
    """What a host of a cluster without a registry knows: nothing."""
    return RegistryCache(None, "", Signatures(), Path())


def newest_heard(lines: Iterable[Mapping[str, str]]) -> int:
    """The largest generation in the slots' lines `registry`; 0: none."""
    return max(
        (whole(each.get(vm_lines.REGISTRY, ""), COUNT_MAX) or 0 for each in lines), default=0
    )


def sentence_of(error: Exception) -> str:
    """What is wrong with the registry, and the next step, as a sentence."""
    if isinstance(error, VolumeError):
        return f"registry {error.path}: {error.what}; {error.step}"
    return str(error)


def _sha_of(record: VmRecord) -> str:
    return record.definitions[0].sha256 if record.definitions else ""


def _file_of(record: VmRecord) -> str:
    return f"{record.number}-{_sha_of(record)[:16]}.xml"


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _name(cached: Cached, number: int) -> str:
    return cached.records[number].name if number in cached.records else str(number)
