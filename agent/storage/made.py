# SPDX-License-Identifier: LGPL-2.1-or-later
"""Makes whiteboard and lease volume where nothing is, and keeps them where they are right.

A file is made completely under another name and then linked to its own: no crash and no full disk
leaves a part of one, and of two hosts that make it at once one finds it there. A block device is
written in place, and only where it holds nothing (agent/storage/held.py), or a lockspace that no
host ever used. Volumes that nobody uses any more are written over where that is said once; anything
else, another cluster's volumes among it, where it is said twice.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import sanlock

from agent.storage import held
from agent.storage.identity import check_volumes, found_at, written_to
from agent.storage.room import (
    WHITEBOARD_BYTES,
    allocate,
    bytes_of,
    check_device,
    check_room,
    sector_of,
)
from agent.storage.watched import (
    SLOT_WATCH_S,
    Users,
    lease_watch_s,
    os_error,
    read_leases,
    read_slots,
    storage_error,
    watch,
)
from agent.terminal.errors import CommandError
from agent.terminal.progress import progress
from agent.terminal.steps import Step
from broker.config.sections import Config, StorageSection
from broker.daemon.exit_codes import ExitCode
from broker.lockspace.delta_leases import FENCE_RESOURCE
from broker.lockspace.lost_leases import wanted_leases
from broker.whiteboard.identity import VolumeKind, expected
from broker.whiteboard.layout import SLOT_MAX
from broker.whiteboard.lease_sectors import ALIGN_OF_SECTOR
from broker.whiteboard.mounts import file_system
from broker.whiteboard.slot import EMPTY_SLOT
from broker.whiteboard.volume import Volume, VolumeError

_LEASES = VolumeKind.LEASES
#: File systems that hosts do not share, unless by mistake.
LOCAL = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "overlay", "tmpfs", "f2fs"})
_ZEROS = bytes(1 << 20)
_JOIN = "to add this host to it: ha-agent join; to write it over: --overwrite"


@dataclass(frozen=True, slots=True)
class Volumes:
    """The two volumes of a configuration. `ours`: this host is configured for them already.
    `overwrite`: 1: volumes that are no longer in use may be overwritten; 2: anything else as well.
    `local`: they may lie on a file system that no other host sees. `vms`: the VMs that the lease
    volume has room for."""

    config: Config
    ours: bool = False
    overwrite: int = 0
    local: bool = False
    vms: int = 1

    @property
    def storage(self) -> StorageSection:
        """The configuration of the volumes."""
        return self.config.storage

    def steps(self) -> list[Step]:
        """Whiteboard and lease volume, in this order."""
        given = self.storage
        return [
            Step(
                "whiteboard",
                self._look_whiteboard,
                f"making {given.whiteboard} ({WHITEBOARD_BYTES} bytes)",
                self._make_whiteboard,
            ),
            Step(
                "leases",
                self._look_leases,
                f"making {given.leases}: lockspace {given.lockspace}, leases {given.resource} and"
                f" {FENCE_RESOURCE}",
                self._make_leases,
            ),
        ]

    # --- the whiteboard -----------------------------------------------------------------------

    def _look_whiteboard(self) -> str | None:
        self._refuse_same()
        found = self._found_whiteboard()
        if found is None:
            self._refuse_held(self.storage.whiteboard)
            check_room(self.storage.whiteboard, WHITEBOARD_BYTES)
        return found

    def _found_whiteboard(self) -> str | None:
        path = self.storage.whiteboard
        if not _is_there(path):
            if self.ours and not self.overwrite:
                refuse_loss(path, "is not there", "to make an empty one: --overwrite")
            self._refuse_local(path)
            return None
        sweep = read_slots(path)
        if not (sweep.reports or sweep.bad or sweep.cluster_fault):
            if self.ours and not self.overwrite:
                check_volumes(self.config, VolumeKind.WHITEBOARD)
            is_named = self._is_named(path, VolumeKind.WHITEBOARD)
            is_whole = is_named and not _too_small(path, WHITEBOARD_BYTES)
            if not is_whole:
                self._refuse_local(path)
            return f"{path} is there and empty" if is_whole else None
        if self.ours:
            check_volumes(self.config, VolumeKind.WHITEBOARD)
            return f"{path} is there"
        names = ", ".join(f"{i} ({r.hostname})" for i, r in sorted(sweep.reports.items()))
        if not names:
            self._refuse_held(path)
            self._refuse_unless_twice(path, "holds something else than a whiteboard")
        elif not self.overwrite:
            raise CommandError(ExitCode.REFUSED, f"{path}: holds slots of hosts {names}; {_JOIN}")
        head, used = read_leases(path)
        if head is None:
            self._refuse_users(watch(path, None, SLOT_WATCH_S, progress), path)
        else:
            seconds = max(SLOT_WATCH_S, lease_watch_s(head, used, self.storage.io_timeout))
            self._refuse_users(watch(path, path, seconds, progress), path)
        return None

    def _refuse_same(self) -> None:
        """Refuse one device or file for two of the volumes."""
        given = self.storage
        places = {"whiteboard": given.whiteboard, "leases": given.leases}
        if given.registry:
            places["registry"] = given.registry
        if found := held.same(places):
            raise CommandError(ExitCode.REFUSED, f"{found}; name one for each")

    def _refuse_held(self, path: str) -> None:
        """Refuse to write over what another program or another cluster has there."""
        refuse_held(path, self.config.cluster.id, self.overwrite)

    def _refuse_unless_twice(self, path: str, what: str) -> None:
        _refuse_unless_twice(path, what, self.overwrite)

    def _make_whiteboard(self) -> str:
        path = self.storage.whiteboard
        with (
            written(path, WHITEBOARD_BYTES) as (place, is_new),
            volume_errors(),
            Volume(place) as volume,
        ):
            for slot in () if is_new else range(min(volume.size_slots, SLOT_MAX + 1)):
                volume.write_slot(slot, EMPTY_SLOT)
            if self.storage.whiteboard_id:
                written_to(place, VolumeKind.WHITEBOARD, self.config, WHITEBOARD_BYTES)
        kind = file_system(path)
        local = f"; it lies on {kind}: every host must see this very file" if kind in LOCAL else ""
        return f"{path} is made{local}"

    # --- the lease volume ---------------------------------------------------------------------

    def _look_leases(self) -> str | None:
        found = self._found_leases()
        if found is None:
            self._refuse_held(self.storage.leases)
            check_leases_can_be_made(self.config, self._also_needed(), self.vms)
        return found

    def _also_needed(self) -> int:
        """Bytes for the whiteboard on the same file system, if it is still to be made."""
        board, leases = Path(self.storage.whiteboard), Path(self.storage.leases)
        is_apart = stat.S_ISBLK(_mode(str(leases))) or (
            board.parent.stat().st_dev != leases.parent.stat().st_dev
        )
        return 0 if is_apart or _is_there(str(board)) else WHITEBOARD_BYTES

    def _found_leases(self) -> str | None:
        path, given = self.storage.leases, self.storage
        again = "to make a new one: ha-agent reinitialize-lockspace"
        if not _is_there(path):
            if self.ours:
                refuse_loss(path, "is not there", again)
            self._refuse_local(path)
            return None
        head, used = read_leases(path)
        names = set(head.resources.values()) if head is not None else set()
        is_named = head is not None and head.lockspace == given.lockspace
        wanted = head is not None and head.io_timeout in (0, given.io_timeout)
        whole = is_named and wanted and {given.resource, FENCE_RESOURCE} <= names
        if self.ours:
            check_volumes(self.config, VolumeKind.LEASES)
        whole = whole and self._is_named(path, VolumeKind.LEASES)
        if not self.ours:
            self._refuse_local(path)
        if whole and (self.ours or not used):
            is_small = self.vms > 1 and not has_room(path, bytes_of(path, _LEASES, self.vms))
            if is_small and self.ours:
                raise CommandError(
                    ExitCode.REFUSED,
                    f"{path}: has no room for the leases of {self.vms} VMs: ha-agent storage grow"
                    f" --vms {self.vms}",
                )
            return None if is_small else f"{path} is there: lockspace {given.lockspace}"
        if head is None and _is_zero(path) and not self.ours:
            return None
        if is_named and not used and not self.ours:
            return None  # incomplete, from an interrupted attempt: no host ever used it
        what = "holds something else than a lockspace"
        if head is None and not self.ours:
            self._refuse_held(path)
            self._refuse_unless_twice(path, what)
        if head is not None:
            what = f"holds lockspace {head.lockspace!r} of io-timeout {head.io_timeout}"
            what += f", used by host ids {_ids(used)}" if used else ""
        if self.ours:
            raise CommandError(ExitCode.LOCKSPACE, f"{path}: {what}; {again}")
        if not self.overwrite:
            step = _JOIN if head is not None else "to write it over: --overwrite"
            raise CommandError(ExitCode.REFUSED, f"{path}: {what}; {step}")
        if head is not None:
            seconds = lease_watch_s(head, used, given.io_timeout)
            self._refuse_users(watch(None, path, seconds, progress), path)
        else:
            self._refuse_users(watch(path, None, SLOT_WATCH_S, progress), path)
        return None

    def _make_leases(self) -> str:
        make_leases(self.config, vms=self.vms)
        return f"{self.storage.leases} is made: lockspace {self.storage.lockspace}"

    def _is_named(self, path: str, kind: VolumeKind) -> bool:
        """Whether the volume has the identity that the configuration demands, if it demands one."""
        given, found = expected(self.config, kind), found_at(path, kind)
        if not given.volume:
            return True
        return found is not None and (found.cluster, found.volume) == (given.cluster, given.volume)

    def _refuse_local(self, path: str) -> None:
        """Refuse: most likely nothing is mounted there, and each host would make its own
        volumes."""
        kind = file_system(path)
        if self.ours or self.local or kind not in LOCAL or stat.S_ISBLK(_mode(path)):
            return
        raise CommandError(
            ExitCode.REFUSED,
            f"{path}: lies on {kind}, a file system of this host alone; mount the shared storage"
            " there, or where every host does see this very file: --local",
        )

    @staticmethod
    def _refuse_users(users: Users, path: str) -> None:
        if users:
            raise CommandError(ExitCode.REFUSED, f"{path} is in use: {users}; it is left alone")


def refuse_loss(path: str, state: str, step: str) -> NoReturn:
    """Refuse: a configured host once had its volumes, so most likely another thing, or nothing, is
    mounted there. `state`: what is found; `step`: how to make one anew."""
    text = f"{path}: {state}; mount the storage, or if it is lost, {step}"
    raise CommandError(ExitCode.STORAGE, text)


def refuse_held(path: str, cluster: str, overwrite: int) -> None:
    """CommandError where the place is in use, or holds what only `overwrite` 2 may destroy.
    `cluster`: the id of the cluster whose volumes count as its own."""
    if not _is_there(path):
        return
    if users := held.in_use(path):
        raise CommandError(ExitCode.REFUSED, f"{path}: {users}; it is left alone")
    if what := held.contents(path):
        _refuse_unless_twice(path, f"holds {what}", overwrite)
    found = held.header(path)
    if found is not None and found.cluster != cluster:
        text = f"is {found.kind} {found.volume} of cluster {found.cluster}"
        _refuse_unless_twice(path, text, overwrite)


def _refuse_unless_twice(path: str, what: str, overwrite: int) -> None:
    if overwrite < 2:
        text = f"{path}: {what}; to destroy that: --overwrite --overwrite"
        raise CommandError(ExitCode.REFUSED, text)


def make_leases(config: Config, more: Mapping[int, str] | None = None, vms: int = 1) -> None:
    """Write lockspace and leases, to the existing volume or to a new file; CommandError. `more`:
    names of leases beside those of every cluster, by their unit; `vms`: to have room for."""
    path = config.storage.leases
    size = _size(config, vms)
    with written(path, size) as (place, _):
        _write_leases(config, place, sector_of(path), more or {}, size)


def _size(config: Config, vms: int) -> int:
    path = config.storage.leases
    if config.storage.leases_id or vms > 1:
        return bytes_of(path, _LEASES, vms)
    return _leases_bytes(path)


def check_leases_can_be_made(config: Config, also: int = 0, vms: int = 1) -> None:
    """CommandError where `make_leases` would fail: no room (`also`: bytes for another volume), or a
    sanlock that does not run or may not write there."""
    path = config.storage.leases
    size = _size(config, vms)
    check_room(path, size + (0 if stat.S_ISBLK(_mode(path)) else also))
    with sanlock_errors(path):
        sanlock.get_lockspaces()
    if stat.S_ISBLK(_mode(path)):
        return
    probe, sector = f"{path}.probe-{os.getpid()}", sector_of(path)
    align = ALIGN_OF_SECTOR[sector]
    try:
        allocate(probe, align)
        with sanlock_errors(path):
            sanlock.write_resource(b"probe", b"probe", [(probe, 0)], align=align, sector=sector)
    finally:
        with contextlib.suppress(OSError):
            Path(probe).unlink()


def _leases_bytes(path: str) -> int:
    """The size of a lease volume without an identity: lockspace, engine lease, fence lease."""
    return 3 * ALIGN_OF_SECTOR[sector_of(path)]


def write_lease(storage: StorageSection, path: str, unit: int, name: str, sector: int) -> None:
    """Write a lease that nobody holds, in place of what lies in that unit; CommandError."""
    align = ALIGN_OF_SECTOR[sector]
    with sanlock_errors(path):
        sanlock.write_resource(
            storage.lockspace.encode(),
            name.encode(),
            [(path, unit * align)],
            align=align,
            sector=sector,
        )


def _write_leases(
    config: Config, path: str, sector: int, more: Mapping[int, str], size: int
) -> None:
    """Write the volume through sanlock's daemon."""
    storage = config.storage
    align = ALIGN_OF_SECTOR[sector]
    # The resources first: a volume with a lockspace is complete.
    of_all = {unit: name for name, unit in wanted_leases(storage, {}).items()}
    for unit, name in {**of_all, **more}.items():
        write_lease(storage, path, unit, name, sector)
    with sanlock_errors(path):
        sanlock.write_lockspace(
            storage.lockspace.encode(),
            path,
            iotimeout=storage.io_timeout,
            align=align,
            sector=sector,
        )
    if storage.leases_id:
        written_to(path, VolumeKind.LEASES, config, size)


