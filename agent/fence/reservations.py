# SPDX-License-Identifier: LGPL-2.1-or-later
"""SCSI-3 persistent reservations: keeps the writes of a dead host from the LUNs of the VMs.

Each host registers a key of its own with each LUN at its boot (`ha-agent storage register`), and
one of them reserves the LUN as "write exclusive, registrants only": who has no key there may read
and not write. The key of a host that is proven off is taken away by another host's key. The LUN
itself refuses its writes from then on, whatever wakes up there, until its next boot registers anew.

Rules of this file:

1. A key names the cluster and the host: `61 68 CC CC CC CC HH HH`, where C is made from the
   cluster's id and H is the host's id. Keys of others are left alone.
2. What a command returns is not a fact: sg_persist has been seen to fail where the key was
   registered. So the keys are read again after each change, and decide.
3. A host whose own key is missing cuts nobody, and does not register by itself: it may have been
   cut. Only its boot registers.
4. `PREEMPT` and not `PREEMPT AND ABORT`: the host is off, and what its target had taken in before
   is written within milliseconds. Of two targets that were tried one refuses to abort and the
   other does not answer (docs/decisions/0126).

PERSISTENT RESERVE needs CAP_SYS_RAWIO (the kernel's scsi_cmd_allowed).
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Collection, Sequence

from agent.fence.storage_program import StorageFenceError, run

PROGRAM = "sg_persist"
#: Write exclusive, registrants only.
_TYPE = "--prout-type=5"
_KEY = re.compile(r"^\s+0x([0-9a-f]{1,16})\s*$", re.MULTILINE)
_NO_KEYS = "there are NO registered reservation keys"
_FOLLOW = re.compile(r"(\d+) registered reservation keys? follow")
_HELD = re.compile(r"Key=0x([0-9a-f]{1,16})\s+scope: LU_SCOPE,\s+type: ([^\n]*)")
_FREE = "there is NO reservation held"
_REGISTRANTS = "Write Exclusive, registrants only"
REGISTER = "ha-agent storage register, at its next boot (docs/storage.md)"


def key_of(cluster_id: str, host: int) -> int:
    """The key of a host (rule 1)."""
    assert 0 < host < 1 << 16
    return 0x6168 << 48 | zlib.crc32(cluster_id.encode()) << 16 | host


class ScsiReservations:
    """The LUNs of the VMs' disks, seen by the host with the id `own`."""

    def __init__(self, devices: Sequence[str], cluster_id: str, own: int) -> None:
        self._devices = tuple(devices)
        self._cluster_id = cluster_id
        self._own = own

    def find(
        self, host: int, name: str, deadline_s: float, others: Collection[str] = ()
    ) -> tuple[str, ...]:
        """The devices that have that host's key. StorageFenceError, also where this host's own key
        or the reservation is missing."""
        found = []
        for device in self._devices:
            keys = read_keys(device, deadline_s)
            if key_of(self._cluster_id, self._own) not in keys:
                raise StorageFenceError(
                    f"{device}: the key of host {self._own} is not there; {REGISTER}"
                )
            if not is_reserved(device, deadline_s):
                raise StorageFenceError(f"{device}: nobody has reserved it; {REGISTER}")
            if key_of(self._cluster_id, host) in keys:
                found.append(device)
        return tuple(found)

    def cut(self, host: int, name: str, found: Sequence[str], deadline_s: float) -> None:
        """Take its key away on each of them. StorageFenceError where it is still there, or the own
        key is gone."""
        own, dead = (key_of(self._cluster_id, each) for each in (self._own, host))
        for device in found:
            words = [f"--param-rk={own:#x}", f"--param-sark={dead:#x}", _TYPE]
            problem = _out("--preempt", words, device, deadline_s)
            keys = read_keys(device, deadline_s)
            if dead in keys:
                raise StorageFenceError(f"{device}: the key of host {host} is still there{problem}")
            if own not in keys:
                raise StorageFenceError(f"{device}: the key of this host is gone; {REGISTER}")

    def register(self, deadline_s: float) -> tuple[str, ...]:
        """Register this host's key with each device, and reserve what nobody has; what was done,
        line by line. StorageFenceError."""
        own, done = key_of(self._cluster_id, self._own), []
        for device in self._devices:
            words = [f"--param-sark={own:#x}"]
            problem = _out("--register-ignore", words, device, deadline_s)
            if own not in read_keys(device, deadline_s):
                raise StorageFenceError(f"{device}: the key {own:#x} was not registered{problem}")
            if not is_reserved(device, deadline_s):
                # Another host may be as far: one of the two is refused, and that is fine.
                problem = _out("--reserve", [f"--param-rk={own:#x}", _TYPE], device, deadline_s)
                if not is_reserved(device, deadline_s):
                    raise StorageFenceError(f"{device}: was not reserved{problem}")
            done.append(f"{device}: key {own:#x}")
        return tuple(done)


def read_keys(device: str, deadline_s: float) -> frozenset[int]:
    """The keys that are registered with a device. StorageFenceError."""
    text = _in("--read-keys", device, deadline_s)
    keys = [int(key, 16) for key in _KEY.findall(text)]
    said = _FOLLOW.search(text)
    if (said is None and _NO_KEYS not in text) or len(keys) != int(said[1] if said else 0):
        raise StorageFenceError(f"{device}: the list of keys cannot be read: {text[-200:]!r}")
    return frozenset(keys)


def is_reserved(device: str, deadline_s: float) -> bool:
    """Whether a device takes writes of registered hosts alone. StorageFenceError where it is
    reserved in another way, or what is said cannot be read."""
    text = _in("--read-reservation", device, deadline_s)
    if _FREE in text:
        return False
    held = _HELD.search(text)
    if held is None:
        raise StorageFenceError(f"{device}: the reservation cannot be read: {text[-200:]!r}")
    if held[2].strip() != _REGISTRANTS:
        raise StorageFenceError(
            f"{device}: is reserved by the key 0x{held[1]} as {held[2].strip()!r}: not by this"
            " cluster, which reserves for all registrants"
        )
    return True


def _in(question: str, device: str, deadline_s: float) -> str:
    """What the command says of a device. StorageFenceError, which names it."""
    try:
        return run([PROGRAM, "--in", question, device], deadline_s)
    except StorageFenceError as error:
        raise StorageFenceError(f"{device}: {error}") from None


def _out(action: str, words: Sequence[str], device: str, deadline_s: float) -> str:
    """Make a change (rule 2); what the command said where it failed, to be added to a sentence."""
    try:
        run([PROGRAM, "--out", action, *words, device], deadline_s)
    except StorageFenceError as error:
        return f": {error}"
    return ""
