# SPDX-License-Identifier: LGPL-2.1-or-later
"""A host that alone has lost the storage.

Its VM is gone from its users within seconds, for its disk does not answer. sanlock there ends it
after 8 * io_timeout, and elsewhere gives its lease free a minute later: 140 s at io_timeout 10. But
the host itself knows it at once, and its network works. So it ends the VM's process, says that none
is left, and those that have the storage may switch it off: nothing on it is worth anything.

    T+0     its reads and writes do not come back; its slot stands still
    T+20    storage_patience: another host says that its writes succeed; the VM's process is ended
    T+21    it says over the network, signed: for so long without storage, and no VM is left
    T+25    its host id was renewed 2.5 * io_timeout ago (10 s): its sanlock is silent too
    +1      the fence lease is held, the power was read on once more: hard power off
    +2      "off" is read twice, its host id is freed, and the VM is started elsewhere

Rules of this file:

1. The host's own word is a reason to begin, and never a proof: what frees its host id is its power
   that reads off, twice, as ever.
2. Where all have lost the storage nothing of this happens: somebody else must say, in the last
   seconds, that the storage has acknowledged its slot.
3. Global maintenance cannot be read without storage. So that one must say too that it is not set.
4. A VM that is well, or of which nobody knows, is left alone: only one whose health is bad, or that
   stands still since its disk fails, is ended.
5. It is ended only where that brings it back sooner: where hosts are switched off in this cluster
   and have fence devices. Else it may outlive the loss, until sanlock's time is over.
"""

from __future__ import annotations

from scoring.hosts.turn import HostTurn, name_of
from scoring.observation import PeerReport
from scoring.rules import Rules
from scoring.storage_word import StorageWord

#: A word that is older says nothing about now, in seconds: a question each beat, and one lost.
WORD_FRESH_S = 3.0


def who_has_it(turn: HostTurn) -> str:
    """Another host that has the storage which this one alone has lost for `storage_patience`, and
    that says that the VM may be ended here (rules 2, 3 and 5); empty: none."""
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
    """A silent host's word, in the last seconds, that it has lost the storage for long enough and
    that no VM is left on it; None: it does not say so."""
    word, patience_s = None if peer is None else peer.storage_word, rules.timing.storage_patience
    if word is None or word.lost_s is None or not word.is_empty:
        return None
    is_long = 0 < patience_s <= word.lost_s + now_s - word.heard_s
    return word if is_long and now_s - word.heard_s <= WORD_FRESH_S else None
