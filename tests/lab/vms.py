# SPDX-License-Identifier: LGPL-2.1-or-later
"""The lab's protected VMs: the engine, and two others of different make that its shop needs.

    engine  VM 1: the web page; its shop asks the other two before it answers
    db      VM 2: counts on a disk of its own; a number is served once it is on that disk
    sso     VM 3: an identity provider's stand-in, without a disk; the shop needs its word

All boot the same image (guest.py); the kernel's command line says which one it is to be.
"""

from __future__ import annotations

from dataclasses import dataclass

from broker.registry.record import unit_of
from broker.whiteboard.lease_sectors import ALIGN_OF_SECTOR

from .guest import COUNTER_PATH, CPU_MODEL, TOKEN_PATH, GuestImage
from .layout import (
    GATEWAY,
    GUEST_ADDRESS,
    GUEST_MAC,
    HOST_BRIDGE,
    LOCKSPACE,
    NETWORK_PREFIX,
    VM_NAME,
    VM_UUID,
    Layout,
)
from .settings import Settings
from .storages.kinds import BLOCK, FUSE


@dataclass(frozen=True, slots=True)
class LabVm:
    """One protected VM of the lab. `page`, `expect`: its health page, and what that says."""

    number: int
    name: str
    role: str
    uuid: str
    address: str
    mac: str
    memory_mb: int
    page: str
    has_disk: bool = True
    priority: int = 50
    after: tuple[int, ...] = ()

    @property
    def resource(self) -> str:
        """The name of its lease."""
        return "engine" if self.number == 1 else "vm-" + self.uuid.replace("-", "")

    @property
    def health(self) -> str:
        """The address of its health page."""
        return f"http://{self.address}{self.page}"


def _other(number: int, name: str, memory_mb: int, page: str, **more: object) -> LabVm:
    return LabVm(
        number,
        name,
        name,
        f"{VM_UUID[:-2]}{number:02d}",
        f"{NETWORK_PREFIX}.{199 + number}",
        f"{GUEST_MAC[:-2]}{number:02x}",
        memory_mb,
        page,
        **more,  # type: ignore[arg-type]
    )


ENGINE = LabVm(1, VM_NAME, "engine", VM_UUID, GUEST_ADDRESS, GUEST_MAC, 256, "/")
DB = _other(2, "db", 128, COUNTER_PATH, priority=90)
SSO = _other(3, "sso", 128, TOKEN_PATH, has_disk=False, priority=80)
VMS = (ENGINE, DB, SSO)


def of(settings: Settings) -> tuple[LabVm, ...]:
    """The VMs of a lab, the engine first."""
    return VMS[: settings.vms]


# A guest needs 1 MiB for its journal of boots; the database counts behind it.
DISK_BYTES = 2 << 20

#: On storages.kinds.FUSE. The disk comes over NBD because libvirt refuses to migrate a VM whose
#: disk is a file on a local file system, which all of this machine's are. And QEMU's own lock on
#: an image file, which would keep a second QEMU out and hide whether the lease does, stays with
#: the one server.
DISK_BEHIND_A_SERVER = """\
    <disk type='network' device='disk'>
      <driver name='qemu' type='raw' cache='none'/>
      <source protocol='nbd' name='{vm.role}'>
        <host transport='unix' socket='{socket}'/>
      </source>
      <target dev='vda' bus='virtio'/>
      <shareable/>
    </disk>
"""

#: On every other storage: not shareable, so that QEMU locks it.
DISK_ON_THE_STORAGE = """\
    <disk type='{type}' device='disk'>
      <driver name='qemu' type='{format}' cache='none'/>
      <source {source}='{path}'/>
      <target dev='vda' bus='virtio'/>
    </disk>
"""

DOMAIN = """<domain type='{accelerator}'>
  <name>{vm.name}</name>
  <uuid>{vm.uuid}</uuid>
  <memory unit='MiB'>{vm.memory_mb}</memory>
  <vcpu>1</vcpu>
  <cpu mode='custom' match='minimum' check='none'><model fallback='allow'>{cpu}</model></cpu>
  <os>
    <type arch='x86_64' machine='pc'>hvm</type>
    <kernel>{image.kernel}</kernel>
    <initrd>{image.initramfs}</initrd>
    <cmdline>{cmdline}</cmdline>
  </os>
  <features><acpi/><apic/></features>
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>restart</on_reboot>
  <on_crash>destroy</on_crash>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <lease>
      <lockspace>{lockspace}</lockspace>
      <key>{vm.resource}</key>
      <target path='{lab.leases}' offset='{lease_offset}'/>
    </lease>
{disk}    <interface type='bridge'>
      <mac address='{vm.mac}'/>
      <source bridge='{bridge}'/>
      <model type='virtio'/>
      <rom enabled='no'/>
    </interface>
    <serial type='pty'>{log}</serial>
    <console type='pty'><target type='serial'/></console>
    <memballoon model='none'/>
  </devices>
</domain>
"""

# The mitigations guard against other guests of a real CPU and cost a second of boot
# under emulation; KASLR costs half of one.
_CMDLINE = "console=ttyS0 quiet panic=-1 mitigations=off nokaslr no_timer_check"


def cmdline(vm: LabVm) -> str:
    """The command line of the guest's kernel."""
    text = f"{_CMDLINE} lab.addr={vm.address} lab.gateway={GATEWAY}"
    return text if vm is ENGINE else f"{text} lab.role={vm.role}"


def domain(vm: LabVm, layout: Layout, settings: Settings, image: GuestImage) -> str:
    """The VM's definition; the same on every host, so that a migration finds all paths."""
    return DOMAIN.format(
        accelerator=settings.accelerator,
        vm=vm,
        cpu=CPU_MODEL,
        image=image,
        disk=disk(vm, layout, settings) if vm.has_disk else "",
        cmdline=cmdline(vm),
        lockspace=LOCKSPACE,
        lab=layout,
        lease_offset=unit_of(vm.number) * ALIGN_OF_SECTOR[BLOCK.get(settings.storage, 512)],
        bridge=HOST_BRIDGE,
        # What a VM of the registry writes on its host is refused.
        log=f"<log file='{layout.console(vm.role)}' append='on'/>" if vm is ENGINE else "",
    )


def disk(vm: LabVm, layout: Layout, settings: Settings) -> str:
    """The element of the VM's disk."""
    if settings.storage == FUSE:
        return DISK_BEHIND_A_SERVER.format(vm=vm, socket=layout.disk_socket(vm.role))
    is_block = settings.storage in BLOCK
    return DISK_ON_THE_STORAGE.format(
        type="block" if is_block else "file",
        source="dev" if is_block else "file",
        format=settings.disk,
        path=layout.shared_disk_of(vm.role),
    )
