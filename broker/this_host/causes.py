# SPDX-License-Identifier: LGPL-2.1-or-later
"""Why a VM's machine entered a state, for the events of every host. Pure.

The reason that a report shows is the one to stay: "migrating for 0 s". Who reads at 3 a.m. what
happened wants the one that led there: "migrating the VM to host2". It is true for one beat only, so
its host publishes it for some beats longer, and the others cannot miss it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from broker.daemon.foreign import cut
from broker.wire.exchange import Report
from broker.wire.status import ReasonOnWire
from scoring.vm.state import StateName
from scoring.vm_facts import ENGINE

#: The key of the line about the engine; that about VM 5 stands under "because-5".
BECAUSE = "because"
#: How long a cause stands in the slot, and of how many VMs at once, the newest ones.
SHOWN_S = 10.0
SHOWN_MAX = 8
CHARS_MAX = 120


def cause(reasons: Sequence[ReasonOnWire]) -> ReasonOnWire:
    """The reason that led to a state. `reasons`: of the report that shows the state first, where
    the last one, which is the reason to stay, comes first; empty ones give an empty reason."""
    if not reasons:
        return ReasonOnWire("", "")
    return reasons[1] if len(reasons) > 1 else reasons[0]


def line_key(number: int) -> str:
    """The key of the slot's line about that VM."""
    return BECAUSE if number == ENGINE else f"{BECAUSE}-{number}"


class Causes:
    """The causes of this host's last transitions."""

    def __init__(self) -> None:
        self._found: dict[int, tuple[str, float]] = {}

    def take(self, old: Report | None, new: Report, now_s: float) -> None:
        """Take in a report, and the one before."""
        if old is None:
            return
        before = {number: state for number, state, _ in _machines(old)}
        for number, state, reasons in _machines(new):
            if before.get(number, StateName.ENGINE_DOWN) != state and reasons:
                self._found.pop(number, None)
                self._found[number] = cut(cause(reasons).text, CHARS_MAX), now_s
        self._found = {
            number: found
            for number, found in list(self._found.items())[-SHOWN_MAX:]
            if now_s - found[1] < SHOWN_S
        }

    def lines(self, now_s: float) -> dict[str, str]:
        """The lines of this host's slot about them."""
        return {
            line_key(number): text
            for number, (text, at_s) in self._found.items()
            if now_s - at_s < SHOWN_S
        }


def _machines(report: Report) -> Iterator[tuple[int, str, tuple[ReasonOnWire, ...]]]:
    yield ENGINE, report.state, report.reasons
    for vm in report.vms:
        yield vm.number, vm.state, vm.reasons
