# SPDX-License-Identifier: LGPL-2.1-or-later
"""The last check before an action that cannot be undone: may it still be carried out now?

The decision for it may be many seconds old: since then the fence log was written, and a BMC took
its time for the login. Each later decision has checked the preconditions again
(scoring/hosts/last_look.py). This object keeps the result of the newest one, and its age.

Rules of this file:

1. A device's thread asks at the moment of its order. So the result is replaced by one assignment:
   a thread never sees parts of two results.
2. If the newest decision is older than suspect_after, nothing is carried out: the agent's loop, the
   broker or the whole host stood still, and the host knows nothing about the present.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from scoring.decision import FreeHostId, PowerOffHost
from scoring.state import AgentState


@dataclass(frozen=True, slots=True)
class _Known:
    """`view_s`: when the view came on which `state` was decided."""

    state: AgentState
    view_s: float
    clock: Callable[[], float]


@dataclass(slots=True)
class LastLook:
    """Why an action that is under way must not be carried out any more. Any thread may ask.

    `slots`: the timestamps of the slots by host id. `asks`: the hosts whose slots ask to switch
    them off. Both are replaced with each view.
    """

    fence_held: Callable[[], bool]
    slots: Mapping[int, int] = field(default_factory=dict)
    asks: frozenset[int] = frozenset()
    _known: _Known | None = None

    def take(self, state: AgentState, view_s: float) -> None:
        """Take in the newest decision, and when its view came."""
        self._known = _Known(state, view_s, asyncio.get_running_loop().time)

    def off(self, act: PowerOffHost) -> str:
        """Why the order to switch a host off must not be given; "": it may."""
        known = self._known
        if known is None:
            return "nothing was decided yet"
        step = known.state.host.takeover
        if step is None or step.host_id != act.host_id or not step.switching_off:
            return "it is decided no longer"
        if act.asked and act.host_id not in self.asks:
            return "it asks for it no longer"
        if not act.asked and self.slots.get(act.host_id) != act.slot:
            return "its slot on the whiteboard has changed: it lives"
        return step.withdrawn or self._of_this_host(known)

    def on(self, host_id: int) -> str:
        """Why the order to switch a host on must not be given; "": it may."""
        known = self._known
        if known is None:
            return "nothing was decided yet"
        if known.state.host.switching_on != host_id:
            return "it is decided no longer"
        return known.state.host.on_withdrawn or self._of_this_host(known)

    @property
    def taking_fence_for(self) -> int | None:
        """The host for whose takeover the fence lease is being acquired; None: there is none."""
        step = None if self._known is None else self._known.state.host.takeover
        return step.host_id if step is not None and step.taking_fence else None

    @property
    def power_reread_s(self) -> float:
        """The least time between two readings of the power, in seconds."""
        assert self._known is not None
        return self._known.state.rules.timing.power_reread

    def still_taking_fence(self, host_id: int) -> str:
        """Why the fence lease is not needed for that host any more; "": it is."""
        known = self._known
        if known is None or self.taking_fence_for != host_id:
            return "it is decided no longer"
        step = known.state.host.takeover
        assert step is not None
        return step.withdrawn or self._of_this_host(known, under_lease=False)

    def cut(self) -> str:
        """Why nothing must be cut for a host whose id was freed, and whose power reads off since
        then; "": it may. Its takeover need not be pursued any more."""
        known = self._known
        return "nothing was decided yet" if known is None else self._of_this_host(known)

    def free(self, act: FreeHostId) -> str:
        """Why a host id must not be freed; "": it may."""
        known = self._known
        if known is None:
            return "nothing was decided yet"
        step = known.state.host.takeover
        if step is not None and act.fencer:
            step = step.fencer
        if step is None or step.host_id != act.host_id or not step.freeing:
            return "it is decided no longer"
        return step.withdrawn or self._of_this_host(known, under_lease=not act.fencer)

    def _of_this_host(self, known: _Known, under_lease: bool = True) -> str:
        """Why this host may carry out nothing now; "": it may."""
        if under_lease and not self.fence_held():
            return "the fence lease is not held"
        age_s = known.clock() - known.view_s
        if age_s > known.state.rules.timing.suspect_after:
            return f"this host has not looked around for {age_s:.1f} s"
        return ""
