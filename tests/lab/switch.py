# SPDX-License-Identifier: LGPL-2.1-or-later
"""The switch: the lab's first process, and what a real rack has outside its hosts.

It owns the network (a bridge, the gateway's address), the mains (it starts hosts), and
the BMCs, which live on while a host is off. Everything of a lab descends from it, so
its death is the end of all of it.

Run by cluster.py as the first process of its own namespaces:
``python -m tests.lab.switch RUN-DIRECTORY``.
"""

from __future__ import annotations

import shutil
import socket
import sys
import time
from pathlib import Path
from typing import Any

from . import bmc, storage, vms
from .environment import clean
from .errors import LabError
from .layout import (
    CHECKOUT,
    GATEWAY,
    STORAGE_ADDRESS,
    STORAGE_BRIDGE,
    STORAGE_MAC,
    SWITCH_BRIDGE,
    SWITCH_MAC,
    HostLayout,
    Layout,
    host_id_of,
)
from .links import bridge, ip
from .namespaces import make_mounts_private, mount, spawn_first
from .processes import FirstProcess, continue_all, stop_all
from .settings import Settings
from .storages.kinds import DIR, FUSE, NETWORK
from .supervisor import Program, Supervisor, say

# wdmd's watchdog, sanlock's src/timeouts.h: WATCHDOG_FIRE_TIMEOUT.
FROZEN_WATCHDOG_S = 60.0
WATCHDOG_KILL_SECONDS_MAX = 10.0


