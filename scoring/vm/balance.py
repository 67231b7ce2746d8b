# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whether a running VM leaves its host so that the memory of the hosts is used more alike.

A host that is nearly full has no room for what a dead host leaves behind, while another one stands
empty. Nobody is in need, though, and each move costs its users a moment. So this is off unless
`balance` is set, and what moves all the same must bring more than the noise of a measurement.

The measure is the row of the shares of memory that the hosts have free, in 16ths, the smallest
first. Each move makes that row larger; it cannot grow for ever, so that moves end by themselves.

Rules of this file:

1. Only the fullest host gives a VM away, and each host finds out for itself whether that is it.
2. A VM moves only where its new host then has more free than this host had, by two 16ths: a less
   would be undone by noise. Of several that may move the one goes that leaves most where it is
   scarcest, then the smaller one, then the lower number.
3. It goes to no host that it likes less (`prefer`) or that scores less by more than noise.
4. The engine follows the reference, which knows no such move; huge pages are a pool of their own,
   and do not count.
"""

from __future__ import annotations

from collections.abc import Iterable

from scoring.vm.placement import Candidate
from scoring.vm.plan import FREE_PARTS, SCORE_STEP, Host
from scoring.vm.several import Several
from scoring.vm_facts import ENGINE, VmSpec

#: So many 16ths the new host must have more free, with the VM, than the old one had.
GAIN_PARTS = 2


def evener_place(several: Several, v: VmSpec, candidates: list[Candidate]) -> Candidate | None:
    """The host that takes this VM from here so that memory is used more alike; None: the VM stays.
    `candidates`: the hosts that it may be migrated to."""
    own = several.hosts[several.own_id]
    if v.huge or _fullest(several.hosts.values()) != several.own_id:
        return None
    best = _best(several, own, v, candidates)
    if best is None:
        return None
    mine = _key(several, own, v, best)
    for number in own.vms - {v.number, ENGINE}:
        w = several.specs.get(number)
        if w is not None and not w.huge and not several.relations.together.get(number):
            other = _best(several, own, w, several.takers(w))
            if other is not None and _key(several, own, w, other) < mine:
                return None
    return best


def liking(v: VmSpec, host_id: int) -> int:
    """How far down in `prefer` a host stands; 0 is the best."""
    return v.prefer.index(host_id) if host_id in v.prefer else len(v.prefer)


def _best(several: Several, own: Host, v: VmSpec, candidates: list[Candidate]) -> Candidate | None:
    here = own.score - own.lacks.get(v.number, 0)
    able = [
        c
        for c in candidates
        if here - c.score < SCORE_STEP and liking(v, c.host_id) <= liking(v, own.host_id)
    ]
    most = max(able, key=lambda c: (_left(several, v, c), -c.host_id), default=None)
    if most is None or _left(several, v, most) < _parts(own, own.free_mb) + GAIN_PARTS:
        return None
    return most


def _key(several: Several, own: Host, v: VmSpec, target: Candidate) -> tuple[int, int, int]:
    """Smaller is better: what is scarcest after the move, the size, the number."""
    scarcest = min(_left(several, v, target), _parts(own, own.free_mb + v.memory_mb))
    return -scarcest, v.memory_mb, v.number


def _left(several: Several, v: VmSpec, target: Candidate) -> int:
    """What a host has free with this VM, in 16ths of its memory."""
    host = several.hosts[target.host_id]
    return _parts(host, host.free_mb - v.memory_mb)


def _parts(host: Host, free_mb: int) -> int:
    return free_mb * FREE_PARTS // max(host.total_mb, 1)


def _fullest(hosts: Iterable[Host]) -> int:
    """The host with the smallest share free; the lower id of several."""
    return min(hosts, key=lambda h: (_parts(h, h.free_mb), h.host_id)).host_id
