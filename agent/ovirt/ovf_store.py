# SPDX-License-Identifier: LGPL-2.1-or-later
"""Reads the VM's description from an OVF_STORE: a tar with an OVF per VM, as the engine writes
it."""

from __future__ import annotations

import errno
import os
import stat
import tarfile
from pathlib import Path
from typing import BinaryIO, cast

from agent.terminal.errors import CommandError
from broker.daemon.exit_codes import ExitCode
from broker.daemon.foreign import clean, sentence

#: The largest description: an OVF has some ten kilobytes; a domain XML less.
DESCRIPTION_BYTES_MAX = 4 * 1024 * 1024
MEMBERS_MAX = 10_000


def read_description(path: str, vm_id: str) -> str:
    """The XML in a file, or that of the VM with this id in a tar; CommandError.

    A tar may be the volume itself, or a copy of it: bytes after its end are ignored.
    """
    try:
        with opened(path) as file:
            if not tarfile.is_tarfile(cast(BinaryIO, BoundedReads(file))):
                file.seek(0)
                return file.read(DESCRIPTION_BYTES_MAX).decode()
            file.seek(0)
            with tarfile.open(fileobj=cast(BinaryIO, BoundedReads(file)), mode="r:") as tar:
                return _of_vm(tar, path, vm_id)
    except (OSError, UnicodeDecodeError, tarfile.TarError) as error:
        why = getattr(error, "strerror", None) or sentence(error)
        raise CommandError(ExitCode.FILE, f"{path}: cannot be read: {why}") from None


def opened(path: str) -> BinaryIO:
    """Open it for reading, but no link that others may have made, since root opens it. OSError."""
    folder = Path(path).parent.stat()
    others = folder.st_uid != 0 or folder.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    ways = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (os.O_NOFOLLOW if others else 0)
    file = os.fdopen(os.open(path, ways), "rb")
    kind = os.fstat(file.fileno()).st_mode
    if not (stat.S_ISREG(kind) or stat.S_ISBLK(kind)):
        file.close()
        raise OSError(errno.EINVAL, "neither a file nor a block device")
    return file


class BoundedReads:
    """A file whose reads are at most as long as a description: a tar's header may claim a name of
    eight gigabytes, and tarfile would read it at once."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        """Read; OSError where more than that is asked for."""
        if not 0 <= size <= DESCRIPTION_BYTES_MAX:
            raise OSError(errno.EFBIG, "a header claims more than any description has")
        return self._file.read(size)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Seek in the file."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """The position in the file."""
        return self._file.tell()


def _of_vm(tar: tarfile.TarFile, path: str, vm_id: str) -> str:
    seen = []
    for number, member in enumerate(tar):
        if number >= MEMBERS_MAX:
            break
        name = Path(member.name).name
        if not member.isfile() or not name.endswith(".ovf"):
            continue
        seen.append(name.removesuffix(".ovf"))
        if name == f"{vm_id}.ovf" and member.size <= DESCRIPTION_BYTES_MAX:
            content = tar.extractfile(member)
            if content is None:
                continue
            return content.read(DESCRIPTION_BYTES_MAX).decode()
    known = clean(", ".join(seen[:10]) or "none", 400)
    raise CommandError(
        ExitCode.FILE, f"{path}: holds no OVF of VM {vm_id}; of others: {known}; set vmid"
    )
