# SPDX-License-Identifier: LGPL-2.1-or-later
"""The shutdown of this host: what the broker knows of it, and how far the host is drained.

systemd stops the unit ha-agent-host-shutdown first. Its command (agent/commands/host_shutdown.py)
reports that to the broker once a second until the answer is that the host is empty. The broker
keeps it in memory only, and forgets it after LAPSE_S without a report: a host that is back, or
whose shutdown was cancelled, is a full member without anybody's action.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from broker.whiteboard.mode import Mode
from broker.wire.status import HostShutdownStatus, ReasonOnWire
from scoring.decision import Code
from scoring.observation import HostShutdown, OnHostShutdown
from scoring.timing import Timing
from scoring.vm.state import StateName
from scoring.vm_facts import DETAIL_PAUSED, VmStatus

#: Longer than the daemons need to end after the command; the VM is not started meanwhile.
LAPSE_S = 60.0
#: The slot says it from the next write on. A host that read the slot just before may still begin
#: a migration to here: that takes two beats, and it announces it before it begins.
SETTLE_S = 3.0
#: Giving the host id back takes two looks of the lockspace's loop and two writes of sanlock.
GIVE_BACK_S = 20.0
#: Added to the time for moving and stopping the VM: ending its process (30 s), giving the id back.
MARGIN_S = 60.0
#: The agent leaves a paused VM alone. A snapshot or dump is over in moments.
PAUSED_PATIENCE_S = 45.0
OWNER, REASON = "systemd", "this host is shutting down"

#: States in which the agent acts on the VM.
_BUSY = frozenset(
    {
        StateName.ENGINE_START.value,
        StateName.ENGINE_STARTING.value,
        StateName.ENGINE_STOP.value,
        StateName.ENGINE_FORCE_STOP.value,
        StateName.ENGINE_MIGRATING_AWAY.value,
    }
)

#: Reasons of the agent why a VM that is to leave stays for now.
_WAITS = frozenset({Code.DRAIN_WAITING.value, Code.DRAIN_QUEUED.value})


def drain_waits(reasons: Iterable[ReasonOnWire]) -> str:
    """Why a VM that is to leave stays for now, by the agent's reasons; empty: they do not say."""
    waits = (reason.text for reason in reasons if reason.code in _WAITS)
    return next(waits, "")


def within_s(timing: Timing) -> float:
    """The longest time that the draining takes."""
    return timing.host_shutdown_move + timing.host_shutdown_grace + MARGIN_S


@dataclass(frozen=True, slots=True)
class VmView:
    """The broker's view of one VM on this host. `detail`, `reason`: of the VM and of the agent's
    last decision; `name`: "" for the engine."""

    vm: VmStatus
    detail: str
    state: str
    reason: str
    intent: str
    name: str = ""

    @property
    def is_here(self) -> bool:
        """Whether it runs here, as far as is known."""
        return self.vm in (VmStatus.UP, VmStatus.UNKNOWN)

    @property
    def is_left(self) -> bool:
        """Whether it has not left this host yet, or is about to be acted on here."""
        return self.is_here or bool(self.intent) or self.state in _BUSY

    def __str__(self) -> str:
        said = self.reason or self.detail or self.state
        return f"{self.name}: {said}" if self.name else said


@dataclass(frozen=True, slots=True)
class HostView:
    """The broker's view of this host. `others`: the VMs beside the engine that have not left it;
    `agent`: "" while it reports, else why not; `arriving`: the host that is migrating a VM to here,
    "" where none is; `joined`: this host's id is in the lockspace."""

    engine: VmView
    others: tuple[VmView, ...]
    agent: str
    arriving: str
    global_maintenance: bool
    joined: bool

    @property
    def here(self) -> tuple[VmView, ...]:
        """The VMs that run here."""
        return tuple(vm for vm in (self.engine, *self.others) if vm.is_here)

    @property
    def left(self) -> tuple[VmView, ...]:
        """The VMs that are waited for. Without an agent nothing is begun any more."""
        if self.agent:
            return tuple(vm for vm in (self.engine, *self.others) if vm.is_here or vm.intent)
        return tuple(vm for vm in (self.engine, *self.others) if vm.is_left)


class ShuttingDown:
    """Whether it is shutting down, since when, and how far it is empty. Times of its own clock."""

    def __init__(self) -> None:
        self.way: OnHostShutdown | None = None
        self._since_s = self._said_s = 0.0
        self._empty_since_s: float | None = None

    def say(self, way: OnHostShutdown, now_s: float) -> bool:
        """Note that it is shutting down; returns whether that is news."""
        is_new = self.way is not way
        if self.way is None:
            self._since_s, self._empty_since_s = now_s, None
        self.way, self._said_s = way, now_s
        return is_new

    def lapses(self, now_s: float) -> bool:
        """Forget it when no report has come for long; returns whether that is now."""
        if self.way is None or now_s - self._said_s < LAPSE_S:
            return False
        self.way = None
        return True

    @property
    def drains(self) -> bool:
        """Whether the VM is to leave."""
        return self.way is not None and self.way is not OnHostShutdown.LEAVE

    def is_published(self, now_s: float) -> bool:
        """Whether the others have had the time to see it; also where there is nothing to see."""
        return self.way is None or now_s - self._since_s >= SETTLE_S

    @property
    def for_agent(self) -> HostShutdown | None:
        """The shutdown, as an input of the decision."""
        if self.way is None or self.way is OnHostShutdown.LEAVE:
            return None
        return HostShutdown(self._since_s, self.way)

    def mode(self, since_epoch_s: int) -> Mode:
        """The shutdown as a maintenance of this host, which gives the host id back."""
        return Mode(OWNER, REASON, since_epoch_s, None, True)

    def status(self, view: HostView, now_s: float, timing: Timing) -> HostShutdownStatus:
        """How far it is."""
        state, text = self._progress(view, now_s)
        return HostShutdownStatus(state, text, within_s(timing))

    def _progress(self, view: HostView, now_s: float) -> tuple[str, str]:
        if self.way is OnHostShutdown.LEAVE:
            return (
                "left",
                "vm.on-host-shutdown is leave: a VM that runs here is left to libvirt",
            )
        if view.global_maintenance and view.here:
            return (
                "left",
                "global maintenance is set: what runs here is not moved, it is left to libvirt",
            )
        if view.agent and view.here:
            return "no-agent", f"the agent is {view.agent}: nobody here can move what runs here"
        if not self.is_published(now_s):
            return "going", "the other hosts are being informed that this host shuts down"
        is_late = now_s - self._since_s >= PAUSED_PATIENCE_S
        paused = [vm for vm in view.left if is_late and vm.detail == DETAIL_PAUSED]
        waited_for = [vm for vm in view.left if vm not in paused]
        if paused and not waited_for:
            said = "; ".join(map(str, paused))
            names = ", ".join(vm.name or "the VM" for vm in paused)
            return "left", f"{names} is paused, and left to libvirt: {said}"
        if view.arriving:
            self._empty_since_s = None
            return "going", f"{view.arriving} is migrating a VM to this host"
        if waited_for:
            self._empty_since_s = None
            return "going", "; ".join(map(str, waited_for))
        if self._empty_since_s is None:
            self._empty_since_s = now_s
        if not view.joined:
            return "over", "no VM runs here, and the host id is given back"
        if now_s - self._empty_since_s < GIVE_BACK_S:
            return "going", "no VM runs here, the host id is being given back"
        return "over", "no VM runs here; the host id could not be given back in time"
