# SPDX-License-Identifier: LGPL-2.1-or-later
"""What can be told: a closed set of kinds, each with its severity. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from types import MappingProxyType

from broker.daemon.foreign import clean
from broker.wire.kinds import SEVERITY, Kind, Severity

SUBJECT_CHARS_MAX = 100
DETAIL_CHARS_MAX = 500
#: All of the evidence that a record of the fence log holds.
FACT_CHARS_MAX = 2000
FACTS_MAX = 20

FactValue = str | int | float | bool | None


def one_line(text: str, chars_max: int) -> str:
    """A stranger's text as printable characters of one line, cut at `chars_max`.

    What it cleans (broker/daemon/foreign.py) becomes a blank or "?"."""
    return clean(text[:chars_max])


@dataclass(frozen=True, slots=True)
class Notice:
    """One thing to be told. `subject`: the host, mode or file it is about. `detail`: a sentence,
    of a transition "OldState-NewState"; what the rules are matched against. `facts`: the
    particulars for programs, unit in the name.

    Whatever it is made from, it holds printable single lines within the bounds above.
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
        """How soon a person should look; goes by the kind."""
        return SEVERITY[self.kind]


@dataclass(frozen=True, slots=True)
class Told:
    """A notice, when it was told (UTC seconds since 1970), and how often the same one had been
    told and held back since it last went out."""

    notice: Notice
    at_epoch_s: float
    repeats: int = 0


@dataclass(frozen=True, slots=True)
class Message:
    """What goes out in one go: one notice, or several as a digest. `lost`: how many more found
    no room in the queue. `id`: the same at each attempt to send it."""

    id: str
    cluster: str
    host: str
    notices: tuple[Told, ...]
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
        """That of its most severe notice."""
        return max((told.notice.severity for told in self.notices), default=Severity.WARNING)
