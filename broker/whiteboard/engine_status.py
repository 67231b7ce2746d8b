# SPDX-License-Identifier: LGPL-2.1-or-later
"""The engine's status in the head of a slot: an object in JSON, as the reference has it. Pure.

1. What does not fit is cut: the reason first, then the detail; the two words never are.
2. What is read has one of the known words for both, or it is a BadSlot.
3. No "|" stands in it: the head is split at every one, in strings too.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping
from typing import NoReturn

from broker.daemon.foreign import clean
from broker.whiteboard.errors import BadSlot, SlotFault
from broker.whiteboard.text import shown
from scoring.vm_facts import DETAIL_ALREADY_LOCKED, EngineStatus, Health, VmStatus

_CUT_MARK = "..."
#: Older reference versions have a word of their own for "another host held the lease"; newer ones
#: use `down`. The word is read as `down` with a detail that keeps it apart.
_ALREADY_LOCKED_WORDS = frozenset({"already_locked", "already-locked"})
_VM_WORDS = {
    **{word.value: word for word in VmStatus},
    **dict.fromkeys(_ALREADY_LOCKED_WORDS, VmStatus.DOWN),
}
_HEALTH_WORDS = {word.value: word for word in Health}


def _json(value: Mapping[str, str]) -> str:
    """ASCII JSON without "|": the head is split at every "|", in strings too."""
    return json.dumps(value, ensure_ascii=True).replace("|", "\\u007c")


# The status is nearly always the same from beat to beat.
@functools.lru_cache(64)
def encode(status: EngineStatus, room: int) -> str:
    """The engine status as an object of at most `room` bytes: reason is cut first, then detail."""
    detail = clean(status.detail)
    reason = None if status.reason is None else clean(status.reason)

    def text(detail: str, reason: str | None) -> str:
        value = {"vm": status.vm.value, "health": status.health.value, "detail": detail}
        if reason is not None:
            value["reason"] = reason
        return _json(value)

    whole = text(detail, reason)
    if len(whole) <= room:
        return whole
    if reason is not None:
        reason = _cut_escaped(reason, room - len(text(detail, "")))
    if len(text(detail, reason)) > room:
        detail = _cut_escaped(detail, room - len(text("", reason)))
    return text(detail, reason)


def _cut_escaped(text: str, bytes_max: int) -> str:
    """The longest beginning of `text` that takes `bytes_max` bytes in JSON, "..." included."""
    kept: list[str] = []
    used = len(_CUT_MARK)
    if bytes_max < used:
        return ""
    for char in text:
        used += len(_json({"": char})) - len(_json({"": ""}))
        if used > bytes_max:
            break
        kept.append(char)
    return "".join(kept) + _CUT_MARK


# As in writing: the status is mostly the same as a beat ago.
@functools.lru_cache(512)
def decode(host_id: int, raw: bytes) -> EngineStatus:
    """The engine status of the head. `detail` may be absent or null (then ""), `reason` too
    (then None); other keys are ignored. Raises BadSlot."""

    def bad(sentence: str) -> NoReturn:
        raise BadSlot(host_id, SlotFault.ENGINE_STATUS, f"engine status {sentence}")

    def unique(pairs: Iterable[tuple[str, object]]) -> dict[str, object]:
        value: dict[str, object] = {}
        for key, item in pairs:
            if key in value:
                raise ValueError(f"key {key!r} twice")
            value[key] = item
        return value

    def constant(name: str) -> NoReturn:
        raise ValueError(f"{name} is not JSON")

    try:
        value = json.loads(raw.decode(), object_pairs_hook=unique, parse_constant=constant)
    except (ValueError, RecursionError):
        bad(f"{shown(raw)} is not JSON with unique keys")
    if not isinstance(value, dict):
        bad(f"{shown(raw)} is not an object")

    def word(key: str) -> str:
        text = value.get(key)
        if not isinstance(text, str):
            bad(f"has no text for {key!r}")
        return text

    def text_or_none(key: str) -> str | None:
        # JSON can name any character: a newline, an escape, a lone surrogate ("\\ud800").
        return None if value.get(key) is None else clean(word(key))

    vm = _VM_WORDS.get(word("vm"))
    health = _HEALTH_WORDS.get(word("health"))
    if vm is None:
        bad(f"has vm {shown(clean(word('vm')).encode())}, not one of the known words")
    if health is None:
        word_shown = shown(clean(word("health")).encode())
        bad(f"has health {word_shown}, not one of the known words")
    detail = text_or_none("detail") or ""
    if word("vm") in _ALREADY_LOCKED_WORDS:
        detail = DETAIL_ALREADY_LOCKED
    return EngineStatus(vm=vm, health=health, detail=detail, reason=text_or_none("reason"))
