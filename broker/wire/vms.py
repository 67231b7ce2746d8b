# SPDX-License-Identifier: LGPL-2.1-or-later
"""The protected VMs in the status: each one, and which of them have no place."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from msgspec import Meta, Struct

from broker.wire.limits import VMS_MAX

VmNumber = Annotated[int, Meta(ge=1, le=VMS_MAX)]


class VmWord(StrEnum):
    """How a VM stands, in a word.

    UP: it runs; its health is a field of its own. BOOTING: it was started, and was not healthy yet.
    MOVING: it is being migrated. STOPPING: it is being stopped. STARTING: a host is about to start
    it. WAITING: it runs nowhere, and is to be started. NO_PLACE: the same, and no host has the
    room. OFF: it runs nowhere, as an administrator wants it. UNKNOWN: it may run.
    """

    UP = "up"
    BOOTING = "booting"
    MOVING = "moving"
    STOPPING = "stopping"
    STARTING = "starting"
    WAITING = "waiting"
    NO_PLACE = "no-place"
    OFF = "off"
    UNKNOWN = "unknown"


class VmEntry(Struct, frozen=True):
    """One VM in the status. `want`: up or down, as an administrator wants it. `memory_mb`: what it
    takes of a host, MiB. `up`, `healthy` None: unknown. `host`: where it is up, or is about to be.
    `for_s`: how long it has been there, or not up, or unknown; `at_least`: since before the broker
    looked. `reason`: why it is not up and healthy, or what is about to happen; empty: nothing to
    say. `target`: the host that it is being migrated to. `barred`: by host id, how many seconds
    that host does not try to start it again. `refused`: why this host cannot start it as it is
    defined; empty: it can. `order`: the hosts that may take it, the first one first: now, while it
    is missing, else after the death of its host. `differs`: in what it runs unlike its definition,
    as reason codes; `differences`: each in a sentence, where it runs on this host. `after`,
    `apart`, `together`: numbers of VMs; `only`, `prefer`: host ids, as the registry has them.
    `stays`: it is to leave this host, and cannot, or not now; `reason` has the cause."""

    number: int
    name: str
    priority: int
    want: str
    memory_mb: int
    state: VmWord
    up: bool | None
    healthy: bool | None
    host: int | None = None
    hostname: str | None = None
    for_s: float | None = None
    at_least: bool = False
    reason: str = ""
    target: int | None = None
    barred: dict[int, float] = {}
    refused: str = ""
    order: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    apart: tuple[int, ...] = ()
    together: tuple[int, ...] = ()
    only: tuple[int, ...] = ()
    prefer: tuple[int, ...] = ()
    differs: tuple[str, ...] = ()
    differences: tuple[str, ...] = ()
    stays: bool = False


class WithoutPlace(Struct, frozen=True):
    """A VM that has no place. `if_dies`, `if_dies_name`: the host after whose death it would have
    none; None: it has none now. `needs_mb`, `short_mb`: MiB; `largest`: the host that comes
    closest, with `has_mb` free, None: no host may run it. `text`: all of it in a sentence."""

    vm: int
    name: str
    needs_mb: int
    short_mb: int
    largest: int | None
    has_mb: int
    text: str
    if_dies: int | None = None
    if_dies_name: str = ""


class Room(Struct, frozen=True):
    """What would be without a place if the registry had a VM as it is asked about, and is not
    already: now, and after a host's death. `known`: this host sees enough to say so."""

    known: bool
    short: tuple[WithoutPlace, ...] = ()
    n_plus_1: tuple[WithoutPlace, ...] = ()


class VmList(Struct, frozen=True):
    """All VMs. `version`: of the status."""

    version: int
    vms: tuple[VmEntry, ...]
    short: tuple[WithoutPlace, ...] = ()
    n_plus_1: tuple[WithoutPlace, ...] = ()
