# SPDX-License-Identifier: LGPL-2.1-or-later
"""Steps of a set-up: first all are checked, then those that are due are carried out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from agent.terminal import in_json
from agent.terminal.columns import say
from agent.terminal.progress import progress


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that the set-up has to make true.

    `look`: checks and changes nothing: why the step is done already (None: it is due); CommandError
    where it must not be done. `act`: carries the step out and returns what it did; it may be
    repeated after an interrupted attempt. `plan`: what `act` is about to do.
    """

    name: str
    look: Callable[[], str | None]
    plan: str
    act: Callable[[], str]


@dataclass(frozen=True, slots=True)
class Done:
    """The result of a step. `verdict`: ok (nothing was to be done), done or would; warning, for a
    step that only checks."""

    name: str
    verdict: str
    text: str


def run_steps(steps: Sequence[Step], dry_run: bool, as_json: bool) -> list[Done]:
    """Check all steps, then do those that are due, and print each result at once, or JSON."""
    done = do_steps(steps, dry_run, as_json)
    if as_json:
        print_json(done)
    return done


def do_steps(steps: Sequence[Step], dry_run: bool, is_quiet: bool) -> list[Done]:
    """Check all steps, then do those that are due; print each result unless `is_quiet`."""
    looked = [step.look() for step in steps]
    done = []
    for step, reason in zip(steps, looked, strict=True):
        if reason is not None:
            done.append(Done(step.name, "ok", reason))
        elif dry_run:
            done.append(Done(step.name, "would", step.plan))
        else:
            if not is_quiet:
                progress(f"{step.name}: {step.plan}")
            done.append(Done(step.name, "done", step.act()))
        if not is_quiet:
            print_line(done[-1])
    return done


def print_line(done: Done) -> None:
    """Print one result for people."""
    say(f"{done.verdict:<8} {done.name}: {done.text}", 9)


def print_json(done: Sequence[Done]) -> None:
    """Print all results for programs."""
    steps = [dataclasses.asdict(one) for one in done]
    in_json.show({"steps": steps})
