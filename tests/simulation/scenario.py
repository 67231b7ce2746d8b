# SPDX-License-Identifier: LGPL-2.1-or-later
"""Scenarios: a story in a dozen verbs, played in virtual time, each expectation with a deadline.

The grammar is tests/scenarios/README.md. A line that does not fit is a `BadScenario` with
its number; an expectation that does not come true a `Disappointed`.
"""

from __future__ import annotations

import inspect
import logging
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from broker.config.sections import ScoreSection, TimingSection
from broker.registry.record import MEMORY_MB_MAX
from broker.wire.kinds import Kind
from broker.wire.limits import HOST_ID_MAX
from scoring.observation import OnHostShutdown, OrderKind
from scoring.vm.score import ORDER, ZERO_STATES
from scoring.vm.state import StateName
from scoring.vm_facts import ENGINE, Obstacle, Pause, VmStatus, Want
from tests.simulation import earlier_decisions, membership, vm_story
from tests.simulation.earlier import Metadata
from tests.simulation.faults import SICK_BOUND_S
from tests.simulation.forger import ForgedSlot
from tests.simulation.grammar import (
    FORMS,
    LASTS_MAX_S,
    Misfit,
    NotNow,
    WrongCount,
    apart,
    complaint,
    first_words,
    is_number,
    lasts_of,
    number_of,
    seconds_of,
    whole_of,
    whole_within,
    within,
)
from tests.simulation.host import NO_BRIDGE, PARTS, WRITES, Host
from tests.simulation.laws import Broken
from tests.simulation.lockspace import LeaseVolume, Refused
from tests.simulation.tellings import BadLine, tellings
from tests.simulation.whiteboard import Whiteboard
from tests.simulation.world import KEYS, Settings, World

T = TypeVar("T")

LOOK_EVERY_S = 0.25
#: An order of an operator has ended after so long at most; who expects its end waits so long.
ORDER_ENDS_S = 600.0
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


VERBS = tuple(FORMS)
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
            unknown = Misfit(words[0], VERBS + TELLING)
            raise BadScenario(f"{name}:{number}: {words[0]!r} is no verb; {unknown}")
        # "60 s" is "60s".
        unit = [at for at in range(1, len(words)) if words[at] == "s" and is_number(words[at - 1])]
        kept = [word for at, word in enumerate(words) if at not in unit]
        steps.append(Step(number, kept[0], tuple(kept[1:])))
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
    for step in told[0][1][1:]:
        if step.verb == "hosts":
            raise BadScenario(f"{name}:{step.line}: hosts stands first, and once")
    # What happens depends neither on the file's name nor on what is expected.
    seed = "\n".join(str(step) for step in steps if step.verb not in (*TELLING, "expect"))
    return Scenario(name, sentence, told[0][1], tuple(told), seed)


