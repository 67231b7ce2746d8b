# SPDX-License-Identifier: LGPL-2.1-or-later
"""A machine with a Debian of its own and systemd as its first process, in namespaces.

The root is made once per release by mmdebstrap and kept; each machine is an overlay on it.
Killing the first process is a power cut: nothing of the machine outlives it. The daemons
in it are the distribution's, sanlock without a watchdog device (there is none) and without
real-time priority.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import signal
import subprocess
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from broker.vm.qemu_conf import LOCK_MANAGER_LINE, NO_DISK_LEASES_LINE
from tests.fakes.ipmi_bmc import EMULATOR
from tests.lab import bmc

ROOT = Path(__file__).parents[2]
#: Debian release -> the package's target. HA_PACKAGE_RELEASES chooses among them.
RELEASES = {"bookworm": "debian12", "trixie": "debian13"}
UNITS = ("ha-broker", "ha-agent")
#: A guest that is emulated on a busy machine boots for more than a minute.
UP_SECONDS_MAX = 300.0
#: With proof by a BMC; well below the 68 s that sanlock would take.
PROVEN_TAKEOVER_SECONDS_MAX = 45.0
KEPT = Path("/var/tmp/ha-package-test")
MIRROR = "http://deb.debian.org/debian"
BOOT_SECONDS_MAX = 60.0
COMMAND_SECONDS_MAX = 120.0
#: What every machine has beside the package's own dependencies.
COMMON = ("systemd", "systemd-sysv", "dbus", "polkitd", "qemu-system-x86")
#: Where all machines see the shared storage.
SHARED = Path("/srv/ha")

SANLOCK = """[Unit]
Wants=
[Service]
Environment=SANLOCK_PRIVILEGED=0
ExecStart=
ExecStart=/usr/sbin/sanlock daemon -w 0 -l 0 -h 0 -U sanlock -G sanlock
"""
QEMU_SANLOCK = """{no_disk_leases}
user = "sanlock"
group = "sanlock"
"""
CONFIG = """[host]
id = {host}
name = "{name}"
system-uuid = "{uuid}"
[storage]
whiteboard = "/srv/ha/whiteboard"
leases = "/srv/ha/leases"
io-timeout = 1
[network]
targets = ["127.0.0.1"]
bridge = ""
"""
DEFINITION = """<domain type='qemu'><name>HostedEngine</name>
<uuid>6e67696e-0000-4000-8000-000000000001</uuid><memory unit='MiB'>64</memory>
<os><type arch='x86_64' machine='pc'>hvm</type></os><devices>
<lease><lockspace>hosted-engine</lockspace><key>engine</key>
<target path='/srv/ha/leases' offset='1048576'/></lease></devices></domain>
"""
FENCE_DEVICE = """[[fence.device]]
host = {host}
address = "127.0.0.1"
username = "admin"
"""
SECRETS = """[fence-passwords]
{host} = "secret"
"""
#: ipmi_sim's hand on the power: the machine is on as long as its first process is there.
POWER = """#!/bin/sh
case "$1 $2 $3" in
  "get power "*) if [ -e /proc/{pid}/exe ]; then echo power:1; else echo power:0; fi ;;
  "set power 0") kill -9 {pid} ;;
esac
"""
#: Run inside a mount namespace and a control group of the machine's own, as its first process.
START = r"""
set -e
root=$1 lower=$2 name=$3 shared=$4 memory=$6
hostname "$name"
mount -t overlay overlay -o "lowerdir=$lower,upperdir=$root/upper,workdir=$root/work" "$root/root"
cd "$root/root"
mount -t proc proc proc
mount -t sysfs sysfs sys
if [ -n "$memory" ]; then
  # Where the kernel's memory controller is one of version 1, systemd's is the mixed tree.
  mount -t tmpfs tmpfs sys/fs/cgroup
  mkdir sys/fs/cgroup/unified sys/fs/cgroup/systemd sys/fs/cgroup/memory
  mount -t cgroup2 cgroup2 sys/fs/cgroup/unified
  mount -t cgroup -o none,name=systemd systemd sys/fs/cgroup/systemd
  mount -t cgroup -o memory memory sys/fs/cgroup/memory
