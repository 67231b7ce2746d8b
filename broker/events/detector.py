# SPDX-License-Identifier: LGPL-2.1-or-later
"""Detects what has changed: it gets the broker's view once a beat and each report of the agent, and
makes notices of the changes. No I/O.

A notice about one host comes from that host. A notice about what all hosts see (a peer, the global
maintenance) comes from the live host with the lowest id, so that people get it once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from broker.events.notice import FactValue, Notice
from broker.events.of_vms import VmEvents
from broker.peers.vm_place import VmPlace
from broker.this_host.causes import cause
from broker.wire.exchange import Report
from broker.wire.kinds import Kind
from broker.wire.status import DifferenceStatus, FencePathOnWire
from scoring.decision import Code
from scoring.observation import FenceStep
from scoring.vm.state import StateName
from scoring.vm_facts import ENGINE

#: Reasons of the agent with a notice of their own, sent when the reason comes up.
NOTIFIED_CODES: Mapping[str, Kind] = {
    Code.VM_UNPROTECTED: Kind.VM_UNPROTECTED,
    Code.START_FAILED: Kind.START_FAILED,
    Code.VM_PAUSED: Kind.VM_PAUSED,
    Code.VM_OUTDATED: Kind.VM_OUTDATED,
    Code.MEMORY_IMAGE: Kind.MEMORY_IMAGE,
    Code.AUTOSTART: Kind.AUTOSTART,
    Code.LEFTOVER_VM: Kind.LEFTOVER_VM,
    Code.NEVER_HEALTHY: Kind.NEVER_HEALTHY,
    Code.ISOLATED: Kind.ISOLATED,
    Code.ISOLATION_HELD_BACK: Kind.ISOLATION_HELD_BACK,
    Code.DRAIN_STUCK: Kind.DRAIN_STUCK,
    Code.FENCE_FORBIDDEN: Kind.FENCE_HELD_BACK,
    Code.FENCE_HELD_BACK: Kind.FENCE_HELD_BACK,
    Code.FENCE_ASKED: Kind.FENCE_ASKED,
    Code.HELD_BACK: Kind.START_HELD_BACK,
}
_FENCE_STEPS: Mapping[FenceStep, tuple[Kind, str]] = {
    FenceStep.INTENT: (Kind.FENCE_ATTEMPTED, "is being switched off"),
    FenceStep.DEAD: (Kind.FENCE_PROVEN, "is proven off, and its host id is free"),
    FenceStep.FAILED: (Kind.FENCE_FAILED, "could not be switched off"),
    FenceStep.BACK: (Kind.FENCE_SWITCHED_ON, "was switched on again"),
}
#: The begin of a freeing has no notice; its end has one.
assert set(_FENCE_STEPS) == set(FenceStep) - {FenceStep.FREEING}
#: A peer silent for less may be a slow storage; an agent silent for less may be an upgrade.
PEER_SILENT_S = 10.0
AGENT_SILENT_S = 30.0
#: Each takeover passes through a time in which the engine's host is unknown; less than this is
#: none.
ENGINE_UNKNOWN_S = 15.0
#: A broker that has just started has to find its peers and join the lockspace first.
ENGINE_UNKNOWN_AT_FIRST_S = 120.0
#: A notice is sent of a fence device that was not proven for so long.
PATH_UNPROVEN_S = 86_400.0
#: Below the first share of the lease budget it is low, above the second one good again.
BUDGET_LOW, BUDGET_GOOD = 0.5, 0.7


@dataclass(frozen=True, slots=True)
class HostGlance:
    """One host at this moment. `silent_s`: for how long it has been silent, None while it is not;
    `lived`: it was seen alive; `up`: the engine runs there; `known_s`: when that was known;
    `is_known` False: this host cannot read what it does, and sends no notice about it; `shut_down`:
    it published that it shuts down. `vms`: the names of the VMs beside the engine that are up
    there; only of a silent host."""

    name: str
    silent_s: float | None
    lived: bool
    stopped: bool
    up: bool
    known_s: float
    is_known: bool = True
    shut_down: bool = False
    vms: tuple[str, ...] = ()


class EventDetector:
    """`notify`: gets the notices. `host_id`, `name`: this host's. `see`: gets those that another
    host sends. `vm`: what the VM is called."""

    def __init__(
        self,
        notify: Callable[[Notice], None],
        host_id: int,
        name: str,
        see: Callable[[Notice], None] = lambda notice: None,
        vm: str = "the engine",
    ) -> None:
        self._notify = notify
        self._see = see
        self._host_id = host_id
        self._name, self._vm = name, vm
        #: What happens to the VMs beside the engine on this host.
        self.vms = VmEvents(notify, name, NOTIFIED_CODES)
        self._report: Report | None = None
        #: The host where the engine was last up, and when that was known.
        self._last_up: tuple[int, str, float] | None = None
        #: The host whose word that it has the engine counts no more, and when that word is from:
        #: this host has proof that it is older than the death of the host.
        self._overruled: tuple[int, float] | None = None
        self._unknown_since_s: float | None = None
        self._unknown_sent = False
        self._was_known = False
        self._failover_since_s: float | None = None
        self._gone: dict[int, float] = {}
        self._elsewhere: dict[int, str] = {}
        self._not_counted = False
        self._budget_low = False
        self._agent_silent = False
        self._cannot_start = False
        self._first_s: float | None = None
        self._unproven: set[int] = set()
        self._differs: dict[tuple[str, str, str], DifferenceStatus] = {}
        self._path_seen_s: dict[int, float] = {}
        #: Whether this host sends the notices about what all hosts see.
        self.speaks_for_all = True

    @property
    def last_up(self) -> str | None:
        """The host that had the engine up last, as far as this broker saw."""
        return None if self._last_up is None else self._last_up[1]

    # --- each report ------------------------------------------------------------------------

    def reported(
        self,
        report: Report,
        now_s: float,
        wall_s: float,
        names: Mapping[int, str] = MappingProxyType({}),
    ) -> None:
        """Take in the agent's report. `wall_s`: UTC seconds since 1970. `names`: of the hosts that
        have fence devices, as far as they are known."""
        old, self._report = self._report, report
        self.vms.reported(report)
        for begun in report.begun:
            kind = NOTIFIED_CODES.get(begun.code) if begun.vm <= ENGINE else None
            if kind is not None and (old is None or begun not in old.begun):
                self._say(kind, begun.text, {"code": begun.code})
        for host, path in report.fence_paths.items():
            title = f"{names[host]} (id {host})" if names.get(host) else f"host {host}"
            self._look_at_path(host, title, path, now_s, wall_s)
        if old is None or old.state == report.state:
            return
        facts: dict[str, FactValue] = {"from": old.state, "to": report.state}
        because = cause(report.reasons)
        facts["reason"], facts["code"] = because.text, because.code
        facts["score"] = report.score
        self._say(Kind.STATE_TRANSITION, f"{old.state}-{report.state}", facts)
        if report.state == StateName.ENGINE_START:
            self._failover_starts(now_s)
        elif report.state == StateName.ENGINE_UP and self._failover_since_s is not None:
            away_s = round(now_s - self._failover_since_s, 1)
            self._failover_since_s = None
            self._say(
                Kind.FAILOVER_DONE,
                f"{self._vm} is up and healthy on {self._name}, after {away_s:g} s",
                {"to": self._name, "duration_s": away_s},
            )

    def _look_at_path(
        self, host: int, title: str, path: FencePathOnWire, now_s: float, wall_s: float
    ) -> None:
        """Check the age of a proof; a path that was never proven counts from its first sight.
        `title`: the host for people."""
        since_s = now_s - self._path_seen_s.setdefault(host, now_s)
        age_s = since_s if path.proven is None else wall_s - path.proven
        facts: dict[str, FactValue] = {"host_id": host, "problem": path.detail}
        if age_s >= PATH_UNPROVEN_S and host not in self._unproven:
            self._unproven.add(host)
            facts["proven_age_s"] = None if path.proven is None else round(age_s)
            detail = f"the fence device of {title} has not been proven to work for a day"
            self._say(Kind.FENCE_PATH_UNPROVEN, detail, facts)
        elif path.ok and age_s < PATH_UNPROVEN_S and host in self._unproven:
            self._unproven.discard(host)
            detail = f"the fence device of {title} is proven to work again"
            self._say(Kind.FENCE_PATH_PROVEN, detail, facts)

    def _failover_starts(self, now_s: float) -> None:
        """A failover begins, where the engine was seen up before: its first start is none.

        A host that was proven dead may not be silent for long enough yet to count as silent."""
        if self._last_up is None or self._failover_since_s is not None:
            return
        host, where, self._failover_since_s = self._last_up
        self._overruled = (host, self._failover_since_s)
        away_s = round(now_s - self._failover_since_s, 1)
        self._say(
            Kind.FAILOVER_STARTED,
            f"{self._vm}, last seen up on {where}, is started on {self._name}",
            {"from": where, "to": self._name, "away_s": away_s},
        )

    # --- each beat --------------------------------------------------------------------------

    def look(
        self, hosts: Mapping[int, HostGlance], agent_silent_s: float | None, now_s: float
    ) -> None:
        """Take in all hosts, and for how long this host's agent has been silent (None: it is
        not)."""
        known = {host: seen for host, seen in hosts.items() if seen.is_known}
        if len(known) == len(hosts):
            live = [host for host, seen in hosts.items() if seen.silent_s is None and seen.lived]
            self.speaks_for_all = self._host_id <= min(live, default=self._host_id)
        self._look_for_the_engine(known)
        for host, seen in known.items():
            if host != self._host_id and seen.lived:
                self._look_at_peer(host, seen, now_s)
        self._look_at_agent(agent_silent_s, now_s)

    def _look_for_the_engine(self, hosts: Mapping[int, HostGlance]) -> None:
        up = [
            (host, seen.name, seen.known_s)
            for host, seen in hosts.items()
            if seen.up and seen.silent_s is None and (host, seen.known_s) != self._overruled
        ]
        if up:
            # A failover of this host is over when another host has the engine.
            self._last_up = max(up, key=lambda each: each[2])
            if self._host_id not in [host for host, _, _ in up]:
                self._failover_since_s = None

    def _look_at_peer(self, host: int, seen: HostGlance, now_s: float) -> None:
        facts: dict[str, FactValue] = {"host_id": host, "host": seen.name}
        if seen.silent_s is None:
            since_s = self._gone.pop(host, None)
            if since_s is not None:
                facts["away_s"] = round(now_s - since_s, 1)
                self.say_once(Notice(Kind.PEER_BACK, seen.name, f"{seen.name} is back", facts))
        elif seen.silent_s >= PEER_SILENT_S and host not in self._gone:
            self._gone[host] = now_s - seen.silent_s
            if seen.stopped:
                how = "its agent was stopped" if not seen.shut_down else "it was shut down"
                detail = f"{seen.name} is gone, {how} in good order"
                self.say_once(Notice(Kind.PEER_STOPPED, seen.name, detail, facts))
            else:
                facts["engine"] = "up there when last seen" if seen.up else "not there"
                facts["silent_s"] = round(seen.silent_s, 1)
                if seen.vms:
                    facts["vms"] = ", ".join(seen.vms)
                detail = f"{seen.name} is silent: it does not publish any more"
                self.say_once(Notice(Kind.PEER_SILENT, seen.name, detail, facts))

    def storage_of_others(self, names: Mapping[int, str], elsewhere: Mapping[int, str]) -> None:
        """Take in which hosts are on other storage than this one, and how their words differ.
        `names`: of all hosts."""
        for host in elsewhere.keys() - self._elsewhere.keys():
            name = self._elsewhere[host] = names.get(host, f"host {host}")
            detail = f"{name} does not see the same storage as {self._name}: it {elsewhere[host]}"
            facts: dict[str, FactValue] = {"host_id": host, "host": name, "seen_by": self._name}
            self.say_once(Notice(Kind.OTHER_STORAGE, name, detail, facts))
        for host in self._elsewhere.keys() - elsewhere.keys():
            name = self._elsewhere.pop(host)
            facts = {"host_id": host, "host": name, "seen_by": self._name}
            detail = f"there is no sign any more that {name} is on other storage than {self._name}"
            self.say_once(Notice(Kind.SAME_STORAGE, name, detail, facts))

    def slots_not_counted(self, names: Mapping[int, str], why_not: Mapping[int, str]) -> None:
        """Take in which slots do not count, and why. However many there are, one notice is sent
        until there is none: a forger can write 2000 of them."""
        if why_not and not self._not_counted:
            host = min(why_not)
            name = names.get(host, f"host {host}")
            more = "" if len(why_not) == 1 else f" (and {len(why_not) - 1} more)"
            detail = f"what slot {host} ({name}) says does not count{more}: {why_not[host]}"
            facts: dict[str, FactValue] = {"host_id": host, "host": name, "slots": len(why_not)}
            self.say_once(Notice(Kind.SLOT_NOT_COUNTED, name, detail, facts))
        self._not_counted = bool(why_not)

    def _look_at_agent(self, silent_s: float | None, now_s: float) -> None:
        if self._first_s is None:
            self._first_s = now_s
        if silent_s is None:
            if self._agent_silent:
                self._say(Kind.AGENT_BACK, "the agent reports again", {})
            self._agent_silent = False
        elif min(silent_s, now_s - self._first_s) >= AGENT_SILENT_S and not self._agent_silent:
            self._agent_silent = True
            self._say(
                Kind.AGENT_SILENT,
                "the agent on this host does not report; its score is 0",
                {"silent_s": AGENT_SILENT_S},
            )

    def place(self, place: VmPlace, name: str, blind: bool, now_s: float) -> None:
        """Take in where the engine is; `name`: of the host that has it up. A blind host sends no
        notice of it: the others know more."""
        if place.up is None:
            if self._unknown_since_s is None:
                self._unknown_since_s = now_s
            patience_s = ENGINE_UNKNOWN_S if self._was_known else ENGINE_UNKNOWN_AT_FIRST_S
            if now_s - self._unknown_since_s < patience_s or self._unknown_sent:
                return
            self._unknown_sent = True
            facts: dict[str, FactValue] = {"known": place.known, "likely": place.likely}
            detail = f"whether {self._vm} is up is not known: {place.known}"
            notice = Notice(Kind.ENGINE_UNKNOWN, self._name, detail, facts)
        else:
            since_s, self._unknown_since_s = self._unknown_since_s, None
            self._was_known = True
            if not self._unknown_sent:
                return
            self._unknown_sent = False
            what = f"up on {name}" if place.up else "down"
            facts = {"up": place.up, "host": name if place.up else None}
            facts["unknown_s"] = None if since_s is None else round(now_s - since_s, 1)
            detail = f"it is known again where {self._vm} is: it is {what}"
            notice = Notice(Kind.ENGINE_KNOWN, self._name, detail, facts)
        if blind:
            self._see(notice)
        else:
            self.say_once(notice)

    def budget(self, left_s: float | None, of_s: float, runs_vms: bool = True) -> None:
        """Take in how much of its lease budget this host has left; None: unknown, which changes
        nothing. `runs_vms`: False: surely no VM is here."""
        if left_s is None:
            return
        facts: dict[str, FactValue] = {"left_s": round(left_s, 1), "of_s": of_s}
        if not self._budget_low and left_s < BUDGET_LOW * of_s:
            self._budget_low = True
            what = "ends the VMs here" if runs_vms else "gives this host's id up"
            detail = f"less than half of the lease budget is left; at 0 sanlock {what}"
            self._say(Kind.LEASE_BUDGET_LOW, detail, facts)
        elif self._budget_low and left_s > BUDGET_GOOD * of_s:
            self._budget_low = False
            self._say(Kind.LEASE_BUDGET_GOOD, "the lease is renewed again", facts)

    def differences(self, found: Sequence[DifferenceStatus] | None, held: str) -> None:
        """Take in how the VM here differs from its definition, and why a start elsewhere is held
        back for it; None: unknown, which changes nothing."""
        if found is None:
            return
        before, now = self._differs, {(each.code, each.where, each.what): each for each in found}
        self._differs = now
        for key, each in now.items():
            if key not in before:
                facts = {"code": each.code, "where": each.where, "what": each.what}
                facts |= {"recorded": each.recorded, "found": each.found}
                self._say(Kind.VM_DIFFERS, f"{each.where}: {each.text}", {**facts, "held": held})
        for code, where, what in sorted(before.keys() - now.keys()):
            facts = {"code": code, "where": where, "what": what}
            self._say(Kind.VM_AS_RECORDED, f"{where}: {what} is as recorded again", facts)

    def can_start(self, problem: str) -> None:
        """Take in why this host could not start the VM; empty where it could, or where that is
        unknown."""
        if problem and not self._cannot_start:
            detail = f"{self._name} could not start {self._vm}, its score is 0: {problem}"
            self._say(Kind.CANNOT_START, detail, {"problem": problem})
        elif self._cannot_start and not problem:
            self._say(Kind.CAN_START, f"{self._name} can start {self._vm} again", {})
        self._cannot_start = bool(problem)

    # --- single events ------------------------------------------------------------------------

    def fenced(
        self,
        step: FenceStep,
        host_id: int,
        name: str,
        ordered: bool,
        text: str,
        withdrawn: bool = False,
    ) -> None:
        """This host's agent has written a record about host `host_id` to the fence log."""
        self._notify(fence_notice(step, host_id, name, self._name, ordered, text, withdrawn))

    def was_switched_off(self, by: str, ordered: bool, text: str) -> None:
        """This host is back, and the fence log has the record of its last end."""
        how = "switched off" if ordered else "found without power and taken for dead"
        detail = f"{self._name} is back: it had been {how} by {by}"
        self._say(Kind.WAS_SWITCHED_OFF, detail, {"by": by, "ordered": ordered, "evidence": text})

    def maintenance_ends_soon(self, mode: str, left_s: float | None, reason: str) -> None:
        """A mode ends soon. `mode`: local or global; one host sends the notice about the latter."""
        left = None if left_s is None else round(left_s)
        notice = Notice(
            Kind.MAINTENANCE_ENDS_SOON,
            f"{mode} maintenance",
            f"{mode} maintenance ends by itself soon",
            {"mode": mode, "host": self._name, "left_s": left, "reason": reason},
        )
        if mode == "local":
            self._notify(notice)
        else:
            self.say_once(notice)

    def maintenance_over(self, mode: str) -> None:
        """A mode has ended by itself; the host that ended it sends the notice."""
        detail = f"{mode} maintenance has ended by itself"
        facts: dict[str, FactValue] = {"mode": mode, "host": self._name}
        self._notify(Notice(Kind.MAINTENANCE_OVER, f"{mode} maintenance", detail, facts))

    def config_refused(self, problem: str) -> None:
        """The present configuration file is not in force."""
        self._say(Kind.CONFIG_REFUSED, f"the configuration stays as it was: {problem}", {})

    def _say(self, kind: Kind, detail: str, facts: Mapping[str, FactValue]) -> None:
        self._notify(Notice(kind, self._name, detail, facts))

    def say_once(self, notice: Notice) -> None:
        """Send a notice about what all hosts see, from one of them."""
        if self.speaks_for_all:
            self._notify(notice)
        else:
            self._see(notice)


def fence_notice(
    step: FenceStep,
    host_id: int,
    name: str,
    by: str,
    ordered: bool,
    text: str,
    withdrawn: bool = False,
) -> Notice:
    """The notice for a record of the fence log about host `host_id`, written by the host `by`."""
    kind, what = _FENCE_STEPS[step]
    if withdrawn:
        what = "is not switched off after all, the order was withdrawn"
    host = name or f"host {host_id}"
    facts: dict[str, FactValue] = {"host_id": host_id, "host": host, "by": by}
    facts |= {"ordered": ordered, "evidence": text}
    return Notice(kind, host, f"{host} {what}", facts)
