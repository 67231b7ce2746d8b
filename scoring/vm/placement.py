# SPDX-License-Identifier: LGPL-2.1-or-later
"""The order in which hosts may start the engine.

The highest score comes first; of equal hosts the one that ran the engine last, then the lowest host
id. The reference lets equal hosts race for the lease. Here each host waits for the one before it,
so that there is no race.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Candidate:
    """A live host that may run the engine."""

    host_id: int
    score: int
    last_ran: int
    name: str = ""

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.name or 'host'} (id {self.host_id})"


def ranked(candidates: Sequence[Candidate]) -> list[Candidate]:
    """All candidates, the best first."""
    return sorted(candidates, key=lambda c: (-c.score, -c.last_ran, c.host_id))


def ahead(candidates: Sequence[Candidate], host_id: int) -> tuple[int, ...]:
    """The ids of the candidates that come before this host, which must be one of them."""
    order = [candidate.host_id for candidate in ranked(candidates)]
    assert host_id in order, f"host {host_id} is not among the candidates"
    return tuple(order[: order.index(host_id)])
