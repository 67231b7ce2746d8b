# SPDX-License-Identifier: LGPL-2.1-or-later
"""A VM's inside: a stock cloud kernel and a BusyBox initramfs, the same for all (vms.py).

The guest answers its health page, keeps a journal of its boots on its disk (one
512-byte record per boot, see boot_journal.py; the count is served at /boots), and powers
off when the ACPI power button is pressed, which is what ``virsh shutdown`` does. The database
counts on its disk behind the journal, and serves a number once it is there. The engine's shop
answers when the database and the identity provider do.

Both files are cached, keyed by everything that goes into them, and renamed into
place whole: two labs may build them at the same time.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import select
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from .errors import LabError
from .layout import NETWORK_PREFIX

CACHE = Path("/var/cache/ha-agent-lab")
KERNEL_METAPACKAGE = "linux-image-cloud-amd64"
BUSYBOX = Path("/bin/busybox")
HEALTH_PATH = "/ovirt-engine/services/health"
HEALTH_TEXT = "DB Up!Welcome to Health Status!"
BOOTS_PATH = "/boots"
FORM_PATH = "/cgi-bin/form"
#: Each request of it writes to the guest's disk before it answers DISK_TEXT.
DISK_PATH, DISK_TEXT = "/cgi-bin/disk", "written"
SHOP_PATH, COUNTER_PATH, TOKEN_PATH = "/cgi-bin/shop", "/counter", "/token"
# The least common CPU, so that any host may take the guest over by live migration.
CPU_MODEL = "qemu64"
JOURNAL_RECORD_BYTES = 512
JOURNAL_RECORDS_MAX = 2048
#: How often the database counts.
COUNT_EVERY_S = 0.2
#: A guest that runs renews its record so often, and looks whether another boot wrote.
JOURNAL_BEAT_S = 0.5

# In load order: each needs those before it.
MODULES = (
    "drivers/virtio/virtio_ring",
    "drivers/virtio/virtio",
    "drivers/virtio/virtio_pci_legacy_dev",
    "drivers/virtio/virtio_pci_modern_dev",
    "drivers/virtio/virtio_pci",
    "net/core/failover",
    "drivers/net/net_failover",
    "drivers/net/virtio_net",
    "drivers/block/virtio_blk",
    "drivers/input/evdev",
    "drivers/acpi/button",
)

# The kernel command line carries lab.addr and lab.gateway: the image is the same for
# every lab, what differs is said at boot.
INIT = f"""#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
$b mount -t devtmpfs dev /dev
for m in $($b cat /modules/order); do $b insmod /modules/$m.ko; done
for w in $($b cat /proc/cmdline); do
  case $w in lab.addr=*) addr=${{w#*=}};; lab.gateway=*) gateway=${{w#*=}};;
    lab.role=*) role=${{w#*=}};; esac
done
$b echo LAB-GUEST-RUNS
$b ip link set lo up
$b ip link set eth0 up
$b ip addr add $addr/24 dev eth0
$b ip route add default via $gateway
boots=0
if [ -b /dev/vda ]; then
  boots=$($b dd if=/dev/vda bs={JOURNAL_RECORD_BYTES} count={JOURNAL_RECORDS_MAX} 2>/dev/null |
    $b tr -d '\\0' | $b wc -l)
  boots=$((boots + 1)) alone=alone
  read -r id < /proc/sys/kernel/random/boot_id
  note() {{
    read -r up rest < /proc/uptime
    line="boot $boots id $id uptime $up $alone"
    $b echo "$line" | $b dd of=/dev/vda bs={JOURNAL_RECORD_BYTES} \\
      seek=$((boots - 1)) conv=notrunc,sync oflag=direct 2>/dev/null
  }}
  note
fi
$b mkdir -p /www{os.path.dirname(HEALTH_PATH)}
$b printf '%s' '{HEALTH_TEXT}' > /www{HEALTH_PATH}
$b echo $boots > /www{BOOTS_PATH}
$b mkdir -p /www/cgi-bin
$b ln -s /form /www{FORM_PATH}
$b ln -s /shop /www{SHOP_PATH}
$b ln -s /disk /www{DISK_PATH}
case $role in
  sso) $b echo "sso token $($b cat /proc/sys/kernel/random/uuid)" > /www{TOKEN_PATH};;
  db) count=$($b dd if=/dev/vda bs={JOURNAL_RECORD_BYTES} skip={JOURNAL_RECORDS_MAX} count=1 \\
      iflag=direct 2>/dev/null | $b tr -d '\\0')
    ( while :; do
        count=$((count + 1))
        $b echo $count | $b dd of=/dev/vda bs={JOURNAL_RECORD_BYTES} seek={JOURNAL_RECORDS_MAX} \\
          conv=notrunc,sync,fsync oflag=direct 2>/dev/null &&
          $b echo "db counter $count" > /www/next && $b mv /www/next /www{COUNTER_PATH}
        $b sleep {COUNT_EVERY_S}
      done ) &;;
esac
$b httpd -p 80 -h /www
# Tells the switch where this MAC lives now; without it the first request after a
# takeover would wait for the switch to learn it.
$b arping -q -c 1 -A -I eth0 $addr &
for e in /sys/class/input/event*; do
  [ "$($b cat $e/device/name)" = "Power Button" ] || continue
  ( $b dd if=/dev/input/${{e##*/}} of=/dev/null bs=24 count=1 2>/dev/null
    $b echo LAB-GUEST-POWER-BUTTON; $b sync; $b poweroff -f ) &
done
$b echo LAB-GUEST-UP boots=$boots
[ $boots -gt 0 ] || while :; do $b sleep 3600; done
while $b sleep {JOURNAL_BEAT_S}; do
  found=$($b dd if=/dev/vda bs={JOURNAL_RECORD_BYTES} skip=$((boots - 1)) count=2 \\
    iflag=direct 2>/dev/null | $b tr -d '\\0')
  [ "$found" = "$line" ] || alone=overtaken
  note
done
"""


#: A form of two pages; what page one was given lies in the guest's RAM alone until page two comes.
FORM = f"""#!/bin/busybox sh
b=/bin/busybox
title='<!doctype html><html lang="en"><title>Order</title>'
$b printf 'Content-Type: text/html\\r\\n\\r\\n'
[ "$REQUEST_METHOD" = POST ] && read -r -n "${{CONTENT_LENGTH:-0}}" body
value=$($b echo "${{body#*=}}" | $b sed 's/[^A-Za-z0-9+]//g; s/+/ /g')
case "$body" in
  first=*) $b echo "$value" > /first
    $b echo "$title<h1>Page two</h1><form method=post><label>Second
      <input name=second></label><button>Send</button></form>";;
  second=*) $b echo "$title<h1>Thank you</h1>
      <p id=first>$($b cat /first)</p><p id=second>$value</p>";;
  *) $b echo "$title<h1>Page one</h1><form method=post action={FORM_PATH}><label>First
      <input name=first></label><button>Send</button></form>";;
