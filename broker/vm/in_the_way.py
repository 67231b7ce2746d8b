# SPDX-License-Identifier: LGPL-2.1-or-later
"""A leftover of the VM on this host that keeps it from being started here."""

from __future__ import annotations

from scoring.vm.left_behind import LEFTOVER_AFTER_S
from scoring.vm_facts import DomainHere, EngineStatus, Leftover, Obstacle, Unfit


def in_the_way(facts: DomainHere, engine: EngineStatus, now_s: float) -> tuple[Unfit, ...]:
    """A leftover process of the VM that keeps this host from starting it, as an obstacle."""
    if facts.leftover is None:
        return ()
    waited_s = now_s - facts.leftover_since_s
    if facts.leftover is Leftover.NOT_RECEIVED and waited_s < LEFTOVER_AFTER_S:
        return ()
    text = f"a process of the VM is left here and blocks each start: {engine.reason}"
    return (Unfit(Obstacle.LEFTOVER, text),)
