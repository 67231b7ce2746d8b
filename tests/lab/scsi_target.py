# SPDX-License-Identifier: LGPL-2.1-or-later
"""A LUN with SCSI-3 persistent reservations that two hosts see, without such hardware: a guest
whose kernel is the target (LIO) and, by two ports of its own loopback, both initiators.

`sg_persist` runs in the guest. Each host has a folder with a program of that name, which passes its
arguments on over the guest's serial port.
"""

from __future__ import annotations

import contextlib
import gzip
import re
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from . import guest
from .errors import LabError

BOOT_SECONDS_MAX = 240.0
SG_PERSIST = Path("/usr/bin/sg_persist")
#: The device by which each host sees the LUN.
SEEN_AS = {1: "/dev/sda", 2: "/dev/sdb"}
# In load order: each needs those before it.
MODULES = (
    "fs/configfs/configfs",
    "drivers/scsi/scsi_common",
    "drivers/scsi/scsi_mod",
    "drivers/scsi/sd_mod",
    "drivers/target/target_core_mod",
    "drivers/target/loopback/tcm_loop",
)
INIT = """#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
$b mount -t devtmpfs dev /dev
for m in $($b cat /modules/order); do $b insmod /modules/$m.ko; done
c=/sys/kernel/config
$b mount -t configfs none $c
d=$c/target/core/rd_mcp_0/vm1
$b mkdir -p $d /var/target/pr /var/target/alua
$b echo rd_pages=2048 > $d/control
$b echo 1 > $d/enable
for n in 1 2; do
  t=$c/target/loopback/naa.600140500000000$n/tpgt_1
  $b mkdir -p $t/lun/lun_0
  $b echo naa.600140500000001$n > $t/nexus
  $b ln -s $d $t/lun/lun_0/virtual_scsi_port
done
until [ -b /dev/sda ] && [ -b /dev/sdb ]; do $b sleep 0.2; done
$b stty -F /dev/ttyS1 raw -echo
exec </dev/ttyS1 >/dev/ttyS1
$b echo READY
while read -r line; do
  eval "$line" </dev/null >/out 2>/err
  $b echo "RC $? $($b wc -c </out) $($b wc -c </err)"
  $b cat /out /err
done
"""
SHIM = """#!{python}
import sys
sys.path.insert(0, {checkout!r})
from tests.lab.scsi_target import Guest
words = ["sg_persist", *(w.replace("/dev/vm1", {device!r}) for w in sys.argv[1:])]
code, out, err = Guest({socket!r}).do(words)
sys.stdout.write(out)
sys.stderr.write(err)
sys.exit(code)
"""


@dataclass(frozen=True, slots=True)
class Guest:
    """The guest behind a socket; one command at a time."""

    socket_path: str

    def do(self, words: list[str]) -> tuple[int, str, str]:
        """Run a command in the guest: its exit code, standard output and error."""
        with socket.socket(socket.AF_UNIX) as link:
            link.settimeout(60.0)
            link.connect(self.socket_path)
            link.sendall(shlex.join(words).encode() + b"\n")
            with link.makefile("rb") as reader:
                while not (head := reader.readline()).startswith(b"RC "):
                    if not head:
                        raise LabError("the guest of the SCSI target has ended")
                _, code, out, err = head.split()
                return int(code), reader.read(int(out)).decode(), reader.read(int(err)).decode()

    def writes(self, host: int) -> bool:
        """Whether the LUN takes a write of that host."""
        words = f"dd if=/dev/zero of={SEEN_AS[host]} bs=4096 count=1 oflag=direct"
        return self.do([str(guest.BUSYBOX), *words.split()])[0] == 0

    def reads(self, host: int) -> bool:
        """Whether the LUN answers a read of that host."""
        words = f"dd if={SEEN_AS[host]} of=/dev/null bs=4096 count=1 iflag=direct"
        return self.do([str(guest.BUSYBOX), *words.split()])[0] == 0


