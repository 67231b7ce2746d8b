# SPDX-License-Identifier: LGPL-2.1-or-later
"""An incident from a journal, told as a scenario (tests/scenarios/README.md).

A journal knows what one host saw, so the story is that host's: who fell silent and whether
its power read off, which VM died, which start failed, who set maintenance. It ends where
the host itself went down. It is a place to begin a test from, with the times kept and the
outcome as its expectation; what another host did unseen has to be added by hand.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from agent.journal.records import Record
from scoring.hosts.liveness import look
from scoring.observation import (
    EngineStartEnded,
    Observation,
    Power,
    PowerAnswer,
    StartResult,
    VmStatus,
)
from scoring.state import Seen

#: What a simulated cluster may take longer than the real one did.
_PATIENCE_S = 60.0


@dataclass(slots=True)
class _Story:
    """What has been told so far."""

    records: Sequence[Record]
    suspect_after_s: float
    seen: dict[int, Seen] = field(default_factory=dict)
    vm_up: set[int] = field(default_factory=set)
    silent: set[int] = field(default_factory=set)
    cut: set[int] = field(default_factory=set)
    starts_fail: bool = False


def scenario(records: Sequence[Record], suspect_after_s: float) -> str:
    """The scenario of these records, which must not be empty."""
    # The story begins with the VM up somewhere, where that is ever seen.
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
        # Alone at first, so that the VM begins where it began.
        lines += [f"power on host{owner}", "expect engine healthy within 200"]
        lines += ["power on others", "wait 60"]
    told_s = first.now_s
    for at_s, line in _events(_Story(records[:until], suspect_after_s)):
        if at_s - told_s >= 0.05:
            lines.append(f"wait {at_s - told_s:.1f}")
            told_s = at_s
        lines.append(line)
    if until < len(records):
        # Who took over, and why, is in the others' journals.
        lines.append(f"power off host{here}")
        lines.append(f"expect engine running within {_PATIENCE_S:.0f}")
        return "\n".join(lines) + "\n"
    lines.append(f"# {last.now_s - told_s:.0f} s later:")
    where = _owner(last.observation)
    if where is not None:
        lines.append(f"expect engine running on host{where} within {_PATIENCE_S:.0f}")
    lines.append(f"expect host{here} in {last.decision['state']} within {_PATIENCE_S:.0f}")
    return "\n".join(lines) + "\n"


def _rebooted(records: Sequence[Record], number: int) -> bool:
    """Whether the host was down between this record and the one before: its clock began anew."""
    return records[number].now_s < records[number - 1].now_s


def _owner(observation: Observation) -> int | None:
    """The host that has the VM up, as this host sees it."""
    if observation.local.engine.vm is VmStatus.UP:
        return observation.local.host_id
    return next((p.host_id for p in observation.peers if p.engine.vm is VmStatus.UP), None)


def _events(story: _Story) -> Iterator[tuple[float, str]]:
    """(when, the verb) of everything that changed from record to record, in order."""
    found: list[tuple[float, str]] = []
    before = story.records[0]
    story.seen = look({}, before.observation.peers, before.now_s)
    story.vm_up = {p.host_id for p in before.observation.peers if p.engine.vm is VmStatus.UP}
    for record in story.records[1:]:
        found += _own_events(story, before, record)
        found += _peer_events(story, record)
        before = record
    yield from sorted(found, key=lambda event: event[0])


def _own_events(story: _Story, before: Record, now: Record) -> Iterator[tuple[float, str]]:
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
    if old.local.engine.vm is VmStatus.UP and new.local.engine.vm is VmStatus.DOWN_UNEXPECTED:
        yield now.now_s, f"kill qemu {here}"
    for outcome in new.outcomes:
        if isinstance(outcome, EngineStartEnded):
            fails = outcome.result is StartResult.FAILED
            if fails != story.starts_fail and outcome.result is not StartResult.LEASE_HELD:
                story.starts_fail = fails
                yield now.now_s, f"set starts {'no' if fails else 'yes'} {here}"


def _peer_events(story: _Story, now: Record) -> Iterator[tuple[float, str]]:
    """A peer fell silent when its timestamp last changed, and came back when it changed again."""
    story.seen = look(story.seen, now.observation.peers, now.now_s)
    for peer in now.observation.peers:
        host, seen = f"host{peer.host_id}", story.seen[peer.host_id]
        if peer.engine.vm is VmStatus.DOWN_UNEXPECTED and peer.host_id in story.vm_up:
            yield now.now_s, f"kill qemu {host}"
        if peer.engine.vm is VmStatus.UP:
            story.vm_up.add(peer.host_id)
        else:
            story.vm_up.discard(peer.host_id)
        is_silent = now.now_s - seen.since_s >= story.suspect_after_s
        if is_silent and seen.changed and peer.host_id not in story.silent:
            story.silent.add(peer.host_id)
            if _read_off(story, peer.host_id, seen.since_s):
                story.cut.add(peer.host_id)
                yield seen.since_s, f"power off {host}"
            else:
                yield seen.since_s, f"storage hangs {host}"
        elif not is_silent and peer.host_id in story.silent:
            story.silent.discard(peer.host_id)
            if peer.host_id in story.cut:
                story.cut.discard(peer.host_id)
                yield seen.since_s, f"power on {host}"
            else:
                yield seen.since_s, f"storage fine {host}"


def _read_off(story: _Story, host_id: int, since_s: float) -> bool:
    """Whether its fence device ever read off after it fell silent."""
    return any(
        isinstance(outcome, PowerAnswer)
        and outcome.host_id == host_id
        and outcome.power is Power.OFF
        for record in story.records
        if record.now_s >= since_s
        for outcome in record.observation.outcomes
    )


def _on(value: bool | None) -> str:
    return "on" if value else "off"
