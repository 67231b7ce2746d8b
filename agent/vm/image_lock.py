# SPDX-License-Identifier: LGPL-2.1-or-later
"""Recognises a start that failed for QEMU's lock on an image, and names who may have the lock.

A QEMU that writes to an image locks it. When its host dies, the lock stays until the storage
notices the death: seconds or minutes, by the storage's settings. Until then no QEMU starts on any
host, which is right: without the lock it would not be sure that no other process writes. Such a
failure is no fault of the host that tried, so it does not count as a failed start.
"""

from __future__ import annotations

import re

from broker.whiteboard.mounts import file_system

#: QEMU's block/file-posix.c: raw_check_lock_bytes and raw_apply_lock_bytes.
_REFUSED = re.compile(r"Failed to get (?:shared )?\"[^\"]+\" lock|Failed to (?:un)?lock byte \d+")
_IMAGE = re.compile(r"using the image \[([^\]]+)\]")

#: File system -> when it drops the lock of a client that died, with its usual settings.
_STORAGE = {
    "fuse.glusterfs": "Gluster drops a dead host's lock when its bricks miss that host: 42 s or"
    " more, 4 s with server.tcp-user-timeout 4",
    "ceph": "CephFS drops a dead host's lock when it evicts that client: after its session_timeout,"
    " usually 60 s",
    "fuse.ceph-fuse": "CephFS drops a dead host's lock when it evicts that client: after its"
    " session_timeout, usually 60 s",
    "nfs4": "an NFS 4 server drops a dead host's lock when its lease ends: usually after 90 s",
    "nfs": "an NFS 3 server drops a dead host's lock only when that host is back, or by hand",
    "gfs2": "GFS2 drops a dead host's lock when its cluster has fenced that host",
}
_OTHER = "a lock of a dead host is dropped when the storage misses that host"


def is_refused(error: str) -> bool:
    """Whether QEMU ended since somebody else has the image's lock. `error`: libvirt's message."""
    return _REFUSED.search(error) is not None


def in_words(error: str) -> str:
    """What keeps the VM out, and for how long it may. `error`: as for `is_refused`."""
    found = _IMAGE.search(error)
    if found is None:
        return f"another process has it; {_OTHER}"
    image = found.group(1)
    return f"another process has {image}; {_STORAGE.get(file_system(image), _OTHER)}"