@contextlib.contextmanager
def scsi_target(folder: Path) -> Iterator[Guest]:
    """Boot it; `folder`/hostN is the folder with host N's sg_persist. LabError."""
    image = guest.build()
    initramfs, link = folder / "initramfs.gz", folder / "serial"
    initramfs.write_bytes(gzip.compress(_initramfs(_modules(image.kernel)), compresslevel=1))
    argv = ["qemu-system-x86_64", "-accel", "tcg", "-cpu", guest.CPU_MODEL]
    argv += ["-m", "256", "-nodefaults", "-no-user-config", "-display", "none"]
    argv += ["-no-reboot", "-kernel", str(image.kernel), "-initrd", str(initramfs)]
    argv += ["-append", "console=ttyS0 quiet panic=-1", "-serial", f"file:{folder}/console"]
    argv += ["-serial", f"unix:{link},server=on,wait=off"]
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL) as process:
        try:
            _until_ready(link, process, folder / "console")
            for host, device in SEEN_AS.items():
                program = folder / f"host{host}" / "sg_persist"
                program.parent.mkdir()
                checkout = str(Path(__file__).parents[2])
                text = SHIM.format(
                    python=sys.executable, checkout=checkout, device=device, socket=str(link)
                )
                program.write_text(text)
                program.chmod(0o755)
            yield Guest(str(link))
        finally:
            process.kill()


def _until_ready(link: Path, process: subprocess.Popen[bytes], console: Path) -> None:
    deadline = time.monotonic() + BOOT_SECONDS_MAX
    while not link.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    with socket.socket(socket.AF_UNIX) as waits:
        waits.settimeout(BOOT_SECONDS_MAX)
        waits.connect(str(link))
        with waits.makefile("rb") as reader:
            try:
                said = reader.readline()
            except TimeoutError:
                said = b""
    if said.strip() != b"READY":
        raise LabError(f"the SCSI target did not boot: {console.read_text()[-300:]}")


def _modules(kernel: Path) -> list[tuple[str, bytes]]:
    """The kernel's modules that make it a target, of the package that the guests' kernel is of."""
    name = kernel.parent.name
    package, version, _ = name.rsplit("_", 2)
    with tempfile.TemporaryDirectory() as text:
        scratch = Path(text)
        scratch.chmod(0o755)
        words = ["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download"]
        wanted = f"{package}={version.replace('%3a', ':')}"
        done = subprocess.run([*words, wanted], cwd=scratch, capture_output=True, text=True)
        if done.returncode != 0:
            raise LabError(f"{wanted}: {done.stderr.strip()[-200:]}")
        [deb] = scratch.glob("*.deb")
        subprocess.run(["dpkg-deb", "-x", str(deb), "unpacked"], cwd=scratch, check=True)
        [tree] = (scratch / "unpacked").glob("lib/modules/*/kernel")
        return [(path.rsplit("/", 1)[1], (tree / f"{path}.ko").read_bytes()) for path in MODULES]


def _initramfs(modules: list[tuple[str, bytes]]) -> bytes:
    folders = ("bin", "usr", "usr/bin", "proc", "sys", "dev", "modules", "lib64", "lib")
    entries = [(name, 0o040755, b"") for name in folders]
    entries.append(("init", 0o100755, INIT.encode()))
    entries.append(("bin/busybox", 0o100755, guest.BUSYBOX.read_bytes()))
    entries.append(("bin/sg_persist", 0o100755, SG_PERSIST.read_bytes()))
    said = subprocess.run(["ldd", str(SG_PERSIST)], capture_output=True, text=True, check=True)
    for library in re.findall(r"(/lib\S+)", said.stdout):
        place = library if library.startswith("/lib64/") else f"/lib/{Path(library).name}"
        entries.append((place[1:], 0o100755, Path(library).resolve().read_bytes()))
    names = "\n".join(name for name, _ in modules)
    entries.append(("modules/order", 0o100644, names.encode()))
    entries += [(f"modules/{name}.ko", 0o100644, data) for name, data in modules]
    return guest.cpio(entries)