else
  mount -t cgroup2 cgroup2 sys/fs/cgroup
fi
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=755 tmpfs dev
for node in null zero full random urandom tty; do
  : >"dev/$node"
  mount --bind "/dev/$node" "dev/$node"
done
mkdir dev/pts dev/shm dev/net
if [ -c /dev/net/tun ]; then
  : >dev/net/tun
  mount --bind /dev/net/tun dev/net/tun
fi
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
mount -t tmpfs tmpfs dev/shm
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
: >dev/console
mount --bind "$root/console" dev/console
mkdir -p srv/ha
mount --bind "$shared" srv/ha
ip link set lo up
exec env -i container=lab /usr/sbin/chroot . /lib/systemd/systemd
"""
#: The control group has to be entered before its namespace is made.
OUTER = r"""
set -e
mount --make-rprivate /
mount -t cgroup2 cgroup2 "$1/cgroup"
mkdir -p "$1/cgroup/$5"
echo $$ >"$1/cgroup/$5/cgroup.procs"
umount "$1/cgroup"
if [ -n "$6" ]; then
  # What systemd uses of that version, or it would make its groups among this machine's.
  for kind in memory pids devices freezer blkio none,name=systemd; do
    mount -t cgroup -o $kind cgroup "$1/cgroup"
    mkdir -p "$1/cgroup/$5"
    echo $$ >"$1/cgroup/$5/cgroup.procs"
    umount "$1/cgroup"
  done
fi
exec unshare -u -n -p -C -m --fork --kill-child bash -c "$0" - "$@"
"""


#: The groups of that version stay, empty, when their machine has ended.
SWEEP = r"""
for kind in memory pids devices freezer blkio none,name=systemd; do
  mount -t cgroup -o $kind cgroup "$1/cgroup" || continue
  # The last of its processes may still be ending.
  for _ in $(seq 50); do
    [ -d "$1/cgroup/$2" ] || break
    find "$1/cgroup/$2" -depth -type d -exec rmdir {} + && break
    sleep 0.1
  done
  umount "$1/cgroup"
