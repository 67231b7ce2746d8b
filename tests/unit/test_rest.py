# SPDX-License-Identifier: LGPL-2.1-or-later
"""At rest nothing moves: the short version of tests/bench/rest.py."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import pytest

from scoring.decision import MigrateVm, StartVm
from tests.bench.rest import acts, cluster


@pytest.mark.parametrize("seed", range(8))
def test_nothing_is_done_at_rest(seed: int) -> None:
    """Half an hour of a random cluster, each VM where it was placed."""
    its = cluster(seed)
    assert len(its.at) > 1
    assert list(acts(its, seed, 0.5)) == []


def test_nothing_is_done_once_the_hosts_are_even() -> None:
    """VMs move, a VM for which that made room starts, and then nothing more happens."""
    its = cluster(48)
    before = dict(its.at)
    assert list(acts(its, 48, 0.5, balance=True)) == []
    assert its.at.keys() - before.keys() == {4}
    assert any(its.at[number] != host for number, host in before.items())


def test_a_vm_that_a_rule_forbids_to_be_where_it_is_goes() -> None:
    """A cluster that ignored the rule would be at rest whatever is asked of it."""
    its = cluster(0)
    vm = next(spec for spec in its.specs if spec.number != 1 and spec.number in its.at)
    elsewhere = tuple(n for n in range(1, its.hosts + 1) if n != its.at[vm.number])
    only = replace(vm, only=elsewhere)
    specs = tuple(only if spec is vm else spec for spec in its.specs)
    begun = list(islice(acts(replace(its, specs=specs), 0, 0.5), 1))
    assert [(type(act), act.vm) for _, _, act in begun] == [(MigrateVm, vm.number)]  # type: ignore[union-attr]


def test_a_vm_that_is_nowhere_is_started() -> None:
    its = cluster(0)
    vm = next(spec.number for spec in its.specs if spec.number != 1 and spec.number in its.at)
    left = {number: host for number, host in its.at.items() if number != vm}
    begun = list(islice(acts(replace(its, at=left), 0, 0.2), 1))
    assert [action for _, _, action in begun] == [StartVm(vm)]