class Switch:
    """Carries out the orders that need the switch's place in the namespaces."""

    def __init__(self, layout: Layout, settings: Settings) -> None:
        self.layout = layout
        self.settings = settings
        self.unplugged: set[int] = set()
        self.supervisor = Supervisor(layout.control)
        self.supervisor.orders["power_on"] = self.power_on
        self.supervisor.orders["cable"] = self.cable
        self.supervisor.orders["freeze"] = self.freeze
        self.supervisor.orders["thaw"] = self.thaw
        self.supervisor.orders["bmc"] = self.bmc
        self.supervisor.orders["pull"] = self.pull
        self.supervisor.orders["storage_cable"] = self.storage_cable
        self.cut_off: set[int] = set()
        self.frozen: dict[int, FirstProcess] = {}
        self.bmc_faults: dict[int, str] = {}

    def host(self, order: dict[str, Any]) -> HostLayout:
        return self.layout.host(host_id_of(str(order["host"])))

    def prepare(self) -> None:
        """Mounts, bridge and BMCs."""
        make_mounts_private()
        mount("proc", "/proc", "proc")
        mount("sysfs", "/sys", "sysfs")
        socket.sethostname("switch")
        hosts = [self.layout.host(host_id) for host_id in self.settings.host_ids()]
        ip(
            [
                "link set lo up",
                *bridge(SWITCH_BRIDGE, SWITCH_MAC),
                f"addr add {GATEWAY}/24 dev {SWITCH_BRIDGE}",
                *(f"addr add {host.bmc_address}/24 dev {SWITCH_BRIDGE}" for host in hosts),
                f"link set {SWITCH_BRIDGE} up",
            ]
        )
        if self.settings.storage in NETWORK:
            ip(
                [
                    *bridge(STORAGE_BRIDGE, STORAGE_MAC),
                    f"addr add {STORAGE_ADDRESS}/24 dev {STORAGE_BRIDGE}",
                    f"link set {STORAGE_BRIDGE} up",
                ]
            )
        if self.settings.storage == FUSE:
            for vm in vms.of(self.settings):
                if vm.has_disk:
                    self.supervisor.add(storage.disk_server(self.layout, vm.role))
        elif self.settings.storage != DIR:
            argv = [sys.executable, "-m", "tests.lab.storages.server", str(self.layout.directory)]
            log = self.layout.directory / "servers.log"
            self.supervisor.add(Program("storage", argv, log, clean(), CHECKOUT, restart=False))
        if self.settings.bmc:
            for host in hosts:
                self.supervisor.add(bmc.program(host, self.settings))

    def power_on(self, order: dict[str, Any]) -> bool:
        """Start the host; False if it is on already."""
        host = self.host(order)
        if power_is_on(host):
            return False
        empty(host.run)
        host.control.unlink(missing_ok=True)

        def record_and_plug_in(pid: int) -> None:
            host.power_record.write_text(FirstProcess.of(pid).to_text())
            # The kernel deletes a dead host's interface a moment later; be first.
            for cable in bmc.cables(host, self.settings):
                ip([f"link del {cable}"], may_fail=True)
            ip(
                [
                    f"link add {host.name} type veth peer name eth0 netns {pid}",
                    f"link set {host.name} master {SWITCH_BRIDGE}",
                ]
            )
            if self.settings.storage in NETWORK:
                cable = host.storage_cable
                ip(
                    [
                        f"link add {cable} type veth peer name eth1 netns {pid}",
                        f"link set {cable} master {STORAGE_BRIDGE}",
                    ]
                )
            self.frozen.pop(host.id, None)
            self._set_links(host)

        pid = spawn_first(
            [sys.executable, "-m", "tests.lab.host_init", str(self.layout.directory), host.name],
            log=host.log / "init.log",
            cwd=CHECKOUT,
            environment=clean(host),
            before_start=record_and_plug_in,
        )
        say(f"{host.name} on (pid {pid})")
        return True

    def cable(self, order: dict[str, Any]) -> list[int]:
        """Plug or unplug the host's network cable; the host ids now unplugged.

        It stays so over a power cycle. The BMC has a cable of its own.
        """
        if "host" in order:
            host = self.host(order)
            plugged = bool(order["plugged"])
            (self.unplugged.discard if plugged else self.unplugged.add)(host.id)
            self._set_links(host)
        return sorted(self.unplugged)

    def pull(self, order: dict[str, Any]) -> None:
        """Take the cables out of a host that is about to lose its power; they are in again when it
        is switched on. It stands still before: a host without power does not see its cables go."""
        host = self.host(order)
        record = FirstProcess.from_file(host.power_record)
        if record is not None and record.here() is not None:
            stop_all(record.namespace, brought_in=False)
        cables = bmc.cables(host, self.settings)
        ip([f"link set {cable} down" for cable in cables], may_fail=True)

    def storage_cable(self, order: dict[str, Any]) -> list[int]:
        """Plug or unplug the host's cable to the storage; the host ids now unplugged."""
        if "host" in order:
            host = self.host(order)
            plugged = bool(order["plugged"])
            (self.cut_off.discard if plugged else self.cut_off.add)(host.id)
            self._set_links(host)
        return sorted(self.cut_off)

    def _set_links(self, host: HostLayout) -> None:
        """Let packets through to the host, or not, on each of its cables."""
        for cable, out in ((host.name, self.unplugged), (host.storage_cable, self.cut_off)):
            if cable in bmc.cables(host, self.settings):
                state = "down" if host.id in out or host.id in self.frozen else "up"
                ip([f"link set {cable} {state}"], may_fail=not power_is_on(host))

    def freeze(self, order: dict[str, Any]) -> None:
        """Stop every process of the host, and let no packet through to it: a kernel that hangs
        answers nobody, and the one of the host's network namespace is this machine's, which would
        go on answering pings and refusing connections.

        The watchdog that its wdmd would have fed ends it FROZEN_WATCHDOG_S later.
        """
        host = self.host(order)
        record = FirstProcess.from_file(host.power_record)
        if record is None or record.here() is None:
            raise LabError(f"{host.name} is off; run: power-on {host.name}")
        stop_all(record.namespace)
        self.frozen[host.id] = record
        self._set_links(host)
        say(f"{host.name} frozen")

        def bite() -> None:
            first = record.here()
            if self.frozen.get(host.id) == record and first is not None:
                say(f"{host.name}: its watchdog ends it")
                first.kill(WATCHDOG_KILL_SECONDS_MAX)

        self.supervisor.alarms.append((time.monotonic() + FROZEN_WATCHDOG_S, bite))

    def thaw(self, order: dict[str, Any]) -> None:
        """Let a frozen host go on; nothing where it is not frozen, or dead by now."""
        host = self.host(order)
        record = self.frozen.pop(host.id, None)
        if record is not None:
            self._set_links(host)
            continue_all(record.namespace)

    def bmc(self, order: dict[str, Any]) -> dict[int, str]:
        """Set what is wrong with the host's BMC; the faults of all, by host id.

        The one before it ends, also with the other host of a swap.
        """
        if "host" in order:
            host = self.host(order)
            before = self.bmc_faults.get(host.id, "ok")
            if before.startswith("swapped "):
                self._set_bmc(self.layout.host(host_id_of(before.removeprefix("swapped "))), "ok")
            fault = str(order["fault"])
            self._set_bmc(host, fault)
            if fault.startswith("swapped "):
                other = self.layout.host(host_id_of(fault.removeprefix("swapped ")))
                self._set_bmc(other, f"swapped {host.name}")
        return self.bmc_faults

    def _set_bmc(self, host: HostLayout, fault: str) -> None:
        before = self.bmc_faults.pop(host.id, "ok").split()[0]
        kind, _, detail = fault.partition(" ")
        if before == "unreachable":
            ip([f"addr add {host.bmc_address}/24 dev {SWITCH_BRIDGE}"])
        if kind == "unreachable":
            ip([f"addr del {host.bmc_address}/24 dev {SWITCH_BRIDGE}"])
        if kind != "ok":
            self.bmc_faults[host.id] = fault
        in_script = kind in bmc.IN_SCRIPT
        host.bmc_fault.write_text(fault if in_script else "ok")
        if {before, kind} & bmc.IN_LAN:
            address, password = host.bmc_address, self.settings.bmc_password
            if kind == "swapped":
                address = self.layout.host(host_id_of(detail)).bmc_address
            if kind == "wrong-password":
                password = bmc.WRONG_PASSWORD
            bmc.write_lan(host, address, password)
            # The supervisor starts the BMC again a second later, as any program.
            self.supervisor.end(self.supervisor.programs[bmc.program_name(host)])


def power_is_on(host: HostLayout) -> bool:
    """Whether the host's first process lives, seen from the switch's PID namespace."""
    record = FirstProcess.from_file(host.power_record)
    return record is not None and record.here() is not None


def empty(directory: Path) -> None:
    """Remove what is inside, as a reboot does to /run."""
    directory.mkdir(parents=True, exist_ok=True)
    for entry in directory.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def main() -> None:
    """Never returns."""
    layout = Layout(Path(sys.argv[1]))
    switch = Switch(layout, Settings.load(layout))
    switch.prepare()
    say("switch up")
    switch.supervisor.run()


if __name__ == "__main__":
    main()
