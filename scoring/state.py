# SPDX-License-Identifier: LGPL-2.1-or-later
"""The agent's memory from one beat to the next: its rules, the hosts, and each VM.

`decide` keeps nothing itself: it gets this memory and returns the next one. So a journal that
records it can be replayed, and an agent that is restarted begins with an empty memory and learns
again. Facts about a host are kept once, in `host`, however many VMs there are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from scoring.hosts.state import HostState
from scoring.rules import Rules
from scoring.vm.state import VmState
from scoring.vm_facts import ENGINE, Claim


@dataclass(frozen=True, slots=True)
class AgentState:
    """`AgentState(rules)` is the memory of an agent that has just started. `host`: the memory about
    all hosts; `vms`: the memory about each VM, by its number."""

    rules: Rules = field(default_factory=Rules)
    host: HostState = field(default_factory=HostState)
    vms: Mapping[int, VmState] = field(default_factory=lambda: {ENGINE: VmState()})

    @property
    def claims(self) -> tuple[Claim, ...]:
        """This host's own claims on memory, which its slot publishes."""
        return tuple(vm.held.claim for vm in self.vms.values() if vm.held is not None)

    @property
    def engine(self) -> VmState:
        """VM 1, which is published as the reference's engine."""
        return self.vms[ENGINE]