done
"""


class MachineError(Exception):
    """A machine cannot be made or does not do what it should."""


def why_not() -> str:
    """Why no machine can be made here; empty where one can."""
    if os.geteuid() != 0:
        return "root is needed for namespaces and mounts"
    if shutil.which("mmdebstrap") is None:
        return "mmdebstrap is not installed; scripts/setup does it"
    probe = subprocess.run(
        ["unshare", "-u", "-n", "-p", "-C", "-m", "--fork", "true"], capture_output=True, text=True
    )
    return probe.stderr.strip()


def why_no_memory_limits() -> str:
    """Why no machine can have the memory controller of version 1; empty where one can."""
    kinds = Path("/proc/filesystems").read_text().split()
    groups = Path("/proc/self/cgroup").read_text().splitlines()
    if "cgroup" not in kinds or not any(":memory:" in line for line in groups):
        return "the kernel's memory controller is in no tree of version 1 here"
    return ""


def base(release: str, packages: list[str]) -> Path:
    """The root of a release with these packages, made where it is not there yet."""
    wanted = sorted({*COMMON, *packages})
    name = hashlib.sha256(" ".join(wanted).encode()).hexdigest()[:12]
    root = KEPT / f"{release}-{name}"
    if not root.exists():
        KEPT.mkdir(parents=True, exist_ok=True)
        arriving = root.with_suffix(f".{os.getpid()}")
        include = f"--include={','.join(wanted)}"
        command = ["mmdebstrap", "--variant=minbase", include, release, str(arriving), MIRROR]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            shutil.rmtree(arriving, ignore_errors=True)
            raise MachineError(f"mmdebstrap {release}: {done.stderr[-2000:]}")
        arriving.rename(root)
    return root


def first_within(outer: int) -> int | None:
    """The child of `outer` that is the first process of its own namespace; None before it is."""
    for child in Path(f"/proc/{outer}/task/{outer}/children").read_text().split():
        with contextlib.suppress(OSError):
            numbers = re.search(r"^NSpid:(.*)$", Path(f"/proc/{child}/status").read_text(), re.M)
            if numbers is not None and len(numbers.group(1).split()) > 1:
                return int(child)
    return None


@dataclass(slots=True)
class Machine:
    """One machine, host `host` of a cluster whose storage is `shared`. `has_memory_limits`: its
    systemd has the kernel's memory controller of version 1, which this machine must have."""

    base: Path
    directory: Path
    host: int
    shared: Path
    has_memory_limits: bool = False
    _unshare: subprocess.Popen[bytes] | None = None
    _first: int = 0
    _bmcs: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"host{self.host}"

    @property
    def _group(self) -> str:
        """The machine's control group on this one."""
        return f"ha-package-test-{os.getpid()}-{self.name}"

    @property
    def first(self) -> int:
        """The machine's first process, by its number here; 0 while it is off."""
        return self._first

    @property
    def uuid(self) -> str:
        """What it publishes as its own, and its BMC answers."""
        return f"00000000-0000-4000-8000-{self.host:012}"

    def write(self, path: str, text: str) -> None:
        """Write a file of the machine, on or off."""
        where = self.directory / "upper" / path.lstrip("/")
        if self._first:
            where = Path(f"/proc/{self._first}/root", path.lstrip("/"))
        where.parent.mkdir(parents=True, exist_ok=True)
        where.write_text(text)

    def boot(self) -> None:
        """Switch it on, and wait until systemd has started everything."""
        for folder in ("upper", "work", "root", "cgroup"):
            (self.directory / folder).mkdir(parents=True, exist_ok=True)
        (self.directory / "console").touch()
        self.write("/etc/hostname", f"{self.name}\n")
        self.write("/etc/systemd/system/sanlock.service.d/lab.conf", SANLOCK)
        given = (str(self.directory), str(self.base), self.name, str(self.shared))
        wanted = "memory" if self.has_memory_limits else ""
        with (self.directory / "console").open("ab") as log:
            self._unshare = subprocess.Popen(
                ["unshare", "-m", "bash", "-c", OUTER, START, *given, self._group, wanted],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        outer = self._unshare.pid
        self.wait("its first process", lambda: first_within(outer) is not None)
        self._first = first_within(outer) or 0
        self.wait("systemd", lambda: self.run("systemctl", "is-system-running").stdout != "")
        # "degraded" is fine: no console and no watchdog device are here.
        ended = ("running\n", "degraded\n")
        self.wait("its boot", lambda: self.run("systemctl", "is-system-running").stdout in ended)

    def wait(self, what: str, holds: Callable[[], bool], seconds_max: float = 60.0) -> None:
        """Until it holds; MachineError when it does not in time."""
        deadline = time.monotonic() + seconds_max
        while not holds():
            if time.monotonic() > deadline:
                raise MachineError(
                    f"{self.name}: waited {seconds_max:.0f} s for {what}\n"
                    f"{self.run('systemctl', 'list-jobs').stdout}"
                    f"{self.run('ha-agent', '--status').stdout}{self.journal()}"
                )
            if self._unshare is not None and self._unshare.poll() is not None:
                said = (self.directory / "console").read_text(errors="replace")
                raise MachineError(f"{self.name} ended: {said[-2000:]}")
            time.sleep(0.1)

    def run(self, *command: str, typed: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command in the machine, whatever its exit code; `typed`: its standard input."""
        enter = ["nsenter", "-t", str(self._first), "-m", "-u", "-n", "-p", "-C", "-r", "-w"]
        clean = ["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8"]
        return subprocess.run(
            [*enter, "--", *clean, *command],
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS_MAX,
            input=typed,
        )

    def must(self, *command: str) -> str:
        """What a command printed, which has to succeed."""
        done = self.run(*command)
        if done.returncode != 0:
            raise MachineError(f"{self.name}: {' '.join(command)}: {done.stdout}{done.stderr}")
        return done.stdout

    def install(self, package: Path, how: str = "--install") -> str:
        """Give the package to dpkg, or to rpm, which has no database of Debian's packages; what it
        said."""
        if package.suffix == ".rpm":
            shutil.copy(package, f"/proc/{self._first}/root/root/package.rpm")
            text = self.must("rpm", "--install", "--nodeps", "/root/package.rpm")
            # On EL and Fedora systemd's own package does this after an installation.
            self.must("systemd-sysusers", "ha-agent.conf")
            self.must("systemd-tmpfiles", "--create", "ha-agent.conf")
            self.must("systemctl", "daemon-reload")
            return text
        shutil.copy(package, f"/proc/{self._first}/root/root/package.deb")
        return self.must("dpkg", how, "/root/package.deb")

    def configure(self, more: str = "", definition: str = DEFINITION) -> None:
        """Give it its part of the cluster: configuration (`more`: further tables), VM definition,
        lock driver."""
        own = CONFIG.format(host=self.host, name=self.name, uuid=self.uuid)
        self.write("/etc/ha-agent/ha-agent.toml", own + more)
        self.write("/etc/ha-agent/engine.xml", definition)
        self.write("/etc/libvirt/qemu.conf", f"{LOCK_MANAGER_LINE}\n")
        lock_driver = QEMU_SANLOCK.format(no_disk_leases=NO_DISK_LEASES_LINE)
        self.write("/etc/libvirt/qemu-sanlock.conf", lock_driver)
        self.must("systemctl", "restart", "libvirtd", "sanlock")

    def serve_bmc(self, address: str, password: str, where: int) -> subprocess.Popen[bytes]:
        """This machine's BMC, at an address in the network namespace of the process `where`."""
        folder = self.directory / "bmc"
        (folder / "state").mkdir(parents=True)
        (folder / "power").write_text(POWER.format(pid=self._first))
        (folder / "power").chmod(0o700)
        (folder / "sim.emu").write_text(EMULATOR)
        (folder / "lan.conf").write_text(
            bmc.LAN_CONFIG.format(
                host=self.name,
                address=address,
                port=623,
                guid=self.uuid.replace("-", ""),
                script=folder / "power",
                user="admin",
                password=password,
            )
        )
        enter = ["nsenter", "-t", str(where), "-n", "ipmi_sim", "-n"]
        given = {"-c": "lan.conf", "-f": "sim.emu", "-s": "state"}
        files = [word for option, name in given.items() for word in (option, str(folder / name))]
        with (folder / "log").open("wb") as log:
            return subprocess.Popen(
                [*enter, *files], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def reach_bmc_of(self, other: Machine) -> None:
        """Give this machine a BMC of another one, on its own loopback, and the way to it."""
        self._bmcs.append(other.serve_bmc("127.0.0.1", "secret", self._first))
        with_device = self.must("cat", "/etc/ha-agent/ha-agent.toml")
        self.write(
            "/etc/ha-agent/ha-agent.toml", with_device + FENCE_DEVICE.format(host=other.host)
        )
        self.write("/etc/ha-agent/secrets.toml", SECRETS.format(host=other.host))
        self.must("systemd-tmpfiles", "--create", "ha-agent.conf")

    def make_storage(self) -> None:
        """Whiteboard and lease volume, as docs/privileges.md has them."""
        self.must("truncate", "-s", str(2001 * 4096), "/srv/ha/whiteboard")
        self.must("truncate", "-s", "8M", "/srv/ha/leases")
        init = ("sanlock", "direct", "init", "-o", "1")
        self.must(*init, "-s", "hosted-engine:0:/srv/ha/leases:0")
        self.must(*init, "-r", "hosted-engine:engine:/srv/ha/leases:1048576")
        self.must(*init, "-r", "hosted-engine:fence:/srv/ha/leases:2097152")
        files = ("/srv/ha", "/srv/ha/whiteboard", "/srv/ha/leases")
        self.must("chown", "ha-agent:sanlock", *files)
        self.must("chmod", "0770", "/srv/ha")
        self.must("chmod", "0660", *files[1:])

    def show(self, unit: str, key: str) -> str:
        """One property of a unit."""
        return self.must("systemctl", "show", "--value", "-p", key, unit).strip()

    def engine_pid(self) -> int | None:
        """The QEMU process of the VM, by its number in the machine; None where none runs."""
        path = Path(f"/proc/{self._first}/root/run/libvirt/qemu/HostedEngine.pid")
        try:
            pid = int(path.read_text())
        except (OSError, ValueError):
            return None
        return pid if Path(f"/proc/{self._first}/root/proc/{pid}").exists() else None

    def kill(self, unit: str, name: str) -> None:
        """A signal to the unit's main process."""
        self.must("systemctl", "kill", "--kill-whom=main", f"--signal={name}", unit)

    def journal(self, lines: int = 30) -> str:
        """What the daemons said last."""
        units = ("-u", "ha-broker", "-u", "ha-agent")
        return self.run("journalctl", "--no-pager", "-n", str(lines), *units).stdout

    def keep_journal(self) -> None:
        """From now on its journal outlives its boots."""
        self.must("mkdir", "-p", "/var/log/journal")
        self.must("systemctl", "restart", "systemd-journald")

    def ends(self, how: str, seconds_max: float) -> None:
        """Have systemd reboot it or power it off, and wait for the end of its first process;
        `boot` is what switches it on again."""
        self.must("systemctl", "--no-block", how)
        unshare = self._unshare
        assert unshare is not None
        try:
            unshare.wait(seconds_max)
        except subprocess.TimeoutExpired:
            said = (self.directory / "console").read_text(errors="replace")
            jobs = self.run("systemctl", "list-jobs").stdout
            raise MachineError(f"{self.name} is not off: {jobs}{said[-2000:]}") from None
        self._unshare, self._first = None, 0

    def cut(self) -> None:
        """Pull the plug."""
        for process in self._bmcs:
            process.kill()
            process.wait()
        self._bmcs.clear()
        if self._unshare is None:
            return
        if self._first:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._first, signal.SIGKILL)
        self._unshare.kill()
        self._unshare.wait()
        self._unshare, self._first = None, 0
        if self.has_memory_limits:
            sweep = ["unshare", "-m", "bash", "-c", SWEEP, "-", str(self.directory), self._group]
            subprocess.run(sweep, capture_output=True)


def machines(
    release: str,
    directory: Path,
    count: int,
    more: tuple[str, ...] = (),
    has_memory_limits: bool = False,
) -> Iterator[list[Machine]]:
    """Bare machines of a release, with what the package depends on and `more` installed."""
    root = base(release, [*packages_of(RELEASES[release]), *more])
    shared = directory / "shared"
    shared.mkdir()
    made = [
        Machine(root, directory / f"host{n}", n, shared, has_memory_limits)
        for n in range(1, count + 1)
    ]
    try:
        for machine in made:
            machine.boot()
        yield made
    finally:
        for machine in made:
            machine.cut()


def packages_of(target: str) -> list[str]:
    """What the package of a target depends on."""
    targets = tomllib.loads((ROOT / "packaging" / "targets.toml").read_text())
    return [name.partition(" ")[0] for name in targets[target]["depends"]]


def bring_up(machine: Machine) -> int:
    """Configure, start both units, wait for the VM; its process."""
    machine.configure()
    machine.make_storage()
    machine.must("systemctl", "start", *UNITS)
    machine.wait("the VM", lambda: is_up(machine), UP_SECONDS_MAX)
    pid = machine.engine_pid()
    assert pid is not None
    return pid


def form_cluster(two: list[Machine], package: Path, bmc: bool) -> None:
    """The VM on the first machine, the second one looking on; units enabled on both."""
    first, second = two
    for machine in two:
        machine.install(package)
        machine.must("systemctl", "enable", *UNITS)
    bring_up(first)
    second.configure()
    if bmc:
        second.reach_bmc_of(first)
    second.must("systemctl", "start", *UNITS)
    second.wait("the lockspace", lambda: "joined" in second.show("ha-broker", "StatusText"))
    second.wait("the VM seen from host2", lambda: "healthy on host1" in status_of(second))
    assert second.engine_pid() is None


def is_up(machine: Machine) -> bool:
    status = machine.run("ha-agent", "--status").stdout
    return machine.engine_pid() is not None and "up and healthy" in status.split("\n")[0]


def status_of(machine: Machine) -> str:
    """The first line of its status."""
    return machine.run("ha-agent", "--status").stdout.split("\n")[0]
