# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a person can be notified of: a closed set of kinds, each with its severity. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from types import MappingProxyType

from broker.daemon.foreign import clean
from broker.wire.kinds import SEVERITY, Kind, Severity

SUBJECT_CHARS_MAX = 100
DETAIL_CHARS_MAX = 500
#: The longest fact: the evidence that a record of the fence log holds.
FACT_CHARS_MAX = 2000
FACTS_MAX = 20

FactValue = str | int | float | bool | None


def one_line(text: str, chars_max: int) -> str:
    """A stranger's text as printable characters of one line, cut at `chars_max`.

    What it cleans (broker/daemon/foreign.py) becomes a blank or "?"."""
    return clean(text[:chars_max])


@dataclass(frozen=True, slots=True)
class Notice:
    """One event of which people are notified. `subject`: the host, mode or file it is about.
    `detail`: a sentence, for a transition "OldState-NewState"; the rules match it. `facts`: the
    details for programs, with the unit in the name.

    Whatever text it is made from, it holds printable single lines within the bounds above.
    """

    kind: Kind
    subject: str
    detail: str
    facts: Mapping[str, FactValue] = field(default_factory=dict)

    def __post_init__(self) -> None:
        facts = {
            one_line(str(name), SUBJECT_CHARS_MAX): one_line(value, FACT_CHARS_MAX)
            if isinstance(value, str)
            else value
            for name, value in islice(self.facts.items(), FACTS_MAX)
        }
        object.__setattr__(self, "subject", one_line(self.subject, SUBJECT_CHARS_MAX))
        object.__setattr__(self, "detail", one_line(self.detail, DETAIL_CHARS_MAX))
        object.__setattr__(self, "facts", MappingProxyType(facts))

    @property
    def severity(self) -> Severity:
        """How soon a person should look; it follows from the kind."""
        return SEVERITY[self.kind]


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