def load(path: Path) -> Scenario:
    """Read a scenario file; BadScenario also where it cannot be read."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadScenario(f"{path.name}: it is no text in UTF-8: {error}") from None
    except OSError as error:
        raise BadScenario(f"{path.name}: it cannot be read: {error.strerror}") from None
    return parse(path.name, text)


_SWITCHES: dict[str, Callable[[str], dict[str, Any]]] = {
    "fence": lambda v: {"fence": _yes(v)},
    "power-off": lambda v: {"power_off": _yes(v)},
    "migration": lambda v: {"migration_apart": True} if v == "apart" else {"migration": _yes(v)},
    "health": lambda v: {"health_page": _one_of(v, {"local": "http://localhost/"})},
    "on-isolation": lambda v: {"on_isolation": _one_of(v, {"move": "move", "leave": "leave"})},
    "balance": lambda v: {"balance": _yes(v)},
    "io-timeout": lambda v: {"io_timeout_s": whole_within(v, 1, IO_TIMEOUT_S_MAX)},
    "host-boot": lambda v: {"host_boot_s": seconds_of(v)},
    "guest-boot": lambda v: {"guest_boot_s": seconds_of(v)},
    "heartbeat": lambda v: {"heartbeat": _yes(v)},
    "power": lambda v: {"power": _yes(v)},
    "names": lambda v: {"names_fixed": _one_of(v, {"fixed": True, "made-up": False})},
    "chance": lambda v: {"chance": v},
    "memory": lambda v: {"memory_mb": within(v, 0, MEMORY_MB_MAX)},
    "reserve": lambda v: {"reserve_mb": within(v, 0, MEMORY_MB_MAX)},
}


#: The largest cluster that is told of.
HOSTS_MAX = 64
#: What a verb raises where its words do not fit.
MISFITS = (KeyError, ValueError, IndexError)

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

#: Hosts by what they are.
GROUPS = ("owner", "last", "others", "all")
PROCESSES = ("agent", "broker", "libvirtd", "sanlock", "qemu")
_STORAGE_FAULTS = {
    "fine": "",
    "hangs": "hang",
    "fails": "error",
    "slow": "slow",
    "read-only": "read-only",
    "unreadable": "unreadable",
    "full": "full",
    "replaced": "replaced",
}
STORAGE = (
    *_STORAGE_FAULTS,
    "stale",
    "late",
    "shared",
    "copy",
    "copied-leases",
    "empty",
    "split",
    "joined",
    "snapshot",
    "restored",
    "reinitialized",
)
#: The parts of the storage that the cluster itself writes to.
VOLUMES = ("whiteboard", "leases")
#: Networks besides the hosts' own.
NETWORKS = ("storage", "migration", "bmc", "guests")

#: What `set` sets.
SETTINGS = (
    "load",
    "memory",
    "gateway",
    "bridge",
    "guest-network",
    "config",
    "lock-driver",
    "starts",
    "can-start",
    "libvirt",
    "killable",
    "own-check",
    "orphans",
    "receives",
    "migrates",
    "autostart",
    "guest-boot",
    "host-boot",
    "migration-takes",
    "metadata",
    "decisions",
    "clock",
    "base-score",
    "id",
    "on-host-shutdown",
    "key",
    "fence",
    "disk-errors",
    "agent",
    "daemons",
)

#: What a HOST may lack, by docs/status.md; the first in the list are those of the score itself.
PENALTIES = (
    *ORDER,
    *(name for name, _ in ZERO_STATES.values()),
    *(obstacle.value for obstacle in Obstacle),
    *("lockspace", "lock-driver"),
)
#: What of it the daemons read when they start.
CONFIGURED = ("id", "key", "fence", "base-score", "on-host-shutdown")
#: The longest io_timeout that a configuration may have, in seconds.
IO_TIMEOUT_S_MAX = 60
#: How far a wall clock may be wrong: a century.
WALL_OFFSET_S_MAX = 3_155_760_000.0
#: Lines that may start daemons anew: by their verb, or by what they set.
_RESTARTS = ("kill", "power", "host", "watchdog")
_SETS_ANEW = (("daemons",), ("agent",))

#: Who does not get through to the guest.
_CLOSED_TO = {"unreachable": "users", "hidden": "hosts", "reachable": ""}


#: What of a forged slot can be said, by the words of its head and of its lines.
FORGED_FIELDS = frozenset({"name", "vm", "score", "version", "maintenance", "signed", "once"})
FORGED_LINES = ("state", "boot-id", "freeing", "intent", "last-ran", "mem-free", "heartbeat", "api")


def _yes(word: str) -> bool:
    return _one_of(word, {"yes": True, "no": False, "on": True, "off": False})


def _one_of(word: str, known: dict[str, T]) -> T:
    """What that word stands for; Misfit names those that there are."""
    if word not in known:
        raise Misfit(word, known)
    return known[word]


def must_be_once(words: Sequence[str]) -> None:
    """ValueError where a word comes twice: only one of its values would count."""
    for word in words:
        if words.count(word) > 1:
            raise ValueError(f"{word!r} is said twice")


def _must_be_able_to_fail(
    condition: tuple[str, ...], is_negative: bool, how: str, seconds: float
) -> None:
    """ValueError where an expectation would hold, or fail, whatever happens."""
    if condition[1:2] == ("says",):
        wanted, form = "within", "expect HOST says TEXT within S"
        if is_negative:
            wanted, form = "for", "expect not HOST says TEXT for S"
        if how != wanted or not seconds:
            raise ValueError(f"what a host says counts from this line on; it goes: {form}")
    if condition[1:2] == ("tells",) and is_negative and how == "within" and seconds:
        raise ValueError(
            "what was told stays told; it goes: expect not HOST tells KIND [TEXT] for S"
        )


@dataclass
class Player:
    """Plays one scenario. `say` gets each line as it is played."""

    scenario: Scenario
    say: Callable[[str], None] = lambda text: None
    world: World = field(init=False)
    last: Host | None = None
    last_of_vm: Host | None = None
    #: What `storage snapshot` kept.
    _snapshot: tuple[LeaseVolume, Whiteboard] | None = None
    #: Which telling this is, where there are several.
    label: str = ""
    #: Whether a line before this one gives an operator's order, or splits the storage.
    _is_ordered: bool = False
    _is_split: bool = False

    def __post_init__(self) -> None:
        tellings = self.scenario.tellings
        if tellings and not self.label:
            self.label = tellings[0][0]
        first = self.scenario.steps[0]
        given: dict[str, Any] = {"on_wire": True}
        options = first.words[1:]
        try:
            given["hosts"] = whole_of(first.words[0])
            if not 1 <= given["hosts"] <= HOSTS_MAX:
                raise ValueError(f"a cluster has 1 to {HOSTS_MAX} hosts")
            if len(options) % 2:
                raise ValueError(f"{options[-1]!r} has no value")
            must_be_once(options[::2])
            for key, value in zip(options[::2], options[1::2], strict=True):
                given |= _one_of(key, _SWITCHES)(value)
        except MISFITS as error:
            raise self._bad(first, error) from None
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
        rehearse(self.scenario)
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
                self._do(step)
            self.world.stop()
        finally:
            self.world.close()

    def _do(self, step: Step) -> None:
        verb = getattr(self, f"_{step.verb}")
        try:
            inspect.signature(verb).bind(step, *step.words)
        except TypeError:
            raise self._bad(step, WrongCount()) from None
        try:
            verb(step, *step.words)
        except MISFITS as error:
            raise self._bad(step, error) from error

    def _bad(self, step: Step, error: Exception) -> BadScenario:
        why = complaint(step.verb, step.words, error)
        return BadScenario(f"{self.scenario.name}:{step.line}: {step}: does not fit: {why}")

    # --- who ------------------------------------------------------------------------------

    def _who(self, word: str) -> list[Host]:
        hosts = list(self.world.hosts.values())
        owner = self._owner()
        if "," in word:
            named = [host for each in word.split(",") for host in self._who(each)]
            return list(dict.fromkeys(named))
        if word == "all":
            return hosts
        if word == "others":
            if len(hosts) == 1:
                raise ValueError("there is one host alone, so there are no others")
            return [host for host in hosts if host is not owner]
        if word == "owner":
            if owner is None:
                at_s = self.world.timeline.now_s
                raise NotNow(f"nobody runs the VM at {at_s:.1f} s, so there is no owner")
            self.last = owner
            return [owner]
        if word == "last":
            last = self.last or self.last_of_vm
            if last is None:
                raise ValueError("no line before this one names the owner, or a VM as its host")
            return [last]
        found = self.world.named(word)
        vm = self.world.vms.named(word)
        if found is None and vm is not None and self.world.vms.several:
            found = self._owner(vm)
            if found is None:
                raise NotNow(f"{word} runs nowhere, so it stands for no host")
            self.last_of_vm = found
        if found is None:
            names = (*(host.name for host in hosts), *GROUPS)
            raise ValueError(f"there is no host {word!r}; there are: {', '.join(names)}")
        return [found]

    def _the(self, word: str) -> Host:
        """The one host that a word stands for; of the others the first."""
        hosts = self._who(word)
        if len(hosts) != 1 and word != "others":
            raise ValueError(f"{word!r} are {len(hosts)} hosts, one is needed here")
        return hosts[0]

    def _owner(self, vm: int = ENGINE) -> Host | None:
        """The host that runs a VM at this moment."""
        return self.world.owner(vm)

    def _is_who(self, word: str) -> bool:
        """Whether a word names hosts."""
        world = self.world
        return all(
            each in GROUPS or world.named(each) or (world.vms.several and world.vms.named(each))
            for each in word.split(",")
        )

    # --- verbs ----------------------------------------------------------------------------

    def _wait(self, step: Step, seconds: str) -> None:
        # What is quiet after `calm` is passed over, as in the runs by chance.
        self.world.run(lasts_of(seconds), leaps=self.world.is_story_calm)

    def _calm(self, step: Step) -> None:
        self.world.calm(SICK_BOUND_S)

    def _power(self, step: Step, how: str, *words: str) -> None:
        (who,), times = apart(words)
        acts: dict[str, Callable[[Host], None]] = {
            "on": lambda host: host.power_on(),
            "off": lambda host: host.power_off("scenario"),
            "reset": lambda host: host.reset("scenario"),
            "shutdown": lambda host: self.world.shut_down(host, reboots=False),
            "reboot": lambda host: self.world.shut_down(host, reboots=True),
            "freeze": lambda host: host.freeze(seconds_of(times[0])),
            "suspend": lambda host: host.suspend(seconds_of(times[0])),
        }
        act = _one_of(how, acts)
        if len(times) != (how in ("freeze", "suspend")):
            raise WrongCount
        for host in self._who(who):
            act(host)

    def _host(self, step: Step, how: str, who: str) -> None:
        acts = {
            "leave": membership.leaves,
            "join": membership.joins,
            "clean": membership.cleaned,
            "replace": membership.replaced,
            "reload": membership.reloads,
        }
        act = _one_of(how, acts)
        for host in self._who(who):
            act(self.world, host)

    def _clock(self, step: Step, how: str, *words: str) -> None:
        if how != "jumps":
            raise Misfit(how, ("jumps",))
        (who,), (seconds,) = apart(words, ("on", "of", "by"))
        for host in self._who(who):
            host.jump_clock(seconds_of(seconds))

    def _vm(self, step: Step, name: str, *words: str) -> None:
        reserved = (*GROUPS, *PROCESSES, *vm_story.WORDS)
        vm_story.tell(self.world, self._who, reserved, name, words)

    def _registry(self, step: Step, how: str, *words: str) -> None:
        vm_story.registry(self.world, self._who, how, words)

    def _start(self, step: Step, name: str) -> None:
        vm_story.wants(self.world, name, Want.UP)

    def _migrate(self, step: Step, name: str, *words: str) -> None:
        self._is_ordered = True
        vm_story.migrate(self.world, self._who, name, words)

    def _vm_of(self, word: str) -> int | None:
        """The VM beside the engine that a word names."""
        vm = self.world.vms.named(word)
        return None if vm == ENGINE else vm

    def _kill(self, step: Step, what: str, *words: str) -> None:
        vm = self._vm_of(words[0]) if len(words) == 1 else None
        if what == "qemu" and vm is not None:
            if not any(vm in host.qemus for host in self.world.hosts.values()):
                self._comes_to_nothing(f"no process of {words[0]} is anywhere at this moment")
            vm_story.kill(self.world, vm)
            return
        (who,), times = apart(words)
        if times:
            raise WrongCount
        if what not in PROCESSES:
            raise Misfit(what, PROCESSES)
        self._must_be_there(what, self._who(who))
        for host in self._who(who):
            if what in ("agent", "broker"):
                host.crash(what)
            elif what == "sanlock":
                host.crash_sanlock()
            elif what == "qemu":
                host.end_qemu("crashed", VmStatus.DOWN_UNEXPECTED, "its process died")
            else:
                self.world.libvirtd_dies(host)

    def _must_be_there(self, what: str, hosts: list[Host]) -> None:
        """NotNow where none of the hosts has that process."""
        there = {
            "agent": lambda host: "agent" in host.processes,
            "broker": lambda host: "broker" in host.processes,
            "sanlock": lambda host: host.sanlock is not None and host.sanlock.running,
            "qemu": lambda host: host.qemu is not None,
            "libvirtd": lambda host: host.power,
        }[what]
        if not any(map(there, hosts)):
            names = ", ".join(host.name for host in hosts)
            self._comes_to_nothing(f"no {what} is on {names} at this moment")

    def _comes_to_nothing(self, why: str) -> None:
        """NotNow, for a line that would do nothing; a sweep goes over all moments, so it may."""
        if not self.label:
            raise NotNow(why)
        self.world.tell("scenario", why)

    def _stop(self, step: Step, what: str, *words: str) -> None:
        if self._vm_of(what) is not None and not words:
            vm_story.wants(self.world, what, Want.DOWN)
            return
        (who,), times = apart(words)
        if what not in PROCESSES:
            raise Misfit(what, PROCESSES)
        if len(times) > 1:
            raise WrongCount
        for host in self._who(who):
            host.stop_process(what, seconds_of(times[0] if times else "inf"))

    def _watchdog(self, step: Step, how: str, *words: str) -> None:
        (who,), times = apart(words)
        if how not in ("on", "off", "fires"):
            raise Misfit(how, ("on", "off", "fires"))
        if times:
            raise WrongCount
        for host in self._who(who):
            if how == "fires":
                host.reset("watchdog: it fires for no reason")
            else:
                host.watchdog_off = not _yes(how)

    def _virsh(self, step: Step, how: str, *words: str) -> None:
        if how not in ("start", "destroy"):
            raise Misfit(how, ("start", "destroy"))
        (who, *rest), times = apart(words)
        lease = "unlocked" if rest and rest[-1] == "unlocked" else ""
        named = rest[:-1] if lease else rest
        if len(named) > 1 or times or (lease and how == "destroy"):
            raise WrongCount
        vm = vm_story.number_of_vm(self.world, named[0]) if named else ENGINE
        hosts = self._who(who)
        if how == "destroy" and not any(vm in host.qemus for host in hosts):
            names = ", ".join(host.name for host in hosts)
            self._comes_to_nothing(f"no process of {self.world.called(vm)} is on {names} now")
        for host in hosts:
            if how == "start":
                self.world.start_by_hand(host, locked=not lease, vm=vm)
            else:
                host.end_qemu("virsh destroy", VmStatus.DOWN, "powered off", vm=vm)

    def _timing(self, step: Step, key: str, *words: str) -> None:
        (who,), (seconds,) = apart(words)
        name, value_s = key.replace("-", "_"), seconds_of(seconds)
        for host in self._who(who):
            if name == "io_timeout":
                host.io_timeout_s = whole_within(seconds, 1, IO_TIMEOUT_S_MAX)
                continue
            if name not in TimingSection.__struct_fields__:
                known = [field.replace("_", "-") for field in TimingSection.__struct_fields__]
                raise Misfit(key, ("io-timeout", *known))
            host.timing[name] = value_s
            self.world.config(host).timing_rules()

    def _storage(self, step: Step, how: str, *given: str) -> None:
        if how in PARTS and given:
            # `storage leases hangs HOST`
            how, given = given[0], (how, *given[1:])
        if how in ("split", "joined", "snapshot", "restored", "reinitialized"):
            self._storage_of_all(how, given)
            return
        words, times = apart(given)
        disks = [f"disk of {vm}" for word in words if (vm := self._own_disk(word))]
        words = [word for word in words if not self._own_disk(word)]
        named = [word for word in words if not self._is_who(word)]
        whos = [word for word in words if self._is_who(word)]
        if how not in STORAGE:
            raise Misfit(how, STORAGE)
        if len(whos) != 1:
            self._must_name_hosts(named)
            raise ValueError("it names no host, or hosts apart (host1,host2 are two of them)")
        if len(times) != (how in ("slow", "late")):
            raise ValueError("a number of seconds is missing, or does not belong here")
        if how == "late":
            self._late(whos[0], seconds_of(times[0]), *named)
            return
        if how in ("shared", "copy", "copied-leases", "empty"):
            for word in named:
                raise ValueError(f"{word!r} does not belong here")
            for host in self._who(whos[0]):
                host.mount(how)
            return
        for word in named:
            if word not in PARTS:
                raise Misfit(word, PARTS)
        if how == "stale":
            parts = tuple(named) or VOLUMES
            for host in self._who(whos[0]):
                host.go_stale(self._volumes(parts))
            return
        delay_s = seconds_of(times[0]) if times else 0.0
        for host in self._who(whos[0]):
            host.break_storage(_STORAGE_FAULTS[how], delay_s, (*named, *disks))

    def _own_disk(self, word: str) -> int | None:
        """The VM of that name, where its disk is not where the others' are."""
        vm = self._vm_of(word)
        is_own = vm is not None and vm in next(iter(self.world.hosts.values())).own_disks
        return vm if is_own else None

    def _storage_of_all(self, how: str, words: tuple[str, ...]) -> None:
        if how == "split":
            self._is_split = True
            self.world.split_storage(self._sides(words))
        elif how == "restored":
            if self._snapshot is None:
                raise ValueError("no line before this one takes a snapshot: storage snapshot")
            self.world.set_storage_back(self._snapshot, self._volumes(words or VOLUMES))
        elif words:
            raise WrongCount
        elif how == "joined" and not self._is_split:
            raise ValueError("no line before this one splits it: storage split")
        elif how == "joined":
            self.world.join_storage()
        elif how == "reinitialized":
            membership.reinitialized(self.world)
        else:
            self._snapshot = self.world.keep_storage()

    @staticmethod
    def _volumes(words: tuple[str, ...]) -> tuple[str, ...]:
        for word in words:
            if word not in VOLUMES:
                raise Misfit(word, VOLUMES)
        return words

    def _must_name_hosts(self, words: list[str]) -> None:
        """A word that looks like a host and is none is the mistake."""
        for word in words:
            if word.startswith(("host", "own", "oth")):
                self._who(word)

    def _late(self, who: str, late_s: float, *rest: str) -> None:
        outlives = "outlives" in rest
        named = tuple(word for word in rest if word != "outlives")
        if "whiteboard" in named:
            named = (*(w for w in named if w != "whiteboard"), "slots", "cluster", "log", "ran")
        writes = named or WRITES
        if not set(writes) <= set(WRITES):
            wrong = next(word for word in writes if word not in WRITES)
            raise Misfit(wrong, (*WRITES, "whiteboard", "outlives"))
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
        elif how in NETWORKS:
            if not 1 <= len(words) <= 2:
                raise WrongCount
            self._network_apart(how, *words)
        else:
            self._network_of(how, *words)

    def _network_apart(self, which: str, how: str, who: str = "all") -> None:
        """One of the networks besides the hosts' own."""
        is_up = _one_of(how, {"up": True, "down": False})
        for host in self._who(who):
            if which == "bmc":
                host.bmc_network_up = is_up
            elif which == "storage":
                host.break_storage("" if is_up else "hang")
            elif which == "guests":
                host.guest_network_up = host.uplink_up = is_up
            elif is_up:
                self.world.no_migration.discard(host.number)
            else:
                self.world.no_migration.add(host.number)

    def _sides(self, words: tuple[str, ...]) -> list[list[Host]]:
        """The hosts of each side of a `/`."""
        sides: list[list[Host]] = [[]]
        for word in " ".join(words).replace("/", " / ").split():
            if word == "/":
                sides.append([])
            else:
                sides[-1] += self._who(word)
        everybody = [host.number for side in sides for host in side]
        if len(sides) < 2 or not all(sides) or len(everybody) != len(set(everybody)):
            is_named = all(self.world.named(word) for word in re.split(r"[\s,/]+", " ".join(words)))
            wrong = ValueError if is_named or len(sides) < 2 else NotNow
            raise wrong("there is a / between two sides, and each host is on one of them")
        return sides

    def _split(self, words: tuple[str, ...]) -> None:
        """No packet goes from a host of one side to one of another."""
        sides = self._sides(words)
        for side in sides:
            for other in sides:
                if other is not side:
                    self.world.cut_links |= {(a.number, b.number) for a in side for b in other}

    def _hurt_packets(self, how: str, words: tuple[str, ...]) -> None:
        """Lose or delay packets of a host, or from one to another."""
        whos, (given,) = apart(words, ("on", "for", "from", "to", "of"))
        number = number_of(given)
        hosts = [self._who(word) for word in whos]
        if len(hosts) not in (1, 2) or number < 0:
            raise ValueError("there is one host, or there are two, and a number from 0 on")
        if how == "loss" and number > 100:
            raise ValueError("no more than 100 percent are lost")
        self._must_differ(*whos)
        part = number / 100 if how == "loss" else lasts_of(given)
        for host in hosts[0]:
            if len(hosts) == 2:
                links = self.world.link_loss if how == "loss" else self.world.link_delay_s
                links.update({(host.number, other.number): part for other in hosts[1]})
            elif how == "loss":
                host.packet_loss = part
                host.gateway_answers = 1.0 - part if host.network_up else 0.0
            else:
                host.packet_delay_s = part

    def _network_of(self, how: str, *words: str) -> None:
        known = ("up", "down", "unplugged", "plugged", "cut", "joined", "split", "loss", "delay")
        if how not in known:
            raise Misfit(how, (*known, *NETWORKS))
        who, *others = (word for word in words if word not in ("on", "from", "to"))
        if len(others) != (how in ("cut", "joined")):
            raise WrongCount
        self._must_differ(who, *others)
        other = others[0] if others else ""
        for host in self._who(who):
            if how in ("up", "down"):
                host.network_up = how == "up"
                host.gateway_answers = 1.0 if host.network_up else 0.0
            elif how in ("unplugged", "plugged"):
                host.unplug(how == "unplugged")
            else:
                ways = {(host.number, each.number) for each in self._who(other)}
                if how == "cut":
                    self.world.cut_links |= ways
                else:
                    self.world.cut_links -= ways

    @staticmethod
    def _must_differ(one: str, other: str = "") -> None:
        """ValueError where a host and itself are named."""
        if one == other and one not in ("all", "others") and "," not in one:
            raise ValueError(f"{one} and {other} are one host")

    def _bmc(self, step: Step, how: str, *words: str) -> None:
        if how == "network":
            if not 1 <= len(words) <= 2:
                raise WrongCount
            self._network_apart("bmc", *words)
            return
        if how == "off-takes":
            (who,), (seconds,) = apart(words)
            for host in self._who(who):
                host.bmc.off_takes_s = seconds_of(seconds)
            return
        if how not in BMC_FAULTS:
            raise Misfit(how, (*BMC_FAULTS, "off-takes", "network"))
        words = tuple(word for word in words if word != "on")
        fault = "" if how == "fine" else how
        for host in self._who(words[0]):
            if len(words) == 1:
                host.bmc.fault, host.bmc.fault_for = fault, {}
            elif words[1] == "for" and len(words) > 2:
                for asker in (each for word in words[2:] for each in self._who(word)):
                    host.bmc.fault_for[asker.number] = fault
            else:
                raise ValueError(f"{' '.join(words[1:])!r} does not fit behind the host")

    def _guest(self, step: Step, how: str, *words: str) -> None:
        vm = self._vm_of(how)
        if vm is not None and words:
            vm_story.guest(self.world, vm, words[0], words[1:])
            return
        if how == "ordered-on":
            if len(words) < 2:
                raise WrongCount
            self._order(self._the(words[0]), *words[1:])
            return
        if words and (how == "resumed" or how in _CLOSED_TO):
            raise WrongCount
        if how == "resumed":
            self._resume()
            return
        if how in _CLOSED_TO:
            self.world.guest_closed_to = _CLOSED_TO[how]
            return
        known = [word for form in FORMS["guest"] for word in first_words(form)]
        if how not in known:
            raise Misfit(how, known)
        takes = {"snapshot": (1, 1), "paused": (0, 1)}.get(how, (0, 0))
        if not takes[0] <= len(words) <= takes[1]:
            raise WrongCount
        pauses = {each.value: each for each in Pause if each is not Pause.NEVER_RAN}
        pause = _one_of(words[0] if how == "paused" and words else "user", pauses)
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
            self.world.snapshot(host, _one_of(words[0], {"shared": True, "local": False}))
        elif how == "commits":
            host.qemu.job = "active-commit"
        elif how == "pivots":
            self.world.pivot(host)
        elif how == "paused":
            host.qemu.pause = pause
            host.pause_qemu()
        elif how == "saved":
            host.save_qemu()
        elif how == "panics":
            host.leave_qemu(crashed=True)

    def _resume(self) -> None:
        """Resume the VM on each host where its process stands still, as an operator does."""
        for host in self.world.hosts.values():
            qemu = host.qemu
            if qemu is not None and qemu.has_run and not qemu.running and not qemu.crashed:
                try:
                    host.resume_qemu(qemu.healthy_from_s)
                except Refused as error:
                    self.world.tell(host.name, f"not resumed: {error}")

    def _order(self, host: Host, kind: str, *targets: str) -> None:
        target = " ".join(word for word in targets if word != "to")
        if target and kind != OrderKind.MIGRATE.value:
            raise WrongCount
        if kind in ("adopt", "keep"):
            self.world.decide(host, kind == "adopt")
            return
        self._is_ordered = True
        kinds = {each.value: each for each in OrderKind}
        number = self._the(target).host_id if target else None
        self.world.order(host, _one_of(kind, kinds | {"power-off": OrderKind.POWER_OFF}), number)

    def _maintenance(self, step: Step, kind: str, *words: str) -> None:
        if kind not in ("global", "local"):
            raise Misfit(kind, ("global", "local"))
        rest = [word for word in words if word not in ("for", "release-id", "restart", "at")]
        times = [word for word in rest if is_number(word)]
        on_off = [word for word in rest if word in ("on", "off")]
        whos = [word for word in rest if word not in (*times, *on_off)]
        if len(on_off) != 1 or len(times) > 1 or len(whos) > 1:
            raise WrongCount
        is_on, release_id = _yes(on_off[0]), "release-id" in words
        may_restart = "restart" in words
        lasts_s = int(seconds_of(times[0])) if times else None
        if release_id and (kind == "global" or not is_on):
            raise ValueError("'release-id' belongs to: maintenance local on HOST")
        if may_restart and (kind == "global" or not is_on):
            raise ValueError("'restart' belongs to: maintenance local on HOST")
        if lasts_s is not None and not is_on:
            raise ValueError("what is off does not last")
        if "for" in words and lasts_s is None:
            raise ValueError("behind 'for' a number of seconds is missing")
        if "at" in words and (kind == "local" or not whos):
            raise ValueError("'at' belongs to: maintenance global on|off at HOST")
        if lasts_s is not None and not 1 <= lasts_s <= LASTS_MAX_S:
            raise ValueError(f"a maintenance lasts for 1 to {LASTS_MAX_S:.0f} s")
        if kind == "local":
            if not whos:
                raise ValueError("it names no host")
            for host in self._who(whos[0]):
                self.world.set_local_maintenance(host, is_on, lasts_s, release_id, may_restart)
        elif not whos:
            self.world.set_global_maintenance(is_on, lasts_s)
        elif "at" in words and lasts_s is None:
            for host in self._who(whos[0]):
                self.world.set_global_at(host, is_on)
        else:
            raise ValueError("global maintenance is of no host; `at HOST`: through its broker")

    def _set(self, step: Step, what: str, value: str, *words: str) -> None:
        (who,) = (word for word in words if word not in ("on", "of", "for"))
        if what not in SETTINGS:
            raise Misfit(what, SETTINGS)
        if what in CONFIGURED:
            self._must_be_read(step, what, self._who(who))
        for host in self._who(who):
            match what:
                case "load":
                    host.load = within(value, 0, 1)
                case "memory":
                    host.memory_mb = within(value, 0, MEMORY_MB_MAX)
                    host.memory_changed_s = self.world.timeline.now_s
                case "gateway":
                    host.gateway_answers = within(value, 0, 100) / 100
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
                    host.wall_offset_s = within(value, -WALL_OFFSET_S_MAX, WALL_OFFSET_S_MAX)
                case "metadata":
                    host.metadata = _one_of(value, {each.value: each for each in Metadata})
                case "decisions":
                    host.wants_earlier = _one_of(value, {"previous": True, "this": False})
                    if host.wants_earlier:
                        earlier_decisions.must_be_had()
                case "migration-takes":
                    host.migration_s = seconds_of(value)
                case "host-boot":
                    host.boot_s = seconds_of(value)
                case "guest-boot":
                    host.guest_boot_s = seconds_of(value)
                case "orphans":
                    host.keeps_orphans = _yes(value)
                case "receives":
                    host.refuses_moves = not _yes(value)
                case "migrates":
                    host.migrates_nothing = not _yes(value)
                case "autostart":
                    host.autostart = _yes(value)
                case "own-check":
                    host.own_check_fails = not _yes(value)
                case "killable":
                    host.qemu_unkillable = not _yes(value)
                case "on-host-shutdown":
                    host.on_host_shutdown = _one_of(
                        value, {each.value: each for each in OnHostShutdown}
                    )
                case "id":
                    host.host_id = whole_within(value, 1, HOST_ID_MAX)
                case "base-score":
                    self.world.score[host.number] = ScoreSection(base_score=whole_within(value, 0))
                case "key":
                    host.key = _one_of(value, {name: name for name in KEYS})
                case "fence":
                    host.has_fence = _yes(value)
                case "disk-errors":
                    host.pauses_on_disk_error = _one_of(value, {"pause": True, "report": False})
                case "agent" if value == "dead":
                    host.agent_wanted = False
                    host.crash("agent")
                case "agent":
                    self.world.wish_agent(host, _yes(value))
                case "daemons":
                    self.world.wish_daemons(host, _yes(value))

    def _must_be_read(self, step: Step, what: str, hosts: list[Host]) -> None:
        """NotNow where daemons run that have read their configuration, and no line behind this one
        may start them anew."""
        behind = self.scenario.steps[1 + self.scenario.steps.index(step) :]
        if any(each.verb in _RESTARTS or each.words[:1] in _SETS_ANEW for each in behind):
            return
        for host in hosts:
            if host.processes:
                raise NotNow(
                    f"the daemons of {host.name} run, and read {what!r} when they start: say it "
                    f"before them, or have them start anew: kill broker {host.name}"
                )

    def _slot(self, step: Step, how: str, who: str = "") -> None:
        board = self.world.board
        moods = ("garbled", "torn", "stale", "stray", "left", "newer", "gone")
        if how not in moods:
            raise Misfit(how, moods)
        if bool(who) is (how in ("newer", "gone")):
            raise WrongCount
        if how in ("newer", "gone"):
            number = 1 + max(self.world.hosts)
            if how == "newer":
                self.world.forger.newer_host(number)
            else:
                self.world.forger.ends(number)
            return
        if who == "cluster" and how == "garbled":
            board.put(0, b"mainte\xffance=1".ljust(4096, b"\0"))
            return
        for host in self._who(who):
            if how == "garbled":
                if host.host_id not in board.slots:
                    raise NotNow(f"{host.name} has written no slot yet")
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
                if host.host_id not in board.slots:
                    raise NotNow(f"{host.name} has written no slot yet")
                board.put(40, board.slots[host.host_id])

    def _forge(self, step: Step, what: str, *words: str) -> None:
        forger = self.world.forger
        match what:
            case "slot":
                forger.slot(self._forged(whole_within(words[0], 1, HOST_ID_MAX), words[1:]))
            case "cluster" if len(words) == 1:
                forger.cluster(_yes(words[0]))
            case "replay" if len(words) == 1:
                for host in self._who(words[0]):
                    forger.replay(host.host_id)
            case "intents" if len(words) == 2:
                forger.intents(*(whole_within(word, 1, HOST_ID_MAX) for word in words))
            case "ends" if not words:
                forger.ends()
            case _:
                known = ("slot", "cluster", "replay", "intents", "ends")
                raise WrongCount if what in known else Misfit(what, known)

    def _forged(self, host_id: int, words: tuple[str, ...]) -> ForgedSlot:
        if len(words) % 2:
            raise ValueError(f"{words[-1]!r} has no value")
        must_be_once(words[::2])
        given = dict(zip(words[::2], words[1::2], strict=True))
        lines = {key: value for key, value in given.items() if key in FORGED_LINES}
        if unknown := given.keys() - lines.keys() - FORGED_FIELDS:
            raise Misfit(min(unknown), sorted({*FORGED_LINES, *FORGED_FIELDS}))
        return ForgedSlot(
            host_id,
            name=given.get("name", ""),
            vm=VmStatus(given.get("vm", "up")),
            score=whole_within(given.get("score", "3400"), 0),
            version=whole_within(given.get("version", "1"), 0),
            maintenance=_yes(given.get("maintenance", "no")),
            lines=lines,
            signed=_yes(given.get("signed", "no")),
            once=_yes(given.get("once", "no")),
        )

    # --- expectations ---------------------------------------------------------------------

    def _expect(self, step: Step, *words: str) -> None:
        if words[-1:] in (("within",), ("for",)):
            raise ValueError(f"behind {words[-1]!r} a number of seconds is missing")
        if not (len(words) >= 3 and words[-2] in ("within", "for")):
            # An expectation without a time is about now; only an order needs its time to end.
            patience_s = ORDER_ENDS_S if words[:1] == ("order",) else 0.0
            words = (*words, "within", str(patience_s))
        condition, how, seconds = words[:-2], words[-2], lasts_of(words[-1])
        is_negative = condition[:1] == ("not",)
        if is_negative:
            condition = condition[1:]
        _must_be_able_to_fail(condition, is_negative, how, seconds)
        holds = self._holds(condition, seconds)

        def is_over() -> bool:
            return how == "within" and self._is_over(condition)

        if not self._comes_true(lambda: holds() is not is_negative, seconds, how, is_over):
            raise Disappointed(
                f"{self.scenario.name}:{step.line}: {step}: not so at "
                f"{self.world.timeline.now_s:.1f} s; {self._situation()}"
            )

    def _holds(self, condition: tuple[str, ...], within_s: float) -> Callable[[], bool]:
        """Whether a condition is true. Where time is left, it may begin with a host that is not
        there yet: the owner of a VM that nobody runs."""
        try:
            return self._condition(condition)
        except NotNow:
            if not within_s:
                raise

        def holds() -> bool:
            try:
                return self._condition(condition)()
            except NotNow:
                return False

        return holds

    def _comes_true(
        self, is_so: Callable[[], bool], for_s: float, how: str, is_over: Callable[[], bool]
    ) -> bool:
        """Whether it becomes so (`how` is "within") or stays so ("for") in that time. `is_over`:
        it will not become so any more."""
        world = self.world
        until_s = world.timeline.now_s + for_s
        while True:
            so = is_so()
            if so is (how == "within"):
                return so
            if world.timeline.now_s >= until_s or is_over():
                return so
            world.run(min(LOOK_EVERY_S, until_s - world.timeline.now_s))

    def _is_over(self, condition: tuple[str, ...]) -> bool:
        """Whether an order has ended, so that nothing will come of it any more."""
        if condition[:1] != ("order",):
            return False
        return not any(self._order_is(state, "") for state in ("waiting", "under-way"))

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
                below_s = vm_story.downtime_of(number)
                return lambda: world.longest_downtime_s() < below_s
            case ("moves", number):
                wanted = whole_within(number, 0)
                return lambda: world.moves == wanted
            case ("fenced", number):
                wanted = whole_within(number, 0)
                return lambda: world.fenced() == wanted
            case ("order", "done" | "refused" | "lost" | "under-way" as state, *text):
                if not self._is_ordered:
                    raise ValueError("nobody gave an order before")
                said = " ".join(text)
                return lambda: self._order_is(state, said)
            case ("engine", "running"):
                return lambda: world.owner() is not None
            case ("engine", "running", "on", who):
                hosts = self._who(who)
                return lambda: world.owner() in hosts
            case ("vm" | "short", *_):
                return vm_story.condition(world, self._who, words)
            case ("order", *_):
                raise Misfit(" ".join(words[1:2]), ("done", "refused", "lost", "under-way"))
            case (who, "in", state):
                states_of = {each.value: each for each in StateName}
                name, hosts = _one_of(state, states_of).value, self._who(who)
                return lambda: all(world.state(host) == name for host in hosts)
            case ("score", "of", who, "is", number):
                hosts, wanted = self._who(who), whole_within(number, 0)
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
            case ("power", "of", who, "off"):
                hosts = self._who(who)
                return lambda: not any(host.power for host in hosts)
            case (who, "calls", "engine", word):
                hosts, up = self._who(who), _one_of(word, _UP_WORDS)
                return lambda: all(
                    (place := world.told_place(host)) is not None and place.up is up
                    for host in hosts
                )
            case (who, "lacks", penalty):
                hosts, known = self._who(who), _one_of(penalty, {name: name for name in PENALTIES})
                return lambda: all(known in world.penalties_of(host) for host in hosts)
            case (who, "finds", other, "elsewhere"):
                hosts, others = self._who(who), self._who(other)
                self._must_differ(who, other)
                return lambda: all(
                    world.finds_elsewhere(host, its)
                    for host in hosts
                    for its in others
                    if host is not its
                )
            case (who, "tells", kind, *text):
                known = _one_of(kind, {each.value: each.value for each in Kind})
                hosts, said = self._who(who), " ".join(text)
                return lambda: all(
                    any(said in text for text in world.told_of(host, known)) for host in hosts
                )
            case (who, "says", *text) if text:
                hosts, said, before = self._who(who), " ".join(text), len(world.trace)
                names = [host.name for host in hosts]
                return lambda: any(
                    said in what and name in names for _, name, what in world.trace[before:]
                )
            case _:
                raise ValueError(f"{' '.join(words)!r} is no condition")

    def _order_is(self, state: str, said: str) -> bool:
        """Whether the last order of an operator came to that, for a reason with that text."""
        if self.world.last_order is None:
            raise NotNow("no broker took the order that was given before")
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
        several = vm_story.situation(self.world)
        if several:
            counted = f"{counted}; {several}"
        return f"the VM runs {runs}; {states}; {counted}"


