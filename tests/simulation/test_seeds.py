# SPDX-License-Identifier: LGPL-2.1-or-later
"""A fixed set of seeds holds every law; and a seed is one run, wherever it is run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.faults import FAULTS
from tests.simulation.seeds import Result, run_seed, run_seeds
from tests.simulation.vm_faults import VM_FAULTS

ROOT = Path(__file__).parents[2]
HOSTS = (2, 7)
SEEDS = range(200)
SEVERAL = (1, 2)
#: Moments of faults in each run, of one to three faults.
MOMENTS = 3
MINUTES = 8.0


@pytest.fixture(scope="module")
def results() -> dict[int, Result]:
    """What became of each seed."""
    all_of_them = run_seeds(SEEDS, HOSTS, os.cpu_count() or 1, moments=MOMENTS)
    return {result.seed: result for result in all_of_them}


@pytest.mark.parametrize("seed", SEEDS)
def test_seed(results: dict[int, Result], seed: int) -> None:
    """Random faults on a random cluster: no law is broken."""
    result = results[seed]
    assert not result.broken, "\n".join([*result.trace, result.broken])


@pytest.mark.parametrize("seed", SEVERAL)
def test_seed_of_several_vms(seed: int) -> None:
    """A run with VMs beside the engine, and faults of theirs, breaks no law."""
    result = run_seed(seed, (2, 4), minutes=12.0, apart_s=150.0, vms=(2, 6))
    assert not result.broken, "\n".join([*result.trace, result.broken])
    assert result.faults.keys() & {fault.name for fault in (*VM_FAULTS, *FAULTS)}


def test_the_seeds_meet_every_kind_of_fault(results: dict[int, Result]) -> None:
    """A kind that never comes is not searched."""
    met = {kind for result in results.values() for kind in result.faults}
    assert met >= {fault.name for fault in FAULTS}


def test_the_same_seed_is_the_same_run() -> None:
    """Twice in one process, and once in another with another hash seed."""
    first = run_seed(5, HOSTS, MINUTES).fingerprint
    assert run_seed(5, HOSTS, MINUTES).fingerprint == first
    code = (
        "from tests.simulation.seeds import run_seed;"
        f"print(run_seed(5, {HOSTS}, {MINUTES}).fingerprint)"
    )
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)}
        other = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        assert other.stdout.strip() == first


def test_another_seed_is_another_run() -> None:
    """A fingerprint that is the same for all seeds would show nothing."""
    assert run_seed(5, HOSTS, MINUTES).fingerprint != run_seed(6, HOSTS, MINUTES).fingerprint
