# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which notices go out: one regular expression per kind, as in the reference. Pure.

It is searched for in the notice's detail, whatever the case. `.*` is all of the kind, an
empty one none.
"""

from __future__ import annotations

from collections.abc import Callable

from broker.daemon.bounded_search import is_plain
from broker.events.notice import Kind, Notice

#: A search that takes longer is given up, and the notice goes out.
SEARCH_S = 0.02
ALL = ".*"


def matcher(pattern: str) -> Callable[[str], bool]:
    """Whether a text fits; ValueError where it is no regular expression. TimeoutError from
    the search after SEARCH_S."""
    if pattern in ("", ALL):
        return lambda text: pattern == ALL
    words = pattern.casefold().split("|")
    if all(word and is_plain(word) for word in words):
        return lambda text: any(word in text.casefold() for word in words)
    import regex  # 1.3 MiB that most hosts need not pay for

    try:
        compiled = regex.compile(pattern, regex.IGNORECASE)
    except regex.error as error:
        raise ValueError(str(error)) from None
    return lambda text: compiled.search(text, timeout=SEARCH_S) is not None


class Rules:
    """`problem`: the rule that is too slow to go by, empty when none is."""

    def __init__(self, patterns: dict[Kind, str]) -> None:
        """`patterns`: what is not in it goes out."""
        self._fits = {kind: matcher(pattern) for kind, pattern in patterns.items()}
        self.problem = ""

    def want(self, notice: Notice) -> bool:
        """Whether it is to go out. A rule that is too slow once lets everything through."""
        fits = self._fits.get(notice.kind)
        if fits is None:
            return True
        try:
            return fits(notice.detail)
        except TimeoutError:
            del self._fits[notice.kind]
            self.problem = f"notify.rules.{notice.kind}: takes too long; all of this kind goes out"
            return True
