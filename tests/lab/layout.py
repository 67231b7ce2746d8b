# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where everything of one lab lies, and what it is called: pure functions of the run
directory and a host's id.

The network's addresses are the same in every lab: they exist only inside the lab's
own namespaces, so two labs never meet.
"""

from __future__ import annotations

import hashlib
import os
import re
import uuid
from dataclasses import dataclass
from pathlib import Path

from broker.whiteboard.layout import SLOT_MAX

from .errors import UsageError

CHECKOUT = Path(__file__).resolve().parents[2]
HOSTS_MAX = 64
# sun_path is 108 bytes with its NUL (unix(7)).
SOCKET_PATH_BYTES_MAX = 107

NETWORK_PREFIX = "10.77.0"
GATEWAY = f"{NETWORK_PREFIX}.1"
#: The network of a storage that has one (storages/kinds.py).
STORAGE_PREFIX = "10.78.0"
STORAGE_ADDRESS = f"{STORAGE_PREFIX}.1"
GUEST_ADDRESS = f"{NETWORK_PREFIX}.200"
GUEST_MAC = "52:54:00:4e:67:01"
BMC_PORT = 623
API_PORT = 8765
BMC_USER = "admin"
SWITCH_BRIDGE = "switch"
STORAGE_BRIDGE = "storage"
SWITCH_MAC = "52:54:00:4e:00:01"
STORAGE_MAC = "52:54:00:4e:00:02"
HOST_BRIDGE = "ovirtmgmt"

VM_NAME = "HostedEngine"
VM_UUID = "6e67696e-0000-4000-8000-000000000001"
LOCKSPACE = "hosted-engine"
CLUSTER_ID, WHITEBOARD_ID, LEASES_ID = (f"1ab00000-0000-4000-8000-00000000000{n}" for n in range(3))
SLOT_BYTES = 4096
WHITEBOARD_BYTES = (SLOT_MAX + 1) * SLOT_BYTES
LEASE_ALIGN_BYTES = 1 << 20
FENCE_LEASE_OFFSET = 2 * LEASE_ALIGN_BYTES
#: What a lease volume takes on a device, in alignment units.
LEASE_UNITS = 20
#: The guest needs 1 MiB for its journal; the rest is room for an image with a format.
DISK_BYTES = 16 << 20

# The daemons of a host, in the order a host starts them.
DAEMONS = ("sanlock", "libvirtd", "broker", "agent")
OUR_DAEMONS = ("broker", "agent")


def default_run_directory() -> Path:
    """HA_LAB_DIR, else a folder of this checkout's own under /var/tmp."""
    if named := os.environ.get("HA_LAB_DIR"):
        return Path(named).absolute()
    return Path("/var/tmp/ha-lab") / hashlib.sha256(bytes(CHECKOUT)).hexdigest()[:8]


def host_id_of(name: str) -> int:
    """``host7`` -> 7; anything else is a UsageError."""
    match = re.fullmatch(r"host([1-9][0-9]?)", name)
    if match is None or int(match.group(1)) > HOSTS_MAX:
        raise UsageError(f"{name}: not a host; hosts are host1 to hostN (see: status)")
    return int(match.group(1))


