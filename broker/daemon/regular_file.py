# SPDX-License-Identifier: LGPL-2.1-or-later
"""Reads a file that another program or a person has put there.

A path may also name a FIFO or a device. Opening a FIFO waits for a writer, and a device may have no
end: a daemon or a command would hang without a message.
"""

from __future__ import annotations

import errno
import os
import stat

#: No file that is read whole is this large.
BYTES_MAX = 16 * 2**20


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """What a regular file holds. OSError where it cannot be read, is anything else, or is larger
    than BYTES_MAX; no wait but the storage's own."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    with os.fdopen(descriptor, "rb") as file:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "Is not a regular file", str(path))
        data = file.read(BYTES_MAX + 1)
    if len(data) > BYTES_MAX:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
    return data


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of the file, in UTF-8. Raises as `read_bytes` does, and UnicodeDecodeError."""
    return read_bytes(path).decode()
