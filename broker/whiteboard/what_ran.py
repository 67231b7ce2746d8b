# SPDX-License-Identifier: LGPL-2.1-or-later
"""What ran last: the disks of the VM as the host that runs it saw them, on the shared storage,
where every host reads it before it starts the VM. Pure.

A snapshot, a hot-plugged disk or a block job changes the running VM, not its definition. A host
that started the definition would boot an older disk, and what was written since would be lost
without a word. So the host that runs the VM records what differs, and a start takes the record in.

Rules of this file:

1. Only the host whose VM holds its lease writes. A record names a disk that differs from the
   definition, and goes on naming it: the definition of another host may be an older one. Where
   no disk ever differed there is no record.
2. A record is one slot of 4096 bytes, kept in two places (broker/whiteboard/ran_places.py) that are
   written one after the other: a torn write leaves the other place whole.
3. The newest record counts: the larger `last_ran` (the count of the host that wrote it), then the
   larger generation. A write that lands late has the smaller one, and the owner writes again.
4. A place with a readable head and a rest that does not fit is an interrupted write. Where it may
   have been the newer record, it is unknown what ran last: no host starts the VM.
5. The place of a disk's layers decides. On the shared storage: every host can start what ran last.
   On one host: that host alone. Changing over from one image to another: no host, until that is
   over or somebody decides.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from xml.etree.ElementTree import Element

import msgspec

from broker.vm import domain_facts, domain_text
from broker.vm.domain_facts import Disk, Domain, Layer
from broker.wire.what_ran import WhatRan

#: A larger generation is damage; after the largest one the count of runs goes on.
GENERATION_MAX = 10**12
DECISIONS_MAX = 16
#: A file in the state directory: the digest of libvirt's definition as the agent last defined it.
DEFINED_FILE = "defined.sha256"
ADOPT = "ha-agent vm adopt"
KEEP = "ha-agent vm keep"

#: A value in `instead_of`: somebody has decided, whatever the definition names.
ANY = "*"
EMPTY = WhatRan(0, 0, 0, "", 0.0)


class OnDisk(msgspec.Struct, frozen=True):
    """The content of the two places. `record`: the newest, None: no disk ever differed. `problem`:
    why it is unknown what ran last, "": it is known. `is_whole`: both places hold that record.
    `last`: the newest key that was seen, that of an interrupted write included."""

    record: WhatRan | None = None
    problem: str = ""
    is_whole: bool = True
    last: tuple[int, int] = (0, 0)

    def next(self, record: WhatRan, last_ran: int) -> WhatRan:
        """The record with the numbers that come next."""
        ran, generation = self.last
        if generation >= GENERATION_MAX:
            ran, generation = ran + 1, 0
        return msgspec.structs.replace(
            record, generation=generation + 1, last_ran=max(ran, last_ran)
        )


def says_the_same(one: WhatRan, other: WhatRan) -> bool:
    """Whether both let the same disks be started by the same hosts."""
    return _content(one) == _content(other)


def images_of(record: WhatRan) -> list[str]:
    """The images that it has a start open, by the place of each."""
    return [_first(domain_facts.parse_disk(text)) for _, text in sorted(record.disks.items())]


def of_running(
    recorded: Domain,
    running: Domain,
    root: Element,
    is_shared: Callable[[Layer], bool],
    before: WhatRan | None,
    host_id: int,
    host_name: str,
) -> WhatRan:
    """The record of what runs here now; the writer fills in generation, last_ran and time. `root`:
    the running VM's XML; `before`: the present record, whose decisions still hold for disks that
    have not changed."""
    adopted = before.adopted if before is not None else ()
    kept = before.kept if before is not None else ()
    disks: dict[str, str] = {}
    instead_of: dict[str, str] = {}
    reasons: list[str] = []
    only = host_id
    for target, disk in sorted(running.disks.items()):
        mine = recorded.disks.get(target)
        if disk.pivot:
            only = 0
            reasons.append(_pivot_text(disk, host_name))
        was_named = before is not None and target in before.disks
        if decision_of(disk) in kept or not (was_named or _differs(mine, disk)):
            continue
        disks[target] = domain_text.element_of(root, target)
        is_decided = decision_of(disk) in adopted
        instead_of[target] = ANY if is_decided else _top(mine)
        known = set() if mine is None else set(mine.chain)
        local = [layer for layer in disk.chain if layer not in known and not is_shared(layer)]
        if local and not is_decided:
            reasons.append(_local_text(target, local, _top(mine), host_name))
    now = {decision_of(disk) for disk in running.disks.values()}
    return WhatRan(
        generation=0,
        last_ran=0,
        by=host_id,
        by_name=host_name,
        at=0.0,
        disks=disks,
        instead_of=instead_of,
        held="; ".join(reasons),
        only=only if reasons else 0,
        adopted=tuple(each for each in adopted if each in now),
        kept=tuple(each for each in kept if each in now),
        decided=before.decided if before is not None and {*adopted, *kept} & now else "",
    )


def held_back(on_disk: OnDisk, recorded: Domain | None, host_id: int) -> str:
    """Why this host must not start the VM, since it would not boot what ran last; "": it would.
    `recorded`: the definition here, None: unknown."""
    record = on_disk.record
    if on_disk.problem:
        return on_disk.problem
    if record is None:
        return ""
    if record.held and record.only != host_id:
        return record.held
    # Nothing is compared with a definition that cannot be read: that one is not started anyway.
    for target, text in sorted(record.disks.items()) if recorded is not None else ():
        assert recorded is not None
        ran, named = domain_facts.parse_disk(text), _top(recorded.disks.get(target))
        expected = record.instead_of.get(target, "")
        if expected != ANY and named not in (expected, _first(ran)):
            return (
                f"{target} ran last from {_first(ran)}, and the definition here was changed since:"
                f" it names {named or 'no such disk'}: {ADOPT} (what ran last is right) or {KEEP}"
                " (the definition is)"
            )
    return ""


def adopted(on_disk: OnDisk, who: str) -> WhatRan:
    """The record after somebody has decided that what ran last is right, wherever it is started.
    The decision holds for the disks as they are now."""
    record = on_disk.record or EMPTY
    now = {decision_of(Disk(target, _chain(text))) for target, text in record.disks.items()}
    return msgspec.structs.replace(
        record,
        held="",
        only=0,
        instead_of=dict.fromkeys(record.disks, ANY),
        adopted=tuple(sorted({*record.adopted, *now}))[:DECISIONS_MAX],
        decided=f"adopted by {who}",
    )


def kept(on_disk: OnDisk, running: Domain | None, who: str) -> WhatRan:
    """The record after somebody has decided that the definition is right. `running`: the VM that
    runs here, whose disks are ignored from then on as long as they do not change."""
    record = on_disk.record or WhatRan(0, 0, 0, "", 0.0)
    known = [Disk(target, _chain(text)) for target, text in record.disks.items()]
    now = {
        decision_of(disk) for disk in (*known, *(() if running is None else running.disks.values()))
    }
    return msgspec.structs.replace(
        record,
        disks={},
        instead_of={},
        held="",
        only=0,
        adopted=(),
        kept=tuple(sorted({*record.kept, *now}))[:DECISIONS_MAX],
        decided=f"kept by {who}",
    )


def digest(xml: str) -> str:
    """The digest of libvirt's own definition, as DEFINED_FILE holds it."""
    return hashlib.sha256(xml.encode()).hexdigest()


