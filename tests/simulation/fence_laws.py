# SPDX-License-Identifier: LGPL-2.1-or-later
"""What must have been true, and for how long, when a host is switched off or its host id freed.

A host that can be heard at this moment is the checkers' own matter (laws.py, `fenced`). Here is
what the asker can have known for the whole window: which writes to the target's slot have landed
on the volume, which of its answers have arrived, which renewals are on disk, whether the asker
could read all that time. What is younger than KNOWN_S may not have come to the asker yet.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from broker.whiteboard.errors import BadSlot
from broker.whiteboard.slot import decode_slot
from scoring.decision import FreeHostId
from scoring.hosts.evidence import TOGETHER_S, renewal_patience_s
from scoring.hosts.fence_rate import HOUR_S
from scoring.rules import Rules

if TYPE_CHECKING:
    from tests.simulation.host import Host
    from tests.simulation.world import World

#: From what happens to the order that knows of it: a beat there and here, and the last look, which
#: may be suspect_after old.
KNOWN_S = 5.0
#: What is looked at once a second, and clocks that differ.
EDGE_S = 1.5
#: The last write of a machine that stops is a beat old at most, and it is looked at once a second.
AT_ONCE_S = 2.5
#: From one shot to the record of the next one's intent: a login to a slow device, and its log.
LOGIN_S = 12.0
KEPT = 64
#: Faults of a storage that gives nothing and takes nothing.
LOST = ("hang", "error")


class FenceLaws:
    """What was seen of each host. Times are true times; those of before a leap are older."""

    def __init__(self, world: World) -> None:
        self._world = world
        #: (asker, target): when answers over the network arrived.
        self._answered_s: dict[tuple[int, int], deque[float]] = {}
        #: When each host last wrote its own slot, as it was meant to be.
        self._written_s: dict[int, deque[float]] = {}
        #: What each host id is on the shared volume, and since when.
        self._on_disk: dict[int, tuple[tuple[int, int], float]] = {}
        #: Who could not read the whiteboard at the last look, and when each could not at two.
        self._blind: set[int] = set()
        self._blind_s: dict[int, float] = {}
        #: When the kernel of each host, or its guest's, could last answer any other host.
        self._machine_s: dict[int, float] = {}
        #: When each host that runs nothing was last seen to have lost the storage for long enough.
        self._gave_up_s: dict[int, float] = {}
        #: Since when each host's agent says that it was stopped in order.
        self._stopped_s: dict[int, float] = {}
        #: Who owns each lease on the shared volume, and since when.
        self._owners: dict[str, tuple[int, float]] = {}
        #: When an agent last began to write that it means to switch each host off.
        self._intended_s: dict[int, float] = {}

    # --- what happens -----------------------------------------------------------------------

    def answered(self, asker: Host, target: Host) -> None:
        """An answer over the network has arrived."""
        times = self._answered_s.setdefault((asker.number, target.number), deque(maxlen=KEPT))
        times.append(self._now_s)

    def wrote(self, host: Host) -> None:
        """A host's own slot has landed on the shared volume."""
        self._written_s.setdefault(host.number, deque(maxlen=KEPT)).append(self._now_s)

    def told(self, host: Host, is_stopped: bool) -> None:
        """An agent tells whether it was stopped in order."""
        if not is_stopped:
            self._stopped_s.pop(host.number, None)
        else:
            self._stopped_s.setdefault(host.number, self._now_s)

    def intends(self, host_id: int) -> None:
        """An agent begins to write its intent to switch a host off."""
        self._intended_s[host_id] = self._now_s

    def look(self) -> None:
        """Check the laws; called once a second."""
        for host in self._world.hosts.values():
            # One that stood still itself has read no wrong thing: a slot that has not changed
            # was not written meanwhile.
            if host.reads_whiteboard:
                self._blind.discard(host.number)
            elif host.number in self._blind:
                self._blind_s[host.number] = self._now_s
            else:
                # What is over by the next look may have met no read.
                self._blind.add(host.number)
            if self._gives_up(host):
                self._gave_up_s[host.number] = self._now_s
            if self._world.machine_answers(host):
                self._machine_s[host.number] = self._now_s
        for host_id, delta in self._world.leases.deltas.items():
            renewal = delta.generation, delta.timestamp
            if self._on_disk.get(host_id, (None,))[0] != renewal:
                self._on_disk[host_id] = renewal, self._now_s
        for name, resource in self._world.leases.resources.items():
            if self._owners.get(name, (None,))[0] != resource.owner:
                self._owners[name] = resource.owner, self._now_s

    # --- what is asked ----------------------------------------------------------------------

    def against_shot(self, host: Host, target: Host, asks: bool) -> Iterator[str]:
        """Why a host must not switch another one off now; nothing: it may. `asks`: the other one
        asks for it, and need not have been silent."""
        agent = self._world.agents.get(host.number)
        if agent is None:
            yield "no agent runs there"
            return
        rules: Rules = agent._state.rules
        if not rules.fence_power_off:
            yield "its configuration forbids it"
        read_s = max(self._blind_s.get(host.number, 0.0), host.broker_since_s)
        if self._now_s - read_s < rules.timing.fence_after - EDGE_S:
            yield f"it has read the whiteboard for {self._now_s - read_s:.1f} s only"
        if not asks:
            yield from self._of_its_silence(rules, host, target)
        if target.is_on_shared and not host.is_misled:
            yield from self._of_its_word(target)
            yield from self._of_its_leases(target)
            yield from self._of_the_log(rules, target)

    def _of_its_silence(self, rules: Rules, host: Host, target: Host) -> Iterator[str]:
        after_s = rules.timing.fence_after
        answered_s = self._answered_s.get((host.number, target.number), deque())
        if self.gave_up(target):
            pass
        elif not answered_s or answered_s[-1] < host.broker_since_s:
            yield "it never heard it"
        elif (age_s := self._too_young(answered_s, after_s)) is not None:
            yield f"it answered {age_s:.1f} s ago"
        if host.is_misled or not target.is_on_shared:
            return
        if (age_s := self._too_young(self._slot_writes_s(target), after_s)) is not None:
            yield f"its slot was written {age_s:.1f} s ago"
        (_, stamp), since_s = self._on_disk.get(target.host_id, ((0, 0), 0.0))
        patience_s = renewal_patience_s(rules, target.io_timeout_s)
        if self.hangs(target, host):
            patience_s = after_s
        if stamp and (age_s := self._too_young((since_s,), patience_s)) is not None:
            yield f"its host id was renewed {age_s:.1f} s ago"

    def against_switching_on(self, host: Host, target: Host) -> Iterator[str]:
        """Why a host must not switch on another one that is off; nothing: it may. Who switched a
        host off by hand may have his hands in it."""
        if not host.fence_held:
            yield "the fence lease is not held"
        intended_s = self._intended_s.get(target.host_id)
        if intended_s is None or intended_s < target.on_since_s:
            yield "nobody of the cluster meant to switch it off since it was switched on"

    def hangs(self, target: Host, asker: Host) -> bool:
        """Whether in truth its machine could answer nobody for so long, and all that it says ended
        at once. Else only its sanlock's silence tells that it does not live."""
        agent = self._world.agents.get(asker.number)
        after_s = 0.0 if agent is None else agent._state.rules.timing.fence_after
        answers_s = self._machine_s.get(target.number, 0.0)
        last_write_s = max(self._slot_writes_s(target), default=0.0)
        return (
            self._now_s - answers_s >= after_s - EDGE_S
            and abs(answers_s - last_write_s) <= TOGETHER_S + AT_ONCE_S
        )

    def gave_up(self, target: Host) -> bool:
        """Whether in truth it alone has lost the storage for long enough, or had until a moment
        ago, and runs nothing but what cannot be ended. The host itself counts from its last good
        read, which is up to a beat older than the fault."""
        gave_up_s = self._gave_up_s.get(target.number)
        lately = gave_up_s is not None and self._now_s - gave_up_s <= KNOWN_S
        return _runs_nothing(target) and (lately or self._gives_up(target))

    def _gives_up(self, target: Host) -> bool:
        faults = [target.storage.of(part)[0] for part in ("whiteboard", "leases")]
        if not _runs_nothing(target) or not all(fault in LOST for fault in faults):
            return False
        patience_s = self._world.config(target).rules(0).timing.storage_patience
        is_over = 0 < patience_s <= self._now_s - target.storage.since_s + EDGE_S
        return is_over and any(h.storage.fault not in LOST for h in self._world.hosts.values())

    def _of_its_word(self, target: Host) -> Iterator[str]:
        """What its slot says, if it was written since."""
        last_s = max(self._slot_writes_s(target), default=0.0)
        stopped_s = self._stopped_s.get(target.number)
        if stopped_s is not None and stopped_s + EDGE_S < last_s:
            yield "its slot says that it was stopped in order"
        local_s = target.local_maintenance_since_s
        if local_s is not None and max(local_s, target.wrong_start_s) + EDGE_S < last_s:
            yield "its slot says that it is in maintenance"

    def _of_its_leases(self, target: Host) -> Iterator[str]:
        """Nobody waits for a lease that it does not own."""
        for owner, since_s in self._owners.values():
            # The question of who owns it is asked every other beat, and answered late.
            if owner == target.host_id or self._now_s - since_s <= 2 * KNOWN_S:
                return
        yield f"it owns none of the leases, {self._owners}"

    def _slot_writes_s(self, target: Host) -> Iterable[float]:
        return self._written_s.get(target.number, ())

    def _of_the_log(self, rules: Rules, target: Host) -> Iterator[str]:
        """Whether so many others were switched off that this one must wait."""
        world, now_s = self._world, self._now_s
        if any(host.wall_offset_s or not host.is_on_shared for host in world.hosts.values()):
            return
        acts = {
            (shot.target, shot.boots): shot.at_s
            for shot in world.shots
            if now_s - shot.at_s < HOUR_S - LOGIN_S
            and (shot.target, shot.boots) != (target.name, target.boots)
        }
        if not acts:
            return
        pause_s = rules.timing.fence_backoff * 2 ** (len(acts) - 1)
        if len(acts) >= rules.fences_per_hour or now_s - max(acts.values()) < pause_s - LOGIN_S:
            yield f"{len(acts)} others were switched off lately"

    def against_freeing(self, host: Host, act: FreeHostId) -> Iterator[str]:
        """Why a host must not free that host id now; nothing: it may."""
        assert host.loop is not None
        read_s, io_timeout_s = host.loop.true_s(act.off_read_s), host.io_timeout_s
        if act.fencer:
            yield from self._against_freeing_fencer(host, act)
        elif not host.fence_held:
            yield "the fence lease is not held"
        elif read_s < host.fence_since_s:
            yield "the power was read before the fence lease was held"
        if self._now_s - read_s > io_timeout_s + EDGE_S / 10:
            yield f"the power was read {self._now_s - read_s:.1f} s ago"
        delta = host.leases.read().delta(act.host_id)
        if (delta.generation, delta.timestamp) != (act.generation, act.timestamp):
            yield "the host id on disk is not what it was at the decision"

    def _against_freeing_fencer(self, host: Host, act: FreeHostId) -> Iterator[str]:
        """The fence lease must be that host's, in this very life of it, and this host's own slot
        must say what it does: who is back looks there."""
        fence = host.leases.resources["fence"]
        if (fence.owner, fence.generation) != (act.host_id, act.generation):
            yield f"host {fence.owner} owns the fence lease"
        if not host.is_on_shared:
            return
        try:
            slot = decode_slot(host.host_id, self._world.board.slots[host.host_id])
        except (BadSlot, KeyError):
            slot = None
        said = {} if slot is None else slot.extra
        if (said.get("freeing"), said.get("freeing-fencer")) != (str(act.host_id), "yes"):
            yield "its own slot does not say so"

    def _too_young(self, times_s: Iterable[float], than_s: float) -> float | None:
        """The age of one that the asker knows of and that is not as old as it must be."""
        ages_s = (self._now_s - at_s for at_s in times_s)
        young = [age_s for age_s in ages_s if KNOWN_S < age_s < than_s - EDGE_S]
        return min(young, default=None)

    @property
    def _now_s(self) -> float:
        return self._world.timeline.now_s


def _runs_nothing(host: Host) -> bool:
    """Whether no QEMU is there but such as only the loss of power can end, and none that serves."""
    return all(host.is_unkillable(vm) and not host.is_healthy(vm) for vm in host.qemus)
