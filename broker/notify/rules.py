# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which notices go out: one regular expression per kind, as in the reference. Pure.

The expression is searched for in the notice's detail, ignoring case. `.*` lets all notices of the
kind out, an empty expression none.
"""

from __future__ import annotations

from broker.config.patterns import matcher
from broker.events.notice import Notice
from broker.wire.kinds import Kind


class Rules:
    """`problem`: which rule is too slow to be used, empty when none is."""

    def __init__(self, patterns: dict[Kind, str]) -> None:
        """`patterns`: a kind without a pattern is always sent."""
        self._fits = {kind: matcher(pattern) for kind, pattern in patterns.items()}
        self.problem = ""

    def want(self, notice: Notice) -> bool:
        """Whether the notice is to be sent. A rule that was too slow once lets everything out."""
        fits = self._fits.get(notice.kind)
        if fits is None:
            return True
        try:
            return fits(notice.detail)
        except TimeoutError:
            del self._fits[notice.kind]
            self.problem = f"notify.rules.{notice.kind}: takes too long; all of this kind goes out"
            return True
