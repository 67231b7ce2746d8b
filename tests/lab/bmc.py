# SPDX-License-Identifier: LGPL-2.1-or-later
"""A BMC per host: OpenIPMI's ipmi_sim, with a hand on that host's real power.

``get power`` must be quick (a fencing agent waits for it, and the simulator serves
one request at a time), so it is a few lines of shell: the host is on as long as its
first process lives. The kernel lets that process go only after all others of the host,
QEMU included, so "off" proves that nothing of the host runs any more.
"""

from __future__ import annotations

import sys
from pathlib import Path

from .environment import clean
from .layout import BMC_PORT, BMC_USER, CHECKOUT, HostLayout, Layout
from .settings import Settings
from .supervisor import Program, order

# The simulator calls it as: SCRIPT get power, SCRIPT set power 0|1, SCRIPT set reset 1, ...
POWER_SCRIPT = """#!/bin/sh
# Field 22 of /proc/PID/stat, the start time, tells the host's first process from a
# later one with the same pid; field 3 is its state.
on() {{
  read -r pid start namespace 2>/dev/null < {record} || return 1
  read -r line 2>/dev/null < "/proc/$pid/stat" || return 1
  set -- ${{line##*) }}
  [ "$1" != Z ] && [ "$1" != X ] && [ "${{20}}" = "$start" ]
}}
off() {{ ! on || kill -9 "$pid"; }}
start() {{ cd {checkout} && {python} -m tests.lab.bmc {directory} {host}; }}
case "$1 $2 $3" in
  "get power "*) if on; then echo power:1; else echo power:0; fi ;;
  "get boot "*) echo boot:default ;;
  "set power 0") off ;;
  "set power 1") on || start ;;
  "set shutdown "*) off ;;
  "set reset "*)
    off
    tries=0
    while on && [ $tries -lt 100 ]; do sleep 0.1; tries=$((tries + 1)); done
    start ;;
  *) exit 0 ;;
esac
"""

LAN_CONFIG = """name "{host}"
set_working_mc 0x20
startlan 1
  addr {address} {port}
  priv_limit admin
  allowed_auths_admin none md2 md5 straight
  guid {guid}
endlan
chassis_control "{script}"
user 2 true "{user}" "{password}" admin 10 none md2 md5 straight
"""

EMULATOR_COMMANDS = """mc_setbmc 0x20
mc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02 persist_sdr
sel_enable 0x20 1000 0x0a
mc_enable 0x20
"""


def write_files(host: HostLayout, settings: Settings) -> None:
    """What the simulator reads, and the power script."""
    host.bmc.mkdir(parents=True, exist_ok=True)
    script = host.bmc / "power"
    script.write_text(
        POWER_SCRIPT.format(
            record=host.power_record,
            checkout=CHECKOUT,
            python=sys.executable,
            directory=host.lab.directory,
            host=host.name,
        )
    )
    script.chmod(0o700)
    lan = host.bmc / "lan.conf"
    lan.touch(mode=0o600)
    lan.write_text(
        LAN_CONFIG.format(
            host=host.name,
            address=host.bmc_address,
            port=BMC_PORT,
            guid=host.system_uuid.hex,
            script=script,
            user=BMC_USER,
            password=settings.bmc_password,
        )
    )
    (host.bmc / "sim.emu").write_text(EMULATOR_COMMANDS)
    (host.bmc / "state").mkdir(exist_ok=True)


def program(host: HostLayout, settings: Settings) -> Program:
    """The simulator, to run under the switch."""
    write_files(host, settings)
    argv = ["ipmi_sim", "-c", str(host.bmc / "lan.conf"), "-f", str(host.bmc / "sim.emu")]
    argv += ["-s", str(host.bmc / "state"), "-n"]
    return Program(f"bmc-{host.name}", argv, host.bmc / "log", clean(), CHECKOUT)


def main() -> None:
    """``python -m tests.lab.bmc RUN-DIRECTORY HOST``: the power script's way to say "on"."""
    layout = Layout(Path(sys.argv[1]))
    order(layout.control, "power_on", host=sys.argv[2])


if __name__ == "__main__":
    main()
