# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which notices go out: one regular expression per kind, as in the reference. Pure.

It is searched for in the notice's detail, whatever the case. `.*` is all of the kind, an
empty one none.
"""

from __future__ import annotations

from broker.config.patterns import matcher
from broker.events.notice import Notice
from broker.wire.kinds import Kind


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
