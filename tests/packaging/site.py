# SPDX-License-Identifier: LGPL-2.1-or-later
"""What docs/quickstart.md starts from: clean machines with systemd on one switch, shared storage, a
VM that libvirt of the first one knows, and a BMC for each. And how a person types there."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.lab import guest
from tests.lab.quickstart_page import PASSWORD, Command, fits
from tests.lab.storages.block import attach

from .machine import RELEASES, Machine, base, packages_of
from .wired import GATEWAY, GUEST, configure_host, inside, lay_guest, switch

#: For the line of the status that a page promises: the lockspace, a boot of an emulated guest.
STATUS_SECONDS_MAX = 150.0
DEVICES = ("ha-whiteboard", "ha-leases")
DEVICE_BYTES = 16 << 20
#: As the kernel and device mapper's own rule have it for a logical volume.
HARDWARE = 'KERNEL=="{kernel}", SYMLINK+="mapper/{name}"\n'


@dataclass(slots=True)
class Site:
    """The machines, and what was typed and printed there. `devices`: the numbers of the block
    devices that both see, by their names."""

    machines: list[Machine]
    devices: dict[str, int] = field(default_factory=dict)
    token: str = ""

    def put(self, command: Command) -> str:
        """The command as it is typed here: other addresses, and what was printed before."""
        return with_addresses(command.text.replace("TOKEN", self.token))

    def type(self, command: Command) -> None:
        """Type it, as a person would: a status is looked at again until it says what the page
        says."""
        (machine,) = [each for each in self.machines if each.name == command.host]
        until_s = time.monotonic() + STATUS_SECONDS_MAX
        while True:
            words = ("bash", "-c", f"cd && {self.put(command)}")
            done = machine.run(*words, typed=f"{PASSWORD}\n")
            good = done.returncode == 0 and fits(done.stdout, command.output or ("…",))
            if good or "--status" not in command.text or time.monotonic() > until_s:
                break
            time.sleep(0.5)
        said = f"{command.host}# {command.text}\n{done.stdout}{done.stderr}"
        assert good, f"{said}\n{machine.journal()}"
        if command.text == "ha-agent invite":
            self.token = done.stdout.strip()
        print(said)


def with_addresses(text: str) -> str:
    """A text of the page with the addresses of this network."""
    return text.replace("10.0.0.20", GUEST).replace("192.0.2.", "10.77.0.")


@contextlib.contextmanager
def site(
    release: str,
    directory: Path,
    more: tuple[str, ...] = (),
    devices: bool = False,
    count: int = 2,
) -> Iterator[Site]:
    """Machines of a release, with what the package depends on and `more` installed. `devices`:
    with two block devices as well, and udev."""
    real = directory / "storage"
    real.mkdir(mode=0o755)
    lay_guest(real, guest.build())
    wanted = [*packages_of(RELEASES[release]), *more, *(["udev"] if devices else [])]
    root = base(release, wanted)
    with contextlib.ExitStack() as ends:
        wire = ends.enter_context(switch())
        found = Site([])
        for name in DEVICES if devices else ():
            image = directory / f"{name}.image"
            with image.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, DEVICE_BYTES)
            path, descriptor = attach(image, 512)
            ends.callback(os.close, descriptor)
            found.devices[name] = os.minor(os.stat(path).st_rdev)
        for number in range(1, count + 1):
            shared = directory / f"mount{number}"
            shared.mkdir()
            mount: list[str | Path] = ["bindfs", "-o", "allow_other", real, shared]
            subprocess.run(mount, check=True, capture_output=True)
            ends.callback(subprocess.run, ["umount", "-l", str(shared)], capture_output=True)
            machine = Machine(root, directory / f"host{number}", number, shared)
            found.machines.append(machine)
            ends.callback(machine.cut)
            if devices:
                name_devices(machine, found.devices)
            machine.boot()
            wire.plug(machine)
            inside(machine.first, "ip", "route", "add", "default", "via", GATEWAY)
            plug_in(machine, found.devices)
            configure_host(machine, count)
        for machine in found.machines:
            address = f"10.77.0.10{machine.host}"
            wire.ip("addr", "add", f"{address}/24", "dev", "switch")
            ends.callback(end, machine.serve_bmc(address, PASSWORD, wire.pid))
        yield found


def name_devices(machine: Machine, devices: dict[str, int]) -> None:
    """The names that the devices have for this machine's udev, which looks at them alone: the rest
    of the hardware is this computer's."""
    rules = (HARDWARE.format(kernel=f"loop{n}", name=name) for name, n in devices.items())
    machine.write("/etc/udev/rules.d/55-hardware.rules", "".join(rules))
    machine.write("/etc/systemd/system/systemd-udev-trigger.service.d/lab.conf", NO_COLD_PLUG)


NO_COLD_PLUG = "[Service]\nExecStart=\nExecStart=/bin/true\n"


def plug_in(machine: Machine, devices: dict[str, int]) -> None:
    """The devices' nodes as the kernel makes them, and udev is told, as at a boot."""
    for number in devices.values():
        machine.must("mknod", "-m", "0600", f"/dev/loop{number}", "b", "7", str(number))
        machine.must("udevadm", "trigger", "--settle", "--action=change", f"/dev/loop{number}")


def end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
