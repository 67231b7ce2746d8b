# SPDX-License-Identifier: LGPL-2.1-or-later
"""A start that an image's lock kept out: recognised by QEMU's own words, and by nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.vm.image_lock import in_words, is_refused
from broker.whiteboard import mounts

MOUNTS = """/dev/vda / ext4 rw,relatime 0 0
stor:/vol /srv/with\\040blank fuse.glusterfs rw,user_id=0 0 0
10.0.0.1:/cephfs /srv/ceph ceph rw,noatime 0 0
/dev/vdb /srv/ceph/over xfs rw 0 0
old /mnt nfs4 rw 0 0
new /mnt ceph rw 0 0
"""


@pytest.mark.parametrize(
    ("error", "refused"),
    [
        ('Failed to get "write" lock Is another process using the image [/a]?', True),
        ('x: Failed to get shared "write" lock\nIs another process using the image [/a]?', True),
        ('Failed to get "consistent read" lock', True),
        ("Failed to lock byte 100", True),
        ("Failed to unlock byte 201", True),
        ("Could not open '/a': Permission denied", False),
        ("resource busy: Failed to acquire lock: Lease is held by another host", False),
        ("", False),
    ],
)
def test_only_qemus_own_words_about_a_lock_count(error: str, refused: bool) -> None:
    assert is_refused(error) is refused


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ("/srv/with blank/engine.qcow2", "Gluster drops a dead host's lock"),
        ("/srv/ceph/engine", "CephFS drops a dead host's lock"),
        ("/srv/ceph/over/engine", "when the storage misses that host"),
        ("/mnt/engine", "CephFS"),
        ("/elsewhere", "when the storage misses that host"),
    ],
)
def test_the_sentence_names_the_image_and_the_time_of_its_storage(
    image: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mounts"
    file.write_text(MOUNTS)
    monkeypatch.setattr(mounts, "MOUNTS", file)
    text = in_words(f'Failed to get "write" lock Is another process using the image [{image}]?')
    assert text.startswith(f"another process has {image}; ") and words in text


def test_without_a_name_the_sentence_says_what_is_known() -> None:
    assert in_words("Failed to lock byte 100").startswith("another process has it; ")


def test_what_lies_on_no_mount_has_no_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mounts").write_text("/dev/vda /srv ext4 rw 0 0\n")
    monkeypatch.setattr(mounts, "MOUNTS", tmp_path / "mounts")
    assert (mounts.mount_of("/elsewhere"), mounts.file_system("/elsewhere")) == (None, "")
    found = mounts.mount_of("/srv/a")
    assert found is not None and found.options == ("rw",)
