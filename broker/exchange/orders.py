# SPDX-License-Identifier: LGPL-2.1-or-later
"""Orders of operators to this host's agent: placed here, sent to the agent, answered by it.

An order that the agent does not take at once is lost, not kept: nobody wants a VM shut
down by a command that was given up minutes ago.
"""

from __future__ import annotations

from collections.abc import Iterable

from broker.wire.status import OrderStatus
from scoring.observation import Order, OrderKind
from scoring.vm.state import OrderAnswer
from scoring.vm_facts import ENGINE

#: The agent takes an order within this time, or never.
TAKEN_WITHIN_S = 10.0
KEPT = 32
FORGOTTEN = "the agent on this host was restarted meanwhile; ha-agent --status shows how it goes on"


class Orders:
    """Numbers grow over restarts of the broker: they begin with the time since boot."""

    def __init__(self) -> None:
        self._placed: dict[int, tuple[Order, float]] = {}
        self._answers: dict[int, OrderAnswer] = {}

    def place(self, kind: OrderKind, target: int | None, now_s: float, vm: int = ENGINE) -> Order:
        """A new order to the agent."""
        number = max(int(now_s * 1000), max(self._placed, default=0) + 1)
        order = Order(number, kind, target, vm)
        self._placed[number] = (order, now_s)
        for old in sorted(self._placed)[:-KEPT]:
            del self._placed[old]
            self._answers.pop(old, None)
        return order

    def answered(self, answers: Iterable[OrderAnswer]) -> None:
        """Take in the agent's answers. An agent that no longer knows an order that was under way
        was restarted."""
        known = {answer.number: answer for answer in answers}
        for number, before in self._answers.items():
            if before.ok is None and number not in known:
                self._answers[number] = OrderAnswer(number, False, FORGOTTEN)
        self._answers |= {number: known[number] for number in known if number in self._placed}

    def pending(self, now_s: float) -> Order | None:
        """The order that the agent has not taken yet."""
        if not self._placed:
            return None
        order, placed_s = self._placed[max(self._placed)]
        if order.number in self._answers or now_s - placed_s > TAKEN_WITHIN_S:
            return None
        return order

    def status(self, number: int, now_s: float) -> OrderStatus | None:
        """The state of an order; None where there is no such order."""
        if number not in self._placed:
            return None
        order, placed_s = self._placed[number]
        answer = self._answers.get(number)
        if answer is not None:
            state = {None: "under-way", True: "done", False: "refused"}[answer.ok]
            return OrderStatus(number, order.kind, order.target, state, answer.text, order.vm)
        if now_s - placed_s <= TAKEN_WITHIN_S:
            return OrderStatus(number, order.kind, order.target, "waiting", "", order.vm)
        text = "the agent on this host did not take the order; is it running?"
        return OrderStatus(number, order.kind, order.target, "lost", text, order.vm)
