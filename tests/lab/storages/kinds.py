# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a lab's shared storage can be, and what each kind needs of the machine.

    fuse       a folder of this machine, through a file system per host that fails on demand;
               the VM's disk comes over NBD
    dir        that folder itself
    ceph       CephFS: a monitor, three OSDs in memory, two MDS; a ceph-fuse in each host
    gluster    a replica-3 volume of three bricks; a glusterfs client in each host
    block512   loop devices, with sectors of 512 bytes
    block4096  loop devices, with sectors of 4096 bytes
    nfs        NFS 3 by nfs-ganesha; a client in user space in each host (nfs_client.py)

All but `fuse` have the VM's disk on the storage as well, with cache=none and without
`<shareable/>`, so that QEMU's lock on the image is real.

A storage over the network has a network of its own: a cable per host, which a power cut pulls
first, so that no client of a dead host says goodbye.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

from ..errors import UsageError

FUSE, DIR, CEPH, GLUSTER, NFS = "fuse", "dir", "ceph", "gluster", "nfs"
#: Kind -> bytes of a sector.
BLOCK: Final = {"block512": 512, "block4096": 4096}
KINDS = (FUSE, DIR, CEPH, GLUSTER, *BLOCK, NFS)
#: Kinds whose servers are reached over the storage's network.
NETWORK = frozenset({CEPH, GLUSTER, NFS})
#: Kinds whose hosts mount something over the shared folder.
MOUNTED = frozenset({FUSE, *NETWORK})
DISK_FORMATS = ("raw", "qcow2")
#: Kind -> its daemons that keep the data, three times.
THREE: Final[dict[str, tuple[str, str, str]]] = {
    CEPH: ("osd-0", "osd-1", "osd-2"),
    GLUSTER: ("brick-1", "brick-2", "brick-3"),
}
#: Part of the command line of each kind's client.
_CLIENTS = ("ceph-fuse", "glusterfs", "tests.lab.storages.nfs_client", "tests.lab.host_storage")

#: Kind -> program (or file) -> the Debian package that has it, beside machine.NEEDED.
NEEDED: Final[dict[str, dict[str, str]]] = {
    CEPH: {
        "ceph-mon": "ceph-mon",
        "ceph-osd": "ceph-osd",
        "ceph-mds": "ceph-mds",
        "ceph-fuse": "ceph-fuse",
        "ceph": "ceph-common",
    },
    GLUSTER: {"glusterd": "glusterfs-server", "glusterfs": "glusterfs-client"},
    NFS: {
        "ganesha.nfsd": "nfs-ganesha",
        "/usr/lib/x86_64-linux-gnu/ganesha/libfsalvfs.so": "nfs-ganesha-vfs",
        "/usr/lib/x86_64-linux-gnu/libnfs.so.13": "libnfs13",
        "rpcbind": "rpcbind",
    },
}


def is_client(argv: Sequence[str]) -> bool:
    """Whether a command line is that of a host's client of the storage."""
    return any(os.path.basename(word) in _CLIENTS for word in argv[:3])


def check(kind: str, disk_format: str) -> None:
    """UsageError for a storage that no lab has."""
    if kind not in KINDS:
        raise UsageError(f"--storage {kind}: not one of {', '.join(KINDS)}")
    if disk_format not in DISK_FORMATS:
        raise UsageError(f"--disk {disk_format}: not one of {', '.join(DISK_FORMATS)}")
    if disk_format != "raw" and (kind == FUSE or kind in BLOCK):
        raise UsageError(f"--disk {disk_format}: storage {kind} has a raw disk only")