@contextlib.contextmanager
def sanlock_errors(path: str) -> Iterator[None]:
    """Turn an error of sanlock into a CommandError."""
    try:
        yield
    except sanlock.SanlockException as error:
        step = "check that sanlock runs (systemctl start sanlock) and may read and write there"
        raise CommandError(
            ExitCode.LOCKSPACE, f"{path}: sanlock: {error.args[-1]} ({error.errno}); {step}"
        ) from None


def lease_offset(path: str) -> int:
    """The offset of the engine lease: one alignment unit into the lease volume."""
    return ALIGN_OF_SECTOR[sector_of(path)]


def _ids(used: dict[int, tuple[int, int]]) -> str:
    return ", ".join(map(str, sorted(used)))


def _is_there(path: str) -> bool:
    try:
        mode = Path(path).stat().st_mode
    except FileNotFoundError:
        if not Path(path).parent.is_dir():
            raise CommandError(
                ExitCode.STORAGE, f"{path}: its folder is not there; mount the shared storage"
            ) from None
        return False
    except OSError as error:
        raise os_error(path, "looking at it", error) from None
    return not (stat.S_ISREG(mode) and Path(path).stat().st_size == 0)


def _too_small(path: str, size: int) -> bool:
    if stat.S_ISBLK(Path(path).stat().st_mode):
        check_device(path, size)
    return not has_room(path, size)


