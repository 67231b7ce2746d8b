# SPDX-License-Identifier: LGPL-2.1-or-later
"""What ran last: the disks of the VM as the host that runs it saw them, on the shared storage,
where every host reads it before it starts the VM. Pure.

A snapshot, a hot-plugged disk or a block job changes the running VM, not its definition. A host
that started the definition would boot an older disk, and what was written since would be lost
without a word. So the host that runs the VM records what differs, and a start takes the record in.

Rules of this file:

1. Only the host whose VM holds its lease writes. A record names a disk that differs from the
   definition, and from then on always: the definition of another host may be an older one. Where
   nothing ever differed there is none.
2. A record is one slot of 4096 bytes, kept in two places (broker/whiteboard/ran_places.py) that
   are written one after the other: a torn write leaves the other one whole.
3. The newest counts: the larger `last_ran` (the count of the host that wrote it), then the larger
   generation. A write that lands late has the smaller one, and the owner writes its own again.
4. A place whose head can be read and whose rest does not fit it is a write that broke off. Where it
   may have been the newer one, nobody knows what ran last: a start is held back.
5. Where a disk's layers lie decides. On the shared storage: every host can start what ran last. On
   one host: that host alone. Going over from one image to another: nobody, until it is over or
   somebody decides.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from xml.etree.ElementTree import Element

import msgspec

from broker.vm import domain_facts
from broker.vm.domain_facts import Disk, Domain, Layer
from broker.wire.what_ran import WhatRan

#: A generation above it was counted by nobody; behind the last one the count of runs goes on.
GENERATION_MAX = 10**12
DECISIONS_MAX = 16
#: In the state directory: the digest of libvirt's own definition as the agent last defined it.
DEFINED_FILE = "defined.sha256"
ADOPT = "ha-agent vm adopt"
KEEP = "ha-agent vm keep"

#: In `instead_of`: whatever the definition names, somebody has decided.
ANY = "*"
EMPTY = WhatRan(0, 0, 0, "", 0.0)


class OnDisk(msgspec.Struct, frozen=True):
    """What the two places say. `record`: the newest, None: nothing ever differed. `problem`: why it
    is not known what ran last, "": it is. `is_whole`: both places hold that record. `last`: the
    newest key that was seen, of a write that broke off too."""

    record: WhatRan | None = None
    problem: str = ""
    is_whole: bool = True
    last: tuple[int, int] = (0, 0)

    def next(self, record: WhatRan, last_ran: int) -> WhatRan:
        """The record as the one that comes next."""
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
    """The record that tells what runs here now; generation, last_ran and time are the writer's to
    fill in. `root`: the running VM's XML; `before`: the record that is there, whose decisions still
    count for what is as it was."""
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
        disks[target] = domain_facts.element_of(root, target)
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
    """Why this host must not start the VM: it would not boot what ran last; "": it would.
    `recorded`: the definition here, None: it is not known."""
    record = on_disk.record
    if on_disk.problem:
        return on_disk.problem
    if record is None:
        return ""
    if record.held and record.only != host_id:
        return record.held
    # A definition that cannot be read is not started.
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
    """The record once somebody says that what ran last is right, wherever it is started. The
    decision holds for the disks as they are now."""
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
    """The record once somebody says that the definition is right. `running`: the VM as it runs
    here, whose disks are then left out of account as long as they are as now."""
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
    """Of libvirt's own definition, as DEFINED_FILE holds it."""
    return hashlib.sha256(xml.encode()).hexdigest()


def decision_of(disk: Disk) -> str:
    """A disk by the image that it is written to now, for a decision about it."""
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
