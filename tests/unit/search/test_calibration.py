"""Learning rates are climbed to, smoothed over sizes, and never carried beyond what short runs have found."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedlab.errors import ConfigError, TrainingError
from embedlab.search.calibration import Calibration, Losses, best_step, next_steps, rate_at, smoothed
from embedlab.search.jobs import JobRunner
from embedlab.search.launchers.launcher import Job, JobResult, Launcher
from embedlab.search.plan import SearchPlan
from embedlab.search.preparation import _wanted, calibrate
from embedlab.search.probing import Probe
from embedlab.search.space import Candidate

OFFSETS = st.floats(-3, 3)
SIZES = st.lists(st.floats(1e5, 1e10), min_size=1, max_size=6, unique_by=lambda size: round(math.log(size), 2))


def climbed(loss_at: Callable[[int], float], first: int = 0) -> Losses:
    """All that is tried until there is nothing more to try."""
    losses: Losses = {}
    for _ in range(100):
        steps = next_steps(losses, first)
        if not steps:
            return losses
        assert not set(steps) & losses.keys(), "nothing is tried twice"
        losses |= {step: loss_at(step) for step in steps}
    raise AssertionError(f"it goes on trying after {sorted(losses)}")


def parabola(lowest: float) -> Callable[[int], float]:
    """A loss whose logarithm is one, over steps."""
    return lambda step: math.exp(1 + 0.03 * (step - lowest) ** 2)


def test_the_methods_own_rate_is_tried_first_with_a_neighbor_on_each_side() -> None:
    assert next_steps({}) == [-1, 0, 1]
    assert next_steps({}, first=-2) == [-3, -2, -1]


def test_one_more_is_tried_beyond_the_best_while_it_is_at_an_end() -> None:
    assert next_steps({-1: 3.0, 0: 2.0, 1: 1.0}) == [2]
    assert next_steps({-1: 1.0, 0: 2.0, 1: 3.0}) == [-2]
    assert next_steps({-1: 3.0, 0: 2.0, 1: 1.0, 2: 1.5}) == []
    assert next_steps({-1: 2.0, 0: 1.0, 1: math.inf}) == []


def test_where_all_runs_diverged_a_lower_rate_is_tried() -> None:
    assert next_steps({-1: math.inf, 0: math.inf, 1: math.inf}) == [-2]
    assert next_steps(dict.fromkeys(range(-6, 2), math.inf)) == []


@given(lowest=st.floats(-5, 5), first=st.integers(-3, 3))
def test_climbing_ends_around_the_best_rate(lowest: float, first: int) -> None:
    losses = climbed(parabola(lowest), first)
    best = min(losses, key=lambda step: losses[step])
    assert abs(best - lowest) <= 0.5 + 1e-6
    assert {best - 1, best + 1} <= losses.keys() and sorted(losses) == list(range(min(losses), max(losses) + 1))


@given(st.dictionaries(st.integers(-8, 8), st.one_of(st.floats(0.1, 10), st.just(math.inf))), st.integers(-6, 6))
def test_climbing_ends_whatever_is_found(losses: Losses, first: int) -> None:
    found = climbed(lambda step: losses.get(step, math.inf), first)
    assert min(found) >= min(first - 1, -6) and max(found) <= max(first + 1, 6)


@given(lowest=OFFSETS)
def test_the_best_rate_of_a_parabola_is_its_vertex(lowest: float) -> None:
    best = best_step(climbed(parabola(lowest)))
    assert best == pytest.approx(lowest, abs=1e-6)


def test_without_neighbors_the_best_rate_is_the_best_that_was_tried() -> None:
    assert best_step({0: 2.0, 1: 1.0}) == 1.0
    assert best_step({0: 1.0, 1: math.inf, -1: 1.5}) == 0.0
    assert best_step({-1: 1.0, 0: 1.0, 1: 1.0}) == -1.0
    assert best_step({0: math.inf}) is None and best_step({}) is None


def test_a_flat_valley_gives_no_rate_outside_of_it() -> None:
    assert best_step({-1: 1.0, 0: 0.999, 1: 1.0}) == pytest.approx(0.0)
    assert abs(best_step({-1: 1.5, 0: 1.0, 1: 1.0}) or math.inf) <= 0.5 + 1e-9


@given(found=OFFSETS, sizes=SIZES)
def test_a_single_size_shifts_all_by_as_much(found: float, sizes: list[float]) -> None:
    shifted = smoothed({3e6: found}, sizes)
    assert shifted.keys() == set(sizes) and set(shifted.values()) == {found}


@given(sizes=SIZES, all_sizes=SIZES, steps=st.lists(OFFSETS, min_size=6, max_size=6))
def test_no_size_has_a_rate_beyond_those_that_were_found(
    sizes: list[float], all_sizes: list[float], steps: list[float]
) -> None:
    found = dict(zip(sizes, steps, strict=False))
    given_to = smoothed(found, all_sizes)
    assert all(min(found.values()) <= step <= max(found.values()) for step in given_to.values())


@given(noise=st.floats(-2, 2).filter(lambda noise: abs(noise) > 0.01), level=OFFSETS)
def test_noise_is_shrunk_towards_the_line(noise: float, level: float) -> None:
    sizes = [1e6, 4e6, 1.6e7]
    found = {1e6: level, 4e6: level + noise, 1.6e7: level}
    smooth = smoothed(found, sizes)
    assert abs(smooth[4e6] - level) < 0.5 * abs(noise)
    assert smooth == pytest.approx(dict.fromkeys(sizes, level + noise / 3)), "it has no slope, so all have the mean"


def test_two_sizes_do_not_determine_a_slope_and_many_nearly_do() -> None:
    two = smoothed({1e6: 0.0, 4e6: 1.0}, [1e6, 4e6])
    assert 0.0 < two[1e6] < 0.5 < two[4e6] < 1.0
    line = {4.0**number * 1e5: number / 2 for number in range(10)}
    assert smoothed(line, line) == pytest.approx(line, abs=0.1)


@given(own=st.floats(1e-6, 1), factor=st.floats(1.1, 10), steps=OFFSETS)
def test_a_rate_is_so_many_factors_from_the_methods_own_and_has_few_digits(
    own: float, factor: float, steps: float
) -> None:
    rate = rate_at(own, factor, steps)
    assert rate == pytest.approx(own * factor**steps, rel=5.1e-3) and rate == float(f"{rate:.3g}")


def candidate(backbone: str, **options: object) -> Candidate:
    return Candidate(
        backbone=backbone, method="LoRA", method_options=options, parameters=math.nan, flops_per_token=math.nan
    )


def test_each_size_begins_where_the_one_below_it_was_best() -> None:
    small, large = candidate("small", rank=4), candidate("large", rank=4)
    other = candidate("large", rank=8)
    probes = {large: probe(4e6), small: probe(1e6), other: probe(4e6)}
    tried: dict[Candidate, Losses] = {large: {}, small: {}, other: {}}
    seen = []
    loss_at = {small: parabola(2.2), large: parabola(2.9), other: parabola(0.0)}
    while wanted := _wanted(tried, probes):
        seen.append([(one.backbone, one.method_options["rank"], step) for one, step in wanted])
        for one, step in wanted:
            tried[one][step] = loss_at[one](step)
    assert seen == [
        [*(("small", 4, step) for step in (-1, 0, 1)), *(("large", 8, step) for step in (-1, 0, 1))],
        [("small", 4, 2)],
        [("small", 4, 3)],
        [("large", 4, step) for step in (1, 2, 3)],
        [("large", 4, 4)],
    ]


def test_where_a_size_always_diverged_the_next_begins_at_its_methods_own_rate() -> None:
    small, large = candidate("small"), candidate("large")
    tried: dict[Candidate, Losses] = {small: dict.fromkeys(range(-6, 2), math.inf), large: {}}
    wanted = _wanted(tried, {small: probe(1e6), large: probe(4e6)})
    assert wanted == [(large, -1), (large, 0), (large, 1)]


class Failing(Launcher):
    """Nothing that it trains leaves a record."""

    def __init__(self) -> None:
        self._jobs: list[Job] = []

    @property
    def num_slots(self) -> int:
        return 1

    def submit(self, job: Job) -> None:
        self._jobs.append(job)

    def wait(self) -> JobResult:
        return JobResult(self._jobs.pop(), "RuntimeError: no room.", 1.0)

    def close(self) -> None:
        self._jobs.clear()


def test_a_run_that_fails_says_nothing_of_its_rate_and_ends_the_search(tmp_path: Path) -> None:
    plan = SearchPlan(suite=("a", "b"), methods=("LoRA",), budgets=(1e12,), fit={})
    with (
        Failing() as launcher,
        pytest.raises(TrainingError, match=r"calibration run in .* failed: RuntimeError: no room"),
    ):
        calibrate(
            plan, {candidate("a"): probe(1e6)}, tmp_path / "fit.yaml", tmp_path, JobRunner(launcher), lambda *_: None
        )


def probe(parameters: float) -> Probe:
    return Probe(
        parameters=parameters,
        flops_per_token=6 * parameters,
        flops_per_step=600 * parameters,
        learning_rate=1e-3,
        flops_per_second=1e9,
        other_seconds=1.0,
        memory_bytes=None,
        checkpoint_bytes=4,
    )


@pytest.mark.parametrize("budget", [0.0, -1.0, math.inf, math.nan])
def test_a_calibration_without_a_budget_to_pay_with_is_refused(budget: float) -> None:
    with pytest.raises(ConfigError, match=rf"calibration\.budget is {budget}\. Expected a finite number of FLOPs"):
        Calibration(budget=budget)


@pytest.mark.parametrize("factor", [1.0, 0.5, 1000.0, math.nan])
def test_a_calibration_whose_rates_are_none_or_too_far_apart_is_refused(factor: float) -> None:
    with pytest.raises(ConfigError, match=rf"calibration\.factor is {factor}\. Expected a number from 1\.1 to 100"):
        Calibration(factor=factor)
