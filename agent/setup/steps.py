# SPDX-License-Identifier: LGPL-2.1-or-later
"""Steps of a set-up: all are looked at first, then those that are due are done."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from agent.setup.progress import progress


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that shall be so.

    `look`: why nothing is to be done, None: it is to be done; changes nothing; raises CommandError
    where it must not be done. `act`: does it and tells what it did, again after an earlier try
    that broke off. `plan`: what `act` is about to do.
    """

    name: str
    look: Callable[[], str | None]
    plan: str
    act: Callable[[], str]


@dataclass(frozen=True, slots=True)
class Done:
    """What became of a step. `verdict`: ok (nothing was to be done), done or would."""

    name: str
    verdict: str
    text: str


def run_steps(steps: Sequence[Step], dry_run: bool, as_json: bool) -> list[Done]:
    """Look at all, then do what is due, telling of each at once; as JSON at the end."""
    looked = [step.look() for step in steps]
    done = []
    for step, reason in zip(steps, looked, strict=True):
        if reason is not None:
            done.append(Done(step.name, "ok", reason))
        elif dry_run:
            done.append(Done(step.name, "would", step.plan))
        else:
            if not as_json:
                progress(f"{step.name}: {step.plan}")
            done.append(Done(step.name, "done", step.act()))
        if not as_json:
            print(f"{done[-1].verdict:<8} {step.name}: {done[-1].text}", flush=True)
    if as_json:
        print(json.dumps({"version": 1, "steps": [dataclasses.asdict(x) for x in done]}, indent=2))
    return done
