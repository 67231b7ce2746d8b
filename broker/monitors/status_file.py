# SPDX-License-Identifier: LGPL-2.1-or-later
"""Watches the file in which libvirt keeps the state of the running VM: a write means a change.

libvirt has an event for a block job and none for a snapshot, after which the VM writes to another
image. But it keeps what runs in a file, VM.xml beside the process id's, so that a restarted
libvirtd finds the VM again; and it writes that file after each such change, before the call that
made it returns (qemuDomainSaveStatus in libvirt's src/qemu). So inotify(7) reports that there is
something to look at. The file itself is not read: its content is private to libvirt, and only root
may read it.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import struct
from collections.abc import Callable

_IN_CLOSE_WRITE, _IN_MOVED_TO = 0x8, 0x80
_IN_Q_OVERFLOW, _IN_IGNORED = 0x4000, 0x8000
_NONBLOCK_CLOEXEC = os.O_NONBLOCK | os.O_CLOEXEC
#: struct inotify_event without its name.
_HEAD = struct.Struct("iIII")
_READ_BYTES = 65_536
#: A folder that does not exist, or has vanished, is looked for again after this.
AGAIN_S = 5.0

_libc = ctypes.CDLL(None, use_errno=True)


class StatusFileEvents:
    """Calls `changed`, on the loop on which it was made, whenever libvirt has written the VM's
    status file, and whenever some of its writes may have been missed. Close it when done.

    OSError where the kernel refuses the watch.
    """

    def __init__(self, folder: str, vm_name: str, changed: Callable[[], object]) -> None:
        self._folder = folder
        self._name = f"{vm_name}.xml".encode()
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self._file = _libc.inotify_init1(_NONBLOCK_CLOEXEC)
        if self._file < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        self._again: asyncio.TimerHandle | None = None
        self._loop.add_reader(self._file, self._read)
        self._watch()

    def close(self) -> None:
        """Stop watching."""
        if self._again is not None:
            self._again.cancel()
        self._loop.remove_reader(self._file)
        os.close(self._file)

    def _watch(self) -> None:
        self._again = None
        mask = _IN_CLOSE_WRITE | _IN_MOVED_TO
        if _libc.inotify_add_watch(self._file, os.fsencode(self._folder), mask) < 0:
            self._again = self._loop.call_later(AGAIN_S, self._watch)
        else:
            self._changed()

    def _read(self) -> None:
        try:
            data = os.read(self._file, _READ_BYTES)
        except BlockingIOError:
            return
        place, is_ours = 0, False
        while place + _HEAD.size <= len(data):
            _, mask, _, length = _HEAD.unpack_from(data, place)
            place += _HEAD.size + length
            name = data[place - length : place].rstrip(b"\0")
            is_ours = is_ours or name == self._name or bool(mask & _IN_Q_OVERFLOW)
            if mask & _IN_IGNORED and self._again is None:
                # The folder has vanished, and the watch with it.
                self._again = self._loop.call_later(AGAIN_S, self._watch)
        if is_ours:
            self._changed()
