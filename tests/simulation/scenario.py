# SPDX-License-Identifier: LGPL-2.1-or-later
"""Scenarios: a story in a dozen verbs, played in virtual time, each expectation with a deadline.

The grammar is tests/scenarios/README.md. A line that does not fit is a `BadScenario` with
its number; an expectation that does not come true a `Disappointed`.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from broker.config import ScoreSection, TimingSection
from scoring.observation import OnHostShutdown, OrderKind, Pause, VmStatus
from scoring.state import StateName
from tests.simulation.earlier import Metadata
from tests.simulation.faults import SICK_BOUND_S
from tests.simulation.forger import ForgedSlot
from tests.simulation.host import NO_BRIDGE, PARTS, WRITES, Host
from tests.simulation.laws import Broken
from tests.simulation.lockspace import Refused
from tests.simulation.tellings import BadLine, tellings
from tests.simulation.world import Settings, World

LOOK_EVERY_S = 0.25
#: Conditions on what was counted since the story began.
COUNTED = (("downtime", "below"), ("moves",), ("fenced",))
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
    """A parsed file. `sentence`: its first comment. `steps`: of one telling; `tellings`: of each,
    where the story is told more than once, with what differs. `seed`: what its chance is drawn
    from."""

    name: str
    sentence: str
    steps: tuple[Step, ...]
    tellings: tuple[tuple[str, tuple[Step, ...]], ...] = ()
    seed: str = ""


VERBS = (
    "hosts",
    "wait",
    "calm",
    "power",
    "kill",
    "stop",
    "watchdog",
    "virsh",
    "timing",
    "storage",
    "network",
    "bmc",
    "guest",
    "maintenance",
    "set",
    "slot",
    "forge",
    "expect",
)
#: Lines about the telling itself (tests/simulation/tellings.py), and verbs that make no trouble.
TELLING = ("for", "repeat", "end")
QUIET = ("wait", "calm", "expect")


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
        if words[0] not in VERBS + TELLING:
            known = ", ".join(VERBS + TELLING)
            raise BadScenario(f"{name}:{number}: {words[0]!r} is no verb; known: {known}")
        steps.append(Step(number, words[0], tuple(words[1:])))
    if not sentence:
        raise BadScenario(f"{name}:1: the first line must be a comment that tells the story")
    verbs = [step.verb for step in steps if step.verb not in TELLING]
    if verbs[:1] != ["hosts"]:
        raise BadScenario(f"{name}: the first verb must be: hosts NUMBER")
    if "expect" not in verbs:
        raise BadScenario(f"{name}: it expects nothing")
    lines = [(step.line, (step.verb, *step.words)) for step in steps]
    try:
        told = [
            (label, tuple(Step(number, words[0], words[1:]) for number, words in each))
            for label, each in tellings(lines)
        ]
    except BadLine as error:
        raise BadScenario(f"{name}:{error}") from None
    if any(telling[0].verb != "hosts" for _, telling in told):
        raise BadScenario(f"{name}: the first verb must be: hosts NUMBER")
    # Neither the file's name nor what is expected changes what happens.
    seed = "\n".join(str(step) for step in steps if step.verb not in (*TELLING, "expect"))
    return Scenario(name, sentence, told[0][1], tuple(told), seed)


def load(path: Path) -> Scenario:
    """Read a scenario file."""
    return parse(path.name, path.read_text())


_SWITCHES: dict[str, Callable[[str], dict[str, Any]]] = {
    "fence": lambda v: {"fence": _yes(v)},
    "power-off": lambda v: {"power_off": _yes(v)},
    "migration": lambda v: {"migration_apart": True} if v == "apart" else {"migration": _yes(v)},
    "health": lambda v: {"health_page": {"local": "http://localhost/"}[v]},
    "on-isolation": lambda v: {"on_isolation": {"move": "move", "leave": "leave"}[v]},
    "io-timeout": lambda v: {"io_timeout_s": int(v)},
    "host-boot": lambda v: {"host_boot_s": float(v)},
    "guest-boot": lambda v: {"guest_boot_s": float(v)},
    "heartbeat": lambda v: {"heartbeat": _yes(v)},
    "power": lambda v: {"power": _yes(v)},
    "names": lambda v: {"names_fixed": {"fixed": True, "made-up": False}[v]},
    "chance": lambda v: {"chance": v},
}


BMC_FAULTS = (
    "fine",
    "silent",
    "hangs",
    "slow",
    "refuses",
    "says-on",
    "says-off",
    "foreign",
    "foreign-off",
    "nameless-off",
    "off-early",
    "off-fails",
    "off-ignored",
    "on-fails",
    "on-ignored",
    "every-other",
    "caches",
    "own-power",
)

#: Who does not get through to the guest.
_CLOSED_TO = {"unreachable": "users", "hidden": "hosts", "reachable": ""}


#: What of a forged slot can be said, by the words of its head and of its lines.
FORGED_FIELDS = frozenset({"name", "vm", "score", "version", "maintenance", "signed", "once"})
FORGED_LINES = ("state", "boot-id", "freeing", "intent", "last-ran", "mem-free", "heartbeat", "api")


def _yes(word: str) -> bool:
    return {"yes": True, "on": True, "no": False, "off": False}[word]


@dataclass
class Player:
    """Plays one scenario. `say` gets each line as it is played."""

    scenario: Scenario
    say: Callable[[str], None] = lambda text: None
    world: World = field(init=False)
    last: Host | None = None
    #: Which telling this is, where there are several.
    label: str = ""

    def __post_init__(self) -> None:
        tellings = self.scenario.tellings
        if tellings and not self.label:
            self.label = tellings[0][0]
        first = self.scenario.steps[0]
        given: dict[str, Any] = {"hosts": int(first.words[0]), "on_wire": True}
        options = first.words[1:]
        try:
            for key, value in zip(options[::2], options[1::2], strict=True):
                given |= _SWITCHES[key](value)
        except (KeyError, ValueError) as error:
            raise self._bad(first, f"does not fit: {error}") from None
        power, chance = given.pop("power", True), given.pop("chance", self.scenario.seed)
        self.world = World(Settings(**given), random.Random(chance + self._number()))
        self.world.fault_began("scenario")
        if power:
            self.world.power_all_on(1.0)

    def _number(self) -> str:
        """A sweep tells each time of the same hosts; `repeat` of others."""
        return self.label.rpartition("time ")[2] if "time " in self.label else ""

    def play(self) -> None:
        """All tellings of it; raises Broken, Disappointed or BadScenario."""
        self._tell()
        for label, steps in self.scenario.tellings[1:]:
            story = replace(self.scenario, steps=steps, tellings=())
            player = Player(story, self.say, label=label)
            self.world = player.world
            player._tell()

    def _tell(self) -> None:
        try:
            self._play()
        except (Broken, Disappointed) as error:
            if self.label:
                error.args = (f"with {self.label}: {error}",)
            raise

    def _play(self) -> None:
        logging.disable(logging.CRITICAL)
        try:
            for step in self.scenario.steps[1:]:
                self.world.tell("scenario", str(step))
                self.say(str(step))
                if step.verb not in QUIET:
                    self.world.trouble()
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

    def _calm(self, step: Step) -> None:
        self.world.calm(SICK_BOUND_S)

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
                self.world.libvirtd_dies(host)
            else:
                raise ValueError(what)

    def _stop(self, step: Step, what: str, who: str, seconds: str = "inf") -> None:
        for host in self._who(who):
            host.stop_process(what, float(seconds))

    def _watchdog(self, step: Step, how: str, who: str) -> None:
        for host in self._who(who):
            if how == "fires":
                host.reset("watchdog: it fires for no reason")
            else:
                host.watchdog_off = not _yes(how)

    def _virsh(self, step: Step, how: str, who: str, lease: str = "") -> None:
        if lease not in ("", "unlocked"):
            raise ValueError(f"{lease}; known: unlocked")
        for host in self._who(who):
            if how == "start":
                self.world.start_by_hand(host, locked=not lease)
            elif how == "destroy":
                host.end_qemu("virsh destroy", VmStatus.DOWN, "powered off")
            else:
                raise ValueError(f"{how}; known: start, destroy")

    def _timing(self, step: Step, key: str, seconds: str, who: str) -> None:
        name, value_s = key.replace("-", "_"), float(seconds)
        for host in self._who(who):
            if name == "io_timeout":
                host.io_timeout_s = int(value_s)
                continue
            if name not in TimingSection.__struct_fields__:
                known = ", ".join(TimingSection.__struct_fields__).replace("_", "-")
                raise ValueError(f"{key}; known: io-timeout, {known}")
            host.timing[name] = value_s
            self.world.config(host).timing_rules()

    def _storage(self, step: Step, *given: str) -> None:
        parts = tuple(word for word in given if word in PARTS) if "late" not in given else ()
        how, who, *more = (word for word in given if word not in parts)
        words = tuple(more)
        delay_s, rest = (words[0] if words else "1.5"), words[1:]
        if how in ("shared", "copy", "copied-leases", "empty"):
            for host in self._who(who):
                host.mount(how)
            return
        if how == "late":
            self._late(who, float(delay_s), *rest)
            return
        faults = {"fine": "", "hangs": "hang", "fails": "error", "slow": "slow"}
        faults["read-only"] = "read-only"
        if how not in faults:
            raise ValueError(f"{how}; known: {', '.join(faults)}, late, shared, copy, empty")
        if rest or (words and how != "slow"):
            raise ValueError(f"{' '.join(words)}; known: {', '.join(PARTS)}")
        fault = faults[how]
        for host in self._who(who):
            host.break_storage(fault, float(delay_s) if fault == "slow" else 0.0, parts)

    def _late(self, who: str, late_s: float, *rest: str) -> None:
        outlives = rest[-1:] == ("outlives",)
        named = rest[: -1 if outlives else None]
        if "whiteboard" in named:
            named = (*(w for w in named if w != "whiteboard"), "slots", "cluster", "log", "ran")
        writes = named or WRITES
        if not set(writes) <= set(WRITES):
            raise ValueError(f"{' '.join(writes)}; known: {', '.join(WRITES)}")
        for host in self._who(who):
            host.make_late(late_s, writes, outlives)

    def _network(self, step: Step, how: str, *words: str) -> None:
        if how == "split":
            self._split(words)
        elif how in ("loss", "delay"):
            self._hurt_packets(how, words)
        elif how == "joined" and len(words) < 2:
            for host in self._who(*words or ("all",)):
                ways = {way for way in self.world.cut_links if host.number in way}
                self.world.cut_links -= ways
        elif how == "migration" and words[:1] in (("up",), ("down",)):
            for host in self._who(*words[1:] or ("all",)):
                if words[0] == "down":
                    self.world.no_migration.add(host.number)
                else:
                    self.world.no_migration.discard(host.number)
        else:
            self._network_of(how, *words)

    def _split(self, words: tuple[str, ...]) -> None:
        """No packet goes from a host of one side to one of another."""
        sides: list[set[int]] = [set()]
        for word in words:
            if word == "/":
                sides.append(set())
            else:
                sides[-1] |= {host.number for host in self._who(word)}
        everybody = [number for side in sides for number in side]
        if len(sides) < 2 or not all(sides) or len(everybody) != len(set(everybody)):
            raise ValueError("it goes: network split HOST… / HOST…, each host on one side")
        for side in sides:
            for number in side:
                for other in set(everybody) - side:
                    self.world.cut_links.add((number, other))

    def _hurt_packets(self, how: str, words: tuple[str, ...]) -> None:
        """Lose or delay packets of a host, or from one to another."""
        number = float(words[0])
        hosts = [self._who(word) for word in words[1:]]
        if len(hosts) not in (1, 2) or number < 0 or (how == "loss" and number > 100):
            raise ValueError(f"it goes: network {how} NUMBER HOST [HOST]")
        part = number / 100 if how == "loss" else number
        for host in hosts[0]:
            if len(hosts) == 2:
                links = self.world.link_loss if how == "loss" else self.world.link_delay_s
                links.update({(host.number, other.number): part for other in hosts[1]})
            elif how == "loss":
                host.packet_loss = part
                host.gateway_answers = 1.0 - part if host.network_up else 0.0
            else:
                host.packet_delay_s = part

    def _network_of(self, how: str, who: str, other: str = "") -> None:
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

    def _bmc(self, step: Step, how: str, *words: str) -> None:
        if how == "network":
            for host in self._who(*words[1:] or ("all",)):
                host.bmc_network_up = {"up": True, "down": False}[words[0]]
            return
        if how == "off-takes":
            seconds, who = words
            for host in self._who(who):
                host.bmc.off_takes_s = float(seconds)
            return
        if how not in BMC_FAULTS:
            raise ValueError(f"{how}; known: {', '.join(BMC_FAULTS)}, off-takes, network")
        fault = "" if how == "fine" else how
        for host in self._who(words[0]):
            if len(words) == 1:
                host.bmc.fault, host.bmc.fault_for = fault, {}
            elif words[1] == "for" and len(words) > 2:
                for asker in (each for word in words[2:] for each in self._who(word)):
                    host.bmc.fault_for[asker.number] = fault
            else:
                raise ValueError(f"it goes: bmc {how} HOST [for HOST…]")

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
        elif how == "reboots":
            host.qemu.is_hung = False
            host.qemu.healthy_from_s = self.world.timeline.now_s + host.guest_boot_s
            host.sick_until_s = host.qemu.healthy_from_s
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
                case "host-boot":
                    host.boot_s = float(value)
                case "guest-boot":
                    host.guest_boot_s = float(value)
                case "orphans":
                    host.keeps_orphans = _yes(value)
                case "receives":
                    host.refuses_moves = not _yes(value)
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
            if how == "newer":
                self.world.forger.newer_host(number)
            else:
                self.world.forger.ends(number)
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

    def _forge(self, step: Step, what: str, *words: str) -> None:
        forger = self.world.forger
        match what:
            case "slot":
                forger.slot(self._forged(int(words[0]), words[1:]))
            case "cluster" if len(words) == 1:
                forger.cluster(_yes(words[0]))
            case "replay" if len(words) == 1:
                for host in self._who(words[0]):
                    forger.replay(host.host_id)
            case "intents" if len(words) == 2:
                forger.intents(int(words[0]), int(words[1]))
            case "ends" if not words:
                forger.ends()
            case _:
                raise ValueError(f"{what}; known: slot, cluster, replay, intents, ends")

    def _forged(self, host_id: int, words: tuple[str, ...]) -> ForgedSlot:
        given = dict(zip(words[::2], words[1::2], strict=True))
        lines = {key: value for key, value in given.items() if key in FORGED_LINES}
        if unknown := given.keys() - lines.keys() - FORGED_FIELDS:
            known = ", ".join(sorted({*FORGED_LINES, *FORGED_FIELDS}))
            raise ValueError(f"{', '.join(sorted(unknown))}; known: {known}")
        return ForgedSlot(
            host_id,
            name=given.get("name", ""),
            vm=VmStatus(given.get("vm", "up")),
            score=int(given.get("score", "3400")),
            version=int(given.get("version", "1")),
            maintenance=_yes(given.get("maintenance", "no")),
            lines=lines,
            signed=_yes(given.get("signed", "no")),
            once=_yes(given.get("once", "no")),
        )

    # --- expectations ---------------------------------------------------------------------

    def _expect(self, step: Step, *words: str) -> None:
        is_timed = len(words) >= 3 and words[-2] in ("within", "for")
        said = words[1:] if words[:1] == ("not",) else words
        if said[:1] in COUNTED or said[:2] in COUNTED:
            # What is counted over the whole story is so now, unless a time is said.
            words = words if is_timed else (*words, "within", "0")
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
            case ("downtime", "below", number):
                below_s = float(number)
                return lambda: world.longest_downtime_s() < below_s
            case ("moves", number):
                wanted = int(number)
                return lambda: world.moves == wanted
            case ("fenced", number):
                wanted = int(number)
                return lambda: world.fenced() == wanted
            case ("order", "done" | "refused" | "lost" | "under-way" as state, *text):
                said = " ".join(text)
                return lambda: self._order_is(state, said)
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

    def _order_is(self, state: str, said: str) -> bool:
        """Whether the last order of an operator came to that, for a reason with that text."""
        if self.world.last_order is None:
            raise ValueError("nobody gave an order before")
        host, broker, number = self.world.last_order
        status = broker.orders.status(number, host.clock_s())
        return status is not None and status.state == state and said in status.text

    def _situation(self) -> str:
        owner = self.world.owner()
        states = ", ".join(
            f"{host.name} {self.world.state(host) or ('off' if not host.power else 'no agent')}"
            for host in self.world.hosts.values()
        )
        runs = "nowhere" if owner is None else f"on {owner.name}"
        counted = (
            f"longest downtime {self.world.longest_downtime_s():.1f} s, "
            f"moves {self.world.moves}, fenced {self.world.fenced()}"
        )
        if self.world.last_order is not None:
            host, broker, number = self.world.last_order
            status = broker.orders.status(number, host.clock_s())
            if status is not None:
                counted += f", the last order {status.state} {status.text!r}"
        return f"the VM runs {runs}; {states}; {counted}"
