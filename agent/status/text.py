# SPDX-License-Identifier: LGPL-2.1-or-later
"""The status for people. The first lines answer: is the VM up, where, since when, is anything
wrong, what is next; a line for each host follows, and before them one for each VM where there are
several.

Works on a `Status`, or on the object that agent/status/read.py makes of its JSON; its imports are
cheap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.status import vms_text
from agent.status.sentences import duration, host_shutdown, if_it_dies, mode, outside
from agent.status.troubles import can_take_it, troubles
from agent.terminal.columns import table, wrapped

if TYPE_CHECKING:
    from broker.wire.status import HostStatus, Status
    from broker.wire.vms import VmEntry

_HEAD = ("", "ID", "HOST", "STATE", "SCORE", "ENGINE", "AGE", "WHY")
#: SGR codes, ECMA-48.
_BOLD, _DIM, _RED, _GREEN, _YELLOW = "1", "2", "31", "32", "33"


def as_text(status: Status, width: int | None = None, colour: bool = False) -> str:
    """The text. `width`: columns of the terminal, within which lines go on below, between two
    words; None: every line is whole."""
    several = vms_text.has_several(status)
    lines = [(engine_line(status), _engine_colour(status))]
    if several:
        lines = [(vms_text.first_line(status), _vms_colour(status))]
    lines += [(line, _YELLOW) for line in _modes(status)]
    if wrong := what_is_wrong(status):
        lines.append((f"wrong: {len(wrong)} thing{'s' if len(wrong) > 1 else ''}:", ""))
        lines += [(f"  {line}", _YELLOW) for line in wrong]
    else:
        lines.append(("nothing is wrong", ""))
    if seen := outside(status):
        lines.append((f"reached from outside: {seen}", ""))
    lines += [(f"next: {line}", "") for line in _next(status)]
    lines.append(("", ""))
    text = [
        _coloured(part, kind, colour)
        for line, kind in lines
        for part in wrapped(line, width, 4 if line.startswith(" ") else 2)
    ]
    if several:
        text += [*_vms_table(status, width, colour), ""]
    text += _hosts_table(status, width, colour)
    if status.reasons:
        about = "this host, about the engine: " if several else "this host: "
        said = about + "; ".join(reason.text for reason in status.reasons)
        text += ["", *wrapped(said, width, 2)]
    return "\n".join(text)


def _vms_table(status: Status, width: int | None, colour: bool) -> list[str]:
    rows = [vms_text.HEAD, *map(vms_text.row, status.vms)]
    return _table(rows, [_BOLD, *map(_vm_colour, status.vms)], width, colour)


def _hosts_table(status: Status, width: int | None, colour: bool) -> list[str]:
    hosts = status.hosts.values()
    if vms_text.has_several(status):
        of_hosts = [vms_text.host_row(host, _why(status, host)) for host in hosts]
        rows = [vms_text.HOSTS_HEAD, *of_hosts]
    else:
        rows = [_HEAD, *(_row(status, host) for host in hosts)]
    return _table(rows, [_BOLD, *(_row_colour(status, host) for host in hosts)], width, colour)


def _table(
    rows: list[tuple[str, ...]], kinds: list[str], width: int | None, colour: bool
) -> list[str]:
    """The lines; what does not fit into the last column goes on below it."""
    made = table(rows)
    last = made[0].index(rows[0][-1])
    return [
        _coloured(part, kind, colour)
        for row, kind in zip(made, kinds, strict=True)
        for part in wrapped(row, width, last)
    ]


def what_is_wrong(status: Status) -> list[str]:
    """A line for each thing that a person should look at, the most urgent first."""
    several = vms_text.has_several(status)
    wrong, engine, name = troubles(status), status.engine, "engine" if several else "VM"
    if engine.up is None:
        # A cause on this host itself comes first.
        place = 1 if status.storage.blind and wrong else 0
        wrong.insert(place, f"whether the {name} is up is not known (ha-agent why)")
    elif not engine.up and status.global_maintenance is False and _is_wanted(status):
        wrong.insert(0, f"the {name} is down (ha-agent why)")
    elif engine.up and engine.healthy is False and not is_booting(status):
        wrong.insert(0, f"the {name} is not healthy: look at the guest (ha-agent vm console)")
    if several:
        wrong += vms_text.troubles(status)
    return wrong


def _is_wanted(status: Status) -> bool:
    """Whether the engine is to run."""
    return not status.vms or status.vms[0].want == "up"


def engine_line(status: Status) -> str:
    """The first line: whether the VM is up and healthy, where, and since when."""
    engine = status.engine
    vm = engine.name or "the engine"
    since = "" if engine.for_s is None else f" for {_at_least(engine.for_s, engine.at_least)}"
    last = ""
    if engine.last_up and engine.last_up not in engine.known:
        last = f"; last seen up on {engine.last_up}"
    if engine.up is None:
        known = engine.known or "no host says so"
        return f"{status.cluster}: whether {vm} is up is NOT KNOWN,{since}: {known}{last}"
    if not engine.up:
        known = engine.known or "no host has it up"
        return f"{status.cluster}: {vm} is DOWN{since}: {known}{last}"
    where = f"on {engine.hostname or ''} (id {engine.host})"
    if engine.reached is False:
        return f"{status.cluster}: {vm} is up, but NOT REACHED from outside, {where},{since}"
    if engine.healthy:
        return f"{status.cluster}: {vm} is up and healthy {where},{since}".rstrip(",")
    if is_booting(status):
        return f"{status.cluster}: {vm} is up and boots {where},{since}".rstrip(",")
    if engine.healthy is None:
        return f"{status.cluster}: {vm} is up, its health is not known, {where},{since}".rstrip(",")
    unwell = ""
    if engine.health_for_s is not None:
        unwell = f" for {_at_least(engine.health_for_s, engine.health_at_least)}"
    return f"{status.cluster}: {vm} is up, not healthy{unwell}, {where},{since}".rstrip(",")


def is_booting(status: Status) -> bool:
    """Whether the engine was started and has not been healthy yet."""
    owner = next((one for one in status.hosts.values() if one.host_id == status.engine.host), None)
    return owner is not None and owner.state == "EngineStarting"


def _at_least(seconds: float, at_least: bool) -> str:
    """`at_least`: the time began before the broker looked."""
    return f"at least {duration(seconds)}" if at_least else duration(seconds)


def _modes(status: Status) -> list[str]:
    lines = []
    if status.global_maintenance:
        lines.append(
            "GLOBAL MAINTENANCE: nothing starts, stops or moves"
            f"{mode(status.global_mode)} (ha-agent maintenance none)"
        )
    elif status.global_maintenance is None:
        lines.append("whether global maintenance is set has not been read yet")
    for host in status.hosts.values():
        if host.host_shutdown:
            lines.append(host_shutdown(host))
        elif host.maintenance:
            lines.append(f"LOCAL MAINTENANCE on {host.hostname}{mode(host.mode)}")
    return lines


def _next(status: Status) -> list[str]:
    """What happens next, or would happen if the VM's host died."""
    hosts = status.hosts.values()
    name = vms_text.engine_name(status)
    lines = [
        f"{host.hostname} is about to {host.intent}{_over(host)}"
        for host in hosts
        if host.intent and host.liveness == "live"
    ]
    if vms_text.has_several(status) and not status.global_maintenance:
        lines += vms_text.next_lines(status)
    if status.migration is not None:
        lines.append(f"{name} is being migrated, {status.migration.percent} %")
    if status.global_maintenance:
        return [*lines, "nothing, until global maintenance ends"]
    if status.storage.blind and not status.engine.up:
        return [*lines, _what_to_look_at(status)]
    if not status.engine.up:
        likely = [] if status.engine.likely is None else [_what_to_look_at(status)]
        lines += likely
        able = [host for host in hosts if host.liveness == "live" and not host.stopped]
        best = max(able, key=lambda host: (host.score, -host.host_id), default=None)
        if best is None:
            return [*lines, "nothing: no host lives"]
        return [*lines, f"{best.hostname}: {best.reason or best.state}"]
    owner = next((host for host in hosts if host.host_id == status.engine.host), None)
    if owner is not None and not status.engine.healthy:
        lines.append(f"{owner.hostname}: {owner.reason or owner.state}")
    if status.bound is not None:
        lines.append(if_it_dies(status.bound, status.engine.hostname or "", name))
    return lines


