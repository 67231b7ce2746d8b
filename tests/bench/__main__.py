# SPDX-License-Identifier: LGPL-2.1-or-later
"""`python -m tests.bench [all|heartbeat|scrape|…]`; see --help.

Prints each figure with its spread and the target it is held against; exits 1 when one
misses its target. Nothing here is a test: a loaded machine makes figures worse, not wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from tests.lab.errors import LabError

from . import (
    core,
    crowd,
    fencing,
    flood,
    heartbeat,
    jitter,
    lab,
    migration,
    rest,
    scale,
    scrape,
    soak,
    status,
    steady,
    storages,
    strangers,
    streams,
    takeover,
    vms,
)
from .figure import Figure

#: What is measured -> for how many minutes, unless told otherwise.
MINUTES = {
    "all": 0.0,
    "heartbeat": 0.0,
    "scrape": 0.0,
    "streams": 0.0,
    "status": 0.0,
    "jitter": 5.0,
    "strangers": 1.0,
    "steady": 5.0,
    "crowd": 1.0,
    "flood": 1.0,
    "soak": 30.0,
}
#: What has options of its own -> its command.
OWN_OPTIONS: dict[str, Callable[[list[str]], int]] = {
    "fencing": fencing.main,
    "takeover": takeover.main,
    "migration": migration.main,
    "rest": rest.main,
    "vms": vms.main,
    "scale": scale.main,
    "storages": storages.main,
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        epilog="all: the decision, the status, takeovers. scrape: what /metrics costs. "
        "heartbeat: what the hosts' signs of life cost. streams: what open dashboards cost. "
        "status: "
        "how long ha-agent --status takes at 3, 100 and 2000 hosts. jitter: "
        "how late beats begin while everything hangs. strangers: the same while they do all that "
        "they can over TCP and UDP, beside a cluster that is left alone. steady: forks, CPU, "
        "memory and threads at 3 hosts. crowd: the same at 100 hosts. flood: strangers, in the "
        f"lab. soak: does anything grow? {', '.join(OWN_OPTIONS)}: each has a --help of its own. "
        "Default minutes: "
        + ", ".join(f"{name} {minutes:g}" for name, minutes in MINUTES.items() if minutes),
    )
    parser.add_argument("what", nargs="?", default="all", choices=tuple(MINUTES))
    parser.add_argument("--minutes", type=float, metavar="M")
    parser.add_argument("--takeovers", type=int, default=5, metavar="N", help="of all")
    parser.add_argument("--no-lab", action="store_true", help="of all, only what needs no lab")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    return parser


def main() -> int:
    """0 when every figure holds, 1 when one is missed, 3 where the lab cannot run."""
    if (measure := OWN_OPTIONS.get(sys.argv[1] if sys.argv[1:] else "")) is not None:
        return measure(sys.argv[2:])
    options = _parser().parse_args()
    figures: list[Figure] = []
    code = 0
    try:
        for figure in _figures(options):
            figures.append(figure)
            print(figure.line(), flush=True)
    except LabError as error:
        print(f"bench: {error}", file=sys.stderr)
        code = error.exit_code
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(figure) for figure in figures], indent=1))
    return code or int(not all(figure.holds for figure in figures))


def _figures(options: argparse.Namespace) -> Iterator[Figure]:
    minutes = MINUTES[options.what] if options.minutes is None else options.minutes
    match options.what:
        case "heartbeat":
            yield from heartbeat.measure()
        case "scrape":
            yield from _scrape()
        case "streams":
            yield from streams.measure()
        case "status":
            yield from _status()
        case "jitter":
            yield from jitter.measure(minutes)
        case "strangers":
            yield from strangers.measure(minutes)
        case "steady":
            yield from steady.measure(minutes)
        case "crowd":
            yield from crowd.measure(minutes)
        case "flood":
            yield from flood.measure(minutes)
        case "soak":
            yield from soak.measure(minutes)
        case _:
            yield from _scrape()
            yield from _status()
            yield from heartbeat.measure()
            yield from core.measure()
            if not options.no_lab:
                yield from lab.measure(options.takeovers)


def _scrape() -> Iterator[Figure]:
    yield from (Figure(*row) for row in scrape.rows())


def _status() -> Iterator[Figure]:
    yield from (Figure(*row) for row in status.rows())


if __name__ == "__main__":
    sys.exit(main())
