# SPDX-License-Identifier: LGPL-2.1-or-later
"""Machines that share a network, with a VM on it that serves a page and can be migrated.

The switch is a bridge in a network namespace of its own. Each machine has a cable to it and a
bridge for the VM's interface; both are plugged in anew at each boot, since they end with it.
libvirt of each machine listens on TCP without a password, in a network of nobody else.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from tests.lab.guest import CPU_MODEL, HEALTH_PATH, GuestImage
from tests.lab.links import bridge

from .machine import Machine

BRIDGE = "ovirtmgmt"
GATEWAY, GUEST = "10.77.0.254", "10.77.0.100"
#: How often the guest's page is asked for, and how long an answer may take.
ASK_EVERY_S, ANSWER_S = 0.1, 3.0

MIGRATION = """[libvirt]
migration-uri = "qemu+tcp://{host}/system"
"""
HEALTH = f"""[health]
url = "http://{GUEST}{HEALTH_PATH}"
"""
LIBVIRTD = 'host_uuid = "{uuid}"\nauth_tcp = "none"\n'
DOMAIN = """<domain type='qemu'><name>HostedEngine</name>
<uuid>6e67696e-0000-4000-8000-000000000001</uuid><memory unit='MiB'>256</memory>
<cpu mode='custom' match='minimum' check='none'><model fallback='allow'>{cpu}</model></cpu>
<os><type arch='x86_64' machine='pc'>hvm</type>
<kernel>/srv/ha/vmlinuz</kernel><initrd>/srv/ha/{initramfs}</initrd>
<cmdline>quiet mitigations=off nokaslr lab.addr={guest} lab.gateway={gateway}</cmdline></os>
<features>{acpi}<apic/></features><on_poweroff>destroy</on_poweroff>
<devices><lease><lockspace>hosted-engine</lockspace><key>engine</key>
<target path='/srv/ha/leases' offset='1048576'/></lease>
<interface type='bridge'><source bridge='{bridge}'/><model type='virtio'/>
<rom enabled='no'/></interface><memballoon model='none'/></devices></domain>
"""
#: Asks again and again, and prints a line for each answer or failure.
ASKER = """
import sys, time, urllib.request
url, every, patience = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])
while True:
    began = time.monotonic()
    try:
        urllib.request.urlopen(url, timeout=patience).read()
        word = "ok"
    except OSError as error:
        word = "failed"
    print(f"{began:.3f} {time.monotonic() - began:.3f} {word}", flush=True)
    time.sleep(max(0.0, began + every - time.monotonic()))
