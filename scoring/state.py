# SPDX-License-Identifier: LGPL-2.1-or-later
"""The agent's memory from one beat to the next: its rules, the hosts, and each VM.

`decide` has no memory of its own: it gets this value and returns the next one. So a journal that
holds it can be replayed, and an agent that is restarted begins with an empty one and learns again.
What concerns a host is kept once, in `host`, however many VMs there are.
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
    """`AgentState(rules)` is the first one. `host`: what is known of the hosts; `vms`: each VM by
    its number."""

    rules: Rules = field(default_factory=Rules)
    host: HostState = field(default_factory=HostState)
    vms: Mapping[int, VmState] = field(default_factory=lambda: {ENGINE: VmState()})

    @property
    def claims(self) -> tuple[Claim, ...]:
        """The room that this host has spoken for; what its slot says."""
        return tuple(vm.held.claim for vm in self.vms.values() if vm.held is not None)

    @property
    def engine(self) -> VmState:
        """VM 1, which is published as the reference's engine."""
        return self.vms[ENGINE]
