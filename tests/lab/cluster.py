# SPDX-License-Identifier: LGPL-2.1-or-later
"""The lab's Python face: what tests use, and what the command line calls."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from . import bmc, certificates, configs, guest, machine, page, storage, storage_fault
from .environment import clean
from .errors import LabError, UsageError
from .layout import (
    CHECKOUT,
    DAEMONS,
    HOSTS_MAX,
    LOCKSPACE,
    OUR_DAEMONS,
    SOCKET_PATH_BYTES_MAX,
    VM_NAME,
    HostLayout,
    Layout,
    default_run_directory,
    host_id_of,
)
from .namespaces import spawn_first
from .processes import (
    FirstProcess,
    ProcessName,
    command_line,
    inner_pid,
    is_engine,
    pid_namespace,
    pids,
    start_ticks,
)
from .settings import Settings
from .storages import kinds
from .supervisor import order
from .vms import VMS, LabVm, of

UP_SECONDS_MAX = 30.0
HEALTHY_SECONDS_MAX = 120.0
DEATH_SECONDS_MAX = 20.0
POLL_S = 0.1
#: Three OSDs and two MDS on two cores.
STORAGE_SECONDS_MAX = 180.0
SERVER_ORDERS = ("kill", "freeze", "thaw", "release")

KILLABLE = (*DAEMONS, "qemu")


@dataclass(frozen=True, slots=True)
class Census:
    """Who runs in the lab's hosts, from one pass over /proc."""

    # Host name -> its first process, for the hosts that are on.
    first: dict[str, ProcessName]
    # Host name -> (pid, argv) of each process in it, oldest first.
    processes: dict[str, list[tuple[int, list[str]]]]

    def engines(self, host: str, vm_name: str = VM_NAME) -> list[int]:
        """A VM's QEMU processes on that host, by default the engine's."""
        return [pid for pid, argv in self.processes.get(host, []) if is_engine(argv, vm_name)]

    def daemon(self, host: str, name: str) -> int | None:
        """The daemon's main process (the oldest that looks like it), or None."""
        for pid, argv in self.processes.get(host, []):
            if runs(argv, name):
                return pid
        return None


def runs(argv: list[str], daemon: str) -> bool:
    """Whether a command line is that daemon's."""
    programs = [os.path.basename(part) for part in argv[:2]]
    match daemon:
        case "sanlock":
            return programs[:1] == ["sanlock"] and "daemon" in argv[1:2]
        case "libvirtd":
            return programs[:1] == ["libvirtd"]
        case "broker":
            return "ha-broker" in programs
        case "agent":
            return "ha-agent" in programs and "run" in argv
        case _:
            raise UsageError(f"{daemon}: not one of {', '.join(DAEMONS)}")


