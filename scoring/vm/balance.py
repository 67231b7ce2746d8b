# SPDX-License-Identifier: LGPL-2.1-or-later
"""Decides whether a running VM leaves its host so that the hosts' memory is used more evenly.

A host that is nearly full has no room for the VMs of a dead host, although another host may be
empty. But no VM is in trouble, and each move costs its users a moment. So this is off unless
`balance` is set, and a VM moves only if the gain is larger than the noise of the measurement.

Rules of this file:

1. Only the fullest host gives a VM away; each host finds out for itself whether it is that one.
2. A VM moves only if its new host, with the VM, has a larger share of memory free than this host
   had: by two 16ths, since a smaller gain could be undone by noise. If several VMs may move, the
   one goes after which the scarcer of the two hosts has most memory free; then the smaller VM; then
   the lower number.
3. It moves to no host that it prefers less (`prefer`), and to none whose score is lower by more
   than noise.
4. The engine never moves for this: the reference has no such move. VMs on huge pages do not count,
   since huge pages are a pool of their own.

The moves end by themselves: list the hosts' shares of free memory, in 16ths, the smallest first.
Each move makes this list larger, and it cannot grow for ever.
"""

from __future__ import annotations

from collections.abc import Iterable

from scoring.vm.placement import Candidate
from scoring.vm.plan import FREE_PARTS, SCORE_STEP, Host
from scoring.vm.several import Several
from scoring.vm_facts import ENGINE, VmSpec

#: How many more 16ths the new host must have free, with the VM, than the old host had.
GAIN_PARTS = 2


def evener_place(several: Several, v: VmSpec, candidates: list[Candidate]) -> Candidate | None:
    """The host to which this VM moves so that memory is used more evenly; None: it stays.
    `candidates`: the hosts to which it may be migrated."""
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
    """The position of a host in the VM's `prefer`; 0 is the best."""
    return v.prefer.index(host_id) if host_id in v.prefer else len(v.prefer)


def _best(several: Several, own: Host, v: VmSpec, candidates: list[Candidate]) -> Candidate | None:
    """The candidate with most memory free after the move, if that is a gain (rules 2 and 3)."""
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
    """The sort key of rule 2, smaller is better: the scarcest memory after the move, the size of
    the VM, its number."""
    scarcest = min(_left(several, v, target), _parts(own, own.free_mb + v.memory_mb))
    return -scarcest, v.memory_mb, v.number


def _left(several: Several, v: VmSpec, target: Candidate) -> int:
    """The memory that a host has free after it got this VM, in 16ths of its memory."""
    host = several.hosts[target.host_id]
    return _parts(host, host.free_mb - v.memory_mb)


def _parts(host: Host, free_mb: int) -> int:
    return free_mb * FREE_PARTS // max(host.total_mb, 1)


def _fullest(hosts: Iterable[Host]) -> int:
    """The id of the host with the smallest share of free memory; of equal ones the lower id."""
    return min(hosts, key=lambda h: (_parts(h, h.free_mb), h.host_id)).host_id
