# SPDX-License-Identifier: LGPL-2.1-or-later
"""Finds what the other hosts do with the VMs beside the engine, by their slots. Pure.

A failover of such a VM happens on other hosts than the one on which somebody asks for the events.
So each host compares what the others publish of every VM, as it does for the engine.

Rules of this file:

1. What a host publishes first is no news, nor what it publishes first after a boot: what ran there
   before has ended with the host.
2. A state that is not known (the agent is away, or the VM was not sampled) changes nothing; the
   next known one is compared with the last known one.
3. A VM that a whole slot does not list is down there (broker/whiteboard/vm_lines.py, rule 1).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from broker.this_host.causes import line_key
from broker.whiteboard import vm_lines
from broker.whiteboard.lines import is_agent_away
from broker.whiteboard.slot import SlotReport
from scoring.vm.seen import SPEAKS_SEVERAL
from scoring.vm.state import StateName
from scoring.vm_facts import PeerVm, VmStatus

BOOT_ID = "boot-id"
_DOWN = str(StateName.ENGINE_DOWN)


class Transition(NamedTuple):
    """The machine of VM `number` has changed its state. `why`: what led to that by its host's word;
    empty where it does not say, or had no room for it."""

    number: int
    before: str
    state: str
    why: str


class _Known(NamedTuple):
    """What is known of a host: its boot, its lines about VMs, and the last known state of each VM
    that is not down there; "": it was never known since this boot."""

    boot_id: str
    lines: tuple[str | None, ...]
    states: Mapping[int, str]


class PeerVms:
    """Remembers each host's last known states of the VMs."""

    def __init__(self) -> None:
        self._known: dict[int, _Known] = {}

    def forget(self, host_id: int) -> None:
        """The host has no slot any more."""
        self._known.pop(host_id, None)

    def look(self, report: SlotReport) -> Iterator[Transition]:
        """Take in a host's slot, and yield what has changed."""
        if not report.extra_trusted:
            return
        extra, host_id = report.extra, report.host_id
        is_away = is_agent_away(extra)
        known, boot_id = self._known.get(host_id), extra.get(BOOT_ID, "")
        lines = (*vm_lines.state_lines(extra), "away" if is_away else "")
        if known is not None and (known.boot_id, known.lines) == (boot_id, lines):
            return
        found = vm_lines.decode(extra, host_id, None, is_away)
        is_whole = found.speaks >= SPEAKS_SEVERAL
        if known is None or known.boot_id != boot_id:
            if is_whole:
                states = {number: _state(vm) for number, vm in found.vms.items()}
                self._known[host_id] = _Known(boot_id, lines, states)
            return
        states = dict(known.states)
        for number in sorted(known.states.keys() | found.vms.keys()):
            vm = found.vms.get(number)
            state = _state(vm) if vm is not None else _DOWN if is_whole else ""
            before = known.states.get(number, _DOWN)
            states[number] = state or before
            if before and state not in ("", before):
                why = "" if vm is None else vm.report.reason or ""
                yield Transition(number, before, state, extra.get(line_key(number), why))
        self._known[host_id] = _Known(
            boot_id, lines, {number: state for number, state in states.items() if state != _DOWN}
        )


def _state(vm: PeerVm) -> str:
    return "" if vm.report.vm is VmStatus.UNKNOWN else str(vm.state)
