# SPDX-License-Identifier: LGPL-2.1-or-later
"""Volumes on block devices of both sector sizes, and what they refuse to be written over."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import subprocess
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.storage import held
from agent.storage.identity import put
from agent.terminal.errors import CommandError
from broker.daemon.exit_codes import ExitCode
from broker.whiteboard.identity import (
    Expected,
    Identity,
    VolumeKind,
    check_at,
    decode,
    place_of,
    read,
)
from broker.whiteboard.volume import Volume, VolumeError, VolumeFault
from tests.unit.setup_host import Host, daemon, host, report

__all__ = ["daemon", "host"]

MIB = 1 << 20
#: Enough for the leases of two VMs on sectors of 4096 bytes.
LEASES = 160 * MIB
OTHER = Identity(
    VolumeKind.WHITEBOARD,
    "91111111-2222-3333-4444-555555555555",
    "a1111111-2222-3333-4444-555555555555",
    1,
)

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("sanlock") is None, reason="needs root and sanlock"
)


class Loops:
    """Loop devices with one sector size."""

    def __init__(self, folder: Path, sector: int) -> None:
        self.sector = sector
        self._folder = folder
        self.made: list[str] = []

    def device(self, size: int) -> str:
        image = self._folder / f"image{len(self.made)}"
        image.write_bytes(b"")
        os.truncate(image, size)
        words = ["losetup", "-f", "--show", "-b", str(self.sector), str(image)]
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no loop device: {done.stderr.strip()}")
        self.made.append(done.stdout.strip())
        return self.made[-1]

    def shrink(self, device: str, size: int) -> None:
        os.truncate(self._folder / f"image{self.made.index(device)}", size)
        subprocess.run(["losetup", "-c", device], check=True)


@pytest.fixture(params=[512, 4096])
def loops(request: pytest.FixtureRequest) -> Iterator[Loops]:
    # In memory: a whiteboard on a device is 2,258 synchronous writes.
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        found = Loops(Path(folder), request.param)
        yield found
        for each in found.made:
            subprocess.run(["losetup", "-d", each], check=True)


def init(host: Host, board: str, leases: str, *more: str) -> subprocess.CompletedProcess[str]:
    words = ("--whiteboard", board, "--leases", leases)
    return host.run("init", *words, *host.others(), *more)


def digest(path: str) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def header(path: str, kind: VolumeKind) -> Identity | None:
    with Volume(path, read_only=True) as volume:
        return decode(read(volume, kind))


def test_init_on_devices_writes_headers_with_the_sizes(host: Host, loops: Loops) -> None:
    board, leases = loops.device(16 * MIB), loops.device(LEASES)
    done = init(host, board, leases, "--vms", "2", "--registry", loops.device(40 * MIB))
    assert done.returncode == ExitCode.OK, done.stderr
    cluster = tomllib.loads(host.config.read_text())["cluster"]["id"]
    for path, kind in ((board, VolumeKind.WHITEBOARD), (leases, VolumeKind.LEASES)):
        found = header(path, kind)
        assert found is not None and (found.cluster, found.sector) == (cluster, loops.sector)
        with Volume(path, read_only=True) as volume:
            assert 0 < found.bytes <= volume.size_bytes
    shown = host.run("storage", "show", "--json")
    assert shown.returncode == ExitCode.OK, shown.stdout
    volumes = json.loads(shown.stdout)["volumes"]
    assert [each["volume"] for each in volumes] == ["whiteboard", "leases", "registry"]
    assert all(each["lies_on"] == f"block device, sectors of {loops.sector}" for each in volumes)
    again = init(host, board, leases)
    assert again.returncode == ExitCode.OK, again.stderr


def other_header(path: str) -> None:
    put(path, OTHER)


def mkfs(path: str) -> None:
    subprocess.run(["mkfs.ext4", "-q", "-F", path], check=True)


def mbr(path: str) -> None:
    """One Linux partition from sector 64 on."""
    with Path(path).open("r+b") as file:
        file.seek(446)
        file.write(struct.pack("<BBBBBBBBII", 0, 0, 2, 0, 0x83, 0, 2, 0, 64, 1024))
        file.seek(510)
        file.write(b"\x55\xaa")


def btrfs(path: str) -> None:
    """A file system that leaves the first 64 KiB alone; the mark is enough for nobody but us."""
    with Path(path).open("r+b") as file:
        file.seek(0x10040)
        file.write(b"_BHRfS_M")


def luks(path: str) -> None:
    with Path(path).open("r+b") as file:
        file.write(b"LUKS\xba\xbe\x00\x01")


EXT4 = "holds a file system (ext4)"


@pytest.mark.parametrize("loops", [512], indirect=True)
@pytest.mark.parametrize(
    ("role", "make", "says"),
    [
        ("whiteboard", mkfs, EXT4),
        ("whiteboard", mbr, "holds a partition table (dos)"),
        ("whiteboard", luks, "holds"),
        ("leases", mkfs, EXT4),
        ("leases", other_header, f"is whiteboard {OTHER.volume} of cluster {OTHER.cluster}"),
        ("registry", mkfs, EXT4),
        ("registry", btrfs, "holds a file system (btrfs)"),
        ("registry", other_header, f"is whiteboard {OTHER.volume} of cluster {OTHER.cluster}"),
    ],
)
def test_what_is_not_ours_is_written_over_only_where_it_is_said_twice(
    host: Host, loops: Loops, role: str, make: Callable[[str], None], says: str
) -> None:
    paths = {"whiteboard": "", "leases": "", "registry": ""}
    for each in paths:
        paths[each] = loops.device(LEASES)
    make(paths[role])
    before = digest(paths[role])
    more = ("--vms", "2", "--registry", paths["registry"])
    for words in ((), ("--overwrite",)):
        done = init(host, paths["whiteboard"], paths["leases"], *more, *words)
        assert done.returncode in (ExitCode.REFUSED, ExitCode.STORAGE), done.stdout
        assert says in done.stderr
        assert digest(paths[role]) == before
    if role != "registry" and make is mkfs:
        done = init(host, paths["whiteboard"], paths["leases"], *more, "--overwrite", "--overwrite")
        assert done.returncode == ExitCode.OK, done.stderr


def test_another_clusters_whiteboard_is_written_over_only_where_it_is_said_twice(
    host: Host,
) -> None:
    assert host.init().returncode == ExitCode.OK
    path = str(host.shared / "whiteboard")
    with Volume(path) as volume:
        volume.write_slot(2, report(1))
    put(path, OTHER)
    host.seed()
    host.config.with_name("engine.xml").unlink(missing_ok=True)
    assert "holds slots of hosts 2 (other)" in host.init().stderr
    done = host.init("--overwrite")
    assert done.returncode == ExitCode.REFUSED
    assert f"is whiteboard {OTHER.volume} of cluster {OTHER.cluster}" in done.stderr
    done = host.init("--overwrite", "--overwrite")
    assert done.returncode == ExitCode.OK, done.stderr


@pytest.mark.parametrize("loops", [512], indirect=True)
def test_a_device_that_is_mounted_is_never_written_to(
    host: Host, loops: Loops, tmp_path: Path
) -> None:
    board = loops.device(LEASES)
    mkfs(board)
    place = tmp_path / "mounted"
    place.mkdir()
    subprocess.run(["mount", board, str(place)], check=True)
    try:
        leases = loops.device(LEASES)
        done = init(host, board, leases, "--overwrite", "--overwrite")
        assert done.returncode == ExitCode.REFUSED
        assert f"is mounted at {place}; it is left alone" in done.stderr
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("loops", [512], indirect=True)
def test_one_device_under_two_names_is_not_two_volumes(
    host: Host, loops: Loops, tmp_path: Path
) -> None:
    device, link = loops.device(LEASES), tmp_path / "link"
    link.symlink_to(device)
    done = init(host, device, str(link))
    assert done.returncode == ExitCode.REFUSED
    assert "whiteboard and leases are the same device or file" in done.stderr


def test_a_device_that_has_shrunk_is_another_volume(host: Host, loops: Loops) -> None:
    board, leases = loops.device(16 * MIB), loops.device(LEASES)
    assert init(host, board, leases).returncode == ExitCode.OK
    found = header(leases, VolumeKind.LEASES)
    assert found is not None
    loops.shrink(leases, found.bytes - 4096)
    wanted = Expected(VolumeKind.LEASES, found.cluster, found.volume)
    with pytest.raises(VolumeError, match="has shrunk: it has") as error:
        check_at(leases, wanted)
    assert error.value.fault is VolumeFault.SHRUNK
    done = host.run("storage", "show")
    assert done.returncode == ExitCode.STORAGE and "has shrunk" in done.stdout
    loops.shrink(leases, 1 << 20)
    done = host.run("storage", "show")
    assert done.returncode == ExitCode.STORAGE and "ends before its identity" in done.stdout
    assert "init --identity" not in done.stdout, "it would write to what is left of the volume"


def test_a_cluster_of_before_gets_headers_without_a_write_over_data(host: Host) -> None:
    assert host.init().returncode == ExitCode.OK
    cut = {
        VolumeKind.WHITEBOARD: str(host.shared / "whiteboard"),
        VolumeKind.LEASES: str(host.shared / "leases"),
    }
    for kind, path in cut.items():
        with Volume(path) as volume:
            volume.write_at(place_of(volume, kind), bytes(4096))
    text = host.config.read_text()
    kept = [
        line for line in text.splitlines() if not line.startswith(("whiteboard-id", "leases-id"))
    ]
    host.config.write_text("\n".join(kept).replace("[cluster]\nid = ", "[cluster]\n# id = "))
    shown = host.run("storage", "show")
    assert shown.returncode == ExitCode.OK, shown.stdout
    assert "no header: an earlier version made it" in shown.stdout
    assert "ha-agent init --identity" in shown.stdout
    path = cut[VolumeKind.LEASES]
    with Volume(path) as volume:
        volume.write_at(place_of(volume, VolumeKind.LEASES), b"precious" * 512)
    done = host.run("init", "--identity")
    assert done.returncode == ExitCode.STORAGE and "it is left alone" in done.stderr
    with Volume(path) as volume:
        assert read(volume, VolumeKind.LEASES) == b"precious" * 512
        volume.write_at(place_of(volume, VolumeKind.LEASES), bytes(4096))
    done = host.run("init", "--identity")
    assert done.returncode == ExitCode.OK, done.stderr
    assert all((found := header(path, kind)) and found.bytes for kind, path in cut.items())


def test_a_header_without_sizes_gets_them_and_keeps_its_ids(host: Host) -> None:
    assert host.init().returncode == ExitCode.OK
    path = str(host.shared / "whiteboard")
    found = header(path, VolumeKind.WHITEBOARD)
    assert found is not None
    old = Identity(found.kind, found.cluster, found.volume, found.made_at)
    put(path, old)
    assert "no sizes" in host.run("storage", "show").stdout
    assert host.run("init", "--identity").returncode == ExitCode.OK
    assert header(path, VolumeKind.WHITEBOARD) == found


def test_the_usual_marks_are_known_where_blkid_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held, "BLKID", "no-such-blkid")
    path = tmp_path / "image"
    path.write_bytes(bytes(16 * MIB))
    assert held.contents(str(path)) == ""
    mkfs(str(path))
    assert held.contents(str(path)) == "an ext2, ext3 or ext4 file system"


def test_a_blkid_that_hangs_ends_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "blkid"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setattr(held, "BLKID", str(program))
    monkeypatch.setattr(held, "BLKID_DEADLINE_S", 0.1)
    with pytest.raises(CommandError, match="could not be read within"):
        held.contents(str(tmp_path / "x"))


@pytest.mark.parametrize(
    ("uuid", "says"),
    [
        ("mpath-3600a", "is one path of the multipath device mpatha: name /dev/mapper/mpatha"),
        ("LVM-abc", "carries the logical volume mpatha"),
        ("CRYPT-LUKS2-x", "is a part of mpatha"),
    ],
)
@pytest.mark.parametrize("loops", [512], indirect=True)
def test_a_path_of_multipath_and_a_physical_volume_are_refused_by_name(
    loops: Loops, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uuid: str, says: str
) -> None:
    device = loops.device(MIB)
    number = Path(device).stat().st_rdev
    place = tmp_path / f"{os.major(number)}:{os.minor(number)}" / "holders" / "dm-0" / "dm"
    place.mkdir(parents=True)
    (place / "name").write_text("mpatha\n")
    (place / "uuid").write_text(f"{uuid}\n")
    monkeypatch.setattr(held, "SYS_BLOCK", tmp_path)
    assert says in held.in_use(device)
