# SPDX-License-Identifier: LGPL-2.1-or-later
"""libvirt definitions of a VM, and a node of libvirt's test driver that knows them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import libvirt

from broker.config.sections import Config, DaemonSection, HostSection, StorageSection, VmSection
from broker.vm.domain_facts import Differs, read

BASE, OVERLAY = "/srv/base.qcow2", "/srv/overlay.qcow2"


def domain(top: str = BASE, below: str = "", extra: str = "", job: str = "") -> str:
    """A VM with one disk."""
    chain = ""
    if below:
        chain = (
            f"<backingStore type='file'><format type='qcow2'/><source file='{below}'/>"
            "</backingStore>"
        )
    return (
        "<domain><devices><disk type='file'><driver name='qemu' type='qcow2'/>"
        f"<source file='{top}'/>{chain}{job}<target dev='vda'/></disk>{extra}</devices></domain>"
    )


XML = """<domain type='test'>
  <name>vm</name><uuid>6e67696e-0000-4000-8000-000000000001</uuid>
  <memory unit='MiB'>64</memory><vcpu>1</vcpu><os><type>hvm</type></os>
  <devices>
    <disk type='file'><driver type='qcow2'/><source file='/srv/base'/><target dev='vda'/></disk>
    <lease><lockspace>hosted-engine</lockspace><key>engine</key>
      <target path='/leases' offset='1048576'/></lease>
  </devices>
</domain>"""
TWO = XML.replace("<vcpu>1<", "<vcpu>2<")


class Shared:
    """A connection of the test driver that stays open: it forgets everything at its close.

    `test:///default` is one node for all connections of the process, with what they defined in it;
    a node of its own file is this connection's alone.
    """

    def __init__(self, node: Path) -> None:
        node.write_text("<node/>")
        self.real = libvirt.open(f"test://{node}")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def close(self) -> None:
        """Keep the connection open."""


def config(tmp_path: Path) -> Config:
    """Host 1, whose VM is defined by a file that says XML."""
    path = tmp_path / "engine.xml"
    path.write_text(XML)
    return Config(
        host=HostSection(id=1, name="one"),
        storage=StorageSection(whiteboard="/whiteboard", leases="/leases"),
        vm=VmSection(name="vm", definition=str(path)),
        daemon=DaemonSection(state_dir=str(tmp_path / "state")),
    )


def vcpus(connection: Shared) -> int:
    """How many libvirt's own definition of the VM has."""
    own = connection.lookupByName("vm").XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    return int(read(own).facts[Differs.VCPUS, "vCPUs"])
