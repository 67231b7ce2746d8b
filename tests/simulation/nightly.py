# SPDX-License-Identifier: LGPL-2.1-or-later
"""Thousands of seeds over a night: in parts, on several machines, to be gone on with after a break.

Each part writes a file of its own in one folder: a first line that says what is run and on which
code, then a line for each seed that has ended. What is there is not run again. A broken law stops
nothing: it is in the file, and in the sum.

A file that is gone on with by other code (`over_codes`) gets another such line there, and the sum
says how many codes it is of: a search over weeks, while the code grows.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from tests.simulation.seeds import Result, Sum, run_seeds
from tests.simulation.world import Outage

ROOT = Path(__file__).parents[2]
#: What a run depends on.
CODE = ("scoring", "broker", "agent", "tests/simulation")


class OtherRun(Exception):
    """A file is of another run: which, and what to do."""


class Header(msgspec.Struct, frozen=True):
    """What is run. `code`: a hash of it. `vms`: how many, the engine among them."""

    code: str
    hosts: tuple[int, int]
    moments: int
    vms: tuple[int, int] = (1, 1)


class Line(msgspec.Struct, frozen=True):
    """What became of one seed; times in seconds. `broken`: the law, empty where none was."""

    seed: int
    hosts: int
    simulated_s: float
    leapt_s: float
    cpu_s: float
    faults: dict[str, int]
    outages: list[tuple[float, float, str]]
    broken: str = ""
    #: The code that the line before it names; it is not in the file.
    code: str = ""


@dataclass(frozen=True, slots=True)
class Part:
    """The `number`-th of so many, from 1 on."""

    number: int = 1
    of: int = 1

    def seeds(self, all_of_them: Iterable[int]) -> list[int]:
        """The seeds of this part."""
        return [seed for seed in all_of_them if seed % self.of == self.number - 1]

    def file(self, folder: Path) -> Path:
        """Where its lines are."""
        return folder / f"part-{self.number}-of-{self.of}.jsonl"


def header(hosts: tuple[int, int], moments: int, vms: tuple[int, int] = (1, 1)) -> Header:
    """What would be run now."""
    code = hashlib.sha256()
    for folder in CODE:
        for path in sorted((ROOT / folder).rglob("*.py")):
            code.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return Header(code.hexdigest()[:16], hosts, moments, vms)


def read(path: Path, wanted: Header, over_codes: bool = False) -> list[Line]:
    """The seeds that have ended; a last line that was not written to its end is none.
    `over_codes`: those of other code are among them.

    Raises OtherRun.
    """
    ended: list[Line] = []
    found = wanted
    lines = path.read_bytes().splitlines() if path.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            one = msgspec.json.decode(line)
            if "code" in one and "seed" not in one:
                found = _fitting(path, msgspec.convert(one, Header), wanted, over_codes)
            else:
                ended.append(msgspec.convert({**one, "code": found.code}, Line))
        except (msgspec.DecodeError, msgspec.ValidationError):
            if number < len(lines):
                raise
    return ended


def _fitting(path: Path, found: Header, wanted: Header, over_codes: bool) -> Header:
    if msgspec.structs.replace(found, code=wanted.code) != wanted:
        raise OtherRun(
            f"{path} is of other hosts, moments or VMs ({found}, now {wanted}): move it away, or "
            "give another folder by --to"
        )
    if found.code != wanted.code and not over_codes:
        raise OtherRun(
            f"{path} is of other code ({found}, now {wanted}): move it away, give another folder "
            "by --to, or go on with it all the same by --over-codes"
        )
    return found


def run(
    seeds: Iterable[int],
    part: Part,
    folder: Path,
    wanted: Header,
    processes: int,
    say: Callable[[str], None],
    over_codes: bool = False,
) -> list[Line]:
    """Run what of a part is not there yet; all that is there then."""
    path = part.file(folder)
    ended = read(path, wanted, over_codes)
    known = {line.seed for line in ended}
    left = [seed for seed in part.seeds(seeds) if seed not in known]
    say(f"{path}: {len(known)} seeds are there, {len(left)} are left")
    folder.mkdir(parents=True, exist_ok=True)
    # Written anew, so that no half a line stays in the middle.
    path.write_bytes(b"".join(msgspec.json.encode(one) + b"\n" for one in _in_order(ended, wanted)))
    with path.open("ab") as file:
        for result in run_seeds(
            left, wanted.hosts, processes, moments=wanted.moments, vms=wanted.vms
        ):
            line = _line(result, wanted.code)
            file.write(msgspec.json.encode(line) + b"\n")
            file.flush()
            ended.append(line)
            if line.broken:
                say(f"seed {line.seed} with {line.hosts} hosts: {line.broken}")
    return ended


def _in_order(ended: Iterable[Line], wanted: Header) -> Iterator[Header | Line]:
    """The lines of a file, each code's own first line among them, that of `wanted` the last."""
    code = None
    for line in ended:
        if line.code != code:
            code = line.code
            yield msgspec.structs.replace(wanted, code=code)
        yield line
    if code != wanted.code:
        yield wanted


def _line(result: Result, code: str) -> Line:
    return Line(
        result.seed,
        result.hosts,
        result.simulated_s,
        result.leapt_s,
        result.cpu_s,
        dict(result.faults),
        [(one.began_s, one.ended_s, one.cause) for one in result.outages],
        result.broken,
        code,
    )


def told(lines: Iterable[Line], wanted: Header) -> Iterator[str]:
    """The sum for people, and how each broken law is run again."""
    lines = list(lines)
    total, broken = Sum(), []
    for line in sorted(lines, key=lambda one: one.seed):
        total.add(
            Result(
                line.seed,
                line.hosts,
                line.simulated_s,
                line.leapt_s,
                line.cpu_s,
                Counter(line.faults),
                [Outage(*one) for one in line.outages],
                "",
            )
        )
        if line.broken:
            broken.append(line)
    yield from total.lines()
    if codes := Counter(line.code for line in lines if line.code != wanted.code):
        yield f"of these seeds {sum(codes.values())} ran on other code, of {len(codes)} kinds"
    vms = "" if wanted.vms == (1, 1) else f" --vms {wanted.vms[0]}..{wanted.vms[1]}"
    for line in broken:
        yield f"seed {line.seed} with {line.hosts} hosts: {line.broken}"
        yield (
            f"  replay: python -m tests.simulation run --seed {line.seed} --trace "
            f"--hosts {wanted.hosts[0]}..{wanted.hosts[1]} --moments {wanted.moments}{vms}"
        )
    yield f"{len(broken)} of {total.seeds} seeds broke a law" if broken else "no law was broken"
