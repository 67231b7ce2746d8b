# SPDX-License-Identifier: LGPL-2.1-or-later
"""The score: every rule of the table with the reference's arithmetic, and what always holds."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scoring.hosts.score import HostSamples, host_lacks, load_penalty, mean_load
from scoring.rules import Weights
from scoring.vm import score as of_vm
from scoring.vm.score import ORDER, Score, VmSamples, vm_lacks
from scoring.vm.state import StateName

W = Weights()


@dataclass(frozen=True)
class ScoreInput:
    """The samples of a host and of a VM there, in one."""

    state: StateName
    network: float | None = None
    bridge_up: bool | None = None
    mem_free_mb: float | None = None
    vm_memory_mb: float = 0
    cpu_load: float | None = None
    config_up_to_date: bool | None = None
    retries: int = 0
    last_failure: str = ""
    fence_path_ok: bool | None = None

    @property
    def host(self) -> HostSamples:
        return HostSamples(*(getattr(self, each.name) for each in fields(HostSamples)))

    @property
    def vm(self) -> VmSamples:
        return VmSamples(*(getattr(self, each.name) for each in fields(VmSamples)))


def score(given: ScoreInput, weights: Weights) -> Score:
    return of_vm.score(given.host, given.vm, weights)


FINE = ScoreInput(
    state=StateName.ENGINE_DOWN,
    network=1.0,
    bridge_up=True,
    mem_free_mb=8192,
    vm_memory_mb=4096,
    cpu_load=0.1,
    config_up_to_date=True,
)

#: States that make the score 0, whatever the samples say.
ZERO = {
    StateName.LOCAL_MAINTENANCE: "local-maintenance",
    StateName.ENGINE_UNEXPECTEDLY_DOWN: "unexpected-down",
    StateName.REINITIALIZE_FSM: "reinitializing",
    StateName.AGENT_STOPPED: "stopped",
}
#: States in which free memory is not asked for.
NO_MEMORY_RULE = {
    StateName.ENGINE_UP,
    StateName.ENGINE_UP_BAD_HEALTH,
    StateName.GLOBAL_MAINTENANCE,
}


def points(given: Score) -> dict[str, int]:
    return {penalty.name: penalty.points for penalty in given.penalties}


# --- one rule each ------------------------------------------------------------------------


def test_a_host_with_nothing_wrong_has_the_base_score() -> None:
    assert score(FINE, W) == Score(3400, (), ())


@pytest.mark.parametrize(
    ("passed", "lost"),
    [
        (1.0, 0),
        # 1 - 0.8 is 0.19999999999999996 in binary: int() cuts 319.99… as the reference does.
        (0.8, 319),
        (0.9, 159),
        (0.75, 400),
        (0.5, 800),
        (0.2, 1280),
        (0.0, 1600),
    ],
)
def test_the_network_penalty_is_cut_to_whole_points(passed: float, lost: int) -> None:
    assert lost == int((1 - passed) * 1600)
    assert score(replace(FINE, network=passed), W).value == 3400 - lost


def test_a_bridge_that_is_down_costs_600() -> None:
    assert points(score(replace(FINE, bridge_up=False), W)) == {"bridge": 600}


@pytest.mark.parametrize(("free_mb", "lost"), [(4096, 0), (4095.9, 400), (0, 400), (-1, 400)])
def test_memory_below_the_vms_costs_400(free_mb: float, lost: int) -> None:
    assert score(replace(FINE, mem_free_mb=free_mb), W).value == 3400 - lost


@pytest.mark.parametrize("state", sorted(set(StateName) - set(ZERO)))
def test_memory_is_not_asked_for_where_the_vm_has_it_already_or_nothing_starts(
    state: StateName,
) -> None:
    result = score(replace(FINE, state=state, mem_free_mb=0), W)
    assert points(result) == ({} if state in NO_MEMORY_RULE else {"memory": 400})
    unknown = score(replace(FINE, state=state, mem_free_mb=None), W).unknown
    assert unknown == (() if state in NO_MEMORY_RULE else ("memory",))


@pytest.mark.parametrize(
    ("load", "lost"),
    [
        (0.0, 0),
        (0.4, 0),
        (0.401, 2),
        # (0.5 - 0.4) / 0.5 * 1000 is 199.99…96 in binary.
        (0.5, 199),
        (0.65, 500),
        (0.8, 800),
        (0.89, 980),
        (0.9, 1000),
        (0.95, 1000),
        (7.0, 1000),
    ],
)
def test_the_load_penalty_is_linear_from_the_minimum_to_the_maximum(load: float, lost: int) -> None:
    # Written out once more as the reference computes it.
    assert lost == max(0, min(1000, int((load - 0.4) / (0.9 - 0.4) * 1000)))
    assert load_penalty(load, W) == lost
    assert score(replace(FINE, cpu_load=load), W).value == 3400 - lost


@pytest.mark.parametrize(("load", "lost"), [(0.4, 0), (0.5, 1000), (0.6, 1000)])
def test_equal_load_limits_are_a_step(load: float, lost: int) -> None:
    step = replace(W, cpu_load_penalty_min=0.5, cpu_load_penalty_max=0.5)
    assert load_penalty(load, step) == lost


def test_an_old_vm_definition_costs_1000() -> None:
    assert points(score(replace(FINE, config_up_to_date=False), W)) == {"config": 1000}


@pytest.mark.parametrize(
    ("retries", "value"), [(0, 3400), (1, 3350), (2, 3300), (3, 3250), (4, 0), (9, 0)]
)
def test_failed_starts_cost_50_each_and_all_from_the_fourth_on(retries: int, value: int) -> None:
    assert score(replace(FINE, retries=retries), W).value == value


@pytest.mark.parametrize(("state", "name"), ZERO.items())
def test_some_states_make_the_score_0_and_say_so(state: StateName, name: str) -> None:
    result = score(replace(FINE, state=state, network=0.0), W)
    assert (result.value, points(result)) == (0, {name: 3400})


# --- rules together -----------------------------------------------------------------------


def test_penalties_add_up() -> None:
    result = score(
        replace(FINE, network=0.8, bridge_up=False, cpu_load=0.65, mem_free_mb=0, retries=2), W
    )
    assert points(result) == {
        "network": 319,
        "bridge": 600,
        "load": 500,
        "memory": 400,
        "retries": 100,
    }
    assert result.value == 3400 - 319 - 600 - 500 - 400 - 100


def test_the_score_is_cut_at_zero_and_the_last_parts_with_it() -> None:
    """1000 + 1600 + 600 + 1000 is more than there is: the load gets what is left."""
    result = score(
        replace(
            FINE,
            config_up_to_date=False,
            network=0.0,
            bridge_up=False,
            cpu_load=1.0,
            mem_free_mb=0,
            retries=3,
        ),
        W,
    )
    assert result.value == 0
    assert points(result) == {"config": 1000, "network": 1600, "bridge": 600, "load": 200}


@pytest.mark.parametrize(
    ("key", "sample"),
    [
        ("network_score_penalty", {"network": 0.0}),
        ("mgmt_bridge_score_penalty", {"bridge_up": False}),
        ("free_memory_score_penalty", {"mem_free_mb": 0}),
        ("cpu_load_score_penalty", {"cpu_load": 1.0}),
        ("not_uptodate_config_penalty", {"config_up_to_date": False}),
        ("engine_retry_score_penalty", {"retries": 1}),
    ],
)
def test_each_weight_is_set_by_its_key(key: str, sample: dict[str, float]) -> None:
    bad = replace(FINE, **sample)  # type: ignore[arg-type]
    assert score(bad, replace(W, **{key: 7})).value == 3400 - 7
    assert score(bad, replace(W, **{key: 0})) == Score(3400)


def test_the_base_score_is_set_by_its_key() -> None:
    assert score(FINE, replace(W, base_score=5000)).value == 5000
    stopped = score(replace(FINE, state=StateName.AGENT_STOPPED), replace(W, base_score=5000))
    assert points(stopped) == {"stopped": 5000}


def test_the_load_limits_are_set_by_their_keys() -> None:
    limits = replace(W, cpu_load_penalty_min=0.0, cpu_load_penalty_max=1.0)
    assert load_penalty(0.25, limits) == 250


# --- unknown ------------------------------------------------------------------------------


def test_what_is_unknown_costs_nothing_and_is_named() -> None:
    result = score(ScoreInput(state=StateName.ENGINE_DOWN, vm_memory_mb=4096), W)
    assert result == Score(3400, (), ("config", "network", "bridge", "load", "memory"))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("key", "name"), [("network", "network"), ("cpu_load", "load"), ("mem_free_mb", "memory")]
)
def test_a_sample_that_is_no_number_is_unknown(key: str, name: str, value: float) -> None:
    result = score(replace(FINE, **{key: value}), W)  # type: ignore[arg-type]
    assert result == Score(3400, (), (name,))


@pytest.mark.parametrize(("passed", "value"), [(1.5, 3400), (-0.5, 1800)])
def test_more_than_all_network_tests_cannot_pass(passed: float, value: int) -> None:
    assert score(replace(FINE, network=passed), W).value == value


# --- what always holds --------------------------------------------------------------------

finite = st.floats(allow_nan=False, allow_infinity=False)
weights = st.builds(
    Weights,
    **{
        f.name: st.floats(0, 1)
        if f.name.startswith("cpu_load_penalty_m")
        else st.integers(0, 10000)
        for f in fields(Weights)
    },
)
inputs = st.builds(
    ScoreInput,
    state=st.sampled_from(StateName),
    network=st.none() | st.floats(0, 1) | st.floats(),
    bridge_up=st.none() | st.booleans(),
    mem_free_mb=st.none() | st.floats(),
    vm_memory_mb=st.floats(0, 1e6),
    cpu_load=st.none() | st.floats(0, 2) | st.floats(),
    config_up_to_date=st.none() | st.booleans(),
    retries=st.integers(0, 10),
)


@given(inputs, weights)
def test_the_score_lies_between_0_and_base_and_its_parts_explain_it(
    sample: ScoreInput, given_weights: Weights
) -> None:
    result = score(sample, given_weights)
    assert 0 <= result.value <= given_weights.base_score
    assert sum(p.points for p in result.penalties) == given_weights.base_score - result.value
    assert all(p.points > 0 or sample.state in ZERO for p in result.penalties)
    assert all(p.name and p.why for p in result.penalties)
    names = [p.name for p in result.penalties]
    assert len(set(names)) == len(names)
    assert not set(names) & set(result.unknown)


@given(inputs, weights, st.data())
def test_the_score_never_falls_when_one_sample_gets_better(
    sample: ScoreInput, given_weights: Weights, data: st.DataObject
) -> None:
    def draw(low: float | None, high: float | None) -> float:
        value: float = data.draw(st.floats(low, high, allow_nan=False, allow_infinity=False))
        return value

    better: ScoreInput
    match data.draw(st.sampled_from(["network", "bridge", "memory", "load", "config", "retries"])):
        case "network":
            sample = replace(sample, network=draw(0, 1))
            better = replace(sample, network=draw(sample.network, 1))
        case "bridge":
            sample, better = replace(sample, bridge_up=False), replace(sample, bridge_up=True)
        case "memory":
            sample = replace(sample, mem_free_mb=draw(None, None))
            better = replace(sample, mem_free_mb=draw(sample.mem_free_mb, None))
        case "load":
            sample = replace(sample, cpu_load=draw(None, None))
            better = replace(sample, cpu_load=draw(None, sample.cpu_load))
        case "config":
            sample = replace(sample, config_up_to_date=False)
            better = replace(sample, config_up_to_date=True)
        case _:
            fewer = data.draw(st.integers(0, sample.retries))
            better = replace(sample, retries=fewer)
    assert score(better, given_weights).value >= score(sample, given_weights).value


@given(inputs, weights)
def test_the_same_samples_give_the_same_score(sample: ScoreInput, given_weights: Weights) -> None:
    assert score(sample, given_weights) == score(sample, given_weights)


# --- the mean load ------------------------------------------------------------------------


def test_no_points_have_no_mean() -> None:
    assert mean_load([]) is None


def test_points_that_span_no_time_have_no_mean() -> None:
    """The reference takes 0 then, which costs as little as unknown does."""
    assert mean_load([(5.0, 0.7)]) is None
    assert mean_load([(5.0, 0.2), (5.0, 0.4)]) is None


def test_an_interval_with_an_unknown_end_does_not_count() -> None:
    assert mean_load([(0.0, 1.0), (10.0, None), (20.0, 0.2), (30.0, 0.4)]) == pytest.approx(0.3)
    assert mean_load([(0.0, None), (10.0, 0.5), (20.0, None)]) is None


def test_the_mean_is_weighted_by_time() -> None:
    """10 s from 0 to 1 (area 5) and 30 s at 1 (area 30), over 40 s."""
    assert mean_load([(0.0, 0.0), (10.0, 1.0), (40.0, 1.0)]) == pytest.approx(35 / 40)
    assert mean_load([(0.0, 0.0), (0.5, 1.0), (1.0, 1.0)]) == pytest.approx(0.75)


@given(st.floats(0, 100), st.lists(st.floats(0.001, 1000), min_size=1, max_size=20))
def test_a_constant_load_is_its_own_mean(load: float, pauses: list[float]) -> None:
    t = 0.0
    line = [(t, load)]
    for pause in pauses:
        t += pause
        line.append((t, load))
    assert mean_load(line) == pytest.approx(load)


@given(
    st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 100)), min_size=1, max_size=20).map(
        lambda line: sorted(line)
    )
)
def test_the_mean_lies_between_the_lowest_and_the_highest_load(
    line: list[tuple[float, float]],
) -> None:
    mean = mean_load(line)
    if mean is None:
        assert line[0][0] == line[-1][0]
        return
    loads = [load for _, load in line]
    assert min(loads) - 1e-6 <= mean <= max(loads) + 1e-6


def test_a_fence_device_that_cannot_be_reached_costs_what_is_configured() -> None:
    """Nothing by default: it is ours, not the reference's."""
    weights = replace(W, fence_path_score_penalty=200)
    for ok, points in ((True, 0), (None, 0), (False, 200)):
        given = ScoreInput(StateName.ENGINE_DOWN, fence_path_ok=ok)
        assert score(given, weights).value == weights.base_score - points
        assert score(given, W).value == W.base_score
    (part,) = score(ScoreInput(StateName.ENGINE_DOWN, fence_path_ok=False), weights).penalties
    assert part.name == "fence-path" and part.why


