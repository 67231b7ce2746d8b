# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whether a living host may be switched off, since its VM is sick and nobody there can end it: by
what is on its slot, and by what is true. Neither is enough alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.whiteboard.errors import BadSlot
from broker.whiteboard.lines import fence_ask_of
from broker.whiteboard.slot import EMPTY_SLOT, decode_slot
from scoring.hosts.fence_ask import is_asked
from scoring.vm_facts import ENGINE

if TYPE_CHECKING:
    from tests.simulation.host import Host
    from tests.simulation.world import World

#: What ended so lately may not be known to who orders: a slot, a beat, a call.
NOTICE_S = 3.0
#: That another VM has become healthy is on the slot of its host so much later at most.
KNOWN_S = 10.0
#: Moments are looked at a second apart.
STEP_S = 1.0


class Sick:
    """Is shown the world each second."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._asked_s: dict[int, float] = {}
        #: Since when each host's VM is not healthy and could not be ended, and it has no agent.
        self._since_s: dict[tuple[int, str], float] = {}
        #: Since when another VM has been healthy on each host.
        self._well_s: dict[int, float] = {}

    def look(self) -> None:
        """What is so now, and since when."""
        now_s = self._world.timeline.now_s
        for host in self._world.hosts.values():
            here = host.qemu is not None and host.qemu.running
            facts = {
                "sick": here and not host.vm_healthy,
                "agentless": host.up
                and ("agent" not in host.processes or host.is_stopped("agent")),
            }
            if not (facts["sick"] and host.qemu_unkillable):
                self._since_s.pop((host.number, "unended"), None)
            for name, is_so in facts.items():
                if is_so:
                    self._since_s.setdefault((host.number, name), now_s)
                else:
                    self._since_s.pop((host.number, name), None)
            if any(number != ENGINE and host.is_healthy(number) for number in host.qemus):
                self._well_s.setdefault(host.number, now_s)
            else:
                self._well_s.pop(host.number, None)
            if self._asks(host):
                self._asked_s[host.number] = now_s

    def ends(self, host: Host) -> None:
        """An agent begins to end its VM."""
        if host.qemu_unkillable:
            self._since_s.setdefault((host.number, "unended"), self._world.timeline.now_s)

    def may_be_shot(self, target: Host) -> bool:
        """Whether its own word stands, and is true."""
        self.look()
        world, now_s = self._world, self._world.timeline.now_s
        timing = world.config(target).rules(0).timing
        asked_s = self._asked_s.get(target.number)
        if asked_s is None or now_s - asked_s > NOTICE_S:
            return False
        if target.local_maintenance_since_s is not None or target.going_down_since_s is not None:
            return False
        if now_s - self._well_s.get(target.number, now_s) > KNOWN_S:
            return False
        sick_s = self._for_s(target, "sick")
        unended_s = self._for_s(target, "unended")
        agentless_s = self._for_s(target, "agentless")
        by_agent = min(sick_s, unended_s) >= timing.force_stop_patience > 0
        by_broker = min(sick_s, agentless_s) >= timing.agent_dead_after > 0
        return by_agent or by_broker

    def _for_s(self, host: Host, name: str) -> float:
        since_s = self._since_s.get((host.number, name))
        return -1.0 if since_s is None else self._world.timeline.now_s - since_s + STEP_S

    def _asks(self, host: Host) -> bool:
        data = self._world.board.slots.get(host.host_id, EMPTY_SLOT)
        if f"{'fence-ask'}=".encode() not in data:
            return False
        try:
            report = decode_slot(host.host_id, data)
        except BadSlot:
            return False
        if report is None or not report.extra_trusted:
            return False
        return is_asked(
            fence_ask_of(report.extra.get("fence-ask", "")), self._world.config(host).rules(0)
        )
