# SPDX-License-Identifier: LGPL-2.1-or-later
"""The first process of a host: its mounts, its network, its service manager, its watchdog.

Services are restarted a second after they ended, as their systemd units do, except
sanlock: a real host's hardware watchdog, fed by wdmd on sanlock's behalf, resets the
machine when sanlock is gone while it may still hold a lockspace. No watchdog device is
here, so this process plays it: when sanlock ends other than by a clean exit (it exits
cleanly only without a lockspace), the host is powered off after WATCHDOG_S. Unlike a
real one it stays off, so that a test sees what happened. It is quicker than a real
watchdog (60 s after the last renewal), which only shortens tests: peers count on the
latest moment, not on the earliest.

Run by the switch: ``python -m tests.lab.host_init RUN-DIRECTORY HOST``.
"""

from __future__ import annotations

import os
import socket
import sys
import time
import uuid
from pathlib import Path

from . import configs
from .environment import clean, commands
from .layout import (
    CHECKOUT,
    DAEMONS,
    GATEWAY,
    HOST_BRIDGE,
    OUR_DAEMONS,
    HostLayout,
    Layout,
    host_id_of,
)
from .links import bridge, ip
from .namespaces import MS_BIND, make_mounts_private, mount
from .settings import Settings
from .storages import client
from .storages.kinds import MOUNTED, NETWORK
from .supervisor import Program, Supervisor, say

WATCHDOG_S = 10.0
FUSE_DEVICE = "/dev/fuse"


def main() -> None:
    """Never returns; the end of this process is the end of the host."""
    layout = Layout(Path(sys.argv[1]))
    host = layout.host(host_id_of(sys.argv[2]))
    settings = Settings.load(layout)
    socket.sethostname(host.name)
    set_up_mounts(host)
    set_up_network(host, settings)
    mount_storage(host, settings)
    supervisor = Supervisor(host.control)
    for name in DAEMONS:
        program = service(host, name)
        program.held = name in OUR_DAEMONS and not settings.daemons
        if name == "sanlock":
            program.restart = False
            program.on_exit = lambda code: arm_watchdog(supervisor, code)
        supervisor.add(program)
    say(f"{host.name} up")
    supervisor.run()


def set_up_mounts(host: HostLayout) -> None:
    """Private folders where two hosts would otherwise meet. Nothing shows outside."""
    make_mounts_private()
    mount("proc", "/proc", "proc")
    # All hosts have one kernel; each boot of a host is one of its own.
    boot_id = host.directory / "boot-id"
    boot_id.write_text(f"{uuid.uuid4()}\n")
    mount(str(boot_id), "/proc/sys/kernel/random/boot_id", flags=MS_BIND)
    # sysfs shows the network namespace it was mounted in.
    mount("sysfs", "/sys", "sysfs")
    for source, target in private_folders(host).items():
        source.mkdir(parents=True, exist_ok=True)
        mount(str(source), target, flags=MS_BIND)
    for name in ("hosts", "resolv.conf"):
        target = os.path.realpath(f"/etc/{name}")
        if os.path.exists(target):
            mount(str(host.etc / name), target, flags=MS_BIND)
    for name in ("sanlock", "libvirt", "ha-agent"):
        Path("/run", name).mkdir(exist_ok=True)


def mount_storage(host: HostLayout, settings: Settings) -> None:
    """The host's own view of the shared storage, over the path that every config names."""
    if settings.storage in MOUNTED and not os.path.exists(FUSE_DEVICE):
        say(f"no {FUSE_DEVICE}: the storage of this host cannot be made to fail")
        return
    client.mount_storage(host.lab, settings.storage, host)


def private_folders(host: HostLayout) -> dict[Path, str]:
    """Folder in the run directory -> where the host sees it."""
    return {
        host.etc / "libvirt": "/etc/libvirt",
        host.directory / "lib-libvirt": "/var/lib/libvirt",
        host.directory / "cache-libvirt": "/var/cache/libvirt",
        host.log / "libvirt": "/var/log/libvirt",
        host.run: "/run",
    }


def set_up_network(host: HostLayout, settings: Settings) -> None:
    """eth0 (the switch put it here) in the management bridge that carries the address."""
    ip(
        [
            "link set lo up",
            *bridge(HOST_BRIDGE, f"52:54:00:4e:01:{host.id:02x}"),
            f"link set eth0 master {HOST_BRIDGE}",
            "link set eth0 up",
            f"addr add {host.address}/24 dev {HOST_BRIDGE}",
            f"link set {HOST_BRIDGE} up",
            f"route add default via {GATEWAY}",
        ]
    )
    # As the packages do (packaging/systemd/sysctl.conf): a new network namespace allows nobody.
    Path("/proc/sys/net/ipv4/ping_group_range").write_text("0 2147483647")
    if settings.storage in NETWORK:
        ip(["link set eth1 up", f"addr add {host.storage_address}/24 dev eth1"])


def service(host: HostLayout, name: str) -> Program:
    """One of DAEMONS, as its unit would run it."""
    environment = clean(host)
    match name:
        case "sanlock":
            # -w 0: no watchdog device. -l 0 -h 0: no mlockall, no real-time priority;
            # both would starve the emulated guests.
            argv = ["sanlock", "daemon", "-D", "-w", "0", "-l", "0", "-h", "0"]
            argv += ["-U", "root", "-G", "root", "-e", configs.sanlock_name(host)]
            environment["SANLOCK_PRIVILEGED"] = "0"
        case "libvirtd":
            argv = ["libvirtd", "--listen"]
        case "broker":
            argv = [f"{commands()}/ha-broker"]
        case "agent":
            argv = [f"{commands()}/ha-agent", "run"]
        case _:
            raise AssertionError(name)
    return Program(name, argv, host.log / f"{name}.log", environment, CHECKOUT)


def arm_watchdog(supervisor: Supervisor, code: int) -> None:
    """sanlock ended: power the host off unless it ended cleanly."""
    if code == 0:
        return
    say(f"watchdog: sanlock ended with {code}; power off in {WATCHDOG_S:.0f} s")

    def power_off() -> None:
        say("watchdog: power off")
        # The cables first: nothing of a dead host says goodbye.
        ip(["link set eth0 down", "link set eth1 down"], may_fail=True)
        os._exit(1)

    supervisor.alarms.append((time.monotonic() + WATCHDOG_S, power_off))


if __name__ == "__main__":
    main()
