# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is sent to people: one notice, or several as a digest. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from broker.events.notice import Notice
from broker.wire.kinds import Severity


@dataclass(frozen=True, slots=True)
class StampedNotice:
    """A notice, when it came up (UTC seconds since 1970), and how often it came up again and was
    held back since it was last sent."""

    notice: Notice
    at_epoch_s: float
    repeats: int = 0


@dataclass(frozen=True, slots=True)
class Message:
    """What is sent at once: one notice, or several as a digest. `lost`: how many more found
    no room in the queue. `id`: stays the same when the message is sent again."""

    id: str
    cluster: str
    host: str
    notices: tuple[StampedNotice, ...]
    lost: int = 0
    subject: str = ""
    body: str = ""

    @property
    def kind(self) -> str:
        """The kind of its only notice, or "digest"."""
        return self.notices[0].notice.kind.value if self.is_single else "digest"

    @property
    def is_single(self) -> bool:
        """Whether it is one notice, and nothing was lost before it."""
        return len(self.notices) == 1 and not self.lost

    @property
    def severity(self) -> Severity:
        """The severity of its most severe notice."""
        return max((stamped.notice.severity for stamped in self.notices), default=Severity.WARNING)
