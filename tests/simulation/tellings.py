# SPDX-License-Identifier: LGPL-2.1-or-later
"""How often a story is told, and with which numbers: the lines `for`, `repeat` and `end`.

    for t in A..B step S    the whole story is told anew for each value; with an `end` below it,
                            the lines between come once for each value in the same telling
    repeat N                before `hosts`: the whole story is told N times, each with other
                            chance; behind it: the lines down to `end` (or to the last line) come
                            N times in the same telling

A word that names the variable (`t`, `{t}`, `20+t`, `60-t`) is replaced by the number.
"""

from __future__ import annotations

import math
import re

#: A line: its number and its words.
Line = tuple[int, tuple[str, ...]]

TELLINGS_MAX = 2000
LINES_MAX = 20_000
_RANGE = re.compile(r"(-?[\d.]+)\.\.(-?[\d.]+)")


class BadLine(Exception):
    """A line about the telling does not fit: its number, and what would."""

    def __init__(self, line: Line, why: str) -> None:
        super().__init__(f"{line[0]}: {' '.join(line[1])}: {why}")


def tellings(lines: list[Line]) -> list[tuple[str, list[Line]]]:
    """Each telling: what differs in it, "" where there is only one, and its lines."""
    told = [("", lines)]
    while True:
        longer = [each for label, story in told for each in _first_told_anew(label, story)]
        if len(longer) > TELLINGS_MAX:
            raise BadLine(lines[0], f"the story is told more than {TELLINGS_MAX} times")
        if longer == told:
            return [(label, _unrolled(story)) for label, story in told]
        told = longer


def _first_told_anew(label: str, story: list[Line]) -> list[tuple[str, list[Line]]]:
    """The story for each value of the first line that has it told anew."""
    is_there = False
    for at, line in enumerate(story):
        is_there = is_there or line[1][0] == "hosts"
        rest = story[:at] + story[at + 1 :]
        if line[1][0] == "repeat" and not is_there:
            times = range(1, _times(line) + 1)
            return [(_joined(label, f"time {number}"), rest) for number in times]
        if line[1][0] == "for" and _end_of(story, at) is None:
            name, values = _values(line)
            _must_be_used(line, name, rest)
            return [
                (_joined(label, f"{name} = {value:g}"), _with(rest, name, value))
                for value in values
            ]
    return [(label, story)]


def _joined(label: str, more: str) -> str:
    # `time N` stands last: what chance is drawn from.
    if label.startswith("time "):
        return f"{more}, {label}"
    return f"{label}, {more}" if label else more


def _end_of(story: list[Line], at: int) -> int | None:
    """Where the block ends that begins there; None without an `end` of its own."""
    depth = 0
    for index in range(at + 1, len(story)):
        verb = story[index][1][0]
        if verb == "end":
            if depth == 0:
                return index
            depth -= 1
        elif verb in ("for", "repeat") and _end_of(story, index) is not None:
            depth += 1
    return None


def _unrolled(story: list[Line]) -> list[Line]:
    """The story with each block as often as it comes."""
    for at, line in enumerate(story):
        verb = line[1][0]
        if verb == "end" and len(line[1]) > 1:
            raise BadLine(line, "it goes: end")
        if verb == "end":
            raise BadLine(line, "nothing begins above that ends here: for, repeat")
        if verb not in ("for", "repeat"):
            continue
        end = _end_of(story, at)
        if end is not None and len(story[end][1]) > 1:
            raise BadLine(story[end], "it goes: end")
        block = story[at + 1 : end]
        rest = [] if end is None else story[end + 1 :]
        if verb == "repeat":
            block = block * _times(line)
        else:
            name, values = _values(line)
            _must_be_used(line, name, block)
            block = [each for value in values for each in _with(block, name, value)]
        if len(block) > LINES_MAX:
            raise BadLine(line, f"these are more than {LINES_MAX} lines")
        return story[:at] + _unrolled(block + rest)
    return story


def _times(line: Line) -> int:
    words = line[1]
    if len(words) != 2 or not words[1].isdigit() or not 1 <= int(words[1]) <= TELLINGS_MAX:
        raise BadLine(line, f"it goes: repeat N, N from 1 to {TELLINGS_MAX}")
    return int(words[1])


def _values(line: Line) -> tuple[str, list[float]]:
    words = line[1]
    form = "it goes: for NAME in FIRST..LAST [step S]"
    if len(words) not in (4, 6) or words[2] != "in" or not words[1].isidentifier():
        raise BadLine(line, form)
    found = _RANGE.fullmatch(words[3])
    if found is None or (len(words) == 6 and words[4] != "step"):
        raise BadLine(line, form)
    try:
        first, last = float(found[1]), float(found[2])
        step = float(words[5]) if len(words) == 6 else 1.0
    except ValueError:
        raise BadLine(line, form) from None
    if step <= 0 or last < first or (last - first) / step > TELLINGS_MAX:
        raise BadLine(line, f"{form}, upwards, at most {TELLINGS_MAX} values")
    number = math.floor((last - first) / step + 1e-9) + 1
    return words[1], [round(first + index * step, 6) for index in range(number)]


def _term(name: str) -> re.Pattern[str]:
    """A word that is the variable, or a number and the variable."""
    return re.compile(rf"(?:([\d.]+)([+-]))?(?:{name}|\{{{name}\}})(?:([+-])([\d.]+))?")


def _must_be_used(line: Line, name: str, story: list[Line]) -> None:
    if not any(_is_named(name, word) for _, words in story for word in words[1:]):
        raise BadLine(line, f"no line uses {name}")


def _is_named(name: str, word: str) -> bool:
    return f"{{{name}}}" in word or _term(name).fullmatch(word) is not None


def _with(story: list[Line], name: str, value: float) -> list[Line]:
    return [
        (number, (words[0], *(_put(word, name, value) for word in words[1:])))
        for number, words in story
    ]


def _put(word: str, name: str, value: float) -> str:
    found = _term(name).fullmatch(word)
    if found is None:
        return word.replace(f"{{{name}}}", f"{value:.6g}")
    before, sign, sign_after, after = found.groups()
    total = -value if sign == "-" else value
    total += float(before or 0.0)
    total += float(after or 0.0) * (-1 if sign_after == "-" else 1)
    return f"{total:.6g}"
