# SPDX-License-Identifier: LGPL-2.1-or-later
"""A BMC per host: OpenIPMI's ipmi_sim, with a hand on that host's real power.

``get power`` must be quick (a fencing agent waits for it, and the simulator serves
one request at a time), so it is a few lines of shell: the host is on as long as its
first process lives. The kernel lets that process go only after all others of the host,
QEMU included, so "off" proves that nothing of the host runs any more.

FAULTS are what can be wrong with one. Most are the power script's own, which reads them
from ``HostLayout.bmc_fault`` at each call; ``unreachable``, ``wrong-password`` and
``swapped`` are set up by the switch. The simulator itself is never changed.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.fakes.ipmi_bmc import EMULATOR

from .environment import clean
from .layout import BMC_PORT, BMC_USER, CHECKOUT, HostLayout, Layout
from .settings import Settings
from .storages.kinds import NETWORK
from .supervisor import Program, order

#: Fault -> what it does; N is the number that follows some of them.
FAULTS = {
    "ok": "nothing is wrong",
    "unreachable": "its address is away",
    "wrong-password": "it takes another password than the configured one",
    "swapped": "it and another host's have each other's addresses (name the other host)",
    "off-fails": "an order to switch off ends with an error",
    "off-ignored": "an order to switch off is accepted, and nothing happens",
    "off-late": "switches off N seconds after it was told to",
    "says-on": "reads on, whatever the host does",
    "says-off": "reads off N times although the host is on, then what is true",
    "slow": "takes N seconds for each answer about the power",
}
#: Faults in the simulator's own configuration, and faults of the power script.
IN_LAN = {"wrong-password", "swapped"}
IN_SCRIPT = set(FAULTS) - IN_LAN - {"ok", "unreachable"}
WITH_NUMBER = ("off-late", "says-off", "slow")
# IPMI 2.0 takes at most 20 bytes.
WRONG_PASSWORD = "another-password"

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
# The cables first: nothing of a dead host says goodbye.
off() {{
  on || return 0
  for cable in {cables}; do ip link set "$cable" down; done
  kill -9 "$pid"
}}
power() {{
  case $fault in
    says-on) echo power:1; return ;;
    says-off)
      echo "says-off $((number - 1))" > {fault}
      [ "$number" -gt 1 ] || echo ok > {fault}
      echo power:0; return ;;
  esac
  if on; then echo power:1; else echo power:0; fi
}}
ordered_off() {{
  case $fault in
    off-fails) exit 1 ;;
    off-ignored) ;;
    off-late) (sleep "$number"; off) > /dev/null 2>&1 & ;;
    *) off ;;
  esac
}}
note() {{ read -r up rest < /proc/uptime; echo "$up $*" >> {calls}; }}
start() {{ cd {checkout} && {python} -m tests.lab.bmc {directory} {host}; }}
fault=ok number=0
read -r fault number 2>/dev/null < {fault}
[ "$fault" != slow ] || sleep "$number"
case "$1 $2 $3" in
  "get power "*) told=$(power); note "$told"; echo "$told" ;;
  "get boot "*) echo boot:default ;;
  "set power 0") note ordered:off; ordered_off ;;
  "set power 1") note ordered:on; on || start ;;
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


def cables(host: HostLayout, settings: Settings) -> list[str]:
    """What the switch calls the host's cables."""
    return [host.name, *([host.storage_cable] if settings.storage in NETWORK else [])]


def write_files(host: HostLayout, settings: Settings) -> None:
    """What the simulator reads, and the power script."""
    host.bmc.mkdir(parents=True, exist_ok=True)
    script = host.bmc / "power"
    script.write_text(
        POWER_SCRIPT.format(
            record=host.power_record,
            fault=host.bmc_fault,
            calls=host.bmc_calls,
            checkout=CHECKOUT,
            python=sys.executable,
            directory=host.lab.directory,
            host=host.name,
            cables=" ".join(cables(host, settings)),
        )
    )
    script.chmod(0o700)
    write_lan(host, host.bmc_address, settings.bmc_password)
    (host.bmc / "sim.emu").write_text(EMULATOR)
    (host.bmc / "state").mkdir(exist_ok=True)


def write_lan(host: HostLayout, address: str, password: str) -> None:
    """Where the simulator listens, and whom it lets in; read when it starts."""
    lan = host.bmc / "lan.conf"
    lan.touch(mode=0o600)
    lan.write_text(
        LAN_CONFIG.format(
            host=host.name,
            address=address,
            port=BMC_PORT,
            guid=host.system_uuid.hex,
            script=host.bmc / "power",
            user=BMC_USER,
            password=password,
        )
    )


def calls(host: HostLayout) -> list[tuple[float, str]]:
    """The questions and orders of a BMC: (seconds since this machine's boot, ``power:0``,
    ``power:1``, ``ordered:off`` or ``ordered:on``), oldest first."""
    try:
        lines = host.bmc_calls.read_text().splitlines()
    except FileNotFoundError:
        return []
    return [(float(at), what) for at, _, what in (line.partition(" ") for line in lines)]


def program_name(host: HostLayout) -> str:
    """What the switch calls the simulator of that host."""
    return f"bmc-{host.name}"


def program(host: HostLayout, settings: Settings) -> Program:
    """The simulator, to run under the switch."""
    write_files(host, settings)
    argv = ["ipmi_sim", "-c", str(host.bmc / "lan.conf"), "-f", str(host.bmc / "sim.emu")]
    argv += ["-s", str(host.bmc / "state"), "-n"]
    return Program(program_name(host), argv, host.bmc / "log", clean(), CHECKOUT)


def main() -> None:
    """``python -m tests.lab.bmc RUN-DIRECTORY HOST``: the power script's way to say "on"."""
    layout = Layout(Path(sys.argv[1]))
    order(layout.control, "power_on", host=sys.argv[2])


if __name__ == "__main__":
    main()
