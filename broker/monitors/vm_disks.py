# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whether a VM of the registry that runs here still is as its definition says: its disks above all.

A snapshot, a block job or a hot-plugged disk changes the running VM and not its record: a start
elsewhere would boot an old disk. So what runs is compared, every LOOK_EVERY_S, in a thread and over
a connection of its own: a VM that hangs holds up no sample of another.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

import libvirt

from broker.daemon.foreign import sentence
from broker.daemon.worker import Hung, Worker
from broker.vm import domain_facts
from broker.vm.domain_facts import Difference, Differs
from broker.vm.errors import BadDomain
from broker.whiteboard.vm_lines import Differing

LOOK_EVERY_S = 1.0
DEADLINE_S = 3.0


@dataclass(frozen=True, slots=True)
class Asked:
    """A VM that is up here: its UUID, and the definition that the registry has of it, whose
    generation there is `generation`."""

    uuid: str
    definition: str
    generation: int


@dataclass(frozen=True, slots=True)
class Compared:
    """`disks`: why a start would boot other disks, "": it would not. `differences`: all of them."""

    disks: str = ""
    differences: tuple[Difference, ...] = ()


class DisksLook:
    """By number, the VMs whose disks differ (`found`), and all in which a VM differs (`unlike`). A
    VM that could not be looked at stays as it was, and one that was not asked for is in neither."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._worker = Worker("the disks of VMs")
        self._connection: libvirt.virConnect | None = None
        self._task: asyncio.Task[None] | None = None
        self._looked_s = float("-inf")
        #: By number, the texts that were compared last, and in what they differ.
        self._compared: dict[int, tuple[tuple[str, str], Compared]] = {}
        self.found: dict[int, Differing] = {}
        self.unlike: dict[int, tuple[Difference, ...]] = {}

    def look(self, asked: Mapping[int, Asked], now_s: float) -> asyncio.Task[None] | None:
        """Begin a look, where none is under way and one is due."""
        self.found = {number: each for number, each in self.found.items() if number in asked}
        self.unlike = {number: each for number, each in self.unlike.items() if number in asked}
        if self._task is not None and not self._task.done():
            return None
        if not asked or now_s - self._looked_s < LOOK_EVERY_S:
            return None
        self._looked_s = now_s
        self._task = asyncio.create_task(self._compare(dict(asked)), name="disks of VMs")
        return self._task

    async def _compare(self, asked: Mapping[int, Asked]) -> None:
        try:
            differences = await self._worker.call(
                "comparing what VMs run with", DEADLINE_S, lambda: self._differences(asked)
            )
        except (Hung, libvirt.libvirtError):
            return
        for number, each in asked.items():
            if (compared := differences.get(number)) is None:
                continue
            self.unlike[number] = compared.differences
            if compared.disks:
                self.found[number] = Differing(each.generation, compared.disks)
            else:
                self.found.pop(number, None)

    # --- in the thread ----------------------------------------------------------------------

    def _differences(self, asked: Mapping[int, Asked]) -> dict[int, Compared]:
        """In what each VM that runs differs; texts as they were are not read again."""
        before, self._compared = self._compared, {}
        for number, xml in self._texts(asked).items():
            texts = (asked[number].definition, xml)
            known = before.get(number)
            found = known[1] if known is not None and known[0] == texts else _compared(*texts)
            self._compared[number] = (texts, found)
        return {number: found for number, (_, found) in self._compared.items()}

    def _texts(self, asked: Mapping[int, Asked]) -> dict[int, str]:
        """libvirt's XML of each VM that runs."""
        found = {}
        try:
            if self._connection is None:
                self._connection = libvirt.open(self._uri)
            # One question for all of them, not two for each.
            running = self._connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE)
            domains = {domain.UUIDString(): domain for domain in running}
            for number, each in asked.items():
                if (domain := domains.get(each.uuid)) is None:
                    continue
                try:
                    found[number] = domain.XMLDesc(0)
                except libvirt.libvirtError as error:
                    if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                        raise
        except libvirt.libvirtError:
            if self._connection is not None:
                self._connection.close()
                self._connection = None
            raise
        return found


def _compared(definition: str, running: str) -> Compared:
    """In what a VM that runs differs from its definition."""
    try:
        recorded, found = domain_facts.read(definition), domain_facts.read(running)
    except BadDomain as error:
        why = f"what it runs with cannot be compared with its definition: {sentence(error)}"
        return Compared(why)
    differing = domain_facts.differences(recorded, found)
    disks = "; ".join(str(each) for each in differing if each.code is Differs.DISKS)
    return Compared(disks, differing)
