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