class _Rehearsal(Player):
    """Reads each line of one telling in a cluster in which no time passes and nothing is on."""

    def run_through(self) -> None:
        """BadScenario where a line does not fit at any moment."""
        try:
            for step in self.scenario.steps[1:]:
                self._do(step)
        finally:
            self.world.close()

    def _do(self, step: Step) -> None:
        try:
            super()._do(step)
        except BadScenario as error:
            # What a line finds at its moment is not known yet; nor is, for the hosts' own parts are
            # not there, what a key of theirs stands for.
            if not isinstance(error.__cause__, NotNow | KeyError):
                raise
        except (Refused, AssertionError, AttributeError):
            # The line was understood; it acts on what is not there in a cluster that is off.
            return

    def _owner(self, vm: int = ENGINE) -> Host | None:
        return self.world.hosts[1]

    def _wait(self, step: Step, seconds: str) -> None:
        lasts_of(seconds)

    def _comes_true(
        self, is_so: Callable[[], bool], for_s: float, how: str, is_over: Callable[[], bool]
    ) -> bool:
        return True


def rehearse(scenario: Scenario) -> None:
    """Read each line of each telling before anything is played; BadScenario where one does not fit.

    What depends on the moment (who the owner is, whether a VM runs) is judged when it is played.
    """
    tellings = scenario.tellings or (("", scenario.steps),)
    for label, steps in tellings:
        _Rehearsal(replace(scenario, steps=steps, tellings=()), label=label).run_through()
