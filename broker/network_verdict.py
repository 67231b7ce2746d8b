# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the network tests of this host and of the others mean together. Pure.

Rules of this file:

1. A target counts with the best of its last WINDOWS windows: one bad window costs nothing,
   a target that stays away costs all of it.
2. A target that fails for every live host is at fault itself: it is left out, and nobody is
   penalised for it. That takes two hosts at least, and each of them must say so.
3. What a peer publishes is text of a stranger: it can only leave targets out that fail here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote, unquote

#: Windows of the network test that a target has to be bad in before it costs anything.
WINDOWS = 3
#: A target fails when fewer of its probes are answered.
FAILS_BELOW = 0.5
PUBLISHED_CHARS_MAX = 200


@dataclass(frozen=True, slots=True)
class TargetResult:
    """One target: the best fraction of its last windows, how many of them were bad, and what
    went wrong last."""

    target: str
    fraction: float
    bad_windows: int = 0
    windows: int = 1
    detail: str = ""

    @property
    def fails(self) -> bool:
        """Whether the target does not answer."""
        return self.fraction < FAILS_BELOW


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
            results.append(TargetResult(target, max(seen), bad, len(seen), detail))
        return tuple(results)


@dataclass(frozen=True, slots=True)
class NetworkVerdict:
    """`fraction`: what the score is made of, None when nothing can be said. `at_fault`: the
    targets that no host reaches. `text`: for people, empty when all is well."""

    fraction: float | None
    at_fault: tuple[str, ...] = ()
    text: str = ""


def verdict(
    results: Sequence[TargetResult], peers: Collection[frozenset[str] | None]
) -> NetworkVerdict:
    """`peers`: of each live peer the targets that fail for it, None: it does not say."""
    at_fault = tuple(
        result.target
        for result in results
        if result.fails and peers and all(failed and result.target in failed for failed in peers)
    )
    parts = [f"{target} answers no host: not counted" for target in at_fault]
    counted = [result for result in results if result.target not in at_fault]
    for result in counted:
        if result.bad_windows:
            text = f"{result.target}: {result.bad_windows} of {result.windows} windows bad"
            parts.append(f"{text} ({result.detail})" if result.detail else text)
    fraction = sum(result.fraction for result in counted) / len(counted) if counted else None
    return NetworkVerdict(fraction, at_fault, "; ".join(parts))


def publish(results: Sequence[TargetResult]) -> str:
    """The failing targets as one line for the slot; "-" when none fails."""
    line = ""
    for result in results:
        if result.fails:
            word = quote(result.target, ":[].")
            if len(line) + len(word) + 1 > PUBLISHED_CHARS_MAX:
                break
            line = f"{line} {word}".strip()
    return line or "-"


def published(line: str | None) -> frozenset[str] | None:
    """What a peer's line says; None: it says nothing."""
    if not line:
        return None
    words = line[:PUBLISHED_CHARS_MAX].split()
    return frozenset(unquote(word, errors="replace") for word in words if word != "-")
