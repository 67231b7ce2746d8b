# SPDX-License-Identifier: LGPL-2.1-or-later
"""What administrators want of VMs, and cannot have together."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.registry.rules import contradictions
from scoring.vm_facts import VmSpec

HOSTS = {1: "host1", 2: "host2", 3: "host3"}
A, B, C = (VmSpec(n, name, 1024) for n, name in ((2, "a"), (3, "b"), (4, "c")))


@pytest.mark.parametrize(
    ("specs", "said"),
    [
        ((replace(A, after=(2,)), B), "a cannot be after itself"),
        ((replace(A, apart=(2,)), B), "a cannot be apart from itself"),
        ((replace(A, together=(2,)), B), "a cannot be together with itself"),
        (
            (replace(A, after=(3,)), replace(B, after=(4,)), replace(C, after=(2,))),
            "they wait for each other: a for b, b for c, c for a",
        ),
        ((replace(A, apart=(3,), together=(3,)), B), "a and b are to be together and apart"),
        ((replace(A, apart=(3,)), replace(B, together=(2,))), "a and b are to be together and"),
        (
            (replace(A, together=(3,)), replace(B, together=(4,)), replace(C, apart=(2,))),
            "a and c are to be together and apart",
        ),
        (
            (replace(A, only=(1,), prefer=(2,)), B),
            "a prefers host2, and may run on host1 only",
        ),
        (
            (replace(A, only=(1,), together=(3,)), replace(B, only=(2, 9))),
            "a and b are to be together, but a may run on host1 only, and b on host2, 9",
        ),
        (
            (replace(A, only=(1,), apart=(3,)), replace(B, only=(1,))),
            "a and b are to be apart, but both may run on host1 only",
        ),
        (
            (
                replace(A, only=(1, 2), together=(3, 4)),
                replace(B, only=(2, 3)),
                replace(C, only=(3, 1)),
            ),
            "a, b, c are to be together, but no host is one that all of them may run on",
        ),
    ],
)
def test_what_cannot_be_had_together(specs: tuple[VmSpec, ...], said: str) -> None:
    assert any(each.startswith(said) for each in contradictions(specs, HOSTS)), said


def test_what_can_be_had_together() -> None:
    fine = (
        replace(A, after=(3, 4), apart=(3,), only=(1, 2), prefer=(2,)),
        replace(B, together=(4,), only=(2, 3)),
        replace(C, after=(3,), prefer=(3, 1)),
    )
    assert contradictions(fine, HOSTS) == ()


NUMBERS = st.lists(st.integers(1, 5), max_size=3, unique=True).map(tuple)
SPECS = st.lists(
    st.builds(
        VmSpec,
        st.integers(1, 5),
        st.just("vm"),
        st.just(1),
        after=NUMBERS,
        apart=NUMBERS,
        together=NUMBERS,
        only=NUMBERS,
        prefer=NUMBERS,
    ),
    max_size=5,
    unique_by=lambda spec: spec.number,
)


@given(SPECS)
def test_any_rules_are_judged_the_same_in_any_order(specs: list[VmSpec]) -> None:
    assert set(contradictions(specs, HOSTS)) == set(contradictions(specs[::-1], HOSTS))
