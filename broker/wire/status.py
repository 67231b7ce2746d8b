# SPDX-License-Identifier: LGPL-2.1-or-later
"""What crosses the broker's socket for people and scripts, as JSON: typed on both sides. The shape
of `Status` is documented in docs/status.md and carries a version."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from broker.wire.lacking import LackingStatus
from broker.wire.limits import LASTS_MAX_S, REASON_CHARS_MAX, VMS_MAX
from broker.wire.notify import NotifyStatus
from broker.wire.vms import VmEntry, WithoutPlace
from scoring.observation import OrderKind
from scoring.vm_facts import ENGINE, EngineStatus

STATUS_VERSION = 1


class Decision(Struct, frozen=True, forbid_unknown_fields=True):
    """The right disks where what ran last differs from the definition: those that ran (`adopt`), or
    those of the definition (`keep`)."""

    decision: Annotated[str, Meta(pattern="^(adopt|keep)$")]


class DifferenceStatus(Struct, frozen=True):
    """A fact of the VM on this host that differs from its definition. `code`: a stable
    name, docs/reasons.md; `where`: running (the VM that runs here) or libvirt (libvirt's own
    definition). `recorded`, `found`: empty where the thing does not exist there."""

    code: str
    where: str
    what: str
    recorded: str
    found: str
    text: str


class WhatRanStatus(Struct, frozen=True):
    """The record of the disks that ran last, where they differed from the definition. `by`,
    `by_name`: the host that wrote it; `at`: UTC seconds since 1970 by its clock. `disks`: by
    target, the image that is written to. `held`: why a start would not boot what ran last, with
    what to do; empty: it does. `only`: the host that can all the same, 0: none. `decided`: who
    decided about it."""

    generation: int
    by: int
    by_name: str
    at: float
    disks: dict[str, str]
    held: str
    only: int
    decided: str


class NewOrder(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """An operator's order; fields as in Order. A broker that knows of no VM but the engine refuses
    one about another."""

    kind: OrderKind
    target: Annotated[int, Meta(ge=1, le=2000)] | None = None
    vm: Annotated[int, Meta(ge=1, le=VMS_MAX)] = ENGINE


class OrderStatus(Struct, frozen=True):
    """The state of an order. `state`: waiting, under-way, done, refused or lost (the agent did
    not take it up). `vm`: the number of the VM that it is about."""

    number: int
    kind: OrderKind
    target: int | None
    state: str
    text: str
    vm: int = ENGINE


class PenaltyOnWire(Struct, frozen=True):
    """A part of the points that the score lacks."""

    name: str
    points: int
    why: str


class ReasonOnWire(Struct, frozen=True):
    """A reason of the last decision."""

    code: str
    text: str


class FencePathOnWire(Struct, frozen=True):
    """The result of the last rehearsal of a host's fence device. `proven`, `tried`: UTC seconds
    since 1970, `proven` None: never yet. `took_s`: how long it took, login included."""

    ok: bool
    proven: float | None
    tried: float
    took_s: float
    detail: str = ""


class MeasuredOnWire(Struct, frozen=True):
    """Medians of this host's measurements, seconds, None: nothing yet. `start_s`: a start of the
    VM under its lease; `boot_s`: from then until the engine is healthy."""

    start_s: float | None = None
    boot_s: float | None = None


class Maintenance(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Set or clear a maintenance mode. `for_s`: seconds until it ends by itself, None: never.
    `release_id`: of the local one: once the VM has left, the host's id is given back. `restart`: of
    the local one: a VM that cannot be migrated is stopped, for another host to start it."""

    on: bool
    reason: Annotated[str, Meta(max_length=REASON_CHARS_MAX)] = ""
    for_s: Annotated[int, Meta(ge=1, le=LASTS_MAX_S)] | None = None
    release_id: bool = False
    restart: bool = False


class HostShutdownStatus(Struct, frozen=True):
    """How far this host is drained for its own shutdown. `state`: going; over (it is empty);
    left (the VM is left to libvirt, on purpose); no-agent (no agent can drain it). `within_s`: the
    longest time that it takes."""

    state: str
    text: str
    within_s: float


class CertificateStatus(Struct, frozen=True):
    """A certificate of this host's. `ends`: UTC seconds since 1970, None: not known, `problem` says
    why. `days`: whole days until then when the status was made, negative when it has ended."""

    file: str
    ends: float | None
    days: int | None
    problem: str = ""


