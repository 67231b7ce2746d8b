# SPDX-License-Identifier: LGPL-2.1-or-later
"""The regular expressions of `[notify.rules]`: which texts match one. Pure."""

from __future__ import annotations

from collections.abc import Callable

from broker.daemon.bounded_search import is_plain

#: A search that takes longer is given up, and the notice is sent.
SEARCH_S = 0.02
ALL = ".*"


def matcher(pattern: str) -> Callable[[str], bool]:
    """A function that says whether a text matches; ValueError where the pattern is no regular
    expression. Each search may raise TimeoutError after SEARCH_S."""
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