def _what_to_look_at(status: Status) -> str:
    """What makes it known again whether the VM is up."""
    if status.storage.blind:
        return "this host reads the storage again; the other hosts go on by themselves"
    names = {host.host_id: host.hostname for host in status.hosts.values()}
    name = names.get(status.engine.likely or 0, f"host {status.engine.likely}")
    return f"{name} is heard again: systemctl status ha-broker there"


def _over(host: HostStatus) -> str:
    if host.move is None or host.move.left_s is None:
        return ""
    return f", done or given up in {duration(host.move.left_s)}"


def _why(status: Status, host: HostStatus) -> str:
    """Why a host has not the full score, or is not to be counted on."""
    # The mode stands in front.
    known = "local-maintenance" if host.maintenance else ""
    penalties = [part for part in host.penalties if part.name != known]
    why = [f"{part.name} -{part.points}" for part in penalties]
    if _is_last_word(status, host):
        why.insert(0, "LAST WORD")
    elif host.liveness != "live":
        why.insert(0, host.liveness.upper())
    if host.host_shutdown:
        why.insert(0, "shut down" if host.liveness == "silent" else "shutting down")
    elif host.maintenance:
        why.insert(0, "local maintenance")
    if host.agent not in ("", "ok"):
        why.append(f"agent {host.agent}")
    return ", ".join(why)