class Cluster:
    """One lab. Creating the object starts nothing and needs nothing."""

    def __init__(
        self, directory: Path | None = None, say: Callable[[str], None] = lambda _: None
    ) -> None:
        self.layout = Layout((directory or default_run_directory()).absolute())
        self._say = say

    # What is where.

    @property
    def directory(self) -> Path:
        """The run directory."""
        return self.layout.directory

    @property
    def shared(self) -> Path:
        """The shared storage's folder (whiteboard, leases), past all faults."""
        return self.layout.shared

    @property
    def settings(self) -> Settings:
        """What ``up`` was asked for; LabError if no lab is up."""
        return Settings.load(self.layout)

    @property
    def hosts(self) -> list[str]:
        """The names of all hosts, on or off."""
        return [self.layout.host(host_id).name for host_id in self.settings.host_ids()]

    def config_path(self, host: str) -> Path:
        """The host's ha-agent.toml."""
        return self._host(host).config

    def log_path(self, host: str, daemon: str) -> Path:
        """The log of one of the host's daemons, or of its ``init``."""
        if daemon not in (*DAEMONS, "init"):
            raise UsageError(f"{daemon}: not one of {', '.join((*DAEMONS, 'init'))}")
        return self._host(host).log / f"{daemon}.log"

    def _host(self, name: str) -> HostLayout:
        host = self.layout.host(host_id_of(name))
        if host.id not in self.settings.host_ids():
            raise UsageError(f"{name}: not in this lab; it has {', '.join(self.hosts)}")
        return host

    # Up and down.

    def up(
        self,
        hosts: int = 3,
        *,
        io_timeout_s: int = 2,
        bmc: bool = True,
        daemons: bool = True,
        healthy_seconds_max: float = HEALTHY_SECONDS_MAX,
        named: bool = True,
        storage: str = kinds.FUSE,
        disk: str = "raw",
        vms: int = 1,
    ) -> None:
        """Bring the lab up, and wait for the engine to be healthy (unless not ``daemons``).
        ``named``: the configuration says which volumes they must be.
        ``storage``, ``disk``: see storages/kinds.py. ``vms``: how many of vms.VMS there are.

        Interrupted, it takes down what it made. Failed, it leaves it for a look at
        the logs; ``down`` removes it.
        """
        if not 1 <= hosts <= HOSTS_MAX:
            raise UsageError(f"--hosts {hosts}: must be 1 to {HOSTS_MAX}")
        if not 1 <= io_timeout_s <= 60:
            raise UsageError(f"--io-timeout {io_timeout_s}: must be 1 to 60 seconds")
        if not 1 <= vms <= len(VMS):
            raise UsageError(f"--vms {vms}: must be 1 to {len(VMS)}")
        if vms > 1 and storage in kinds.BLOCK:
            raise UsageError(f"--vms {vms}: not with --storage {storage}, which has no registry")
        kinds.check(storage, disk)
        machine.install(storage)
        machine.check(storage)
        self._check_directory()
        try:
            with self._claim():
                self._say("guest image")
                image = guest.build()
                settings = Settings(
                    hosts=hosts,
                    io_timeout_s=io_timeout_s,
                    bmc=bmc,
                    daemons=daemons,
                    accelerator=guest.accelerator(image),
                    # IPMI 2.0 takes at most 20 bytes.
                    bmc_password=secrets.token_hex(8),
                    cluster_key=secrets.token_hex(32),
                    named=named,
                    storage=storage,
                    disk=disk,
                    vms=vms,
                )
                self._bring_up(settings, image)
                if daemons:
                    self._say("waiting for the engine")
                    self.wait_healthy(healthy_seconds_max)
                    for vm in of(settings)[1:]:
                        self._say(f"waiting for {vm.name}")
                        self.wait_vm_healthy(vm, healthy_seconds_max)
        except KeyboardInterrupt:
            with _uninterrupted():
                self._say("interrupted; taking the lab down")
                self.down()
            raise

    def _bring_up(self, settings: Settings, image: guest.GuestImage) -> None:
        settings.save(self.layout)
        has_servers = settings.storage not in (kinds.FUSE, kinds.DIR)
        self._say(f"shared storage: {settings.storage}")
        for folder in (self.layout.shared, self.layout.array):
            folder.mkdir(parents=True, exist_ok=True)
        if not has_servers:
            storage.create(self.layout, settings)
            if settings.vms > 1:
                storage.register(self.layout, settings, image)
        certificates.write([self.layout.host(host_id) for host_id in settings.host_ids()])
        for host_id in settings.host_ids():
            configs.write(self.layout.host(host_id), settings, image)
        self._say("switch and BMCs")
        spawn_first(
            [sys.executable, "-m", "tests.lab.switch", str(self.directory)],
            log=self.layout.log,
            cwd=CHECKOUT,
            environment=clean(),
            before_start=lambda pid: _record(self.layout.record, pid),
        )
        self._wait("the switch to take orders", self.layout.control.exists, self.layout.log)
        if has_servers:
            self._wait(
                f"the {settings.storage} storage",
                self._storage_is_up,
                self.directory / "servers.log",
                STORAGE_SECONDS_MAX,
            )
        self._say(f"power on {settings.hosts} hosts")
        for host in self.hosts:
            self.power_on(host)
        for host in self.hosts:
            self.wait_booted(host)
        self._warm_up()

    def _storage_is_up(self) -> bool:
        """Whether the storage's servers take orders; LabError where they have ended."""
        if self.layout.servers_control.exists():
            return True
        program = order(self.layout.control, "status").get("storage", {})
        if program.get("last_exit") is not None:
            raise LabError(f"the storage: {_last_line(self.directory / 'servers.log')}")
        return False

    @property
    def disk(self) -> Path:
        """The VM's disk, past all hosts and faults: as the storage's own servers see it."""
        settings = self.settings
        if settings.storage == kinds.FUSE:
            return self.layout.disk_file("engine")
        if settings.storage not in kinds.NETWORK:
            return self.layout.shared_disk
        # Mounted in the switch's mount namespace.
        return Path(f"/proc/{self._switch().pid}/root{self.layout.shared_disk}")

    def _warm_up(self) -> None:
        # libvirtd asks a QEMU it has not met what it can do, for a second, at its first
        # start of a VM, and keeps the answer in its cache. A host in service has it.
        asking = []
        for host in self.hosts:
            command, environment = self.sh_command(host, ["virsh", "-q", "domcapabilities"])
            asking.append(
                subprocess.Popen(
                    command,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
            )
        for process in asking:
            process.wait(UP_SECONDS_MAX)

    def down(self) -> bool:
        """Remove every trace of the lab; whether there was any. Safe at any time."""
        if not self.directory.is_dir() or not any(self.directory.iterdir()):
            return False
        if not self.layout.settings.exists() and not self.layout.lock.exists():
            raise UsageError(f"{self.directory}: not a lab's directory; it is left alone")
        switch = self._switch_or_none()
        if switch is not None and not switch.kill(DEATH_SECONDS_MAX):
            raise LabError(
                f"the lab's first process {switch.pid} did not end in {DEATH_SECONDS_MAX:.0f} s: "
                "something in it hangs in the kernel; look at its children with ps, then: down"
            )
        # A dying daemon's last file may arrive while the tree is removed; its writers
        # are all dead by now, so one pass is enough.
        shutil.rmtree(self.directory)
        return True

    def _check_directory(self) -> None:
        longest = len(os.fsencode(self.layout.longest_socket()))
        if longest > SOCKET_PATH_BYTES_MAX:
            raise UsageError(
                f"--dir {self.directory}: {longest - SOCKET_PATH_BYTES_MAX} bytes too long "
                "for UNIX sockets; choose a shorter one"
            )
        if any(self.directory.is_relative_to(taken) for taken in ("/run", "/var/run", "/proc")):
            raise UsageError(
                f"--dir {self.directory}: a host has a /run of its own; choose /var/tmp"
            )
        if self._switch_or_none() is not None:
            raise LabError(f"a lab is up in {self.directory} already; run: down")
        if self.directory.exists() and not self.directory.is_dir():
            raise UsageError(f"--dir {self.directory}: not a directory")
        if self.layout.settings.exists() or self.layout.lock.exists():
            self._say("removing what an earlier lab left")
            with self._claim():
                pass
            self.down()
        elif self.directory.is_dir() and any(self.directory.iterdir()):
            raise UsageError(f"--dir {self.directory}: not empty and not a lab's; choose another")

    @contextlib.contextmanager
    def _claim(self) -> Iterator[None]:
        # The lock is freed by the kernel however this process ends.
        self.directory.mkdir(parents=True, exist_ok=True)
        with self.layout.lock.open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise LabError(
                    f"another process brings {self.directory} up right now; wait for it, or: down"
                ) from error
            yield

    def _switch_or_none(self) -> ProcessName | None:
        record = FirstProcess.from_file(self.layout.record)
        return record.here() if record is not None else None

    @property
    def switch_pid(self) -> int:
        """Whose network namespace is the lab's network; LabError if no lab is up."""
        return self._switch().pid

    def _switch(self) -> ProcessName:
        switch = self._switch_or_none()
        if switch is None:
            raise LabError(f"no lab is up in {self.directory}; start one with: up")
        return switch

    # Power, network, daemons.

    def cut(self, host: str) -> float:
        """Pull the host's plug; returns time.monotonic() of that moment.

        When this returns nothing of the host runs any more. A host that is off is fine.
        """
        layout = self._host(host)
        first = self._first(layout)
        at = time.monotonic()
        if first is not None and self._switch_or_none() is not None:
            # The cables first: nothing of a dead host says goodbye.
            order(self.layout.control, "pull", host=layout.name)
        if first is not None and not first.kill(DEATH_SECONDS_MAX):
            raise LabError(f"{host}: not dead after {DEATH_SECONDS_MAX:.0f} s; see ps for state D")
        return at

    def power_on(self, host: str) -> bool:
        """Press the host's power button; False if it is on already. Does not wait for it."""
        self._switch()
        return bool(order(self.layout.control, "power_on", host=self._host(host).name))

    def is_on(self, host: str) -> bool:
        """Whether anything of the host runs."""
        return self._first(self._host(host)) is not None

    def wait_booted(self, host: str, seconds_max: float = UP_SECONDS_MAX) -> None:
        """Wait until the host's sanlock and libvirtd take connections."""
        layout = self._host(host)
        for daemon, path in (
            ("sanlock", layout.run / "sanlock/sanlock.sock"),
            ("libvirtd", layout.libvirt_socket),
        ):
            self._wait(
                f"{host}: {daemon} to take connections",
                functools.partial(self._comes_up, layout, path),
                layout.log / f"{daemon}.log",
                seconds_max,
            )

    def _comes_up(self, host: HostLayout, socket_path: Path) -> bool:
        """Whether a daemon takes connections; LabError where its host ended before it did."""
        if _accepts(socket_path):
            return True
        if self._first(host) is None:
            raise LabError(
                f"{host.name} ended while it booted: {_last_line(host.log / 'init.log')}"
            )
        return False

    def kill(self, host: str, daemon: str) -> int:
        """SIGKILL one of the host's daemons, or its ``qemu``; returns the pid that died."""
        if daemon not in KILLABLE:
            raise UsageError(f"{daemon}: not one of {', '.join(KILLABLE)}")
        self._running(host)
        census = self.census()
        if daemon == "qemu":
            victims = census.engines(host)
        else:
            found = census.daemon(host, daemon)
            victims = [] if found is None else [found]
        if not victims:
            raise LabError(f"{host}: no {daemon} runs there; see: status")
        for pid in victims:
            with contextlib.suppress(ProcessLookupError):
                ProcessName(pid, start_ticks(pid)).kill(DEATH_SECONDS_MAX)
        return victims[0]

    def restart_libvirt(self, host: str) -> None:
        """Kill the host's libvirtd, and wait until the next one takes connections."""
        self.kill(host, "libvirtd")
        self._host(host).libvirt_socket.unlink(missing_ok=True)
        self.wait_booted(host)

    def stop(self, host: str, daemon: str) -> None:
        """Stop a daemon and hold it down until ``start`` (or the next power-on)."""
        self._order(host, "hold", daemon)

    def start(self, host: str, daemon: str) -> None:
        """Let a daemon run that was held."""
        self._order(host, "release", daemon)

    def _order(self, host: str, name: str, daemon: str) -> None:
        if daemon not in DAEMONS:
            raise UsageError(f"{daemon}: not one of {', '.join(DAEMONS)}")
        self._running(host)
        order(self._host(host).control, name, program=daemon)

    def partition(self, host: str) -> None:
        """Unplug the host's network cable; its storage and its BMC stay reachable."""
        self._cable(host, plugged=False)

    def heal(self, host: str) -> None:
        """Plug the cable in again."""
        self._cable(host, plugged=True)

    def _cable(self, host: str, *, plugged: bool) -> None:
        self._switch()
        order(self.layout.control, "cable", host=self._host(host).name, plugged=plugged)

    def isolate(self, host: str) -> None:
        """Network and storage away at once; only its BMC is reached still."""
        self.partition(host)
        self.storage(host, "hang")

    def links(self, host: str, fault: str) -> None:
        """``drop-to HOST``: nothing sent there arrives, one way; ``loss PERCENT``; or ``ok``.

        In the host's own packet filter: its power cycle ends it.
        """
        self._running(host)
        kind, _, detail = fault.partition(" ")
        match kind:
            case "ok":
                rules = ""
            case "drop-to":
                rules = _chain("output", f"ip daddr {self._host(detail).address} drop")
            case "loss" if detail.isdigit() and int(detail) <= 100:
                lose = f"numgen random mod 100 < {detail} drop"
                # The host's own daemons talk to each other over lo.
                rules = _chain("input", "iif lo accept", lose)
                rules += _chain("output", "oif lo accept", lose)
            case _:
                raise UsageError(f"{fault}: not one of drop-to HOST, loss PERCENT, ok")
        table = f"table inet lab\ndelete table inet lab\ntable inet lab {{\n{rules}}}\n"
        done = self.sh(host, ["nft", table])
        if done.returncode != 0:
            raise LabError(f"{host}: nft: {done.stderr.strip()}")

    # What else can be wrong.

    def storage(self, host: str, fault: str) -> None:
        """One of ``storage_fault.FAULTS``, as ``slow SECONDS``: what its storage does from now on.

        It stays so over a power cycle.
        """
        layout = self._host(host)
        backend = self.settings.storage
        if backend in kinds.NETWORK:
            if fault not in ("ok", "hang"):
                raise UsageError(f"{fault}: storage {backend} has only ok, hang (its cable)")
            self._switch()
            order(self.layout.control, "storage_cable", host=host, plugged=fault == "ok")
        elif backend != kinds.FUSE and fault != "ok":
            raise UsageError(f"{fault}: storage {backend} cannot be made to fail for one host")
        kind, _, seconds = fault.partition(" ")
        if kind not in storage_fault.FAULTS or (kind == "slow") != bool(seconds):
            raise UsageError(
                f"{fault}: not one of {', '.join(storage_fault.FAULTS)} (slow SECONDS)"
            )
        if kind == "slow":
            _number(seconds)
        whole = layout.storage_fault.with_suffix(".new")
        whole.write_text(fault)
        whole.rename(layout.storage_fault)

    def server(self, name: str, what: str) -> None:
        """``kill``, ``freeze``, ``thaw`` or ``release`` (start again) a daemon of the storage."""
        self._switch()
        if what not in SERVER_ORDERS:
            raise UsageError(f"{what}: not one of {', '.join(SERVER_ORDERS)}")
        if not self.layout.servers_control.exists():
            raise UsageError(f"storage {self.settings.storage} has no daemons")
        order(self.layout.servers_control, what, program=name)

    def storage_client(self, host: str) -> int:
        """The process that serves the host's mount of the storage; LabError if there is none."""
        self._running(host)
        for pid, argv in self.census().processes.get(host, []):
            if kinds.is_client(argv):
                return pid
        raise LabError(f"{host}: no client of storage {self.settings.storage} runs there")

    def freeze(self, host: str) -> None:
        """Hang the host: all of it stands still, its power stays on.

        After 60 s its watchdog ends it, as it would a real one (see switch.py).
        """
        self._switch()
        order(self.layout.control, "freeze", host=self._host(host).name)

    def thaw(self, host: str) -> None:
        """Let a frozen host go on."""
        self._switch()
        order(self.layout.control, "thaw", host=self._host(host).name)

    def bmc(self, host: str, fault: str) -> None:
        """Set what is wrong with the host's BMC: one of bmc.FAULTS, with what belongs to it."""
        kind, _, detail = fault.partition(" ")
        if not self.settings.bmc:
            raise UsageError("this lab has no BMCs; bring it up without --no-bmc")
        if kind not in bmc.FAULTS or bool(detail) != (kind in (*bmc.WITH_NUMBER, "swapped")):
            raise UsageError(f"{fault}: not one of {', '.join(bmc.FAULTS)}; see: bmc --help")
        if kind in bmc.WITH_NUMBER:
            _number(detail)
        if kind == "swapped" and self._host(detail).name == host:
            raise UsageError(f"{fault}: name another host")
        self._switch()
        order(self.layout.control, "bmc", host=self._host(host).name, fault=fault)

    def end_faults(self) -> None:
        """All cables in, storage and BMCs well, links of running hosts free, nobody frozen."""
        for host in self.hosts:
            self.heal(host)
            self.storage(host, "ok")
            self.thaw(host)
            if self.settings.bmc:
                self.bmc(host, "ok")
            if self.is_on(host):
                self.links(host, "ok")

    def configure(self, text: str) -> None:
        """Add to every host's configuration, and have the daemons read it."""
        for host in self.hosts:
            path = self.config_path(host)
            path.write_text(path.read_text() + text)
            self.reload(host)

    def set_migration(self, host: str, lines: str) -> None:
        """Replace what the host's configuration says of migrations; its daemons go by it."""
        path = self.config_path(host)
        before, _, rest = path.read_text().partition("migration-uri")
        _, _, after = rest.partition("\n\n")
        path.write_text(f"{before}{lines}\n{after}")
        self.reload(host)

    def reload(self, host: str) -> None:
        """Have the host's daemons read their configuration again (SIGHUP), and wait until they
        have taken or refused it."""
        census = self.census()
        told = {}
        for daemon in OUR_DAEMONS:
            pid = census.daemon(host, daemon)
            if pid is not None:
                told[daemon] = (pid, self._times_read(host, daemon))
                os.kill(pid, signal.SIGHUP)
        for daemon, (pid, before) in told.items():
            self._wait(
                f"{host}'s {daemon} to read its configuration anew",
                functools.partial(self._has_read, host, daemon, pid, before),
                self.log_path(host, daemon),
            )

    def _has_read(self, host: str, daemon: str, pid: int, before: int) -> bool:
        """One that ended meanwhile reads the file when it starts again."""
        return self._times_read(host, daemon) > before or self.census().daemon(host, daemon) != pid

    def _times_read(self, host: str, daemon: str) -> int:
        """How often that daemon has taken or refused its file anew, by its log."""
        text = self.log_path(host, daemon).read_text(errors="replace")
        return sum(text.count(words) for words in ("is read anew", "configuration stays as it was"))

    def join_lockspace(self, host: str) -> None:
        """Join the host to the lockspace as its broker would; for tests without daemons."""
        layout = self._host(host)
        argv = ["sanlock", "client", "add_lockspace", "-o", str(self.settings.io_timeout_s)]
        done = self.sh(host, [*argv, "-s", f"{LOCKSPACE}:{layout.id}:{self.layout.leases}:0"])
        if done.returncode != 0:
            raise LabError(f"{host}: add_lockspace: {done.stdout}{done.stderr}".strip())

    def sh(
        self, host: str, argv: Sequence[str], *, timeout_s: float | None = 120.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the host and return what it printed and its exit code."""
        command, environment = self.sh_command(host, argv)
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=timeout_s
        )

    def sh_command(self, host: str, argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
        """The command line and environment that run ``argv`` in the host."""
        first = self._running(host)
        layout = self._host(host)
        environment = {**os.environ, **clean(layout)}
        enter = ["nsenter", "-t", str(first.pid), "-m", "-u", "-n", "-p", f"--wdns={CHECKOUT}"]
        return [*enter, "--", *argv], environment

    def _first(self, layout: HostLayout) -> ProcessName | None:
        record = FirstProcess.from_file(layout.power_record)
        return record.here() if record is not None else None

    def _running(self, host: str) -> ProcessName:
        self._switch()
        first = self._first(self._host(host))
        if first is None:
            raise LabError(f"{host} is off; run: power-on {host}")
        return first

    # What is the case.

    def census(self) -> Census:
        """One look at who runs where."""
        hosts: dict[int, str] = {}
        records: dict[str, FirstProcess] = {}
        for host_id in self.settings.host_ids():
            layout = self.layout.host(host_id)
            record = FirstProcess.from_file(layout.power_record)
            if record is not None:
                hosts[record.namespace] = layout.name
                records[layout.name] = record
        first: dict[str, ProcessName] = {}
        found: dict[str, list[tuple[int, int, list[str]]]] = {}
        for pid in pids():
            try:
                host = hosts.get(pid_namespace(pid))
                if host is None:
                    continue
                ticks = start_ticks(pid)
                if ticks == records[host].start_ticks and inner_pid(pid) == 1:
                    first[host] = ProcessName(pid, ticks)
                found.setdefault(host, []).append((ticks, pid, command_line(pid)))
            except OSError:
                continue
        # The number of a dead host's namespace may be another's by now: only a
        # namespace whose first process is the recorded one counts.
        processes = {
            host: [(pid, argv) for _, pid, argv in sorted(entries)]
            for host, entries in found.items()
            if host in first and first[host].alive()
        }
        return Census({host: first[host] for host in processes}, processes)

    def status(self) -> dict[str, Any]:
        """The lab as the machine itself shows it; the shape is ``status --json``'s."""
        settings = self.settings
        switch = self._switch_or_none()
        census = self.census()
        unplugged = order(self.layout.control, "cable") if switch is not None else []
        bmc_faults = order(self.layout.control, "bmc") if switch is not None else {}
        hosts = {}
        for host_id in settings.host_ids():
            name = self.layout.host(host_id).name
            hosts[name] = {
                "power": "on" if name in census.first else "off",
                "engine_processes": len(census.engines(name)),
                "engine_pids": census.engines(name),
                "daemons": {daemon: census.daemon(name, daemon) for daemon in DAEMONS},
                "cable": "unplugged" if host_id in unplugged else "plugged",
                "storage": storage_fault.read_fault(self.layout.host(host_id).storage_fault),
                "bmc": bmc_faults.get(str(host_id), "ok"),
            }
        return {
            "directory": str(self.directory),
            "up": switch is not None,
            "accelerator": settings.accelerator,
            "io_timeout_s": settings.io_timeout_s,
            "bmc": settings.bmc,
            "hosts": hosts,
            "engine": self._engine(switch, census),
            "storage": settings.storage,
            "whiteboard": str(self.layout.whiteboard),
            "leases": str(self.layout.leases),
        }

    def _engine(self, switch: ProcessName | None, census: Census) -> dict[str, Any]:
        places = [host for host in census.first for _ in census.engines(host)]
        # With no process there is nobody to answer; do not wait for the network to say so.
        asked = switch is not None and bool(places)
        health = page.fetch(switch.pid, guest.HEALTH_PATH) if switch and asked else None
        boots = page.fetch(switch.pid, guest.BOOTS_PATH) if switch and health else None
        return {
            "healthy": health is not None and "DB Up" in health,
            "host": places[0] if len(places) == 1 else None,
            "boots": int(boots) if boots and boots.strip().isdigit() else None,
        }

    def page_answers(self, seconds_max: float = 1.0) -> bool:
        """Whether the engine's health page answers as it should, right now."""
        text = page.fetch(self._switch().pid, guest.HEALTH_PATH, seconds_max)
        return text is not None and "DB Up" in text

    def engine_host(self) -> str | None:
        """The host with the one engine process; None if there is none or more than one."""
        census = self.census()
        places = [host for host in census.first for _ in census.engines(host)]
        return places[0] if len(places) == 1 else None

    def wait_healthy(self, timeout_s: float) -> str:
        """Wait until exactly one engine runs and its page answers; returns its host."""
        self._switch()
        deadline = time.monotonic() + timeout_s
        while True:
            host = self.engine_host()
            if host is not None and self.page_answers() and self.engine_host() == host:
                return host
            if time.monotonic() > deadline:
                raise LabError(self._why_unhealthy(timeout_s))
            time.sleep(POLL_S)

    def vm_host(self, vm: LabVm) -> str | None:
        """The host with the one process of a VM; None if there is none or more than one."""
        census = self.census()
        places = [host for host in census.first for _ in census.engines(host, vm.name)]
        return places[0] if len(places) == 1 else None

    def vm_page(self, vm: LabVm, seconds_max: float = 1.0) -> str | None:
        """What a VM's health page says right now; None while it does not answer."""
        return page.fetch(self._switch().pid, vm.page, seconds_max, vm.address)

    def shop(self, seconds_max: float = 6.0) -> str | None:
        """What the engine's shop says, which needs all VMs; None while it does not answer."""
        return page.fetch(self._switch().pid, guest.SHOP_PATH, seconds_max)

    def wait_vm_healthy(self, vm: LabVm, timeout_s: float) -> str:
        """Wait until exactly one process of the VM runs and its page answers; returns its host."""
        if vm.number == 1:
            return self.wait_healthy(timeout_s)
        deadline = time.monotonic() + timeout_s
        while True:
            host = self.vm_host(vm)
            answers = host is not None and vm.role in (self.vm_page(vm) or "")
            if host is not None and answers and self.vm_host(vm) == host:
                return host
            if time.monotonic() > deadline:
                what = f"runs on {host}, page silent" if host else "runs nowhere"
                raise LabError(f"{vm.name} not healthy after {timeout_s:.0f} s: it {what}")
            time.sleep(POLL_S)

    def _why_unhealthy(self, timeout_s: float) -> str:
        census = self.census()
        counts = {host: len(census.engines(host)) for host in census.first}
        running = [f"{host} ({count})" for host, count in counts.items() if count]
        what = f"runs on {', '.join(running)}, page silent" if running else "runs nowhere"
        return (
            f"engine not healthy after {timeout_s:.0f} s: it {what}; "
            f"see: status, logs HOST agent ({self.directory}/hosts)"
        )

    def _wait(
        self,
        what: str,
        holds: Callable[[], bool],
        log: Path,
        seconds_max: float = UP_SECONDS_MAX,
    ) -> None:
        deadline = time.monotonic() + seconds_max
        while not holds():
            if time.monotonic() > deadline:
                raise LabError(f"waited {seconds_max:.0f} s for {what}; see {log}")
            if self._switch_or_none() is None:
                raise LabError(f"the lab ended while waiting for {what}; see {self.layout.log}")
            time.sleep(0.02)

    def follow_log(self, host: str, daemon: str, output: IO[str]) -> None:
        """Write the log of a daemon to ``output``."""
        path = self.log_path(host, daemon)
        try:
            with path.open(errors="replace") as log:
                shutil.copyfileobj(log, output)
        except FileNotFoundError as error:
            raise LabError(f"{path}: no log yet; see: status") from error


def _last_line(log: Path) -> str:
    try:
        lines = log.read_text(errors="replace").split("\n")
    except OSError as error:
        return f"{log}: {error.strerror}"
    return next((f"{line.strip()} ({log})" for line in reversed(lines) if line.strip()), str(log))


def _record(path: Path, pid: int) -> None:
    path.write_text(FirstProcess.of(pid).to_text())


def _chain(hook: str, *rules: str) -> str:
    """A chain of nftables."""
    return (
        f"chain {hook} {{\n" + "\n".join([f"type filter hook {hook} priority 0", *rules]) + "\n}\n"
    )


def _number(text: str) -> None:
    try:
        float(text)
    except ValueError as error:
        raise UsageError(f"{text}: not a number") from error


def _accepts(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Interrupts wait; an impatient second Ctrl-C must not leave half a lab behind."""
    masked = signal.pthread_sigmask(
        signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    )
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number in signal.sigpending():
                signal.sigwait({number})
        signal.pthread_sigmask(signal.SIG_SETMASK, masked)