def test_failed_starts_are_named_and_told() -> None:
    for retries, points in ((1, W.engine_retry_score_penalty), (4, W.base_score)):
        (part,) = score(ScoreInput(StateName.ENGINE_DOWN, retries=retries), W).penalties
        assert (part.name, part.points) == ("retries", points)
        assert str(retries) in part.why
    assert not score(ScoreInput(StateName.ENGINE_DOWN, retries=0), W).penalties


# --- in two -------------------------------------------------------------------------------------


def test_what_the_host_lacks_is_the_same_for_every_vm() -> None:
    """Each part has one of the two, and the published order is that of both together."""
    worst = replace(
        FINE,
        network=0.0,
        bridge_up=False,
        cpu_load=2.0,
        fence_path_ok=False,
        config_up_to_date=False,
        mem_free_mb=0.0,
        retries=1,
    )
    weights = replace(W, fence_path_score_penalty=1)
    of_host = {part.name for part in host_lacks(worst.host, weights).parts}
    of_vm = {part.name for part in vm_lacks(worst.vm, weights).parts}
    assert of_host == {"network", "bridge", "load", "fence-path"}
    assert of_vm == {"config", "memory", "retries"}
    assert of_host | of_vm == set(ORDER)
    rich = replace(weights, base_score=10_000)
    assert [part.name for part in score(worst, rich).penalties] == list(ORDER)
    assert score(ScoreInput(StateName.ENGINE_DOWN), W).unknown == ORDER[:5]
