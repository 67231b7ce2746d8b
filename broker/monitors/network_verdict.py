# SPDX-License-Identifier: LGPL-2.1-or-later
"""Combines the network tests of this host and of the others into one verdict. Pure.

Rules of this file:

1. A target counts with the best of its last WINDOWS windows: one bad window costs nothing, a target
   that stays away costs its whole share. A target that never answered is unknown, and does not
   count, until that many windows have passed.
2. If a target fails here, other live hosts publish that it fails for them too, and none publishes
   that it answers, then the target itself is at fault: it is left out, and costs no host points. A
   host that does not test the target, or has no result yet, does not count.
3. A host publishes the result of the last window for each target. So all hosts know of a dead
   gateway within one window, long before it costs any of them a point.
4. The line of a peer is foreign text: it can only cause targets that fail here to be left out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote, unquote

from broker.daemon.foreign import clean

#: In how many windows of the network test a target must be bad before it costs anything.
WINDOWS = 3
#: A target fails when a smaller fraction of its probes is answered.
FAILS_BELOW = 0.5
PUBLISHED_CHARS_MAX = 200


@dataclass(frozen=True, slots=True)
class TargetResult:
    """One target: the best fraction of its last windows (None: not known yet), that of the last
    one, how many of them were bad, and what went wrong last."""

    target: str
    fraction: float | None
    last: float
    bad_windows: int = 0
    windows: int = 1
    detail: str = ""

    @property
    def fails(self) -> bool:
        """Whether the target has not answered for all of its windows."""
        return self.fraction is not None and self.fraction < FAILS_BELOW

    @property
    def text(self) -> str:
        """What is wrong with the target, for people; empty when nothing is."""
        if not self.bad_windows:
            return ""
        text = f"{self.target}: {self.bad_windows} of {self.windows} windows bad"
        return f"{text} ({self.detail})" if self.detail else text


class Windows:
    """Remembers the last windows of each target."""

    def __init__(self) -> None:
        self._seen: dict[str, deque[float]] = {}

    def take(self, window: Mapping[str, tuple[float, str]]) -> tuple[TargetResult, ...]:
        """The results after one more window: target -> (fraction of answered probes, detail)."""
        self._seen = {t: self._seen.get(t, deque(maxlen=WINDOWS)) for t in window}
        results = []
        for target, (fraction, detail) in window.items():
            seen = self._seen[target]
            seen.append(fraction)
            bad = sum(one < 1.0 for one in seen)
            best = max(seen)
            is_known = best == 1.0 or len(seen) == WINDOWS
            known = best if is_known else None
            results.append(TargetResult(target, known, fraction, bad, len(seen), detail))
        return tuple(results)


@dataclass(frozen=True, slots=True)
class NetworkVerdict:
    """`fraction`: the input of the score, None when nothing is known. `at_fault`: the
    targets that no host reaches. `text`: for people, empty when all is well."""

    fraction: float | None
    at_fault: tuple[str, ...] = ()
    text: str = ""


def verdict(
    results: Sequence[TargetResult], peers: Collection[Mapping[str, bool]]
) -> NetworkVerdict:
    """`peers`: for each live peer its targets, and whether they answer it."""
    at_fault = []
    for result in results:
        others = [peer[result.target] for peer in peers if result.target in peer]
        if result.fails and others and not any(others):
            at_fault.append(result.target)
    counted = [result for result in results if result.target not in at_fault]
    parts = [f"{target} answers no host: not counted" for target in at_fault]
    parts += [result.text for result in counted if result.text]
    known = [result.fraction for result in counted if result.fraction is not None]
    fraction = sum(known) / len(known) if known else None
    return NetworkVerdict(fraction, tuple(at_fault), "; ".join(parts))


def publish(results: Sequence[TargetResult]) -> str:
    """This host's results, as one line for the slot: `+` answers, `-` fails."""
    line = ""
    for result in results:
        sign = "-" if result.last < FAILS_BELOW else "+"
        word = sign + quote(result.target, ":[].")
        if len(line) + len(word) + 1 > PUBLISHED_CHARS_MAX:
            break
        line = f"{line} {word}".strip()
    return line


def published(line: str) -> dict[str, bool]:
    """The results in a peer's line: target -> whether it answers; unreadable parts are left out."""
    words = line[:PUBLISHED_CHARS_MAX].split()
    return {
        clean(unquote(word[1:], errors="replace")): word[0] == "+"
        for word in words
        if word[0] in "+-"
    }