def has_room(path: str, size: int) -> bool:
    """Whether the volume has so many bytes now; CommandError where it cannot be read."""
    with volume_errors(), Volume(path, read_only=True) as volume:
        return volume.size_bytes >= size


def _mode(path: str) -> int:
    try:
        return Path(path).stat().st_mode
    except OSError:
        return 0


def _is_zero(path: str) -> bool:
    """Whether the part that a lease volume takes is empty."""
    left = _leases_bytes(path)
    try:
        with Path(path).open("rb") as file:
            while left > 0 and (data := file.read(min(left, len(_ZEROS)))):
                if data != _ZEROS[: len(data)]:
                    return False
                left -= len(data)
    except OSError as error:
        raise os_error(path, "reading it", error) from None
    return True


@contextlib.contextmanager
def volume_errors() -> Iterator[None]:
    try:
        yield
    except VolumeError as error:
        raise storage_error(error) from None


@contextlib.contextmanager
def written(path: str, size: int) -> Iterator[tuple[str, bool]]:
    """The path to write to, and whether it is a new file of zeros that becomes `path` at the
    end."""
    if Path(path).exists() and stat.S_ISBLK(Path(path).stat().st_mode):
        _too_small(path, size)
        yield path, False
        return
    if Path(path).exists() and Path(path).stat().st_size > 0:
        # A process may hold the file open, so it must stay the same file.
        allocate(path, size)
        yield path, False
        return
    new = f"{path}.new-{os.getpid()}"
    try:
        allocate(new, size)
        yield new, True
        with contextlib.suppress(FileNotFoundError):
            if Path(path).stat().st_size == 0:
                Path(path).unlink()
        os.link(new, path)
    except FileExistsError:
        raise CommandError(
            ExitCode.REFUSED, f"{path}: somebody else made it at the same moment; try again"
        ) from None
    except OSError as error:
        raise os_error(path, "making it", error) from None
    finally:
        with contextlib.suppress(OSError):
            Path(new).unlink()
