# SPDX-License-Identifier: LGPL-2.1-or-later
"""What to do when one host alone has lost the storage.

The disk of its VM does not answer, so the VM is of no use to its users within seconds. The host's
sanlock ends the VM only after 8 * io_timeout, and the other hosts get the lease a minute later: 140
s at io_timeout 10. But the host itself knows at once that it has lost the storage, and its network
works. So it ends the VM's process and says over the network that none is left; then the hosts that
have the storage may switch it off, since no VM runs on it any more.

    T+0     its reads and writes do not succeed any more; its slot does not change
    T+20    storage_patience: another host says that its writes succeed; the VM's process is ended,
            and the others take the fence lease
    T+21    it says over the network, signed, how long it has had no storage and that no VM is left
            (T+25 where a process could not be ended: it waits for the storage, in the kernel)
    T+25    its host id was renewed 2.5 * io_timeout ago (10 s): its sanlock is silent too
    +1      the fence lease is held, the power was read on once more: hard power off
    +2      "off" is read twice, its host id is freed, and the VM is started elsewhere

Rules of this file:

1. The host's own statement is a reason to begin, and never a proof: its host id is freed only after
   its power was read off twice, as always.
2. If all hosts have lost the storage, none of this happens: another host must have said, in the
   last seconds, that the storage has acknowledged its slot.
3. Global maintenance cannot be read without the storage. So that other host must also say that it
   is not set.
4. Only a VM whose health is bad, or that is paused because its disk fails, is ended. A VM that is
   well, or whose health is unknown, is left alone.
5. The VM is ended only if that brings it back sooner, that is if this cluster switches hosts off
   and has fence devices. Otherwise it may survive the loss, until sanlock ends it.
6. A process that waits for the storage in the kernel survives every signal; only the loss of power
   ends it. So a VM that has been in the process of being ended for `ENDING_S` does not keep its
   host from saying that no VM is left: rule 1 makes sure that it is gone before it runs elsewhere.
7. The others take the fence lease while the VM is still being ended, for `AHEAD_S` at most. To take
   a lease opens the lease volume, and on CephFS whoever opens it waits until the storage has shut
   the lost host's client out, 11 s in the lab: that wait and the end of the VM pass side by side.
"""

from __future__ import annotations

from scoring.hosts.turn import HostTurn, name_of
from scoring.observation import PeerReport
from scoring.rules import Rules
from scoring.storage_word import StorageWord

#: The greatest age of a statement that still counts, in seconds: a question each beat, one lost.
WORD_FRESH_S = 3.0
#: How long a VM is being ended before its host counts it as given up (rule 6), in seconds. A
#: process that does not wait in the kernel is gone within one second.
ENDING_S = 5.0
#: For how long after `storage_patience` the fence lease is taken ahead of the statement that no VM
#: is left: that statement comes within `ENDING_S`, and is heard a beat or two later.
AHEAD_S = ENDING_S + WORD_FRESH_S


def host_with_storage(turn: HostTurn) -> str:
    """The name of another host that has the storage, when this host has been without it for
    `storage_patience` and the VM here may be ended for that (rules 2, 3 and 5); empty: none."""
    observation, rules = turn.observation, turn.rules
    local, patience_s = observation.local, rules.timing.storage_patience
    since_s = local.storage_lost_since_s
    if since_s is None or not 0 < patience_s <= turn.now_s - since_s:
        return ""
    if local.maintenance or local.shutdown is not None or not rules.fence_power_off:
        return ""
    if not observation.fence_devices:
        return ""
    words = [(peer, peer.storage_word) for peer in observation.peers]
    fresh = [(p, w) for p, w in words if w is not None and turn.now_s - w.heard_s <= WORD_FRESH_S]
    if any(word.global_maintenance for _, word in fresh):
        return ""
    return next(
        (name_of(p) for p, w in fresh if w.writes and w.global_maintenance is False),
        "",
    )


def gives_up(peer: PeerReport | None, now_s: float, rules: Rules) -> StorageWord | None:
    """A silent host's statement of the last seconds that it has been without the storage for long
    enough and that no VM is left on it; None: it does not say so."""
    word = _lost(peer, now_s, rules)
    return word if word is not None and word.is_empty else None


def is_giving_up(peer: PeerReport | None, now_s: float, rules: Rules) -> StorageWord | None:
    """A silent host's statement of the last seconds that it has been without the storage for long
    enough, while a VM is left on it; None: it does not say so."""
    word = _lost(peer, now_s, rules)
    return word if word is not None and not word.is_empty else None


def is_just_giving_up(word: StorageWord, now_s: float, rules: Rules) -> bool:
    """Whether a host that `is_giving_up` may say so soon that no VM is left (rule 7)."""
    assert word.lost_s is not None
    return word.lost_s + now_s - word.heard_s <= rules.timing.storage_patience + AHEAD_S


def _lost(peer: PeerReport | None, now_s: float, rules: Rules) -> StorageWord | None:
    """A silent host's statement of the last seconds that it has been without the storage for long
    enough; None: it does not say so."""
    word, patience_s = None if peer is None else peer.storage_word, rules.timing.storage_patience
    if word is None or word.lost_s is None:
        return None
    is_long = 0 < patience_s <= word.lost_s + now_s - word.heard_s
    return word if is_long and now_s - word.heard_s <= WORD_FRESH_S else None
