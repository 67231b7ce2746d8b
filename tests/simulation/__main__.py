# SPDX-License-Identifier: LGPL-2.1-or-later
"""`python -m tests.simulation run|nightly|scenario|false-fences|fingerprint|mutation|demo`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.simulation import demo, false_fences, fingerprint, mutation, nightly
from tests.simulation.earlier_decisions import NotToBeHad
from tests.simulation.laws import Broken
from tests.simulation.preconditions import CASES
from tests.simulation.scenario import BadScenario, Disappointed, Player, load
from tests.simulation.seeds import MOMENTS, Sum, run_seed, run_seeds


def _hosts(text: str) -> tuple[int, int]:
    low, _, high = text.partition("..")
    return int(low), int(high or low)


def _part(text: str) -> nightly.Part:
    number, _, of = text.partition("/")
    part = nightly.Part(int(number), int(of))
    if not 1 <= part.number <= part.of:
        raise ValueError(text)
    return part


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    run = verbs.add_parser("run", help="clusters with faults by chance")
    run.add_argument("--seeds", type=int, default=200, help="how many")
    run.add_argument("--first", type=int, default=0, help="the first seed")
    run.add_argument("--seed", type=int, help="only this one")
    run.add_argument("--hosts", type=_hosts, default=(2, 7), help="N or N..M")
    run.add_argument("--vms", type=_hosts, default=(1, 1), help="N or N..M, the engine among them")
    run.add_argument("--minutes", type=float, help="of faults in each run; default: drawn")
    run.add_argument("--moments", type=int, default=MOMENTS, help="of faults in each run")
    run.add_argument("--apart", type=float, help="mean seconds between faults; default: drawn")
    run.add_argument("--processes", type=int, default=2)
    run.add_argument("--trace", action="store_true", help="print what happens")
    night = verbs.add_parser("nightly", help="thousands of seeds, in parts, to be gone on with")
    night.add_argument("--seeds", type=int, default=5000, help="how many")
    night.add_argument("--first", type=int, default=0, help="the first seed")
    night.add_argument(
        "--part", type=_part, default=nightly.Part(), help="K/N: the K-th of N parts"
    )
    night.add_argument("--to", type=Path, default=Path("build/nightly"), help="the folder")
    night.add_argument("--hosts", type=_hosts, default=(2, 7), help="N or N..M")
    night.add_argument("--moments", type=int, default=3, help="of faults in each run")
    night.add_argument("--vms", type=_hosts, default=(1, 1), help="N or N..M, the engine too")
    night.add_argument(
        "--over-codes", action="store_true", help="go on with files that other code has begun"
    )
    night.add_argument("--processes", type=int, default=2)
    scenario = verbs.add_parser("scenario", help="play scenario files")
    scenario.add_argument("files", type=Path, nargs="+")
    scenario.add_argument("--trace", action="store_true", help="print what happens")
    false = verbs.add_parser("false-fences", help="is anybody switched off who lives?")
    false.add_argument("--days", type=int, default=1000, help="cluster-days")
    false.add_argument("--first", type=int, default=0, help="the first seed; a day is a seed")
    false.add_argument("--processes", type=int, default=2)
    false.add_argument("--cpu-minutes", type=float, help="begin no day after so many")
    prints = verbs.add_parser("fingerprint", help="digests of what runs do, to hold code against")
    prints.add_argument("--seeds", type=int, default=40, help="how many")
    prints.add_argument("--first", type=int, default=0, help="the first seed")
    prints.add_argument("--hosts", type=_hosts, default=(2, 7), help="N or N..M")
    prints.add_argument("--moments", type=int, default=3, help="of faults in each run")
    prints.add_argument("--vms", type=_hosts, default=(1, 1), help="N or N..M, the engine too")
    prints.add_argument("--scenarios", action="store_true", help="of all scenarios too")
    prints.add_argument("--processes", type=int, default=2)
    prints.add_argument("--to", type=Path, help="write them there, as they come")
    prints.add_argument("--against", type=Path, help="say which are others than there")
    mutants = verbs.add_parser("mutation", help="which changes of the fencing code are noticed?")
    mutants.add_argument("modules", nargs="+", choices=sorted(mutation.MODULES))
    mutants.add_argument("--only", default="", help="in functions with that in their names")
    mutants.add_argument("--scenario", type=Path, action="append", default=[], help="told too")
    mutants.add_argument("--cpu-minutes", type=float, default=60.0, help="begin none after so many")
    mutants.add_argument("--kept", type=Path, default=Path("build/mutation.jsonl"), help="the file")
    verbs.add_parser("demo", help="a power cut and what follows, told in virtual time")
    return parser


def main() -> int:
    """The command; 0 when all held, 1 when a law was broken."""
    arguments = _parser().parse_args()
    match arguments.verb:
        case "nightly":
            return _nightly(arguments)
        case "scenario":
            return _scenarios(arguments.files, arguments.trace)
        case "false-fences":
            return _false_fences(arguments)
        case "fingerprint":
            return _fingerprint(arguments)
        case "mutation":
            return _mutation(arguments)
        case "demo":
            return demo.tell(print)
        case _:
            return _run(arguments)


def _scenarios(files: list[Path], trace: bool) -> int:
    failed = 0
    for path in files:
        player = None
        try:
            player = Player(load(path))
            player.play()
        except (BadScenario, Disappointed, Broken, NotToBeHad) as error:
            failed += 1
            print(f"{path}: {error}")
            if player is not None and not trace:
                _print_trace(player.world.trace[-40:])
        if player is not None and trace:
            _print_trace(player.world.trace)
    print(f"{len(files) - failed} of {len(files)} scenarios held")
    return 1 if failed else 0


def _nightly(arguments: argparse.Namespace) -> int:
    folder = arguments.to
    seeds = range(arguments.first, arguments.first + arguments.seeds)
    wanted = nightly.header(arguments.hosts, arguments.moments, arguments.vms)
    try:
        nightly.run(
            seeds,
            arguments.part,
            folder,
            wanted,
            arguments.processes,
            lambda text: print(text, file=sys.stderr, flush=True),
            arguments.over_codes,
        )
        lines = [
            line
            for path in folder.glob("*.jsonl")
            for line in nightly.read(path, wanted, arguments.over_codes)
        ]
    except nightly.OtherRun as error:
        print(error, file=sys.stderr)
        return 2
    print("\n".join(nightly.told(lines, wanted)))
    return 1 if any(line.broken for line in lines) else 0


def _false_fences(arguments: argparse.Namespace) -> int:
    total = false_fences.Sum()
    days = false_fences.run_days(arguments.days, arguments.first, arguments.processes)
    for day in days:
        if day.broken:
            print(f"day {day.seed} with {day.hosts} hosts: {day.broken}")
            return 1
        total.add(day)
        if total.days % 50 == 0:
            print(f"{total.days} days", file=sys.stderr, flush=True)
        if arguments.cpu_minutes is not None and total.cpu_s > 60 * arguments.cpu_minutes:
            print(f"stopped after {total.days} of {arguments.days} days: the CPU time is over")
            break
    print("\n".join(total.lines()))
    return 1 if total.false else 0


def _fingerprint(arguments: argparse.Namespace) -> int:
    seeds = range(arguments.first, arguments.first + arguments.seeds)
    lines = []
    to = None if arguments.to is None else arguments.to.open("a")
    for line in fingerprint.run(
        seeds,
        arguments.hosts,
        arguments.moments,
        arguments.scenarios,
        arguments.processes,
        arguments.vms,
    ):
        lines.append(line)
        print(line, file=to or sys.stdout, flush=True)
    if arguments.against is None:
        return 0
    with arguments.against.open() as against:
        others = list(fingerprint.differing(lines, against))
    print("\n".join(others))
    print(f"{len(lines) - len(others)} of {len(lines)} are the same")
    return 1 if others else 0


def _mutation(arguments: argparse.Namespace) -> int:
    stories = [mutation.Story(str(case), case.story, {}) for case in CASES]
    stories += [mutation.Story(path.stem, path.read_text(), {}) for path in arguments.scenario]
    arguments.kept.parent.mkdir(parents=True, exist_ok=True)
    found = mutation.run(
        arguments.modules,
        stories,
        arguments.kept,
        arguments.only,
        arguments.cpu_minutes,
        lambda text: print(text, flush=True),
    )
    killed = sum(bool(one.killer) for one in found)
    unmet = sum(not one.stories for one in found)
    print(f"{killed} of {len(found)} changes are noticed; no story runs through {unmet} of them")
    return 0


def _print_trace(trace: list[tuple[float, str, str]]) -> None:
    for at_s, who, what in trace:
        print(f"{at_s:10.3f}  {who:9} {what}")


def _run(arguments: argparse.Namespace) -> int:
    total = Sum()
    if arguments.seed is not None:
        results = iter(
            [
                run_seed(
                    arguments.seed,
                    arguments.hosts,
                    arguments.minutes,
                    arguments.trace,
                    apart_s=arguments.apart,
                    moments=arguments.moments,
                    vms=arguments.vms,
                )
            ]
        )
    else:
        seeds = range(arguments.first, arguments.first + arguments.seeds)
        results = run_seeds(
            seeds,
            arguments.hosts,
            arguments.processes,
            arguments.minutes,
            arguments.apart,
            arguments.moments,
            arguments.vms,
        )
    for result in results:
        total.add(result)
        if total.seeds % 50 == 0:
            print(f"{total.seeds} seeds", file=sys.stderr, flush=True)
        if result.trace:
            print("\n".join(result.trace))
        if result.broken:
            print(f"seed {result.seed} with {result.hosts} hosts: {result.broken}")
            minutes = "" if arguments.minutes is None else f" --minutes {arguments.minutes}"
            moments = "" if arguments.moments == MOMENTS else f" --moments {arguments.moments}"
            apart = "" if arguments.apart is None else f" --apart {arguments.apart}"
            if arguments.vms != (1, 1):
                apart += f" --vms {arguments.vms[0]}..{arguments.vms[1]}"
            print(
                f"replay: python -m tests.simulation run --seed {result.seed} --trace "
                f"--hosts {arguments.hosts[0]}..{arguments.hosts[1]}{minutes}{apart}{moments}"
            )
            return 1
    print("\n".join(total.lines()))
    print("no law was broken")
    return 0


if __name__ == "__main__":
    sys.exit(main())
