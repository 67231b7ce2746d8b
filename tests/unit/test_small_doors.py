# SPDX-License-Identifier: LGPL-2.1-or-later
"""Doors that root's commands and the daemons' files leave to others, each shut."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path
from xml.etree import ElementTree

import pytest

from agent.ovirt.descriptions import unexpected, without_vdsm
from agent.ovirt.errors import ImportFault
from agent.ovirt.ovf_store import DESCRIPTION_BYTES_MAX, read_description
from agent.ovirt.storage_domain import StorageDomain
from agent.terminal.errors import CommandError
from broker.config.addresses import is_over_tls
from broker.config.errors import ConfigError
from broker.config.load import load
from broker.config.secrets import load_cluster_key
from broker.daemon.atomic_file import write_atomically
from broker.whiteboard.volume import Volume, VolumeError, VolumeFault

VM = "11111111-2222-3333-4444-555555555555"
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


# --- files of state -------------------------------------------------------------------------


def test_a_file_of_state_is_on_the_disk_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write_atomically(tmp_path / "state", b"one", 0o640)
    assert synced == [tmp_path / "state.new", tmp_path]
    assert (tmp_path / "state").read_bytes() == b"one"
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o640


def test_a_link_in_its_place_is_not_written_through(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("theirs")
    (tmp_path / "state.new").symlink_to(other)
    write_atomically(tmp_path / "state", b"ours")
    assert other.read_text() == "theirs"
    assert (tmp_path / "state").read_bytes() == b"ours" and not (tmp_path / "state").is_symlink()


def test_what_cannot_be_written_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    (tmp_path / "state").write_text("before")
    with pytest.raises(OSError, match="No space"):
        write_atomically(tmp_path / "state", b"after")
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
    assert (tmp_path / "state").read_text() == "before"


@as_root
def test_secrets_of_somebody_else_are_not_believed(site: Path) -> None:
    secrets = site.parent / "secrets.toml"
    secrets.write_text(f'cluster-key = "{"ab" * 32}"\n')
    secrets.chmod(0o600)
    site.write_text(site.read_text().replace("[daemon]\n", f'[daemon]\nsecrets = "{secrets}"\n'))
    assert load_cluster_key(load(str(site))) is not None
    os.chown(secrets, 12_345, -1)
    with pytest.raises(ConfigError, match="belongs to user 12345"):
        load_cluster_key(load(str(site)))


# --- volumes --------------------------------------------------------------------------------


@as_root
def test_root_follows_no_link_that_others_may_have_put_in_a_volume_s_place(tmp_path: Path) -> None:
    target, folder = tmp_path / "target", tmp_path / "shared"
    target.write_bytes(bytes(4096))
    folder.mkdir()
    (folder / "whiteboard").symlink_to(target)
    Volume(folder / "whiteboard", read_only=True).close()
    for owner, mode in ((12_345, 0o755), (0, 0o775)):
        os.chown(folder, owner, -1)
        folder.chmod(mode)
        with pytest.raises(VolumeError, match="is a link in a folder that others") as caught:
            Volume(folder / "whiteboard", read_only=True)
        assert caught.value.fault is VolumeFault.NOT_A_VOLUME


# --- import-ovirt -----------------------------------------------------------------------------


def test_a_tar_whose_header_claims_gigabytes_is_not_read(tmp_path: Path) -> None:
    """tarfile reads a long name as long as its header says."""
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 7 * 2**30
    path = tmp_path / "ovf"
    with path.open("wb") as file:
        file.write(header.tobuf(tarfile.GNU_FORMAT))
        file.truncate(8 * 2**30)
    with pytest.raises(CommandError, match="claims more than any description"):
        read_description(str(path), VM)


def test_a_good_tar_is_read_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "ovf"
    with tarfile.open(path, "w") as tar:
        member = tarfile.TarInfo(f"{VM}.ovf")
        member.size = 5
        tar.addfile(member, io.BytesIO(b"<ovf>"))
    assert read_description(str(path), VM) == "<ovf>"
    assert path.stat().st_size < DESCRIPTION_BYTES_MAX


@as_root
def test_a_link_or_a_device_is_no_description(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("root:*")
    (tmp_path / "link").symlink_to(tmp_path / "secret")
    os.chown(tmp_path, 12_345, -1)
    with pytest.raises(CommandError, match="Too many levels of symbolic links"):
        read_description(str(tmp_path / "link"), VM)
    with pytest.raises(CommandError, match="neither a file nor a block device"):
        read_description("/dev/zero", VM)


@pytest.mark.parametrize("image", ["../../etc", "", f"{VM}/..", f"{VM}\n", "x" * 36])
def test_ids_of_volumes_are_uuids(image: str) -> None:
    domain = StorageDomain("nfs", VM, "nas:/export")
    assert domain.volume(VM, VM).endswith(f"/{VM}/images/{VM}/{VM}")
    with pytest.raises(ImportFault, match="is no UUID"):
        domain.volume(image, VM)
    with pytest.raises(ImportFault, match="is no UUID"):
        domain.volume(VM, image)


def machine(devices: str, more: str = "") -> ElementTree.Element:
    return ElementTree.fromstring(
        "<domain xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>"
        f"<uuid>{VM}</uuid><devices>{devices}</devices>{more}</domain>"
    )


@pytest.mark.parametrize(
    ("devices", "more", "word"),
    [
        ("<emulator>/tmp/evil</emulator>", "", "emulator"),
        ("", "<qemu:commandline><qemu:arg value='-x'/></qemu:commandline>", "commandline"),
    ],
)
def test_what_runs_on_the_host_is_refused(devices: str, more: str, word: str) -> None:
    with pytest.raises(ImportFault, match=word):
        without_vdsm(machine(devices, more), StorageDomain("nfs", VM, "nas:/export"))


@pytest.mark.parametrize(
    ("devices", "word"),
    [
        ("<filesystem><source dir='/etc'/></filesystem>", "'/etc'"),
        ("<hostdev type='pci'><source/></hostdev>", "passed through"),
        ("<serial type='file'><source path='/root/.ssh/x'/></serial>", "'/root/.ssh/x'"),
    ],
)
def test_what_the_engine_gives_to_no_machine_is_named(devices: str, word: str) -> None:
    root = machine(f"<emulator>/usr/libexec/qemu-kvm</emulator>{devices}")
    found = root.find("devices")
    assert found is not None
    assert any(word in note for note in unexpected(root, found))


# --- migration ----------------------------------------------------------------------------------


def test_a_uri_over_tls() -> None:
    assert is_over_tls("qemu+tls://{host}/system")
    assert not is_over_tls("qemu+tcp://{host}/system?x=+tls://")
    assert not is_over_tls("")