class ModeStatus(Struct, frozen=True):
    """A maintenance mode that is set. `since`: UTC seconds since 1970, None when not known;
    `left_s`: until it ends by itself, None when it does not."""

    owner: str
    reason: str
    since: int | None
    left_s: float | None
    ends_soon: bool = False


class WitnessStatus(Struct, frozen=True):
    """What this host sees of another one's life. `whiteboard_age_s`: since its slot changed.
    `heartbeat`: answered, unanswered, not-asked, not-advertised or no-key; `heartbeat_age_s`:
    since the last answered question; `unanswered_s`: since the first unanswered one after that;
    `heartbeat_problem`: why the last unanswered one was; `bad_answers`: how many answers were bad,
    by fault. `heartbeat_trouble`: what is wrong with the network's word though
    its slot is written, as a code; empty: nothing. `port_silent_s`: since the first question that
    its port for heartbeats did not answer, None while it does or there is none; `port_problem`:
    why not. `refused`: how many datagrams from its addresses were not answered, by reason.
    `renewal_age_s`: since its host id's last renewal was first seen;
    `generation`: its host id's."""

    whiteboard_age_s: float | None
    heartbeat: str
    heartbeat_age_s: float | None
    unanswered_s: float | None
    heartbeat_problem: str
    bad_answers: dict[str, int]
    renewal_age_s: float | None
    sanlock_state: str
    generation: int | None
    heartbeat_trouble: str = ""
    port_silent_s: float | None = None
    port_problem: str = ""
    refused: dict[str, int] = {}


class MoveStatus(Struct, frozen=True):
    """A move of the VM that is begun or about to be. `target`: None where the agent found it
    under way. `left_s`: until it is over at the latest, whether it went well or not; None where
    its host named no end."""

    source: int
    target: int | None
    left_s: float | None


class OutsideStatus(Struct, frozen=True):
    """How a host reaches the VM on another one, `owner`, asked as its users do. `good_age_s`: since
    the last well-answered question; `bad_s`: since the first unanswered one after that; None: there
    was none."""

    owner: int
    good_age_s: float | None
    bad_s: float | None


class HostStatus(Struct, frozen=True):
    """One host in `Status`. `liveness`: live, silent or uncertain, the latter also of every other
    host while this one cannot read; `age_s`: since its data last changed, None when that was not
    seen. `unknown`: samples that were not to be had when it was scored. `mode`: its local
    maintenance. `sanlock_state`, `sanlock_age_s`: how its host id stands, and since when its last
    renewal is known. `intent`: what it is about to do, in words; `move`: the same of a move of the
    VM. `witnesses`: None for the host itself. `config_drift`: a sentence for each value that must
    agree across the cluster and that it has otherwise than this host. `left_out`: lines that its
    slot had no room for. `differs`: codes of what of its VM differs from the definition.
    `host_shutdown`: it is shutting down, or has been shut down, in order; "migrate" or "shutdown":
    what becomes of the VM; empty: it is not. `other_storage`: how its word on its own storage
    differs from what is seen here, empty where it does not; `storage_odd`: the same where its word
    is not believed. `memory_image`: an image of the VM's memory (managed save) lies there.
    `outside`: what it sees of the VM on another host, None: nothing. `way_out`: whether its network
    leads anywhere, None: not asked. `uplink_up`: whether a bridge of the VM there leads out, None:
    it does not say. `signature`: what was found of its slot's signature, "" where this host has no
    key to look with. `not_counted`: why its word does not count, "": it does. `fence_ask`: why it
    is to be switched off by its own word, or may be before long; empty: no. `api`: addresses.
    `vms`: how many VMs are up there; `total_mb`: its memory, `free_mb`: what no VM was promised,
    MiB. `engine_only`: there are further VMs, and it starts none of them, since it knows of none.
    `unprotected`: numbers of the VMs that run there without their leases. `registry`: the
    generation of the registry that it knows; 0: it knows none. `stuck`: numbers of the VMs that
    cannot be migrated away from it, so that its drain does not end."""

    host_id: int
    hostname: str
    liveness: str
    score: int
    state: str
    penalties: tuple[PenaltyOnWire, ...]
    reason: str
    engine_status: EngineStatus
    age_s: float | None
    maintenance: bool
    stopped: bool
    local: bool = False
    agent: str = ""
    domain_type: str = ""
    unknown: tuple[str, ...] = ()
    mode: ModeStatus | None = None
    sanlock_state: str = "unknown"
    sanlock_age_s: float | None = None
    intent: str = ""
    move: MoveStatus | None = None
    witnesses: WitnessStatus | None = None
    config_drift: tuple[str, ...] = ()
    left_out: int = 0
    differs: tuple[str, ...] = ()
    host_shutdown: str = ""
    other_storage: str = ""
    storage_odd: str = ""
    memory_image: bool = False
    outside: OutsideStatus | None = None
    way_out: bool | None = None
    uplink_up: bool | None = None
    signature: str = ""
    not_counted: str = ""
    fence_ask: str = ""
    api: tuple[str, ...] = ()
    vms: int | None = None
    free_mb: float | None = None
    total_mb: float | None = None
    engine_only: bool = False
    unprotected: tuple[int, ...] = ()
    registry: int = 0
    stuck: tuple[int, ...] = ()


