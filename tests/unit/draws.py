# SPDX-License-Identifier: LGPL-2.1-or-later
"""How many examples a property is tried with."""

from __future__ import annotations

from hypothesis import settings

#: `make test` tries one in so many, the same ones each time; `make explore` all, others each time.
FEWER = 4


def draws(count: int) -> int:
    """`count` in `make explore`; a part of it where a run says the same of the same code."""
    return count if settings.get_current_profile_name() == "random" else max(1, count // FEWER)