esac
"""


#: A page that needs the word of the identity provider and a number of the database.
SHOP = f"""#!/bin/busybox sh
b=/bin/busybox
ask() {{
  $b printf 'GET %s HTTP/1.0\\r\\n\\r\\n' $2 | $b nc -w 2 $1 80 | $b grep '^[a-z]* [a-z]* '
}}
token=$(ask {NETWORK_PREFIX}.202 {TOKEN_PATH}) &&
count=$(ask {NETWORK_PREFIX}.201 {COUNTER_PATH}) || {{
  $b printf 'HTTP/1.0 503 Service Unavailable\\r\\n\\r\\nno shop: %s %s' "$token" "$count"
  exit 0
}}
$b printf 'HTTP/1.0 200 OK\\r\\nContent-Type: text/plain\\r\\n\\r\\nshop: %s, %s' "$token" "$count"
"""


#: A page that is there while the disk is: one record behind the journal, past the page cache. (The
#: database of the demo counts in that place; it is another guest.)
DISK = f"""#!/bin/busybox sh
b=/bin/busybox
$b dd if=/dev/zero of=/dev/vda bs={JOURNAL_RECORD_BYTES} seek={JOURNAL_RECORDS_MAX} count=1 \\
  conv=notrunc oflag=direct 2>/dev/null &&
