# SPDX-License-Identifier: LGPL-2.1-or-later
"""Searching a text that a stranger wrote, within a bounded time.

Python's own `re` cannot be stopped, and holds everything else up while it searches: a
pattern with nested repetitions takes hours on the right thirty letters. The `regex`
module has a timeout, and lets other threads run meanwhile.
"""

from __future__ import annotations

import re
from collections.abc import Callable

#: A search that takes longer is given up.
SEARCH_S = 0.5
_PLAIN = re.compile(r"[^\\.^$*+?{}\[\]|()]*")


def is_plain(pattern: str) -> bool:
    """Whether the pattern is nothing but a text to be found."""
    return _PLAIN.fullmatch(pattern) is not None


def finder(pattern: str) -> Callable[[str], bool]:
    """Whether a text holds what the regular expression says; raises TimeoutError after
    SEARCH_S. ValueError where it is no regular expression."""
    if is_plain(pattern):
        return lambda text: pattern in text
    import regex  # 1.3 MiB that most hosts need not pay for

    try:
        compiled = regex.compile(pattern)
    except regex.error as error:
        raise ValueError(str(error)) from None
    return lambda text: compiled.search(text, timeout=SEARCH_S, concurrent=True) is not None
