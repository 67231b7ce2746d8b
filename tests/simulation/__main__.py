# SPDX-License-Identifier: LGPL-2.1-or-later
"""`python -m tests.simulation run|scenario|demo`; see --help."""

from __future__ import annotations

import argparse
import sys

from tests.simulation.seeds import Sum, run_seed, run_seeds


def _hosts(text: str) -> tuple[int, int]:
    low, _, high = text.partition("..")
    return int(low), int(high or low)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    run = verbs.add_parser("run", help="clusters with faults by chance")
    run.add_argument("--seeds", type=int, default=200, help="how many")
    run.add_argument("--first", type=int, default=0, help="the first seed")
    run.add_argument("--seed", type=int, help="only this one")
    run.add_argument("--hosts", type=_hosts, default=(2, 7), help="N or N..M")
    run.add_argument("--minutes", type=float, default=30.0, help="of faults in each run")
    run.add_argument("--processes", type=int, default=2)
    run.add_argument("--trace", action="store_true", help="print what happens")
    return parser


def main() -> int:
    """The command; 0 when all held, 1 when a law was broken."""
    arguments = _parser().parse_args()
    return _run(arguments)


def _run(arguments: argparse.Namespace) -> int:
    total = Sum()
    if arguments.seed is not None:
        results = iter(
            [run_seed(arguments.seed, arguments.hosts, arguments.minutes, arguments.trace)]
        )
    else:
        seeds = range(arguments.first, arguments.first + arguments.seeds)
        results = run_seeds(seeds, arguments.hosts, arguments.minutes, arguments.processes)
    for result in results:
        total.add(result)
        if result.trace:
            print("\n".join(result.trace))
        if result.broken:
            print(f"seed {result.seed} with {result.hosts} hosts: {result.broken}")
            print(
                f"replay: python -m tests.simulation run --seed {result.seed} --trace "
                f"--hosts {arguments.hosts[0]}..{arguments.hosts[1]} --minutes {arguments.minutes}"
            )
            return 1
    print("\n".join(total.lines()))
    print("no law was broken")
    return 0


if __name__ == "__main__":
    sys.exit(main())
