# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whether a living host may be switched off, since its VM is sick and nobody there can end it: by
what is on its slot, and by what is true. Neither is enough alone."""

from __future__ import annotations

from collections.abc import Set
from typing import TYPE_CHECKING, TypeVar

from broker.whiteboard.errors import BadSlot
from broker.whiteboard.lines import fence_ask_of
from broker.whiteboard.slot import EMPTY_SLOT, decode_slot
from scoring.hosts.fence_ask import is_asked, spec_of

if TYPE_CHECKING:
    from tests.simulation.host import Host
    from tests.simulation.world import World

K = TypeVar("K")

#: What ended so lately may not be known to who orders: a slot, a beat, a call.
NOTICE_S = 3.0
#: The longest time until a host's slot shows that another VM has become healthy.
KNOWN_S = 10.0
#: Moments are looked at a second apart.
STEP_S = 1.0


class Sick:
    """Is shown the world each second."""

    def __init__(self, world: World) -> None:
        self._world = world
        #: When each host's slot was last seen to ask, and for which VM.
        self._asked_s: dict[int, float] = {}
        self._asks_for: dict[int, int] = {}
        #: Since when a VM is sick on a host, and since when it could not be ended there.
        self._sick_s: dict[tuple[int, int], float] = {}
        self._unended_s: dict[tuple[int, int], float] = {}
        #: Since when a host has no agent.
        self._agentless_s: dict[int, float] = {}
        #: Since when a VM has been healthy on a host.
        self._well_s: dict[tuple[int, int], float] = {}

    def look(self) -> None:
        """What is so now, and since when."""
        world = self._world
        sick, unended, well, agentless = set(), set(), set(), set()
        for host in world.hosts.values():
            for vm in host.qemus:
                if host.is_healthy(vm):
                    well.add((host.number, vm))
                elif host.runs(vm):
                    sick.add((host.number, vm))
                if host.runs(vm) and not host.is_healthy(vm) and host.is_unkillable(vm):
                    unended.add((host.number, vm))
            if host.up and ("agent" not in host.processes or host.is_stopped("agent")):
                agentless.add(host.number)
            asked = self._asks(host)
            if asked is not None:
                self._asked_s[host.number] = world.timeline.now_s
                self._asks_for[host.number] = asked
        self._go_on(self._sick_s, sick)
        self._go_on(self._well_s, well)
        self._go_on(self._agentless_s, agentless)
        # The time begins when an agent first tries to end the VM.
        self._go_on(self._unended_s, unended & self._unended_s.keys())

    def _go_on(self, since_s: dict[K, float], so: Set[K]) -> None:
        for key in since_s.keys() - so:
            del since_s[key]
        for key in so:
            since_s.setdefault(key, self._world.timeline.now_s)

    def ends(self, host: Host, vm: int) -> None:
        """An agent begins to end a VM."""
        if host.is_unkillable(vm):
            self._unended_s.setdefault((host.number, vm), self._world.timeline.now_s)

    def may_be_shot(self, target: Host) -> bool:
        """Whether its own word stands, and is true of the VM that it names."""
        self.look()
        world, now_s = self._world, self._world.timeline.now_s
        timing, number = world.config(target).rules(0).timing, target.number
        asked_s = self._asked_s.get(number)
        if asked_s is None or now_s - asked_s > NOTICE_S:
            return False
        if target.local_maintenance_since_s is not None or target.going_down_since_s is not None:
            return False
        if any(now_s - at_s > KNOWN_S for (on, _), at_s in self._well_s.items() if on == number):
            return False
        vm = self._asks_for[number]
        sick_s = self._for_s(self._sick_s.get((number, vm)))
        unended_s = self._for_s(self._unended_s.get((number, vm)))
        agentless_s = self._for_s(self._agentless_s.get(number))
        by_agent = min(sick_s, unended_s) >= timing.force_stop_patience > 0
        by_broker = min(sick_s, agentless_s) >= timing.agent_dead_after > 0
        return by_agent or by_broker

    def _for_s(self, since_s: float | None) -> float:
        return -1.0 if since_s is None else self._world.timeline.now_s - since_s + STEP_S

    def _asks(self, host: Host) -> int | None:
        """The VM for which the host's slot asks; None: it does not ask."""
        data = self._world.board.slots.get(host.host_id, EMPTY_SLOT)
        if b"fence-ask=" not in data:
            return None
        try:
            report = decode_slot(host.host_id, data)
        except BadSlot:
            return None
        if report is None or not report.extra_trusted:
            return None
        given = fence_ask_of(report.extra.get("fence-ask", ""))
        specs = self._world.vms.specs
        if not is_asked(given, self._world.config(host).rules(0), spec_of(given, specs)):
            return None
        assert given is not None
        return given.vm