$b printf 'HTTP/1.0 200 OK\\r\\nContent-Type: text/plain\\r\\n\\r\\n%s' {DISK_TEXT}
"""


@dataclass(frozen=True, slots=True)
class GuestImage:
    """What QEMU boots directly: paths of kernel and initramfs."""

    kernel: Path
    initramfs: Path


def build(cache: Path = CACHE) -> GuestImage:
    """The guest image, from the cache or built (one package download, about 3 s)."""
    package = _cached_kernel_package(cache)
    if package is None:
        try:
            package = _fetch_kernel(cache)
        except LabError:
            # The package lists may be missing or older than the archive.
            _run(["apt-get", "-q", "update"], Path("/"))
            package = _fetch_kernel(cache)
    kernel = cache / package / "vmlinuz"
    initramfs = cache / package / f"initramfs-{_recipe()}.gz"
    if not initramfs.exists():
        content = gzip.compress(_initramfs(cache / package / "modules"), compresslevel=1)
        _write_whole(initramfs, content)
    return GuestImage(kernel, initramfs)


def _recipe() -> str:
    """A hash over all that goes into the initramfs besides the kernel's modules."""
    digest = hashlib.sha256((INIT + FORM + SHOP + DISK).encode())
    digest.update("\n".join(MODULES).encode())
    digest.update(BUSYBOX.read_bytes())
    return digest.hexdigest()[:12]


def _cached_kernel_package(cache: Path) -> str | None:
    # The newest cached kernel will do: a lab must come up without the network once
    # it has come up with it.
    found = sorted(cache.glob("linux-image-*/vmlinuz"), key=lambda path: path.stat().st_mtime)
    return found[-1].parent.name if found else None


def _fetch_kernel(cache: Path) -> str:
    cache.mkdir(parents=True, exist_ok=True)
    package = _newest_kernel_package()
    with tempfile.TemporaryDirectory(dir=cache, prefix=".fetch-") as text:
        scratch = Path(text)
        # _apt, the user that apt downloads as, must be able to write here.
        scratch.chmod(0o755)
        _run(["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", package], scratch)
        [deb] = scratch.glob("*.deb")
        _run(["dpkg-deb", "-x", str(deb), "unpacked"], scratch)
        [kernel] = (scratch / "unpacked/boot").glob("vmlinuz-*")
        [tree] = (scratch / "unpacked").glob("lib/modules/*/kernel")
        whole = scratch / "whole"
        (whole / "modules").mkdir(parents=True)
        kernel.rename(whole / "vmlinuz")
        for module in MODULES:
            source = tree / f"{module}.ko"
            source.rename(whole / "modules" / source.name)
        target = cache / deb.name.removesuffix(".deb")
        try:
            whole.rename(target)
        except OSError:
            # Another lab was faster; what it made is the same. A half-made folder
            # cannot be there, for a rename is all or nothing.
            if not (target / "vmlinuz").exists():
                raise
        return target.name


def _newest_kernel_package() -> str:
    text = _run(["apt-cache", "depends", KERNEL_METAPACKAGE], Path("/"))
    match = re.search(r"Depends: (linux-image-\S+)", text)
    if match is None:
        raise LabError(
            f"guest kernel: apt knows no {KERNEL_METAPACKAGE}; run scripts/setup (apt-get update)"
        )
    return match.group(1)