"""


@dataclass(slots=True)
class Switch:
    """The network, and who asks for the guest's page on it."""

    _holder: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        """A process in its network."""
        return self._holder.pid

    def ip(self, *words: str) -> None:
        """Run ip(8) in the switch."""
        inside(self._holder.pid, "ip", *words)

    def plug(self, machine: Machine) -> None:
        """Cable and bridge of a machine that has just booted."""
        name, first = machine.name, machine.first
        with contextlib.suppress(subprocess.CalledProcessError):
            self.ip("link", "del", name)
        self.ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", str(first))
        self.ip("link", "set", name, "master", "switch", "up")
        for words in (
            *bridge(BRIDGE, f"52:54:00:4e:01:{machine.host:02x}"),
            f"link set eth0 master {BRIDGE} up",
            f"addr add {address(machine.host)}/24 dev {BRIDGE}",
            f"link set {BRIDGE} up",
        ):
            inside(first, "ip", *words.split())

    @contextlib.contextmanager
    def asking(self) -> Iterator[Answers]:
        """Ask for the guest's page meanwhile."""
        url = f"http://{GUEST}{HEALTH_PATH}"
        enter = ["nsenter", "-t", str(self._holder.pid), "-n", sys.executable, "-c", ASKER]
        command = [*enter, url, str(ASK_EVERY_S), str(ANSWER_S)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            answers = Answers(process)
            try:
                yield answers
            finally:
                process.kill()
                answers.reader.join()


@dataclass(slots=True)
class Answers:
    """What came of each request: when it was sent (time.monotonic), how long it took, whether
    it was answered."""

    process: subprocess.Popen[str]
    seen: list[tuple[float, float, bool]] = field(default_factory=list)
    reader: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            began, took, word = line.split()
            self.seen.append((float(began), float(took), word == "ok"))

    @property
    def failed(self) -> list[tuple[float, float, bool]]:
        """The requests without an answer."""
        return [each for each in self.seen if not each[2]]

    def longest_gap_s(self) -> float:
        """The longest time between two answers."""
        ends = [began + took for began, took, ok in self.seen if ok]
        return max((b - a for a, b in pairwise(ends)), default=0.0)


def inside(pid: int, *command: str) -> str:
    """Run a command in a process's network; what it printed."""
    enter = ["nsenter", "-t", str(pid), "-n", *command]
    return subprocess.run(enter, check=True, capture_output=True, text=True).stdout


def address(host: int) -> str:
    """The address of a machine."""
    return f"10.77.0.{host}"


@contextlib.contextmanager
def switch() -> Iterator[Switch]:
    """A switch, as long as somebody needs it."""
    holder = subprocess.Popen(["unshare", "-n", "sleep", "infinity"])
    try:
        time.sleep(0.2)
        made = Switch(holder)
        made.ip("link", "set", "lo", "up")
        for words in bridge("switch", "52:54:00:4e:00:01"):
            made.ip(*words.split())
        made.ip("addr", "add", f"{GATEWAY}/24", "dev", "switch")
        made.ip("link", "set", "switch", "up")
        yield made
    finally:
        holder.kill()
        holder.wait()


def lay_guest(shared: Path, image: GuestImage) -> None:
    """Kernel and inside of the VM, where every machine sees them."""
    for source, name in ((image.kernel, "vmlinuz"), (image.initramfs, image.initramfs.name)):
        shutil.copy(source, shared / name)
        (shared / name).chmod(0o644)


def configure_host(machine: Machine, hosts: int) -> None:
    """Before anything of ours: names, and a VM that only libvirt of the first machine knows. Who
    the host is stands in files, for the hardware of all machines is one."""
    names = "".join(f"{address(n)} host{n}\n" for n in range(1, hosts + 1))
    machine.write("/etc/hosts", f"127.0.0.1 localhost\n{names}")
    machine.write("/etc/libvirt/libvirtd.conf", f'host_uuid = "{machine.uuid}"\n')
    machine.write("/etc/ha-agent/ha-agent.toml", f'[host]\nsystem-uuid = "{machine.uuid}"\n')
    machine.write("/etc/libvirt/qemu-sanlock.conf", 'user = "sanlock"\ngroup = "sanlock"\n')
    machine.must("systemctl", "restart", "libvirtd", "sanlock")
    if machine.host == 1:
        made = next(machine.shared.glob("initramfs-*"))
        domain = DOMAIN.format(
            cpu=CPU_MODEL,
            initramfs=made.name,
            guest=GUEST,
            gateway=GATEWAY,
            bridge=BRIDGE,
            acpi="<acpi/>",
        )
        machine.write("/root/vm.xml", re.sub(r"<lease>.*?</lease>", "", domain, flags=re.DOTALL))
        machine.must("virsh", "define", "/root/vm.xml")


def configure(
    machine: Machine, image: GuestImage, hosts: int, more: str = MIGRATION, obeys: bool = True
) -> None:
    """Give it its part of the cluster; `more`: tables of the configuration. `obeys`: the guest
    sees the power button."""
    names = "".join(f"{address(n)} host{n}\n" for n in range(1, hosts + 1))
    machine.write("/etc/hosts", f"127.0.0.1 localhost\n{names}")
    machine.write("/etc/libvirt/libvirtd.conf", LIBVIRTD.format(uuid=machine.uuid))
    domain = DOMAIN.format(
        cpu=CPU_MODEL,
        initramfs=image.initramfs.name,
        guest=GUEST,
        gateway=GATEWAY,
        bridge=BRIDGE,
        acpi="<acpi/>" if obeys else "",
    )
    machine.configure(HEALTH + more, domain)
    # A socket can only be added while the service is down.
    machine.must("systemctl", "stop", "libvirtd.service")
    machine.must("systemctl", "enable", "--now", "libvirtd-tcp.socket")
    machine.must("systemctl", "start", "libvirtd")
