# SPDX-License-Identifier: LGPL-2.1-or-later
"""Writes an incident of a journal as a scenario (tests/scenarios/README.md).

A journal holds what one host saw, so the scenario is that host's view: which host fell silent and
whether its power read off, which VM died, which start failed, who set maintenance. The VMs of the
registry are in it by their names, with what was wanted of each. It ends where the host itself went
down. It is the beginning of a test, with the recorded times and with the
outcome as its expectation; what another host did unseen has to be added by hand.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from agent.journal.records import Record
from scoring.hosts.liveness import look
from scoring.hosts.state import Seen
from scoring.observation import (
    FenceRecord,
    FenceStep,
    Observation,
    Outcome,
    Power,
    PowerAnswer,
    StartResult,
    VmStartEnded,
)
from scoring.vm_facts import ENGINE, ORDINARY_PAGES_KB, VmSpec, VmStatus

#: How much longer a simulated cluster may take than the real one did.
_PATIENCE_S = 60.0

#: Ends of a start that say nothing of whether starts succeed on that host.
_KEPT_OUT = frozenset({StartResult.LEASE_HELD, StartResult.IMAGE_LOCKED})


@dataclass(slots=True)
class _Script:
    """The events written so far."""

    records: Sequence[Record]
    suspect_after_s: float
    seen: dict[int, Seen] = field(default_factory=dict)
    vm_up: set[int] = field(default_factory=set)
    #: (VM number, host id) of the VMs of the registry that are up, by the word of each host.
    vms_up: set[tuple[int, int]] = field(default_factory=set)
    #: (VM number, host id) of those whose last start there failed.
    fails: set[tuple[int, int]] = field(default_factory=set)
    silent: set[int] = field(default_factory=set)
    cut: set[int] = field(default_factory=set)
    starts_fail: bool = False


def scenario(records: Sequence[Record], suspect_after_s: float) -> str:
    """The scenario of these records, of which there must be at least one."""
    # The scenario begins with the VM up somewhere, if the journal shows that at all.
    begin = next((n for n, r in enumerate(records) if _owner(r.observation) is not None), 0)
    records = records[begin:]
    until = next((n for n in range(1, len(records)) if _rebooted(records, n)), len(records))
    first, last = records[0], records[until - 1]
    here = first.observation.local.host_id
    hosts = max([here, *(peer.host_id for peer in last.observation.peers)])
    owner = _owner(first.observation)
    fence = "yes" if any(r.observation.fence_devices for r in records) else "no"
    lines = [
        f"# What host{here} saw and decided, from its journal.",
        f"hosts {hosts} fence {fence} power off",
    ]
    if owner is None:
        lines += ["power on all", "expect engine healthy within 200", "wait 30"]
    else:
        # This host is powered on alone at first, so that the VM begins where it began.
        lines += [f"power on host{owner}", "expect engine healthy within 200"]
        lines += ["power on others", "wait 60"]
    lines += _vms_at_first(first.observation, hosts)
    written_s = first.now_s
    for at_s, line in _events(_Script(records[:until], suspect_after_s)):
        if at_s - written_s >= 0.05:
            lines.append(f"wait {at_s - written_s:.1f}")
            written_s = at_s
        lines.append(line)
    if until < len(records):
        # The takeover, and its reason, are in the other hosts' journals.
        lines.append(f"power off host{here}")
        lines.append(f"expect engine running within {_PATIENCE_S:.0f}")
        return "\n".join(lines) + "\n"
    lines.append(f"# {last.now_s - written_s:.0f} s later:")
    where = _owner(last.observation)
    if where is not None:
        lines.append(f"expect engine running on host{where} within {_PATIENCE_S:.0f}")
    for n, hosts_of_vm in sorted(_vms_up(last.observation).items()):
        if hosts_of_vm and (name := _names(last.observation).get(n)):
            lines.append(f"expect vm {name} running within {_PATIENCE_S:.0f}")
    lines.append(f"expect host{here} in {last.decision['state']} within {_PATIENCE_S:.0f}")
    return "\n".join(lines) + "\n"


def _rebooted(records: Sequence[Record], number: int) -> bool:
    """Whether the host was down between this record and the one before: its clock restarted."""
    return records[number].now_s < records[number - 1].now_s


def _owner(observation: Observation) -> int | None:
    """The host that has the VM up, as this host sees it."""
    if observation.local.engine.report.vm is VmStatus.UP:
        return observation.local.host_id
    return next((p.host_id for p in observation.peers if p.engine.report.vm is VmStatus.UP), None)


# --- the VMs of the registry ----------------------------------------------------------------------


def _specs(observation: Observation) -> dict[int, VmSpec]:
    """The VMs of the registry, without the engine."""
    return {spec.number: spec for spec in observation.specs if spec.number != ENGINE}


def _names(observation: Observation) -> dict[int, str]:
    return {number: spec.name for number, spec in _specs(observation).items()}


def _vms_up(observation: Observation) -> dict[int, set[int]]:
    """By VM number the hosts that have it up, as this host sees it."""
    found: dict[int, set[int]] = {}
    for number, status, host_id in _words(observation):
        if status is VmStatus.UP:
            found.setdefault(number, set()).add(host_id)
    return found


def _words(observation: Observation) -> Iterator[tuple[int, VmStatus, int]]:
    """(VM number, how it stands, host id) by the word of each host, without the engine."""
    local = observation.local
    for vm in local.vms:
        if vm.number != ENGINE:
            yield vm.number, vm.report.vm, local.host_id
    for peer in observation.peers:
        for number, word in peer.vms.items():
            if number != ENGINE:
                yield number, word.report.vm, peer.host_id


def _vms_at_first(observation: Observation, hosts: int) -> Iterator[str]:
    """The registry as it was when the incident began, and each VM where it was."""
    specs = _specs(observation)
    if not specs:
        return
    memory = {observation.local.host_id: observation.local.total_mb}
    memory |= {peer.host_id: peer.total_mb for peer in observation.peers}
    # A rule names VMs that must have been named before: so all of them come first, wanted down.
    yield from (_begun(spec) for spec in specs.values())
    for host_id, total_mb in sorted(memory.items()):
        if total_mb and host_id <= hosts:
            yield f"set memory {total_mb:.0f} host{host_id}"
    up = _vms_up(observation)
    for number, spec in specs.items():
        yield from _rules(spec, specs, min(up.get(number, ()), default=None))
    for number, spec in specs.items():
        if number in up:
            yield f"expect vm {spec.name} running within 200"


def _begun(spec: VmSpec) -> str:
    pages = "" if spec.pages_kb == ORDINARY_PAGES_KB else f" pages {spec.pages_kb}"
    return f"vm {spec.name} memory {spec.memory_mb}{pages} priority {spec.priority} want down"


def _rules(spec: VmSpec, specs: Mapping[int, VmSpec], host_id: int | None) -> Iterator[str]:
    """What is wanted of a VM. `host_id`: where it was; it prefers that host if it prefers none, so
    that it begins there."""
    words = []
    for key in ("after", "apart", "together"):
        named = [specs[number].name for number in getattr(spec, key) if number in specs]
        words += [key, *named] if named else []
    prefer = spec.prefer or (() if host_id is None else (host_id,))
    for key, ids in (("only", spec.only), ("prefer", prefer)):
        words += [key, *(f"host{each}" for each in ids)] if ids else []
    words += [key for key in ("failback", "overcommit") if getattr(spec, key)]
    yield " ".join(["vm", spec.name, *words, "want", spec.want.value])


def _vm_events(script: _Script, before: Record, now: Record) -> Iterator[tuple[float, str]]:
    """What became of the VMs of the registry, and what an administrator wanted of them."""
    old, new = _specs(before.observation), _specs(now.observation)
    for number, spec in new.items():
        if number not in old:
            yield now.now_s, _begun(spec)
        if number not in old or old[number].want is not spec.want:
            yield from ((now.now_s, line) for line in _rules(spec, new, None))
    for number in old.keys() - new.keys():
        yield now.now_s, f"vm {old[number].name} removed"
    for number, status, host_id in _words(now.observation):
        there = (number, host_id)
        if status is VmStatus.DOWN_UNEXPECTED and there in script.vms_up and number in new:
            yield now.now_s, f"kill qemu {new[number].name}"
        if status is VmStatus.UP:
            script.vms_up.add(there)
        else:
            script.vms_up.discard(there)
    here = now.observation.local.host_id
    for outcome in now.observation.outcomes:
        if isinstance(outcome, VmStartEnded) and outcome.vm in new:
            there = (outcome.vm, here)
            fails = outcome.result is StartResult.FAILED
            if fails != (there in script.fails) and outcome.result not in _KEPT_OUT:
                script.fails ^= {there}
                how = "no" if fails else "yes"
                yield now.now_s, f"vm {new[outcome.vm].name} starts {how} host{here}"


# --- what happened --------------------------------------------------------------------------------


def _events(script: _Script) -> Iterator[tuple[float, str]]:
    """(time, verb) of every change from record to record, in order."""
    found: list[tuple[float, str]] = []
    before = script.records[0]
    script.seen = look({}, before.observation.peers, before.now_s)
    peers = before.observation.peers
    script.vm_up = {peer.host_id for peer in peers if peer.engine.report.vm is VmStatus.UP}
    script.vms_up = {(vm, h) for vm, hosts in _vms_up(before.observation).items() for h in hosts}
    for record in script.records[1:]:
        found += _vm_events(script, before, record)
        found += _own_events(script, before, record)
        found += _peer_events(script, record)
        before = record
    yield from sorted(found, key=lambda event: event[0])


def _own_events(script: _Script, before: Record, now: Record) -> Iterator[tuple[float, str]]:
    old, new = before.observation, now.observation
    here = f"host{new.local.host_id}"
    modes = (old.global_maintenance, new.global_maintenance)
    if None not in modes and modes[0] != modes[1]:
        yield now.now_s, f"maintenance global {_on(new.global_maintenance)}"
    if old.local.maintenance != new.local.maintenance:
        yield now.now_s, f"maintenance local {_on(new.local.maintenance)} {here}"
    if (old.storage_good_since_s is None) != (new.storage_good_since_s is None):
        word = "fails" if new.storage_good_since_s is None else "fine"
        yield now.now_s, f"storage {word} {here}"
    was, now_is = old.local.engine.report.vm, new.local.engine.report.vm
    if was is VmStatus.UP and now_is is VmStatus.DOWN_UNEXPECTED:
        yield now.now_s, f"kill qemu {here}"
    for outcome in new.outcomes:
        if isinstance(outcome, VmStartEnded) and outcome.vm == ENGINE:
            fails = outcome.result is StartResult.FAILED
            if fails != script.starts_fail and outcome.result not in _KEPT_OUT:
                script.starts_fail = fails
                yield now.now_s, f"set starts {'no' if fails else 'yes'} {here}"


def _peer_events(script: _Script, now: Record) -> Iterator[tuple[float, str]]:
    """A peer fell silent when its timestamp last changed, and came back when it changed again."""
    script.seen = look(script.seen, now.observation.peers, now.now_s)
    for peer in now.observation.peers:
        host, seen = f"host{peer.host_id}", script.seen[peer.host_id]
        if peer.engine.report.vm is VmStatus.DOWN_UNEXPECTED and peer.host_id in script.vm_up:
            yield now.now_s, f"kill qemu {host}"
        if peer.engine.report.vm is VmStatus.UP:
            script.vm_up.add(peer.host_id)
        else:
            script.vm_up.discard(peer.host_id)
        is_silent = now.now_s - seen.since_s >= script.suspect_after_s
        if is_silent and seen.changed and peer.host_id not in script.silent:
            script.silent.add(peer.host_id)
            if _read_off(script, peer.host_id, seen.since_s):
                script.cut.add(peer.host_id)
                yield seen.since_s, f"power off {host}"
            else:
                yield seen.since_s, f"storage hangs {host}"
        elif not is_silent and peer.host_id in script.silent:
            script.silent.discard(peer.host_id)
            if peer.host_id in script.cut:
                script.cut.discard(peer.host_id)
                yield seen.since_s, f"power on {host}"
            else:
                yield seen.since_s, f"storage fine {host}"


def _read_off(script: _Script, host_id: int, since_s: float) -> bool:
    """Whether the host read off at any time after it fell silent: by this host's own question, or
    by what another host wrote into the fence log since."""
    earlier: set[int] = set()
    for record in script.records:
        log = record.observation.fence_log or ()
        if record.now_s < since_s:
            earlier |= {each.number for each in log}
            continue
        proved = any(_says_off(each, host_id) and each.number not in earlier for each in log)
        if proved or any(_answers_off(each, host_id) for each in record.observation.outcomes):
            return True
    return False


def _answers_off(outcome: Outcome, host_id: int) -> bool:
    if not isinstance(outcome, PowerAnswer):
        return False
    return outcome.host_id == host_id and outcome.power is Power.OFF


def _says_off(record: FenceRecord, host_id: int) -> bool:
    return record.target == host_id and record.step in (FenceStep.FREEING, FenceStep.DEAD)


def _on(value: bool | None) -> str:
    return "on" if value else "off"
