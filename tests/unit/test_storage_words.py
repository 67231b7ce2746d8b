# SPDX-License-Identifier: LGPL-2.1-or-later
"""Errors of the storage as a person reads them: what failed, and what to type."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from agent.storage.watched import os_error
from broker.whiteboard import mounts


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (errno.ENOTCONN, "has ended or has lost its servers"),
        (errno.ESHUTDOWN, "shut this host's client out"),
        (errno.ESTALE, "the server has another file or export there"),
    ],
)
def test_a_mount_that_failed_is_named_with_its_unit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, says: str
) -> None:
    table = tmp_path / "mounts"
    table.write_text("/dev/vda / ext4 rw 0 0\nmon:/ /mnt/my-ceph ceph rw 0 0\n")
    monkeypatch.setattr(mounts, "MOUNTS", table)
    text = str(os_error("/mnt/my-ceph/leases", "reading it", OSError(code, "x")))
    assert says in text
    assert text.endswith(": umount -l /mnt/my-ceph; systemctl restart 'mnt-my\\x2dceph.mount'")
    text = str(os_error("/srv/leases", "reading it", OSError(code, "x")))
    assert says in text and "systemctl" not in text


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (errno.EIO, "look at the storage's servers, its mount and the kernel log"),
        (errno.ENOSPC, "free space on its file system, or enlarge the volume"),
        (errno.EROFS, "then mount the file system read-write"),
    ],
)
def test_each_error_says_what_to_do(code: int, says: str) -> None:
    assert says in str(os_error("/x/leases", "reading it", OSError(code, "x")))


@pytest.mark.parametrize(
    ("place", "unit"),
    [
        ("/", "-.mount"),
        ("/mnt/shared", "mnt-shared.mount"),
        ("/srv/.a b", "srv-.a\\x20b.mount"),
        ("/.x", "\\x2ex.mount"),
        ("/ä", "\\xc3\\xa4.mount"),
    ],
)
def test_the_unit_is_named_as_systemd_does(place: str, unit: str) -> None:
    assert mounts.mount_unit(place) == unit
