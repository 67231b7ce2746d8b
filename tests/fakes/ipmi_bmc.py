# SPDX-License-Identifier: LGPL-2.1-or-later
"""A BMC to test against: OpenIPMI's ipmi_sim, an IPMI 2.0 implementation that is not ours.

Its machine is a file that holds 0 or 1; each order that it was given stands in another.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from pathlib import Path

from tests.fakes.waiting import stop

PASSWORD = "s3cret+/word"

_LAN = """name "{name}"
set_working_mc 0x20
startlan 1
  addr 127.0.0.1 {port}
  priv_limit admin
  allowed_auths_admin none md2 md5 straight
  allowed_auths_operator none md2 md5 straight
  allowed_auths_user none md2 md5 straight
  guid {guid}
endlan
chassis_control "{script}"
user 2 true "admin" "{password}" admin 10 none md2 md5 straight
"""
EMULATOR = """mc_setbmc 0x20
mc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02 persist_sdr
sel_enable 0x20 1000 0x0a
mc_enable 0x20
"""
_SCRIPT = """#!/bin/sh
case "$1 $2" in
  "get power") echo "power:$(cat {power})" ;;
  "get boot") echo boot:default ;;
  set*) echo "$2 $3" >> {orders}
    if [ "$2" = power ] && [ ! -e {deaf} ]; then echo "$3" > {power}; fi ;;
esac
"""


class IpmiBmc:
    """A running ipmi_sim. `guid`: 32 hex digits, as Get System GUID shall answer."""

    def __init__(self, directory: Path, guid: str, power: bool = True) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._power, self._orders = directory / "power", directory / "orders"
        self._power.write_text(f"{int(power)}\n")
        self._orders.touch()
        script = directory / "chassis"
        script.write_text(
            _SCRIPT.format(power=self._power, orders=self._orders, deaf=directory / "deaf")
        )
        script.chmod(0o700)
        self.port = _free_port()
        (directory / "lan.conf").write_text(
            _LAN.format(
                name=directory.name,
                port=self.port,
                guid=guid,
                script=script,
                password=PASSWORD,
            )
        )
        (directory / "sim.emu").write_text(EMULATOR)
        (directory / "state").mkdir(exist_ok=True)
        self._process = subprocess.Popen(
            ["ipmi_sim", "-n", "-c", "lan.conf", "-f", "sim.emu", "-s", "state"],
            cwd=directory,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
        )
        _await_port(self.port)

    @property
    def on(self) -> bool:
        return self._power.read_text().strip() == "1"

    @property
    def orders(self) -> list[str]:
        """What was ordered, such as `power 0`, in order."""
        return self._orders.read_text().splitlines()

    def be_deaf(self) -> None:
        """Take orders from now on, and do nothing."""
        (self._directory / "deaf").touch()

    def hang(self) -> None:
        """Answer nothing any more, and refuse nothing."""
        stop(self._process)

    def go_on(self) -> None:
        """End of `hang`."""
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """End it; what is asked of it from now on is refused by the kernel."""
        self._process.kill()
        self._process.wait()


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _await_port(port: int) -> None:
    """Until it answers an RMCP presence ping (ASF 2.0, 3.2.4.3)."""
    ping = bytes.fromhex("06 00 ff 06 00 00 11 be 80 00 00 00")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.settimeout(0.1)
        probe.connect(("127.0.0.1", port))
        for _ in range(100):
            try:
                probe.send(ping)
                probe.recv(100)
                return
            except OSError:
                time.sleep(0.02)
    raise AssertionError(f"ipmi_sim on port {port} does not answer")
