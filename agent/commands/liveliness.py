# SPDX-License-Identifier: LGPL-2.1-or-later
"""`ha-agent check-liveliness`: whether the engine is well, in one line and by the exit code.

The answer is the last check of the host that runs the VM, as this host's broker has read it; no new
check is made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import IntEnum

from agent.status import vms_text
from agent.status.command import code_of
from agent.status.text import engine_line, is_booting, what_is_wrong
from agent.terminal import in_json
from agent.terminal.columns import say
from broker.client.ask import BrokerError, ask
from broker.config.errors import ConfigError
from broker.daemon.exit_codes import ExitCode
from broker.daemon.foreign import cut
from broker.wire.status import Status
from broker.wire.vms import VmEntry
from scoring.vm_facts import ENGINE

#: The longest answer of the plugin, bytes: NRPE before version 3 cuts at 1,024, its own end
#: included (MAX_PACKETBUFFER_LENGTH of its common.h).
BYTES_MAX = 1000
#: The longest first line, which lists of services show. It ends with the figures.
FIRST_BYTES_MAX = 400
#: A line below it with less room than that says nothing.
LINE_BYTES_MIN = 40


def run(socket: str, as_json: bool) -> int:
    """OK: up and healthy; ENGINE_SICK: up, but not (yet) healthy; ENGINE_DOWN: it runs nowhere;
    ENGINE_UNKNOWN: whether it is up, or healthy, is unknown; or its own host finds it healthy and
    no other host reaches it, so that it is unknown whether its users do. Raises as `ask` does."""
    status = ask(socket, "GET", "/v1/status", Status)
    engine = status.engine
    if as_json:
        shown = {
            "up": engine.up,
            "healthy": engine.healthy,
            "reached": engine.reached,
            "host": engine.hostname,
        }
        in_json.show(shown, indent=None)
    else:
        say(engine_line(status), 2)
    if not engine.up or engine.healthy is None:
        return code_of(engine.healthy if engine.up else engine.up)
    if not engine.healthy:
        return ExitCode.ENGINE_SICK
    return ExitCode.ENGINE_UNKNOWN if engine.reached is False else ExitCode.OK


class Plugin(IntEnum):
    """The exit codes of a plugin of Nagios, which Icinga and others take too
    (https://www.monitoring-plugins.org/doc/guidelines.html)."""

    OK = 0
    WARNING = 1
    CRITICAL = 2
    UNKNOWN = 3


def as_plugin(socket: Callable[[], str]) -> int:
    """Print what a plugin of Nagios does, and return its exit code, never another one: a line for
    the list of services, and, where more than one thing is wrong, each of them in a line below.

    CRITICAL: a VM that is to run is down, ill, or not reached from outside. WARNING: one boots, or
    all are well and something else is wrong, such as no standby. UNKNOWN: it is not known whether
    one is up or healthy, or no broker answers here. The worst of several VMs counts. `socket`:
    finds the broker's socket; may raise ConfigError.
    """
    try:
        status = ask(socket(), "GET", "/v1/status", Status)
    except (ConfigError, BrokerError) as error:
        return _say(Plugin.UNKNOWN, str(error))
    live = sum(host.liveness == "live" for host in status.hosts.values())
    figures = f"hosts_live={live} hosts={len(status.hosts)}"
    if status.engine.for_s is not None:
        figures += f" since={status.engine.for_s:.0f}s"
    line = vms_text.first_line if vms_text.has_several(status) else engine_line
    verdict, text, wrong = _verdict(status), line(status), what_is_wrong(status)
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        text += f"; wrong: {wrong[0]}{more}"
    return _say(verdict, text, figures, wrong)


def _verdict(status: Status) -> Plugin:
    found = [_of_engine(status), *(_of_vm(vm) for vm in status.vms if vm.number != ENGINE)]
    for worst in (Plugin.CRITICAL, Plugin.UNKNOWN, Plugin.WARNING):
        if worst in found:
            return worst
    return Plugin.WARNING if what_is_wrong(status) else Plugin.OK


def _of_engine(status: Status) -> Plugin:
    engine = status.engine
    if engine.up is None or (engine.up and engine.healthy is None):
        return Plugin.UNKNOWN
    if engine.up and is_booting(status):
        return Plugin.WARNING
    if not engine.up or not engine.healthy or engine.reached is False:
        return Plugin.CRITICAL
    return Plugin.OK


def _of_vm(vm: VmEntry) -> Plugin:
    """A VM beside the engine; one that an administrator stopped is well."""
    if vm.up is False:
        return Plugin.CRITICAL if vm.want == "up" else Plugin.OK
    if vm.state == "booting":
        return Plugin.WARNING
    if vm.up is None or vm.healthy is None:
        return Plugin.UNKNOWN
    return Plugin.OK if vm.healthy else Plugin.CRITICAL


def _say(verdict: Plugin, text: str, figures: str = "", more: Sequence[str] = ()) -> int:
    """Print the answer: a line with the figures, and `more` below it where one line does not have
    it all."""
    behind = f" | {figures}" if figures else ""
    line = _plain(f"{verdict.name} - {text}", FIRST_BYTES_MAX - len(behind))
    shown = [f"{line}{behind}"]
    left = BYTES_MAX - len(shown[0].encode()) - 1
    is_all_said = not more or (len(more) == 1 and _plain(more[0], BYTES_MAX) in line)
    for number, each in enumerate(() if is_all_said else more):
        rest = f"and {len(more) - number} more: ha-agent status"
        if (room := left - len(rest) - 1) < LINE_BYTES_MIN:
            shown.append(rest)
            break
        shown.append(_plain(each, room))
        left -= len(shown[-1].encode()) + 1
    print("\n".join(shown))
    return verdict


def _plain(text: str, bytes_max: int) -> str:
    """A line of at most so many bytes of UTF-8; a bar would begin the figures."""
    line, chars = text.replace("|", "/").replace("\n", " "), bytes_max
    while len((shown := cut(line, chars)).encode()) > bytes_max:
        chars -= 1
    return shown
