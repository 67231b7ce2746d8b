# SPDX-License-Identifier: LGPL-2.1-or-later
"""The lines of a host's slot about the protected VMs beside the engine: how they are written, and
how they are read from another host, which may have written anything. Pure.

    registry=14                 the generation of the registry that the host knows
    fit=3400                    what it has left of the base score, whichever VM it would run
    mem=131072/98304/0          MiB in all / not committed / free huge pages; "-": not known
    claims=8>1/60               VM 8 is about to be brought to host 1, within 60 s
    vms=2:Ug17 5:Mg9>3/240 7:D4 9:X!412
    differ=2:17@41              VM 2, whose last_ran was 17, runs or ran here with other disks than
                                the definition of generation 41 says
    unlike=2:DF                 VM 2 runs here with other disks (D) and other firmware (F) than its
                                definition says; only shown to people
    unprotected=1,5             the engine and VM 5 run here without their leases; only shown
    stuck=1,5                   the engine and VM 5 cannot be migrated, so that the drain of this
                                host does not end; only shown
    disks-2=vda runs from /srv/db.s1   the sentence about it, for who decides after its host's death
    speaks=2                    the host knows several VMs, and all lines above are there
    reached=2:3/17/1.2/-        VM 2 on host 3, whose last_ran is 17, answered this host's question
                                of 1.2 s ago as it answers its users; the last is since when it has
                                not ("-": it has, or never did)

An entry of `vms` is

    number ":" how the VM is there [its health] [its last_ran] ["=" the state of its machine]
        [">" [target] "/" seconds until the migration is over] ["!" seconds until it is tried again]
        ["+" or "-": a bridge of it leads out, or none does]

Rules of this file:

1. A host lists the VMs that are up, acting, barred or unknown there, or that ran there last. One
   that it does not list is down there.
2. `speaks` is the last of the lines that say how VMs are here: a reader that finds it has them all.
   Without it a VM that is not listed is unknown, not down, and the host is no place for one.
   `reached` comes after it: where that is dropped, nobody misses a VM by this host's word.
   An entry that cannot be read counts as a line that is missing.
3. Times are seconds from the moment of writing, rounded up, since the hosts' clocks differ.
4. A state that follows from how the VM is there is not written; nor is one of a VM that has no
   machine, since nothing is done with it.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from broker.daemon.foreign import cut, whole
from broker.vm.domain_facts import Differs
from broker.whiteboard.host_ranges import hosts_of
from broker.whiteboard.slot import SCORE_MAX
from broker.wire.exchange import VmReportOnWire
from broker.wire.limits import HOST_ID_MAX, VMS_MAX
from scoring.vm.seen import SPEAKS_SEVERAL
from scoring.vm.state import StateName
from scoring.vm_facts import (
    DETAIL_ALREADY_LOCKED,
    DETAIL_MIGRATION_SOURCE,
    DETAIL_PAUSED,
    ENGINE,
    Claim,
    EngineStatus,
    Health,
    OutsideView,
    PeerVm,
    VmHere,
    VmStatus,
)

#: The keys of the lines. The sentence of VM 5 stands under "vm-5".
REGISTRY, MEMORY, CLAIMS, VMS, SPEAKS, SENTENCE = "registry", "mem", "claims", "vms", "speaks", "vm"
FIT, DIFFER, REACHED, UNLIKE = "fit", "differ", "reached", "unlike"
UNPROTECTED, STUCK = "unprotected", "stuck"
DISKS = "disks"
#: A line of entries; longer ones go on in `vms-2`. The slot cuts a line at 1024 bytes.
LINE_CHARS_MAX = 1000
#: More lines of entries than 128 VMs take.
LINES_MAX = 8
LAST_RAN_MAX, SECONDS_MAX, GENERATION_MAX, MB_MAX = 5 * 10**14, 999_999, 2**53, 10**12 - 1
SENTENCE_CHARS_MAX = 120
#: Paths of several disks.
DISKS_CHARS_MAX = 400

_S = StateName
#: How the VM is: its letter, its status, its detail, and the state of its machine that follows.
_STANDING: Mapping[str, tuple[VmStatus, str, StateName]] = {
    "U": (VmStatus.UP, "up", _S.ENGINE_UP),
    "M": (VmStatus.UP, DETAIL_MIGRATION_SOURCE, _S.ENGINE_MIGRATING_AWAY),
    "P": (VmStatus.UP, DETAIL_PAUSED, _S.ENGINE_UP_BAD_HEALTH),
    "D": (VmStatus.DOWN, "", _S.ENGINE_DOWN),
    "L": (VmStatus.DOWN, DETAIL_ALREADY_LOCKED, _S.ENGINE_DOWN),
    "X": (VmStatus.DOWN_UNEXPECTED, "", _S.ENGINE_UNEXPECTEDLY_DOWN),
    "Y": (VmStatus.DOWN_MISSING, "", _S.ENGINE_MAYBE_AWAY),
    "K": (VmStatus.UNKNOWN, "unknown", _S.UNKNOWN_LOCAL_VM_STATE),
}
_LETTERS = {(vm, detail): letter for letter, (vm, detail, _) in _STANDING.items()}
#: For a detail that has no letter of its own.
_PLAIN = {
    VmStatus.UP: "U",
    VmStatus.DOWN: "D",
    VmStatus.DOWN_UNEXPECTED: "X",
    VmStatus.DOWN_MISSING: "Y",
    VmStatus.UNKNOWN: "K",
}
_HEALTH = {"g": Health.GOOD, "b": Health.BAD, "u": Health.UNKNOWN}
_HEALTH_LETTERS = {health: letter for letter, health in _HEALTH.items()}
#: The states of a machine.
_STATES: Mapping[str, str] = {
    "I": _S.REINITIALIZE_FSM,
    "D": _S.ENGINE_DOWN,
    "S": _S.ENGINE_START,
    "B": _S.ENGINE_STARTING,
    "U": _S.ENGINE_UP,
    "H": _S.ENGINE_UP_BAD_HEALTH,
    "T": _S.ENGINE_STOP,
    "F": _S.ENGINE_FORCE_STOP,
    "A": _S.ENGINE_MAYBE_AWAY,
    "X": _S.ENGINE_UNEXPECTEDLY_DOWN,
    "M": _S.ENGINE_MIGRATING_AWAY,
    "L": _S.LOCAL_MAINTENANCE,
    "G": _S.GLOBAL_MAINTENANCE,
    "K": _S.UNKNOWN_LOCAL_VM_STATE,
    "Z": _S.AGENT_STOPPED,
}
_STATE_LETTERS: Mapping[str, str] = {state: letter for letter, state in _STATES.items()}
assert set(_STATE_LETTERS) == set(StateName)
#: Nothing is said of a VM in these.
_AT_REST = frozenset(
    {_S.ENGINE_DOWN, _S.LOCAL_MAINTENANCE, _S.GLOBAL_MAINTENANCE, _S.AGENT_STOPPED}
)
_NUMBER = re.compile(r"([1-9][0-9]{0,2}):(.+)")
_ENTRY = re.compile(
    r"([UMPDLXYK])([gbu]?)([0-9]{0,15})(?:=([A-Z]))?"
    r"(?:>([0-9]{0,4})/([0-9]{1,6}))?(?:!([0-9]{1,6}))?([+-]?)"
)
_DIFFER = re.compile(r"([1-9][0-9]{0,2}):([0-9]{1,15})@([0-9]{1,16})")
_LETTER_OF: Mapping[Differs, str] = {
    Differs.DISKS: "D",
    Differs.BLOCK_JOB: "B",
    Differs.FIRMWARE: "F",
    Differs.TPM: "T",
    Differs.DEVICES: "V",
    Differs.MEMORY: "M",
    Differs.VCPUS: "C",
}
_UNLIKE = re.compile(r"([1-9][0-9]{0,2}):([A-Z]{1,26})")
_AGE = r"(-|[0-9]{1,6}\.[0-9])"
_REACHED = re.compile(rf"([1-9][0-9]{{0,2}}):([1-9][0-9]{{0,3}})/([0-9]{{1,15}})/{_AGE}/{_AGE}")
_CLAIM = re.compile(r"([0-9]{1,3})>([0-9]{1,4})/([0-9]{1,6})")


@dataclass(frozen=True, slots=True)
class Memory:
    """A host's memory in MiB: all of it, what is not committed, and what of its huge pages is free;
    None: not known."""

    total_mb: float | None = None
    free_mb: float | None = None
    free_huge_mb: float | None = None


class Differing(NamedTuple):
    """A VM runs, or ran last, with other disks than its definition says: of the definition that the
    registry wrote at `generation`. `last_ran`: see PeerVm. `text`: the disks; "": not known, since
    the slot had no room for it."""

    generation: int
    text: str = ""
    last_ran: int = 0


class SlotVms(NamedTuple):
    """What another host says of several VMs; fields as in PeerReport."""

    vms: Mapping[int, PeerVm]
    claims: tuple[Claim, ...] = ()
    speaks: int = 1
    registry: int = 0
    memory: Memory = Memory()
    host_score: int | None = None


NOTHING = SlotVms({})


# ---------------------------------------------------------------------------- writing


def lines(
    registry: int,
    memory: Memory,
    here: Iterable[VmHere],
    reported: Mapping[int, VmReportOnWire],
    claims: Iterable[Claim],
    elsewhere: Mapping[int, int],
    now_s: float,
    host_score: int | None = None,
    differing: Mapping[int, Differing] | None = None,
    unlike: Mapping[int, Collection[Differs]] | None = None,
) -> dict[str, str]:
    """The lines of this host's slot; none while it knows no registry (`registry` 0).

    `here`: the VMs of the registry on this host. `reported`: what the agent says of them, by
    number. `elsewhere`: by number, the largest `last_ran` that another host publishes.
    `host_score`: see PeerReport.
    """
    if registry == 0:
        return {}
    made: dict[str, str] = {REGISTRY: str(registry), MEMORY: _memory_line(memory)}
    if host_score is not None:
        made[FIT] = str(host_score)
    entries, sentences = [], {}
    for vm in sorted(here, key=lambda vm: vm.number):
        said = reported.get(vm.number)
        if is_listed(vm, said, elsewhere.get(vm.number, 0), now_s):
            entries.append(_entry(vm, said, now_s))
            if (why := _sentence(vm, said)) != "":
                sentences[f"{SENTENCE}-{vm.number}"] = cut(why, SENTENCE_CHARS_MAX)
    made |= _in_lines(CLAIMS, [_claim(claim, now_s) for claim in claims if now_s < claim.until_s])
    made |= _in_lines(VMS, entries)
    made |= _in_lines(
        DIFFER,
        [f"{n}:{one.last_ran}@{one.generation}" for n, one in sorted((differing or {}).items())],
    )
    sentences |= {
        f"{DISKS}-{n}": one.text[:DISKS_CHARS_MAX]
        for n, one in sorted((differing or {}).items())
        if one.text
    }
    odd = [
        f"{n}:{''.join(sorted(map(_LETTER_OF.__getitem__, codes)))}"
        for n, codes in sorted((unlike or {}).items())
        if codes
    ]
    made |= _in_lines(UNLIKE, odd)
    return made | {SPEAKS: str(SPEAKS_SEVERAL)} | sentences


def reached_lines(seen: Mapping[int, OutsideView], now_s: float) -> dict[str, str]:
    """The lines about how this host reaches the VMs that run on others, by number."""
    entries = []
    for number, view in sorted(seen.items()):
        if view.good_s is not None or view.bad_since_s is not None:
            good, bad = (_age(at_s, now_s) for at_s in (view.good_s, view.bad_since_s))
            entries.append(f"{number}:{view.owner}/{view.stay}/{good}/{bad}")
    return _in_lines(REACHED, entries)


def _age(at_s: float | None, now_s: float) -> str:
    return "-" if at_s is None else f"{min(max(0.0, now_s - at_s), SECONDS_MAX):.1f}"


def is_listed(vm: VmHere, said: VmReportOnWire | None, elsewhere: int, now_s: float) -> bool:
    """Whether this host says anything of the VM. `elsewhere`: see `lines`."""
    return (
        vm.report.vm is not VmStatus.DOWN
        or vm.report.detail == DETAIL_ALREADY_LOCKED
        or vm.last_ran > elsewhere
        or (said is not None and said.state not in _AT_REST)
        or (said is not None and said.barred_until_s is not None and now_s < said.barred_until_s)
    )


def _entry(vm: VmHere, said: VmReportOnWire | None, now_s: float) -> str:
    report = vm.report
    letter = _LETTERS.get((report.vm, report.detail)) or _PLAIN[report.vm]
    health = _HEALTH_LETTERS[report.health] if report.vm is VmStatus.UP else ""
    parts = [f"{vm.number}:{letter}{health}{min(vm.last_ran, LAST_RAN_MAX)}"]
    # An agent of another version may be in a state that has no letter here.
    state = None if said is None else _STATE_LETTERS.get(said.state)
    if state is not None and _STATES[state] != _following(letter, report.health):
        parts.append(f"={state}")
    if said is not None and said.moving_until_s is not None:
        target = "" if said.moving_to is None else str(said.moving_to)
        parts.append(f">{target}/{_left(said.moving_until_s, now_s)}")
    if said is not None and said.barred_until_s is not None and now_s < said.barred_until_s:
        parts.append(f"!{_left(said.barred_until_s, now_s)}")
    if vm.uplink_up is not None:
        parts.append("+" if vm.uplink_up else "-")
    return "".join(parts)


def _following(letter: str, health: Health) -> str:
    """The state of its machine, where nothing is written of it."""
    if letter == "U" and health is not Health.GOOD:
        return _S.ENGINE_UP_BAD_HEALTH
    return _STANDING[letter][2]


def _sentence(vm: VmHere, said: VmReportOnWire | None) -> str:
    """Why it is as it is; empty where it is well, or simply not here."""
    if said is not None and said.state not in (*_AT_REST, _S.ENGINE_UP) and said.reasons:
        return said.reasons[0].text
    is_at_rest = vm.report.vm is VmStatus.DOWN or vm.report.health is Health.GOOD
    return "" if is_at_rest else vm.report.reason or ""


def _claim(claim: Claim, now_s: float) -> str:
    return f"{claim.number}>{claim.host_id}/{_left(claim.until_s, now_s)}"


def _memory_line(memory: Memory) -> str:
    values = (memory.total_mb, memory.free_mb, memory.free_huge_mb)
    return "/".join("-" if mb is None else str(min(max(0, int(mb)), MB_MAX)) for mb in values)


def _left(until_s: float, now_s: float) -> int:
    return min(max(0, math.ceil(until_s - now_s)), SECONDS_MAX)


def _in_lines(key: str, entries: Iterable[str]) -> dict[str, str]:
    """The entries as lines `key`, `key-2` and on, none of which the slot cuts."""
    made: list[list[str]] = []
    used = LINE_CHARS_MAX + 1
    for entry in entries:
        if used + 1 + len(entry) > LINE_CHARS_MAX:
            made.append([])
            used = 0
        made[-1].append(entry)
        used += len(entry) + 1
    return {
        key if number == 1 else f"{key}-{number}": " ".join(line)
        for number, line in enumerate(made, 1)
    }


# ---------------------------------------------------------------------------- reading


def decode(extra: Mapping[str, str], by: int, read_s: float | None, agent_is_away: bool) -> SlotVms:
    """What host `by` says in its lines, which were read at `read_s` (None: not known).

    `agent_is_away`: its agent does nothing of what it was about to do. A claim stands until it ends
    by itself all the same: what was begun may still be under way.
    """
    if REGISTRY not in extra:
        return NOTHING
    is_whole = extra.get(SPEAKS, "") == str(SPEAKS_SEVERAL)
    vms: dict[int, PeerVm] = {}
    for entry in _entries(extra, VMS):
        found = _NUMBER.fullmatch(entry)
        number = 0 if found is None else int(found[1])
        vm = None if found is None else _vm(found[2], read_s, agent_is_away)
        if vm is None or not ENGINE < number <= VMS_MAX or number in vms:
            is_whole = False
            continue
        why = extra.get(f"{SENTENCE}-{number}")
        if why is not None:
            how = vm.report
            vm = vm._replace(report=EngineStatus(how.vm, how.health, how.detail, why))
        vms[number] = vm
    claims = [_claim_of(entry, by, read_s) for entry in _entries(extra, CLAIMS)]
    return SlotVms(
        vms,
        tuple(claim for claim in claims if claim is not None),
        SPEAKS_SEVERAL if is_whole and None not in claims else 1,
        whole(extra[REGISTRY], GENERATION_MAX) or 0,
        _memory_of(extra.get(MEMORY, "")),
        whole(extra.get(FIT, ""), SCORE_MAX),
    )


def state_lines(extra: Mapping[str, str]) -> tuple[str | None, ...]:
    """The lines from which `decode` finds how the VMs are: equal ones say the same."""
    return (extra.get(SPEAKS), *map(extra.get, _names(VMS)))


def claims_in(extra: Mapping[str, str], by: int, read_s: float | None) -> tuple[Claim, ...]:
    """The claims alone of what `decode` finds."""
    if REGISTRY not in extra:
        return ()
    found = (_claim_of(entry, by, read_s) for entry in _entries(extra, CLAIMS))
    return tuple(claim for claim in found if claim is not None)


def differing_in(extra: Mapping[str, str]) -> dict[int, Differing]:
    """The VMs that run, or ran last, on a host with other disks than their definitions say."""
    found = {}
    for entry in _entries(extra, DIFFER):
        parts = _DIFFER.fullmatch(entry)
        if parts is not None and ENGINE < int(parts[1]) <= VMS_MAX:
            text = extra.get(f"{DISKS}-{parts[1]}", "")
            found[int(parts[1])] = Differing(int(parts[3]), text, int(parts[2]))
    return found


def unlike_in(extra: Mapping[str, str]) -> dict[int, tuple[Differs, ...]]:
    """In what the VMs that run on a host differ from their definitions."""
    found = {}
    for entry in _entries(extra, UNLIKE):
        parts = _UNLIKE.fullmatch(entry)
        if parts is not None and ENGINE < int(parts[1]) <= VMS_MAX:
            codes = tuple(code for code in Differs if _LETTER_OF[code] in parts[2])
            found[int(parts[1])] = codes
    return found


def numbers_in(extra: Mapping[str, str], key: str) -> tuple[int, ...]:
    """The VMs, the engine among them, that a host names in this line: UNPROTECTED or STUCK."""
    return tuple(sorted({n for n in hosts_of(extra.get(key, "")) if n <= VMS_MAX}))


def reached_in(extra: Mapping[str, str], read_s: float | None) -> dict[int, OutsideView]:
    """How a host reaches the VMs that run on others, by its lines, which were read at `read_s`
    (None: not known, and nothing is)."""
    found: dict[int, OutsideView] = {}
    if read_s is None:
        return found
    for entry in _entries(extra, REACHED):
        parts = _REACHED.fullmatch(entry)
        if parts is None or not ENGINE < int(parts[1]) <= VMS_MAX:
            continue
        number, owner, stay, *ages = parts.groups()
        if int(owner) <= HOST_ID_MAX:
            good_s, bad_s = (None if age == "-" else read_s - float(age) for age in ages)
            found[int(number)] = OutsideView(int(owner), int(stay), good_s, bad_s)
    return found


def _entries(extra: Mapping[str, str], key: str) -> Iterator[str]:
    for name in _names(key):
        if line := extra.get(name):
            yield from filter(None, line.split(" "))


@functools.cache
def _names(key: str) -> tuple[str, ...]:
    """The lines over which the entries of a key are spread."""
    return (key, *(f"{key}-{number}" for number in range(2, LINES_MAX + 1)))


def _vm(text: str, read_s: float | None, agent_is_away: bool) -> PeerVm | None:
    """The VM of an entry; None where the entry cannot be read."""
    found = _ENTRY.fullmatch(text)
    if found is None:
        return None
    letter, health, last_ran, state, target, until, barred, uplink = found.groups()
    vm, detail, _ = _STANDING[letter]
    is_up = vm is VmStatus.UP
    if (health == "") is is_up or (state is not None and state not in _STATES):
        return None
    if target and not 1 <= int(target) <= HOST_ID_MAX:
        return None
    how = _HEALTH[health] if is_up else Health.UNKNOWN if letter == "K" else Health.BAD
    moves = until is not None and not agent_is_away
    return PeerVm(
        EngineStatus(vm, how, detail),
        "" if agent_is_away else _following(letter, how) if state is None else _STATES[state],
        min(int(last_ran or 0), LAST_RAN_MAX),
        read_s + int(until) if moves and read_s is not None else None,
        uplink_up={"+": True, "-": False}.get(uplink),
        target=int(target) if moves and target else None,
        barred_until_s=None if read_s is None or barred is None else read_s + int(barred),
    )


def _claim_of(text: str, by: int, read_s: float | None) -> Claim | None:
    """The claim of an entry; None where it cannot be read, or when it was is not known."""
    found = _CLAIM.fullmatch(text)
    if found is None or read_s is None:
        return None
    number, host_id, left_s = (int(part) for part in found.groups())
    if not (ENGINE <= number <= VMS_MAX and 1 <= host_id <= HOST_ID_MAX):
        return None
    return Claim(number, host_id, by, read_s + left_s)


def _memory_of(line: str) -> Memory:
    parts = line.split("/", 3)
    if len(parts) != 3:
        return Memory()
    found = (whole(part, MB_MAX) for part in parts)
    return Memory(*(None if mb is None else float(mb) for mb in found))
