# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whose image is it: what must be known before a lock on it is cleared that carries no host."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from agent.fence.storage_program import StorageFenceError
from agent.leases.vm_records import VmRecords
from agent.vm import image_leases
from agent.vm.image_leases import LeasesOfImages, in_volume
from broker.config.load import load
from broker.registry.cache import Cached
from broker.registry.record import VmRecord
from broker.vm.domain_facts import Layer
from broker.whiteboard.mounts import Mount
from tests.fakes.lease_volume import lease_volume

DISK = "<disk type='file'><source file='{path}'/><target dev='vda'/></disk>"


class Records:
    """The copy of the registry."""

    def __init__(self) -> None:
        self.cached = Cached()

    def now(self) -> Cached:
        return self.cached


class Site:
    """The engine, on an image of a volume of Gluster that is mounted over the test's folder."""

    def __init__(self, config: Path) -> None:
        self.folder = config.parent
        xml = self.folder / "engine.xml"
        disk = DISK.format(path=self.folder / "images/vm.raw")
        xml.write_text(xml.read_text().replace("<devices>", f"<devices>{disk}"))
        self.records = Records()
        self.leases = LeasesOfImages(load(str(config)), cast(VmRecords, self.records))

    def held(self, host: int) -> None:
        lease_volume(self.folder / "leases", held={"engine": (host, 3)} if host else {})


@pytest.fixture
def on_gluster(site: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    mount = Mount("server:/gv0", str(site.parent), "fuse.glusterfs", ("rw",))
    monkeypatch.setattr(image_leases, "mount_of", lambda path: mount)
    return Site(site)


def test_the_lease_of_the_vm_that_a_dead_host_had(on_gluster: Site) -> None:
    on_gluster.held(2)
    (lease,) = on_gluster.leases.of(2, "/images/vm.raw")
    assert lease == f"hosted-engine:engine:{on_gluster.folder}/leases:1048576"


@pytest.mark.parametrize(
    ("owner", "image", "why"),
    [
        (3, "/images/vm.raw", "host 3 has the lease of HostedEngine"),
        (0, "/images/vm.raw", "nobody has the lease of HostedEngine"),
        (2, "/vm.raw", "no VM's definition here has that image"),
    ],
)
def test_any_other_lock_is_left_alone(on_gluster: Site, owner: int, image: str, why: str) -> None:
    on_gluster.held(owner)
    with pytest.raises(StorageFenceError, match=why):
        on_gluster.leases.of(2, image)


def test_what_is_not_known_is_left_alone(on_gluster: Site) -> None:
    """A lease volume that cannot be read, a definition that is not here: no leave to clear."""
    (on_gluster.folder / "leases").write_bytes(bytes(8 << 20))
    with pytest.raises(StorageFenceError, match="is not known"):
        on_gluster.leases.of(2, "/images/vm.raw")
    on_gluster.held(2)
    other = cast(VmRecord, SimpleNamespace(name="db", removed=False, spec=lambda: None))
    on_gluster.records.cached = replace(Cached(), records={2: other})
    with pytest.raises(StorageFenceError, match="the definition of db is not known here"):
        on_gluster.leases.of(2, "/images/vm.raw")
    (on_gluster.folder / "engine.xml").unlink()
    with pytest.raises(StorageFenceError, match="is not known"):
        on_gluster.leases.of(2, "/images/vm.raw")


@pytest.mark.parametrize(
    ("layer", "kind", "path"),
    [
        (Layer("file", "/srv/ha/images/a.raw", "raw"), "fuse.glusterfs", "/images/a.raw"),
        (Layer("file", "/srv/ha/images/a.raw", "raw"), "nfs4", ""),
        (Layer("file", "/srv/ha/images/a.raw", "raw"), "", ""),
        (Layer("network", "name=gv0/a.raw protocol=gluster name=s1", "raw"), "", "/a.raw"),
        (Layer("network", "name=gv0/a.raw protocol=gluster", "raw"), "", "/a.raw"),
        (Layer("network", "name=gv0/a.raw protocol=rbd", "raw"), "", ""),
        (Layer("block", "/dev/vg/a", "raw"), "fuse.glusterfs", ""),
    ],
)
def test_the_path_of_an_image_in_its_volume(
    monkeypatch: pytest.MonkeyPatch, layer: Layer, kind: str, path: str
) -> None:
    mount = Mount("server:/gv0", "/srv/ha", kind, ()) if kind else None
    monkeypatch.setattr(image_leases, "mount_of", lambda path: mount)
    assert in_volume(layer) == path