def _row(status: Status, host: HostStatus) -> tuple[str, ...]:
    vm = host.engine_status
    engine = f"{vm.vm}/{vm.health}"
    if host.domain_type and vm.vm == "up":
        engine += f" ({host.domain_type})"
    age = "?" if host.age_s is None else f"{host.age_s:.0f} s"
    return (
        "*" if host.local else "",
        str(host.host_id),
        host.hostname,
        _state(status, host),
        str(host.score),
        engine,
        age,
        _why(status, host),
    )


def _state(status: Status, host: HostStatus) -> str:
    """The host's state. For a standby, `ready` stands before the reference's state."""
    state = host.state or "?"
    is_standby = state == "EngineDown" and status.engine.up and host.host_id != status.engine.host
    return f"ready ({state})" if is_standby and can_take_it(host) else state


def _is_last_word(status: Status, host: HostStatus) -> bool:
    """Whether the row shows old data of a host, since this host cannot read it any more."""
    return status.storage.blind and not host.local


def _row_colour(status: Status, host: HostStatus) -> str:
    if _is_last_word(status, host):
        return _DIM
    if host.liveness == "silent":
        return _DIM if host.stopped else _RED
    if host.engine_status.vm == "up":
        return _GREEN if host.engine_status.health == "good" else _RED
    return "" if host.score else _YELLOW


def _engine_colour(status: Status) -> str:
    if status.engine.healthy and status.engine.reached is not False:
        return f"{_BOLD};{_GREEN}"
    return f"{_BOLD};{_RED if status.engine.up is False else _YELLOW}"


def _vms_colour(status: Status) -> str:
    if vms_text.is_well(status):
        return f"{_BOLD};{_GREEN}"
    is_down = any(vm.up is False and vm.want == "up" for vm in status.vms)
    return f"{_BOLD};{_RED if is_down else _YELLOW}"


def _vm_colour(vm: VmEntry) -> str:
    if vm.up:
        return _GREEN if vm.healthy else "" if vm.state == "booting" else _RED
    if vm.up is None:
        return _YELLOW
    return _DIM if vm.state == "off" else _RED


def _coloured(text: str, kind: str, wanted: bool) -> str:
    return f"\x1b[{kind}m{text}\x1b[0m" if wanted and kind else text
