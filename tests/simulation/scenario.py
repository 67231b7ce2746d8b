# SPDX-License-Identifier: LGPL-2.1-or-later
"""Scenarios: a story in a dozen verbs, played in virtual time, each expectation with a deadline.

The grammar is tests/scenarios/README.md. A line that does not fit is a `BadScenario` with
its number; an expectation that does not come true a `Disappointed`.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from broker.config import ScoreSection
from broker.whiteboard import EMPTY_SLOT
from scoring.observation import OnHostShutdown, OrderKind, Pause, VmStatus
from scoring.state import StateName
from tests.simulation.earlier import Metadata
from tests.simulation.host import NO_BRIDGE, WRITES, Host
from tests.simulation.lockspace import Refused
from tests.simulation.world import Settings, World

LOOK_EVERY_S = 0.25
_UP_WORDS = {"up": True, "down": False, "unknown": None}


class BadScenario(Exception):
    """A line of a scenario cannot be understood: file, line and what is wrong."""


class Disappointed(Exception):
    """An expectation did not hold: file, line, what, and how it was instead."""


@dataclass(frozen=True, slots=True)
class Step:
    """One line: its number, its verb, the words behind it."""

    line: int
    verb: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return " ".join((self.verb, *self.words))


@dataclass(frozen=True, slots=True)
class Scenario:
    """A parsed file. `sentence`: its first comment."""

    name: str
    sentence: str
    steps: tuple[Step, ...]


VERBS = (
    "hosts",
    "wait",
    "power",
    "kill",
    "storage",
    "network",
    "bmc",
    "guest",
    "maintenance",
    "set",
    "slot",
    "expect",
)


def parse(name: str, text: str) -> Scenario:
    """Read a scenario; BadScenario where it does not fit."""
    sentence = ""
    steps: list[Step] = []
    for number, raw in enumerate(text.splitlines(), 1):
        line, _, comment = raw.partition("#")
        if not steps and not line.strip() and comment.strip():
            sentence = f"{sentence} {comment.strip()}".strip()
        words = line.split()
        if not words:
            continue
        if words[0] not in VERBS:
            known = ", ".join(VERBS)
            raise BadScenario(f"{name}:{number}: {words[0]!r} is no verb; known: {known}")
        steps.append(Step(number, words[0], tuple(words[1:])))
    if not sentence:
        raise BadScenario(f"{name}:1: the first line must be a comment that tells the story")
    if not steps or steps[0].verb != "hosts":
        raise BadScenario(f"{name}: the first verb must be: hosts NUMBER")
    if not any(step.verb == "expect" for step in steps):
        raise BadScenario(f"{name}: it expects nothing")
    return Scenario(name, sentence, tuple(steps))


def load(path: Path) -> Scenario:
    """Read a scenario file."""
    return parse(path.name, path.read_text())


_SWITCHES: dict[str, Callable[[str], dict[str, Any]]] = {
    "fence": lambda v: {"fence": _yes(v)},
    "migration": lambda v: {"migration_apart": True} if v == "apart" else {"migration": _yes(v)},
    "health": lambda v: {"health_page": {"local": "http://localhost/"}[v]},
    "on-isolation": lambda v: {"on_isolation": {"move": "move", "leave": "leave"}[v]},
    "io-timeout": lambda v: {"io_timeout_s": int(v)},
    "host-boot": lambda v: {"host_boot_s": float(v)},
    "guest-boot": lambda v: {"guest_boot_s": float(v)},
    "heartbeat": lambda v: {"heartbeat": _yes(v)},
    "power": lambda v: {"power": _yes(v)},
}


#: Who does not get through to the guest.
_CLOSED_TO = {"unreachable": "users", "hidden": "hosts", "reachable": ""}


def _yes(word: str) -> bool:
    return {"yes": True, "on": True, "no": False, "off": False}[word]


@dataclass
class Player:
    """Plays one scenario. `say` gets each line as it is played."""

    scenario: Scenario
    say: Callable[[str], None] = lambda text: None
    world: World = field(init=False)
    last: Host | None = None

    def __post_init__(self) -> None:
        first = self.scenario.steps[0]
        given: dict[str, Any] = {"hosts": int(first.words[0]), "on_wire": True}
        options = first.words[1:]
        try:
            for key, value in zip(options[::2], options[1::2], strict=True):
                given |= _SWITCHES[key](value)
        except (KeyError, ValueError) as error:
            raise self._bad(first, f"does not fit: {error}") from None
        power = given.pop("power", True)
        self.world = World(Settings(**given), random.Random(self.scenario.name))
        self.world.fault_began("scenario")
        if power:
            self.world.power_all_on(1.0)

    def play(self) -> None:
        """All steps; raises Broken, Disappointed or BadScenario."""
        logging.disable(logging.CRITICAL)
        try:
            for step in self.scenario.steps[1:]:
                self.world.tell("scenario", str(step))
                self.say(str(step))
                try:
                    getattr(self, f"_{step.verb}")(step, *step.words)
                except (TypeError, KeyError, ValueError) as error:
                    raise self._bad(step, f"does not fit: {error}") from error
            self.world.stop()
        finally:
            self.world.close()

    def _bad(self, step: Step, why: str) -> BadScenario:
        return BadScenario(f"{self.scenario.name}:{step.line}: {step}: {why}")

    # --- who ------------------------------------------------------------------------------

    def _who(self, word: str) -> list[Host]:
        hosts = list(self.world.hosts.values())
        owner = self.world.owner()
        if word == "all":
            return hosts
        if word == "others":
            return [host for host in hosts if host is not owner]
        if word == "owner":
            if owner is None:
                raise ValueError("nobody runs the VM")
            self.last = owner
            return [owner]
        if word == "last":
            if self.last is None:
                raise ValueError("no owner was named before")
            return [self.last]
        return [next(self._named(word))]

    def _named(self, word: str) -> Any:
        found = [host for host in self.world.hosts.values() if host.name == word]
        if not found:
            raise ValueError(f"there is no {word!r}")
        return iter(found)

    # --- verbs ----------------------------------------------------------------------------

    def _wait(self, step: Step, seconds: str) -> None:
        self.world.run(float(seconds))

    def _power(self, step: Step, how: str, who: str, seconds: str = "0") -> None:
        for host in self._who(who):
            if how == "on":
                host.power_on()
            elif how == "off":
                host.power_off("scenario")
            elif how == "reset":
                host.reset("scenario")
            elif how in ("shutdown", "reboot"):
                self.world.shut_down(host, how == "reboot")
            elif how == "freeze":
                host.freeze(float(seconds))
            else:
                raise ValueError(how)

    def _kill(self, step: Step, what: str, who: str) -> None:
        for host in self._who(who):
            if what in ("agent", "broker"):
                host.crash(what)
            elif what == "sanlock":
                host.crash_sanlock()
            elif what == "qemu":
                host.end_qemu("crashed", VmStatus.DOWN_UNEXPECTED, "its process died")
            elif what == "libvirtd":
                host.libvirt_up = False
                self.world.timeline.after(1.5, setattr, host, "libvirt_up", True)
            else:
                raise ValueError(what)

    def _storage(self, step: Step, how: str, who: str, delay_s: str = "1.5", *rest: str) -> None:
        if how in ("shared", "copy", "copied-leases", "empty"):
            for host in self._who(who):
                host.mount(how)
            return
        if how == "late":
            self._late(who, float(delay_s), *rest)
            return
        if rest:
            raise ValueError(" ".join(rest))
        fault = {"fine": "", "hangs": "hang", "fails": "error", "slow": "slow"}[how]
        for host in self._who(who):
            host.break_storage(fault, float(delay_s) if fault == "slow" else 0.0)

    def _late(self, who: str, late_s: float, *rest: str) -> None:
        outlives = rest[-1:] == ("outlives",)
        writes = rest[: -1 if outlives else None] or WRITES
        if not set(writes) <= set(WRITES):
            raise ValueError(f"{' '.join(writes)}; known: {', '.join(WRITES)}")
        for host in self._who(who):
            host.make_late(late_s, writes, outlives)

    def _network(self, step: Step, how: str, who: str, other: str = "") -> None:
        for host in self._who(who):
            if how in ("up", "down"):
                host.network_up = how == "up"
                host.gateway_answers = 1.0 if host.network_up else 0.0
            elif how in ("unplugged", "plugged"):
                host.unplug(how == "unplugged")
            elif how == "cut":
                self.world.cut_links.add((host.number, self._who(other)[0].number))
            elif how == "joined":
                self.world.cut_links.discard((host.number, self._who(other)[0].number))
            else:
                raise ValueError(how)

    def _bmc(self, step: Step, how: str, who: str) -> None:
        known = (
            "fine",
            "silent",
            "slow",
            "refuses",
            "says-on",
            "says-off",
            "foreign",
            "off-fails",
            "off-ignored",
        )
        if how not in known:
            raise ValueError(f"{how}; known: {', '.join(known)}")
        for host in self._who(who):
            host.bmc.fault = "" if how == "fine" else how

    def _guest(self, step: Step, how: str, *words: str) -> None:
        if how == "ordered-on":
            self._order(self._who(words[0])[0], *words[1:])
            return
        if how == "resumed":
            self._resume()
            return
        if how in _CLOSED_TO:
            self.world.guest_closed_to = _CLOSED_TO[how]
            return
        host = self._who("owner")[0]
        assert host.qemu is not None
        if how == "hangs":
            host.qemu.is_hung = True
        elif how == "recovers":
            host.qemu.is_hung, host.sick_until_s = False, self.world.timeline.now_s
        elif how == "ignores-shutdown":
            host.qemu.ignores_shutdown = True
        elif how == "powers-off":
            host.end_qemu("the guest powered itself off", VmStatus.DOWN, "shut down")
        elif how == "snapshot":
            self.world.snapshot(host, {"shared": True, "local": False}[words[0]])
        elif how == "commits":
            host.qemu.job = "active-commit"
        elif how == "pivots":
            self.world.pivot(host)
        elif how == "paused":
            host.qemu.pause = Pause(words[0] if words else "user")
            host.pause_qemu()
        elif how == "saved":
            host.save_qemu()
        elif how == "panics":
            host.leave_qemu(crashed=True)
        else:
            raise ValueError(how)

    def _resume(self) -> None:
        """As an operator does on each host where a process of the VM stands still."""
        for host in self.world.hosts.values():
            qemu = host.qemu
            if qemu is not None and qemu.has_run and not qemu.running and not qemu.crashed:
                try:
                    host.resume_qemu(qemu.healthy_from_s)
                except Refused as error:
                    self.world.tell(host.name, f"not resumed: {error}")

    def _order(self, host: Host, kind: str, target: str = "") -> None:
        if kind in ("adopt", "keep"):
            self.world.decide(host, kind == "adopt")
            return
        number = self._who(target)[0].host_id if target else None
        self.world.order(host, OrderKind(kind), number)

    def _maintenance(self, step: Step, kind: str, how: str, *rest: str) -> None:
        lasts_s = None
        if len(rest) >= 2 and rest[-2] == "for":
            lasts_s, rest = int(rest[-1]), rest[:-2]
        release_id = rest[-1:] == ("release-id",)
        rest = rest[: -1 if release_id else None]
        if kind == "global" and rest[:1] == ("at",) and len(rest) == 2:
            for host in self._who(rest[1]):
                self.world.set_global_at(host, _yes(how))
            return
        if kind == "global" and not rest and not release_id:
            self.world.set_global_maintenance(_yes(how), lasts_s)
            return
        if kind != "local" or len(rest) > 1:
            raise ValueError(kind)
        for host in self._who(*rest or ("all",)):
            self.world.set_local_maintenance(host, _yes(how), lasts_s, release_id)

    def _set(self, step: Step, what: str, value: str, who: str) -> None:
        for host in self._who(who):
            match what:
                case "load":
                    host.load = float(value)
                case "memory":
                    host.memory_mb = float(value)
                case "gateway":
                    host.gateway_answers = float(value) / 100
                case "bridge":
                    host.bridge_up = _yes(value)
                case "guest-network":
                    host.guest_network_up = host.uplink_up = _yes(value)
                case "config":
                    host.config_up_to_date = _yes(value)
                case "lock-driver":
                    host.lock_driver = _yes(value)
                case "starts" | "can-start":
                    host.starts_fail = "" if _yes(value) else NO_BRIDGE
                    host.is_told = what == "can-start" and not _yes(value)
                case "libvirt":
                    host.libvirt_hangs = not _yes(value)
                case "clock":
                    host.wall_offset_s = float(value)
                case "metadata":
                    host.metadata = Metadata(value)
                case "migration-takes":
                    host.migration_s = float(value)
                case "guest-boot":
                    host.guest_boot_s = float(value)
                case "orphans":
                    host.keeps_orphans = _yes(value)
                case "autostart":
                    host.autostart = _yes(value)
                case "killable":
                    host.qemu_unkillable = not _yes(value)
                case "on-host-shutdown":
                    host.on_host_shutdown = OnHostShutdown(value)
                case "id":
                    host.host_id = int(value)
                case "base-score":
                    self.world.score[host.number] = ScoreSection(base_score=int(value))
                case "agent" if value == "dead":
                    host.agent_wanted = False
                    host.crash("agent")
                case "agent":
                    self.world.wish_agent(host, _yes(value))
                case "daemons":
                    self.world.wish_daemons(host, _yes(value))
                case _:
                    raise ValueError(what)

    def _slot(self, step: Step, how: str, who: str = "host1") -> None:
        board = self.world.board
        if how in ("newer", "gone"):
            number = 1 + max(self.world.hosts)
            text = b"2|1|77|".ljust(4096, b"\0") if how == "newer" else EMPTY_SLOT
            board.put(number, text)
            return
        if who == "cluster":
            board.put(0, b"mainte\xffance=1".ljust(4096, b"\0"))
            return
        for host in self._who(who):
            if how == "garbled":
                data = bytearray(board.slots[host.host_id])
                data[20] ^= 0x10
                board.put(host.host_id, bytes(data))
            elif how == "torn":
                host.storage.torn_writes += 1
            elif how == "stale":
                host.storage.stale_reads += 1
            elif how == "stray":
                other = next(h for h in self.world.hosts.values() if h is not host)
                host.storage.stray_writes.append(other.host_id)
            elif how == "left":
                # A slot that somebody left behind long ago: a host that is not there.
                board.put(40, board.slots[host.host_id])
            else:
                raise ValueError(how)

    # --- expectations ---------------------------------------------------------------------

    def _expect(self, step: Step, *words: str) -> None:
        if len(words) < 3 or words[-2] not in ("within", "for"):
            raise ValueError("an expectation ends in: within SECONDS, or: for SECONDS")
        condition, how, seconds = words[:-2], words[-2], float(words[-1])
        is_negative = condition[0] == "not"
        if is_negative:
            condition = condition[1:]
        holds = self._condition(condition)
        world = self.world
        until_s = world.timeline.now_s + seconds
        while True:
            is_so = holds() is not is_negative
            if how == "within" and is_so:
                return
            if how == "for" and not is_so:
                break
            if world.timeline.now_s >= until_s:
                break
            world.run(min(LOOK_EVERY_S, until_s - world.timeline.now_s))
        if how == "for" and is_so:
            return
        raise Disappointed(
            f"{self.scenario.name}:{step.line}: {step}: not so at {world.timeline.now_s:.1f} s; "
            f"{self._situation()}"
        )

    def _condition(self, words: tuple[str, ...]) -> Callable[[], bool]:
        world = self.world
        match words:
            case ("engine", "healthy"):
                return lambda: any(host.vm_healthy for host in world.hosts.values())
            case ("engine", "healthy", "on", who):
                hosts = self._who(who)
                return lambda: any(host.vm_healthy for host in hosts)
            case ("engine", "reachable"):
                return lambda: any(map(world.users_reach, world.hosts.values()))
            case ("engine", "reachable", "on", who):
                hosts = self._who(who)
                return lambda: any(map(world.users_reach, hosts))
            case ("engine", "running"):
                return lambda: world.owner() is not None
            case ("engine", "running", "on", who):
                hosts = self._who(who)
                return lambda: world.owner() in hosts
            case (who, "in", state):
                name, hosts = StateName(state).value, self._who(who)
                return lambda: all(world.state(host) == name for host in hosts)
            case ("score", "of", who, "is", number):
                hosts, wanted = self._who(who), int(number)
                return lambda: all(world.score_of(host) == wanted for host in hosts)
            case (who, "has", "a", "memory", "image"):
                hosts = self._who(who)
                return lambda: all(host.memory_image is not None for host in hosts)
            case ("id", "of", who, "free"):
                hosts = self._who(who)
                return lambda: all(
                    world.leases.delta(host.host_id).timestamp == 0 for host in hosts
                )
            case ("power", "of", who, "on"):
                hosts = self._who(who)
                return lambda: all(host.power for host in hosts)
            case (who, "calls", "engine", word):
                hosts, up = self._who(who), _UP_WORDS[word]
                return lambda: all(
                    (place := world.told_place(host)) is not None and place.up is up
                    for host in hosts
                )
            case (who, "lacks", penalty):
                hosts = self._who(who)
                return lambda: all(penalty in world.penalties_of(host) for host in hosts)
            case (who, "finds", other, "elsewhere"):
                hosts, others = self._who(who), self._who(other)
                return lambda: all(
                    world.finds_elsewhere(host, its)
                    for host in hosts
                    for its in others
                    if host is not its
                )
            case (who, "says", *text):
                hosts, said, before = self._who(who), " ".join(text), len(world.trace)
                names = [host.name for host in hosts]
                return lambda: any(
                    said in what and name in names for _, name, what in world.trace[before:]
                )
            case _:
                raise ValueError(f"unknown condition: {' '.join(words)}")

    def _situation(self) -> str:
        owner = self.world.owner()
        states = ", ".join(
            f"{host.name} {self.world.state(host) or ('off' if not host.power else 'no agent')}"
            for host in self.world.hosts.values()
        )
        runs = "nowhere" if owner is None else f"on {owner.name}"
        return f"the VM runs {runs}; {states}"