@dataclass(frozen=True, slots=True)
class HostLayout:
    """The paths, addresses and ids of one host."""

    lab: Layout
    id: int

    @property
    def name(self) -> str:
        return f"host{self.id}"

    @property
    def directory(self) -> Path:
        return self.lab.directory / "hosts" / self.name

    @property
    def run(self) -> Path:
        """What the host sees as /run; on disk so that peers reach its libvirt socket."""
        return self.directory / "run"

    @property
    def log(self) -> Path:
        return self.directory / "log"

    @property
    def etc(self) -> Path:
        """Files bound over the host's /etc (libvirt's folder, hosts, resolv.conf)."""
        return self.directory / "etc"

    @property
    def config(self) -> Path:
        return self.directory / "ha-agent.toml"

    @property
    def secrets(self) -> Path:
        return self.directory / "secrets.toml"

    @property
    def definition(self) -> Path:
        return self.directory / "engine.xml"

    @property
    def control(self) -> Path:
        """The socket that the host's first process takes orders on."""
        return self.directory / "control"

    @property
    def power_record(self) -> Path:
        """One line about the host's first process; absent before the first power-on."""
        return self.directory / "power"

    @property
    def storage_fault(self) -> Path:
        """What becomes of the host's storage operations; see host_storage.py."""
        return self.directory / "storage"

    @property
    def bmc(self) -> Path:
        return self.lab.directory / "bmc" / self.name

    @property
    def bmc_fault(self) -> Path:
        """How the power script behaves; see bmc.py."""
        return self.bmc / "fault"

    @property
    def bmc_calls(self) -> Path:
        """The BMC's own log of questions and orders; see bmc.calls."""
        return self.bmc / "calls"

    @property
    def libvirt_socket(self) -> Path:
        return self.run / "libvirt" / "libvirt-sock"

    @property
    def address(self) -> str:
        return f"{NETWORK_PREFIX}.{10 + self.id}"

    @property
    def storage_address(self) -> str:
        """The host's address in the storage's network, where there is one."""
        return f"{STORAGE_PREFIX}.{10 + self.id}"

    @property
    def storage_cable(self) -> str:
        """What the switch calls the host's cable to the storage."""
        return f"{self.name}s"

    @property
    def bmc_address(self) -> str:
        return f"{NETWORK_PREFIX}.{100 + self.id}"

    @property
    def system_uuid(self) -> uuid.UUID:
        """The host's SMBIOS UUID, which its BMC answers as its GUID."""
        return uuid.uuid5(uuid.NAMESPACE_URL, f"{self.lab.directory}/{self.name}")


@dataclass(frozen=True, slots=True)
class Layout:
    """The paths of one lab."""

    directory: Path

    def host(self, host_id: int) -> HostLayout:
        return HostLayout(self, host_id)

    @property
    def shared(self) -> Path:
        """The shared storage: whiteboard and lease volume.

        Each host sees it through a file system of its own; no socket works below it.
        """
        return self.directory / "shared"

    @property
    def array(self) -> Path:
        """The guest's disk and console, and sockets that hosts meet at. It never fails."""
        return self.directory / "array"

    @property
    def whiteboard(self) -> Path:
        return self.shared / "whiteboard"

    @property
    def leases(self) -> Path:
        return self.shared / "leases"

    @property
    def registry(self) -> Path:
        """The registry of the VMs beside the engine."""
        return self.shared / "registry"

    def disk_file(self, role: str) -> Path:
        """A guest's disk, behind its server. `role`: which guest (vms.py)."""
        return self.array / f"{role}.disk"

    @property
    def shared_disk(self) -> Path:
        """The engine's disk where it lies on the storage."""
        return self.shared_disk_of("engine")

    def shared_disk_of(self, role: str) -> Path:
        """A guest's disk where it lies on the storage."""
        return self.shared / f"{role}.disk"

    @property
    def servers(self) -> Path:
        """What the storage's own daemons keep; beside ``shared``, which hosts mount over."""
        return self.directory / "servers"

    @property
    def servers_control(self) -> Path:
        """The socket that takes orders about the storage's daemons."""
        return self.directory / "servers-control"

    def volumes(self, align: int) -> dict[Path, int]:
        """The volumes on the storage and their sizes in bytes; `align`: of its leases."""
        return {
            self.whiteboard: WHITEBOARD_BYTES,
            self.leases: LEASE_UNITS * align,
            self.shared_disk: DISK_BYTES,
        }

    def disk_socket(self, role: str) -> Path:
        """Where the disk server serves ``disk_file`` to all hosts."""
        return self.array / f"{role}.disk.sock"

    def console(self, role: str) -> Path:
        """What a guest says on its console."""
        return self.array / f"{role}-console.log"

    @property
    def settings(self) -> Path:
        """What ``up`` was asked for (JSON); also marks the directory as a lab's own."""
        return self.directory / "lab.json"

    @property
    def record(self) -> Path:
        """One line about the lab's first process, the switch."""
        return self.directory / "switch.pid"

    @property
    def control(self) -> Path:
        """The socket that the switch takes orders on."""
        return self.directory / "control"

    @property
    def log(self) -> Path:
        return self.directory / "switch.log"

    @property
    def lock(self) -> Path:
        return self.directory / "lock"

    def longest_socket(self) -> Path:
        """The longest UNIX socket path that this lab will use."""
        return self.host(HOSTS_MAX).run / "libvirt/virtinterfaced-sock-ro"