def decision_of(disk: Disk) -> str:
    """A disk's name in a decision: the image that it is written to now."""
    return f"{disk.target} {_top(disk)}"


def _differs(recorded: Disk | None, running: Disk) -> bool:
    """Whether a start of the definition would not open this disk."""
    if recorded is None or recorded.chain[:1] != running.chain[:1]:
        return True
    below = [(layer.kind, layer.place) for layer in recorded.chain[1:]]
    return bool(below) and below != [(layer.kind, layer.place) for layer in running.chain[1:]]


def _content(record: WhatRan) -> tuple[object, ...]:
    return (
        record.disks,
        record.instead_of,
        record.held,
        record.only,
        record.adopted,
        record.kept,
    )


def _chain(text: str) -> tuple[Layer, ...]:
    return domain_facts.layers(domain_facts.parse_disk(text))


def _top(disk: Disk | None) -> str:
    return str(disk.chain[0]) if disk is not None and disk.chain else ""


def _first(element: Element) -> str:
    chain = domain_facts.layers(element)
    return str(chain[0]) if chain else ""


def _local_text(target: str, local: list[Layer], recorded: str, host_name: str) -> str:
    where = ", ".join(layer.place for layer in local)
    return (
        f"{target} ran last from {where}, which only {host_name} is known to have: start the VM"
        f" there, or put it where every host reads it and type {ADOPT}; or, to boot"
        f" {recorded or 'without it'} and lose what was written since, {KEEP}"
    )


def _pivot_text(disk: Disk, host_name: str) -> str:
    return (
        f"{disk.target} is going over to another image on {host_name} ({disk.job}): end the block"
        f" job there (virsh blockjob VM {disk.target} --pivot or --abort); if that host is gone,"
        f" see which image is the newer one, then {ADOPT} ({_top(disk)} is) or {KEEP}"
    )
