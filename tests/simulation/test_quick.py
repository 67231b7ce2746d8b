# SPDX-License-Identifier: LGPL-2.1-or-later
"""What makes the runs quick changes no object."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, astuple, dataclass, field, replace

import pytest

from tests.simulation.quick import _thaw


@dataclass(frozen=True, slots=True)
class Made:
    """A stand-in of the product's type, which takes no number below 0."""

    number: int
    text: str = "-"
    also: list[int] = field(default_factory=list, compare=False)
    last: float = field(default=1.5, kw_only=True)

    def __post_init__(self) -> None:
        if self.number < 0:
            raise ValueError(self.number)


def test_the_same_fields_defaults_and_checks() -> None:
    """Only who changes one is not told any more: the unit tests run without this."""
    before = [Made(1), Made(2, "x", [3], last=4.0)]
    with pytest.raises(FrozenInstanceError):
        before[0].number = 5  # type: ignore[misc]
    _thaw(Made)
    after = [Made(1), Made(2, "x", [3], last=4.0)]
    assert after == before and [*map(hash, after)] == [*map(hash, before)]
    assert [*map(astuple, after)] == [*map(astuple, before)]
    assert replace(after[1], text="y") == Made(2, "y", [], last=4.0)
    assert Made(1).also is not Made(1).also, "each has a list of its own"
    with pytest.raises(ValueError, match="-1"):
        Made(-1)
    after[0].number = 5  # type: ignore[misc]
