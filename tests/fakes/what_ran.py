# SPDX-License-Identifier: LGPL-2.1-or-later
"""Records of what ran last, and a host that keeps them."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from broker.config.cluster_key import ClusterKey
from broker.this_host.disks_record import DisksRecord
from broker.vm.domain_facts import Domain, Layer, parse, read
from broker.vm.in_use import InUse
from broker.whiteboard import what_ran
from broker.whiteboard.board import Board
from broker.whiteboard.signatures import Signatures
from broker.wire.what_ran import WhatRan
from tests.fakes.definitions import BASE, OVERLAY, domain
from tests.fakes.slot_store import MemoryStore, MemoryVolume

Shared = Callable[[Layer], bool]


def running(xml: str, before: WhatRan | None = None, shared: Shared = bool) -> WhatRan:
    """What host 1 would record of a VM that runs like this; the definition names BASE."""
    return what_ran.of_running(read(domain()), read(xml), parse(xml), shared, before, 1, "host1")


def stamped(generation: int = 1, last_ran: int = 1, xml: str = "") -> WhatRan:
    ran = running(xml or domain(OVERLAY, BASE))
    return msgspec.structs.replace(ran, generation=generation, last_ran=last_ran)


class Host:
    """One host's board and record on a shared volume."""

    def __init__(self, volume: MemoryVolume, number: int, key: ClusterKey | None = None) -> None:
        self.store = MemoryStore(volume)
        self.board = Board(self.store, number, signatures=Signatures(key))
        self.record = DisksRecord(self.board, number, f"host{number}", lambda: 7.0)
        self.runs("")

    def runs(self, xml: str, shared: Shared = bool, definition: str = "") -> None:
        recorded = read(definition or domain())
        found: Domain | None = read(xml) if xml else None
        layers = set() if found is None else {x for d in found.disks.values() for x in d.chain}
        use = InUse(recorded, found, parse(xml) if xml else None, frozenset(filter(shared, layers)))
        self.record.in_use = lambda: use

    async def beat(self, owns: bool = False, last_ran: int = 1) -> None:
        await self.board.read(1.0)
        await self.record.look(owns, last_ran)
