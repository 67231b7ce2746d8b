# SPDX-License-Identifier: LGPL-2.1-or-later
"""Searches a foreign text within a bounded time.

Python's own `re` cannot be interrupted, and blocks all other threads while it searches: a pattern
with nested repetitions takes hours on the right thirty letters. The `regex` module has a timeout,
and lets other threads run.
"""

from __future__ import annotations

import re
from collections.abc import Callable

#: A search that takes longer is given up.
SEARCH_S = 0.5
_PLAIN = re.compile(r"[^\\.^$*+?{}\[\]|()]*")


def is_plain(pattern: str) -> bool:
    """Whether the pattern is a literal text."""
    return _PLAIN.fullmatch(pattern) is not None


def finder(pattern: str) -> Callable[[str], bool]:
    """A function that says whether a text matches the regular expression; it raises TimeoutError
    after SEARCH_S. ValueError where the pattern is no regular expression."""
    if is_plain(pattern):
        return lambda text: pattern in text
    import regex  # 1.3 MiB that most hosts need not pay for

    try:
        compiled = regex.compile(pattern)
    except regex.error as error:
        raise ValueError(str(error)) from None
    return lambda text: compiled.search(text, timeout=SEARCH_S, concurrent=True) is not None