class EngineSummary(Struct, frozen=True):
    """Where the engine is. `up`: a host that can be heard has it up (`host`, `hostname`); False:
    it runs nowhere, by every host's word or by proof; None: unknown. `healthy`: None: unknown.
    `for_s`: for how long it has been there, or down, or unknown; `health_for_s`: for how long its
    health has not changed. None: unknown; `at_least`, `health_at_least`: the time began before the
    broker looked. `last_up`: the host that had it up last, while it is not up. `known`: while it
    is not up, what is known of it, in words. `likely`: the host where it most likely runs, None:
    none is likelier. `reached`: another host that asks it as its users do has its answer, or had
    it until just now; None: none ever had one in this place. `name`: of the VM, in libvirt."""

    up: bool | None
    healthy: bool | None
    host: int | None = None
    hostname: str | None = None
    for_s: float | None = None
    at_least: bool = False
    health_for_s: float | None = None
    health_at_least: bool = False
    last_up: str | None = None
    known: str = ""
    likely: int | None = None
    reached: bool | None = None
    name: str = ""


class Times(Struct, frozen=True):
    """How long something took since the broker started, in seconds: upper bounds of the buckets
    in which the quantiles lie, and the longest."""

    count: int
    p50_s: float | None
    p99_s: float | None
    max_s: float


class StorageStatus(Struct, frozen=True):
    """The whiteboard as this host sees it. Ages in seconds; `problem` empty when fine. `state`:
    ok, error or hung; `trouble_s`: for how long it has not been ok. `blind`: nothing was read for
    so long that what the other hosts do is not known. `named`: the configuration says which volumes
    they must be. `signed`: this host has a cluster key. `unheard`: this host's slot was not written
    for so long that the others call it silent."""

    whiteboard: str
    last_read_age_s: float | None
    last_write_age_s: float | None
    problem: str = ""
    state: str = "ok"
    trouble_s: float | None = None
    errors: int = 0
    read_times: Times | None = None
    write_times: Times | None = None
    blind: bool = False
    unheard: bool = False
    named: bool = True
    signed: bool = True


class MonitorStatus(Struct, frozen=True):
    """A monitor's latest sample. `verdict`: ok, bad or unknown; `problem`: why it is not ok.
    Ages and durations in seconds."""

    value: bool | float | str | dict[str, float] | None
    unit: str
    age_s: float
    took_s: float
    verdict: str
    problem: str
    interval_s: float


class FenceLogEntry(Struct, frozen=True):
    """A record of the fence log. `step`: intent, dead, failed or back. `at`: UTC seconds since
    1970, by the clock of the host that wrote it. `ordered`: it was switched off by that host,
    not found off. `text`: the evidence, or what went wrong. `signature`: the fault of its
    signature, empty where there is none; the record then counts only while its writer is a host of
    an earlier version."""

    number: int
    step: str
    by: int
    by_name: str
    target: int
    target_name: str
    at: float
    ordered: bool
    text: str
    signature: str = ""


class FencePathStatus(Struct, frozen=True):
    """Whether host `by` could switch host `host` off. Ages in seconds; `proven_age_s` None: it
    was never proven. `took_s`: how long the device took to answer."""

    by: int
    host: int
    ok: bool
    proven_age_s: float | None
    tried_age_s: float
    took_s: float
    detail: str


class StorageFenceStatus(Struct, frozen=True):
    """Whether this host could cut a dead one off the storage, by the last rehearsal. Ages in
    seconds; `proven_age_s` None: it was never proven. `took_s`: how long all questions took."""

    ok: bool
    proven_age_s: float | None
    tried_age_s: float
    took_s: float
    detail: str = ""


