# SPDX-License-Identifier: LGPL-2.1-or-later
"""Detects VMs that have no place, or would have none after the death of a host, and makes notices
of them. No I/O.

Every host finds the same, so only one of them sends the notice. A lack that ends within its
patience gives no notice: during a takeover memory is short for a moment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from broker.events.notice import FactValue, Notice
from broker.wire.kinds import Kind
from broker.wire.vms import WithoutPlace

#: How long a VM must have been without a place before there is a notice.
NOW_S = 10.0
#: How long the death of a host must leave a VM without a place before there is a notice.
IF_DIES_S = 60.0

_Key = tuple[int | None, int]


class RoomEvents:
    """`say_once`: sends a notice about what all hosts see, from one of them."""

    def __init__(self, say_once: Callable[[Notice], None]) -> None:
        self._say_once = say_once
        self._since_s: dict[_Key, float] = {}
        self._shown: dict[_Key, WithoutPlace] = {}
        self._gone_s: dict[_Key, float] = {}

    def look(self, found: Iterable[WithoutPlace], now_s: float) -> None:
        """Take in all that have no place, or would have none."""
        present = {(each.if_dies, each.vm): each for each in found}
        self._since_s = {key: self._since_s.get(key, now_s) for key in present}
        for key, each in present.items():
            self._gone_s.pop(key, None)
            if key not in self._shown and now_s - self._since_s[key] >= _patience_s(key):
                self._shown[key] = each
                kind = Kind.VM_WITHOUT_PLACE if each.if_dies is None else Kind.N_PLUS_1_SHORT
                facts: dict[str, FactValue] = {"short_mb": each.short_mb, "needs_mb": each.needs_mb}
                self._say(kind, each, each.text, facts)
        for key in [key for key in self._shown if key not in present]:
            if now_s - self._gone_s.setdefault(key, now_s) < _patience_s(key):
                continue
            each = self._shown.pop(key)
            del self._gone_s[key]
            if each.if_dies is None:
                text = f"{each.name} has a place again, or is not to run any more"
                self._say(Kind.VM_PLACED, each, text, {})
            else:
                text = (
                    f"{each.name} would have a place again after the death of {each.if_dies_name}"
                )
                self._say(Kind.N_PLUS_1_GOOD, each, text, {})

    def _say(self, kind: Kind, each: WithoutPlace, text: str, facts: dict[str, FactValue]) -> None:
        about: dict[str, FactValue] = {"vm": each.name}
        if each.if_dies is not None:
            about |= {"host_id": each.if_dies, "host": each.if_dies_name}
        subject = each.name if each.if_dies is None else each.if_dies_name
        self._say_once(Notice(kind, subject, text, about | facts))


def _patience_s(key: _Key) -> float:
    return NOW_S if key[0] is None else IF_DIES_S
