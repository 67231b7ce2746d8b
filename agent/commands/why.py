# SPDX-License-Identifier: LGPL-2.1-or-later
"""`ha-agent why [NAME]`: why the VM is where it is, and what would change that."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import msgspec

from agent.commands import why_vm
from agent.status.command import code_of
from agent.status.sentences import (
    cannot,
    duration,
    if_it_dies,
    is_cut_off,
    last_word,
    outside,
    switched_off,
)
from agent.status.vms_text import of_engine
from agent.terminal import in_json
from agent.terminal.columns import say
from agent.terminal.times import shown
from broker.client.ask import ask
from broker.config.sections import Config
from broker.wire.status import HostStatus, Status
from scoring.rules import Rules
from scoring.timing import Timing
from scoring.vm_facts import ENGINE


def run(config: Config, as_json: bool = False, name: str | None = None) -> int:
    """Print the sentences; the exit code is that of the status. `name`: of one of several VMs;
    None: the engine. Raises as `ask` does, and CommandError where there is no such VM."""
    status = ask(config.daemon.socket, "GET", "/v1/status", Status)
    if name is not None and (vm := why_vm.found(status, name)).number != ENGINE:
        of_vm = why_vm.explain(status, vm)
        if as_json:
            in_json.show({**msgspec.to_builtins(vm), "sentences": of_vm}, indent=None)
        else:
            _say(of_vm)
        return code_of(vm.up)
    sentences = explain(status, config.rules(0))
    if as_json:
        reasons = [{"code": each.code, "text": each.text} for each in status.reasons]
        where = {"up": status.engine.up, "host": status.engine.hostname, "reasons": reasons}
        in_json.show({**where, "sentences": sentences}, indent=None)
    else:
        _say(sentences)
    return code_of(status.engine.up)


def _say(sentences: list[str]) -> None:
    for sentence in sentences:
        say(sentence, 2)


def explain(status: Status, rules: Rules) -> list[str]:
    """The sentences: where the VM is, this host's last decision and its reason, what would
    change."""
    here = status.hosts[status.host_id]
    lines = [_where(status)]
    if status.storage.problem:
        lines.append(f"This host's storage: {status.storage.state}, {status.storage.problem}.")
    reasons = "; ".join(reason.text for reason in status.reasons) or "no decision yet"
    lines.append(f"{here.hostname} is in {here.state or 'no state yet'}: {reasons}.")
    if status.what_ran is not None and status.what_ran.held:
        lines.append(f"Held back: {status.what_ran.held}.")
    lines += [f"{each.code}: {each.where}: {each.text}." for each in status.differences]
    if status.switched_off is not None:
        lines.append(f"{switched_off(status.switched_off)}: {status.switched_off.text}.")
    lines += [
        f"{host.hostname} is on other storage than this host: it {host.other_storage}."
        for host in status.hosts.values()
        if host.other_storage
    ]
    lines += [
        f"{host.hostname} says of itself: {host.fence_ask}."
        for host in status.hosts.values()
        if host.fence_ask and host.liveness == "live"
    ]
    if status.global_maintenance:
        lines.append("Nothing would change it while global maintenance lasts.")
    elif (running := status.hosts.get(status.engine.host or 0)) is None:
        lines += _while_not_up(status)
    else:
        lines += _while_up(status, running, rules)
    return [of_engine(status, line) for line in lines]


def _where(status: Status) -> str:
    engine = status.engine
    name = f" {engine.name}" if engine.name else ""
    since = _since(engine.for_s, engine.at_least)
    if engine.up is None:
        return f"Whether the VM{name} is up is not known: {engine.known}{since and f';{since}'}."
    if not engine.up:
        known = f": {engine.known}" if engine.known else " on every host"
        return f"The VM{name} is down{since}{known}."
    health = {True: "healthy", False: "not healthy", None: "its health is not known,"}
    return f"The VM{name} is up and {health[engine.healthy]} on {engine.hostname}{since}."


def _since(for_s: float | None, at_least: bool) -> str:
    """For how long, and since when by the clock of this command."""
    if for_s is None:
        return ""
    began = shown(datetime.fromtimestamp(time.time() - for_s, UTC))
    return f" for {'at least ' if at_least else ''}{duration(for_s)}, since {began}"


def _limits(status: Status, running: HostStatus, timing: Timing) -> list[str]:
    """How long the VM may stay as it is, and what comes then."""
    if status.engine.healthy is not False:
        return []
    ill_s = status.engine.health_for_s
    so_far = "" if ill_s is None else f"; so far {duration(ill_s)}"
    if running.state == "EngineStarting":
        given = duration(timing.engine_starting)
        return [f"It boots: it has {given} to become healthy, then it is stopped{so_far}."]
    if running.state in ("EngineStop", "EngineForceStop"):
        given = duration(timing.stop_grace)
        return [f"It is being stopped: the guest has {given} to shut down, then it is powered off."]
    given = duration(timing.bad_health)
    return [f"If it stays unhealthy for {given} it is stopped and started anew{so_far}."]


def _while_not_up(status: Status) -> list[str]:
    """The reason of each host why it does not start the VM."""
    lines = []
    for host in status.hosts.values():
        if host.liveness == "live":
            said = "; ".join(dict.fromkeys((host.reason or "says nothing", *cannot(host))))
            lines.append(f"{host.hostname} ({host.score} points): {said}.")
        else:
            lines.append(f"{host.hostname} {last_word(status, host)}.")
    return lines


def _while_up(status: Status, running: HostStatus, rules: Rules) -> list[str]:
    timing: Timing = rules.timing
    seen = outside(status) or "by nobody yet, so that nobody misses it"
    lines = [f"Reached from outside: {seen}."]
    for host in status.hosts.values():
        if host.host_id == running.host_id:
            continue
        if status.storage.blind:
            lines.append(f"{host.hostname} {last_word(status, host)}.")
            continue
        if host.local and status.storage.problem:
            lines.append(f"{host.hostname} is this host: its storage fails, it takes no VM over.")
            continue
        lines.append(f"{host.hostname}: {_compared(host, running, rules)}.")
    if status.bound is not None:
        sentence = if_it_dies(status.bound, running.hostname)
        lines.append(f"{sentence[0].upper()}{sentence[1:]}.")
    lines.append(
        f"If {running.hostname} falls silent for {timing.suspect_after:g} s its peers ask who "
        "owns the lease and whether its power is off."
    )
    return lines + _limits(status, running, timing)


def _compared(host: HostStatus, running: HostStatus, rules: Rules) -> str:
    if host.liveness != "live":
        return f"{host.liveness}, it cannot take the VM"
    if host.host_shutdown:
        return "shutting down, it cannot take the VM"
    if host.maintenance:
        return "in local maintenance, it cannot take the VM"
    if (host.score == 0 or is_cut_off(host)) and (why := cannot(host)):
        return "; ".join(why)
    gap = host.score - running.score
    stands = "equally good"
    if gap:
        stands = f"{abs(gap)} points {'better' if gap > 0 else 'worse'}"
    dwell = f"{rules.timing.move_dwell:g} s"
    return f"{stands}; the VM moves there once it is {rules.move_threshold} better for {dwell}"
