# SPDX-License-Identifier: LGPL-2.1-or-later
"""The last look before an act that cannot be taken back: may it still be done, at this moment?

Its decision may be many seconds old: the fence log was written since, a BMC took its time for the
login. Each later decision has checked the preconditions again (scoring/hosts/last_look.py); this
object keeps the result of the newest one, and its age. A device's thread asks at the moment of its
order, so the whole is replaced at once, by one assignment. A host that has not looked around for
suspect_after knows nothing, and does nothing: its loop, its broker or the whole host stood still.
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
    """Why an act under way must not be done any more; "": it may. Any thread may ask.

    `slots`: the timestamps on the whiteboard by host id, `asks`: the hosts that ask to be switched
    off there; replaced with each view.
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
        """The host that the fence lease is being taken for; None: none."""
        step = None if self._known is None else self._known.state.host.takeover
        return step.host_id if step is not None and step.taking_fence else None

    @property
    def power_reread_s(self) -> float:
        """How far apart two readings of the power must be, s."""
        assert self._known is not None
        return self._known.state.rules.timing.power_reread

    def still_taking_fence(self, host_id: int) -> str:
        """Why the fence lease is not being taken for that host any more; "": it is."""
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
        if under_lease and not self.fence_held():
            return "the fence lease is not held"
        age_s = known.clock() - known.view_s
        if age_s > known.state.rules.timing.suspect_after:
            return f"this host has not looked around for {age_s:.1f} s"
        return ""
