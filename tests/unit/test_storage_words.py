# SPDX-License-Identifier: LGPL-2.1-or-later
"""Errors of the storage as a person reads them: what failed, and what to type."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from agent.storage.watched import os_error
from broker.daemon.exit_codes import ExitCode
from broker.whiteboard import mounts
from tests.fakes.failing_storage import failing_storage
from tests.unit import commands


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


ALL_SIX = [
    (errno.ENOTCONN, "has ended or has lost its servers; umount -l, and mount it anew"),
    (errno.ESHUTDOWN, "the storage has shut this host's client out"),
    (errno.ESTALE, "the server has another file or export there by now"),
    (errno.EIO, "look at the storage's servers, its mount and the kernel log"),
    (errno.ENOSPC, "free space on its file system, or enlarge the volume"),
    (errno.EROFS, "then mount the file system read-write"),
]


@pytest.mark.parametrize(("code", "says"), ALL_SIX)
def test_the_command_line_says_it_in_words_on_a_storage_that_fails(
    site: Path, tmp_path: Path, code: int, says: str
) -> None:
    """Whether a read or a write fails: what to do, and where a mount is to be made anew its unit,
    and neither a number nor a traceback."""
    with failing_storage(site, tmp_path) as storage:
        for operation, words, ends in (
            ("read", ("storage", "show"), ExitCode.STORAGE),
            ("write", ("doctor", "--storage", "--for", "0.2"), ExitCode.FAILED),
        ):
            storage.fails(operation, code)
            done = commands.run("ha-agent", "--config", site, *words)
            said = " ".join((done.stdout + done.stderr).split())
            assert says in said and done.returncode == ends, said
            assert "Errno" not in said and "Traceback" not in said
            is_mount = code in (errno.ENOTCONN, errno.ESHUTDOWN, errno.ESTALE)
            assert (f"umount -l {storage.place}; systemctl restart" in said) is is_mount


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
