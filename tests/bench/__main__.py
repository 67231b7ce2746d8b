# SPDX-License-Identifier: LGPL-2.1-or-later
"""`python -m tests.bench [scrape] [--takeovers N] [--no-lab] [--json FILE]`.

Prints each figure with its spread and the target it is held against; exits 1 when one
misses its target. Nothing here is a test: a loaded machine makes figures worse, not wrong.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.lab.errors import LabError

from . import core, fencing, lab, scrape


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured figure; `target` None: shown for information."""

    name: str
    unit: str
    values: list[float]
    target: float | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def holds(self) -> bool:
        return self.target is None or self.median <= self.target

    def line(self) -> str:
        """Name, median, spread over the runs, target."""
        spread = f"{min(self.values):.2f}..{max(self.values):.2f} of {len(self.values)}"
        target = "" if self.target is None else f"  target {self.target:g}"
        verdict = "" if self.holds else "  MISSED"
        head = f"{self.name:46} {self.median:9.2f} {self.unit:8}"
        return f"{head} ({spread}){target}{verdict}"


def main() -> int:
    """0 when every figure holds, 1 when one is missed, 3 where the lab cannot run."""
    if sys.argv[1:2] == ["fencing"]:
        return fencing.main(sys.argv[2:])
    parser = argparse.ArgumentParser(prog="python -m tests.bench")
    parser.add_argument("--takeovers", type=int, default=5, metavar="N")
    parser.add_argument("--no-lab", action="store_true", help="only what needs no lab")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("only", nargs="?", choices=["scrape"], help="only this part")
    options = parser.parse_args()

    figures: list[Figure] = []

    def add(figure: Figure) -> None:
        figures.append(figure)
        print(figure.line(), flush=True)

    add(Figure("machine noise: a fixed loop", "ms", core.noise_ms()))
    for name, unit, values, target in scrape.rows():
        add(Figure(name, unit, values, target))
    if options.only == "scrape":
        return int(not all(figure.holds for figure in figures))
    add(Figure("decide() at 3 hosts", "us", core.decide_us(3), 200))
    add(Figure("decide() at 100 hosts", "us", core.decide_us(100)))
    add(Figure("whiteboard sweep decoded, 3 hosts", "us", core.decode_us(3)))
    add(Figure("whiteboard sweep decoded, 100 hosts", "us", core.decode_us(100)))
    code = 0
    if not options.no_lab:
        try:
            for name, unit, values, target in lab.measure(options.takeovers):
                add(Figure(name, unit, values, target))
        except LabError as error:
            print(f"bench: {error}", file=sys.stderr)
            code = error.exit_code
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(figure) for figure in figures], indent=1))
    return code or int(not all(figure.holds for figure in figures))


if __name__ == "__main__":
    sys.exit(main())