class Bound(Struct, frozen=True):
    """How long the VM would be away if its host lost power now, in seconds: the sum of the
    parts, None while the boot was never measured. `by`: what proves the host dead. `held`: why the
    VM would not be started at all, empty: it would; `total_s` is None then, `prove_s` 0."""

    total_s: float | None
    detect_s: float
    prove_s: float
    lease_s: float
    boot_s: float | None
    by: str
    held: str = ""


class MigrationStatus(Struct, frozen=True):
    """How far a live migration away from this host is, by libvirt's figures. Sizes in bytes,
    `elapsed_s` in seconds, `downtime_ms`: how long it will stand still, as libvirt expects."""

    percent: int
    total: int
    remaining: int
    elapsed_s: float
    downtime_ms: int | None


class Status(Struct, frozen=True):
    """The cluster as one host sees it. `bad_slots`: host id -> cause. `global_mode`: the global
    maintenance, None while it is not set. `monitors`: by name. `network`: what is wrong with the
    network's targets, empty when nothing is. `config_problem`: why the present configuration file
    is not in force. `lockspace_budget_s`: how long the storage may stay away before sanlock
    ends the VMs here, of `lockspace_budget_max_s`. `may_run`: numbers of the VMs that run on this
    host, or may, by its own libvirt alone; None: an earlier version's broker, which does not say.
    `beat`: how late beats begin. `fence_log`: its
    newest records, newest first. `switched_off`: why this host was switched off in its last
    boot, None where it was not. `fence_paths`: which host could switch which off. `bound`: how
    long the VM would be away if its host lost power now, None while it runs nowhere. `notify`: the
    counters of the notices. `migration`: of the VM away from this host, None while there is none.
    `config_file_s`: when the configuration file that is in force was changed last, UTC seconds
    since 1970. `state_problem`: why a daemon here cannot write to its state folder.
    `lost_leases`: the leases beside those of VMs that are lost, each in a sentence.
    `registry_problem`: what is wrong with the registry, of which this host knows its copy.
    `differences`: how the VM here differs from its definition. `what_ran`: the record of the
    disks that ran last, None: nothing was ever recorded; `what_ran_problem`: why it is not known,
    or not written. `one_host`: what of the VM lives on this host alone and costs data at a
    takeover. `lacking`: what the cluster was never given.
    `certificates`: of this host. `vms`: all VMs, the engine the first.
    `short`: those that have no place now; `n_plus_1`: those that would have none after the death of
    a host. `vm_bounds`: by number, the bound of each other VM that is up, without the time in which
    it waits for others. `storage_fence`: whether this host could cut a dead one off the storage,
    None: it has no storage fence, or none was rehearsed yet."""

    version: int
    cluster: str
    host_id: int
    engine: EngineSummary
    global_maintenance: bool | None
    hosts: dict[int, HostStatus]
    bad_slots: dict[int, str]
    storage: StorageStatus
    lockspace: str
    reasons: tuple[ReasonOnWire, ...] = ()
    global_mode: ModeStatus | None = None
    monitors: dict[str, MonitorStatus] = {}
    network: str = ""
    config_problem: str = ""
    lockspace_budget_s: float | None = None
    lockspace_budget_max_s: float = 0.0
    may_run: tuple[int, ...] | None = None
    beat: Times | None = None
    fence_log: tuple[FenceLogEntry, ...] = ()
    switched_off: FenceLogEntry | None = None
    fence_paths: tuple[FencePathStatus, ...] = ()
    storage_fence: StorageFenceStatus | None = None
    bound: Bound | None = None
    vm_bounds: dict[int, Bound] = {}
    notify: NotifyStatus = NotifyStatus()
    migration: MigrationStatus | None = None
    config_file_s: float | None = None
    state_problem: str = ""
    registry_problem: str = ""
    lost_leases: tuple[str, ...] = ()
    differences: tuple[DifferenceStatus, ...] = ()
    what_ran: WhatRanStatus | None = None
    what_ran_problem: str = ""
    one_host: tuple[str, ...] = ()
    lacking: LackingStatus = LackingStatus()
    certificates: tuple[CertificateStatus, ...] = ()
    vms: tuple[VmEntry, ...] = ()
    short: tuple[WithoutPlace, ...] = ()
    n_plus_1: tuple[WithoutPlace, ...] = ()