def _run(argv: list[str], cwd: Path) -> str:
    try:
        done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, timeout=300)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LabError(f"guest kernel: {error}; run scripts/setup") from error
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise LabError(f"guest kernel: {' '.join(argv)}: {last}; run scripts/setup")
    return done.stdout


def _initramfs(modules: Path) -> bytes:
    names = [module.rsplit("/", 1)[1] for module in MODULES]
    entries: list[tuple[str, int, bytes]] = [
        (folder, 0o040755, b"") for folder in ("bin", "proc", "sys", "dev", "modules", "www")
    ]
    entries.append(("init", 0o100755, INIT.encode()))
    entries.append(("form", 0o100755, FORM.encode()))
    entries.append(("shop", 0o100755, SHOP.encode()))
    entries.append(("disk", 0o100755, DISK.encode()))
    entries.append(("bin/busybox", 0o100755, BUSYBOX.read_bytes()))
    entries.append(("modules/order", 0o100644, "\n".join(names).encode()))
    entries += [
        (f"modules/{name}.ko", 0o100644, (modules / f"{name}.ko").read_bytes()) for name in names
    ]
    return cpio(entries)


def cpio(entries: list[tuple[str, int, bytes]]) -> bytes:
    """A "newc" cpio archive, the format of an initramfs, of (path, mode, content)."""
    archive = bytearray()
    for inode, (name, mode, content) in enumerate([*entries, ("TRAILER!!!", 0, b"")], start=1):
        encoded = name.encode() + b"\0"
        # magic, ino, mode, uid, gid, nlink, mtime, filesize, dev (2), rdev (2),
        # namesize, check: each 8 hex digits.
        fields = (inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(encoded), 0)
        archive += b"070701" + b"".join(b"%08x" % field for field in fields)
        archive += encoded
        archive += bytes(-len(archive) % 4)
        archive += content
        archive += bytes(-len(archive) % 4)
    return bytes(archive)


def _write_whole(path: Path, content: bytes) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".part-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.rename(name, path)
    except BaseException:
        os.unlink(name)
        raise


def accelerator(image: GuestImage, cache: Path = CACHE, seconds_max: float = 5.0) -> str:
    """``kvm`` if a guest really runs under KVM here, else ``qemu`` (emulation).

    /dev/kvm opening proves nothing: there are machines where guests then hang. So a
    guest is run, once per boot of this machine.
    """
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "qemu"
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    verdict_file = cache / f"accelerator-{boot_id}"
    if verdict_file.exists():
        return verdict_file.read_text().strip()
    verdict = "kvm" if _runs_under_kvm(image, seconds_max) else "qemu"
    for old in cache.glob("accelerator-*"):
        old.unlink(missing_ok=True)
    _write_whole(verdict_file, f"{verdict}\n".encode())
    return verdict


def _runs_under_kvm(image: GuestImage, seconds_max: float) -> bool:
    qemu = shutil.which("qemu-system-x86_64")
    if qemu is None:
        return False
    argv = [qemu, "-accel", "kvm", "-cpu", CPU_MODEL, "-m", "256", "-nodefaults"]
    argv += ["-display", "none"]
    argv += ["-no-user-config", "-serial", "stdio", "-no-reboot"]
    argv += ["-kernel", str(image.kernel), "-initrd", str(image.initramfs)]
    argv += ["-append", "console=ttyS0 quiet panic=-1 lab.addr=192.0.2.1 lab.gateway=192.0.2.2"]
    with subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        try:
            return _saw(process.stdout.fileno(), b"LAB-GUEST-RUNS", seconds_max)
        finally:
            process.kill()


def _saw(descriptor: int, marker: bytes, seconds_max: float) -> bool:
    deadline = time.monotonic() + seconds_max
    seen = b""
    while (left := deadline - time.monotonic()) > 0:
        if not select.select([descriptor], [], [], left)[0]:
            return False
        chunk = os.read(descriptor, 4096)
        if not chunk:
            return False
        seen += chunk
        if marker in seen:
            return True
    return False
