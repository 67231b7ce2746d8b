# SPDX-License-Identifier: LGPL-2.1-or-later
"""What broker and agent of one host send each other each beat, as JSON: the view goes to the agent,
its report back."""

from __future__ import annotations

from msgspec import Struct

from broker.wire.hosts import LocalOnWire, PeerOnWire
from broker.wire.status import FencePathOnWire, MeasuredOnWire, PenaltyOnWire, ReasonOnWire
from broker.wire.what_ran import WhatRan
from scoring.observation import FenceRecord, FenceStep, Observation, Order
from scoring.vm.state import OrderAnswer
from scoring.vm_facts import ENGINE, Claim, VmSpec


class View(Struct, frozen=True):
    """Everything the broker knows that a decision needs; fields as in scoring.Observation.

    `version` grows whenever there is something new to decide on. `system_uuids`: the machine's UUID
    that each peer published, lower case. `told_beat`: the `beat` of the agent's report that this
    host's slot on the storage holds, 0: none yet; None: an earlier broker, which does not say.
    `log_is_written`: a record of the fence log is under way. `announced`: see Observation.
    `specs`: the VMs of the registry; `registry`: its generation that is known here; `damaged`: by
    VM number, why it cannot be started on this host. `own_claims`: those that stood in this host's
    own slot when `sweep` read it.
    """

    version: int
    local: LocalOnWire
    peers: tuple[PeerOnWire, ...]
    storage_good_since_s: float | None
    sweep: int
    global_maintenance: bool | None
    newer_versions: tuple[int, ...]
    lockspace_joined: bool | None
    system_uuids: dict[int, str]
    hostnames: dict[int, str]
    fence_log: tuple[FenceRecord, ...] | None = None
    order: Order | None = None
    told_beat: int | None = None
    what_ran: WhatRan | None = None
    unsure: tuple[int, ...] = ()
    log_is_written: bool = False
    announced: int | None = None
    specs: tuple[VmSpec, ...] = ()
    registry: int = 0
    damaged: dict[int, str] = {}
    own_claims: tuple[Claim, ...] = ()

    def observed(self) -> Observation:
        """The observation that a decision takes. The agent adds what it alone knows."""
        return Observation(
            local=self.local.observed(),
            peers=tuple([peer.observed() for peer in self.peers]),
            storage_good_since_s=self.storage_good_since_s,
            sweep=self.sweep,
            global_maintenance=self.global_maintenance,
            newer_versions=self.newer_versions,
            lockspace_joined=self.lockspace_joined,
            fence_log=self.fence_log,
            order=self.order,
            unsure=self.unsure,
            announced=self.announced,
            specs=self.specs,
            registry=self.registry,
            own_claims=self.own_claims,
        )


class FenceNote(Struct, frozen=True, forbid_unknown_fields=True):
    """A record that the agent wants in the fence log; fields as in FenceRecord. `text`: the
    evidence, or what went wrong. `over`: of a FREEING, why it came to nothing; "": it begins.
    `only_closes`: write it only where this host's FREEING of that id is still the newest.
    `withdrawn`: of a FAILED, no order was given."""

    step: FenceStep
    target: int
    ordered: bool = False
    text: str = ""
    over: str = ""
    only_closes: bool = False
    withdrawn: bool = False


class BegunReason(Struct, frozen=True):
    """A reason of a decision that the decision before did not have. `beat`: of the decision; `vm`:
    see Reason."""

    beat: int
    code: str
    text: str
    vm: int = 1


class LeaseSeen(Struct, frozen=True):
    """The owner of a VM's lease, as the agent last found it, at `asked_s` of this host's
    monotonic clock. `owner`: a host id, None: nobody; `gone`: the holder of the lease is gone."""

    owner: int | None
    gone: bool
    asked_s: float


class VmReportOnWire(Struct, frozen=True):
    """What the agent reports of a protected VM beside the engine. `state`: of its machine for it,
    one of StateName; `last_ran`: see PeerVm; `retries`: failed starts that count. `moving_to`: the
    host that it is being migrated to, until `moving_until_s` at the latest; `given_up_since_s`: see
    VmState; `barred_until_s`: it
    failed to start here, and is not tried again before; both by this host's monotonic clock.
    `lease`: None: there was no answer. `intent`: what is about to be done with it, in words; empty:
    nothing."""

    number: int
    state: str
    last_ran: int = 0
    retries: int = 0
    moving_to: int | None = None
    moving_until_s: float | None = None
    barred_until_s: float | None = None
    reasons: tuple[ReasonOnWire, ...] = ()
    lease: LeaseSeen | None = None
    intent: str = ""
    given_up_since_s: float | None = None


class PlanOnWire(Struct, frozen=True):
    """Where missing VMs go, by this agent's last decision. `order`: by VM number, the hosts that
    may start it, the first one first; `short`: by VM number, how many MiB it is short of on the
    host that has most."""

    order: dict[int, tuple[int, ...]] = {}
    short: dict[int, int] = {}


class Report(Struct, frozen=True):
    """What the agent reports for publication. `unknown`: samples that the score lacks.
    `config_problem`: why the present configuration file is not in force. `state_problem`: why the
    agent cannot write to its state folder. `intent`: what it is about to do to another host or with
    the VM, in words; empty: nothing. `moving_until_s`: when the move of the VM is over at the
    latest, by this host's monotonic clock. `fence_paths`: by host id, this host's own among them.
    `answers`: to the operator's last orders. `begun`: reasons that came up since the last report
    that arrived, so that no short one is missed. `lease`: None: there was no
    answer. `freeing`: the host whose id a process of the agent frees, or is about to free;
    `freeing_fencer`: that host owns the fence lease, so that it is done without that lease.
    `unstopped_since_s`: this host asks to be switched off, for its sick VM, number `unstopped_vm`,
    could not be ended since then (None: it does not ask). `given_up_since_s`: see VmState. `vms`:
    the VMs beside the engine that have a machine here; `claims`: what it is about to bring to a
    host; `plan`: None: no VM is missing. `host_score`: see PeerReport. `watched`: see Decision.
    `vm_memory_mb`: what the engine takes of a host by its definition, in MiB (0: unknown)."""

    score: int
    state: str
    penalties: tuple[PenaltyOnWire, ...]
    reasons: tuple[ReasonOnWire, ...]
    last_ran: int
    stopped: bool = False
    beat: int = 0
    domain_type: str = ""
    unknown: tuple[str, ...] = ()
    config_problem: str = ""
    intent: str = ""
    moving_until_s: float | None = None
    fence_paths: dict[int, FencePathOnWire] = {}
    storage_fence: FencePathOnWire | None = None
    measured: MeasuredOnWire = MeasuredOnWire()
    begun: tuple[BegunReason, ...] = ()
    answers: tuple[OrderAnswer, ...] = ()
    state_problem: str = ""
    lease: LeaseSeen | None = None
    freeing: int | None = None
    freeing_fencer: bool = False
    unstopped_since_s: float | None = None
    given_up_since_s: float | None = None
    vms: tuple[VmReportOnWire, ...] = ()
    claims: tuple[Claim, ...] = ()
    plan: PlanOnWire | None = None
    host_score: int | None = None
    watched: tuple[int, ...] = ()
    vm_memory_mb: float = 0.0
    unstopped_vm: int = ENGINE
