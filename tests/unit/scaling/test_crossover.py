"""Where two methods change places is an interval that holds the truth, and open where the runs do not say."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from embedlab.scaling.bootstrap import Interval, bootstrap
from embedlab.scaling.crossover import Crossover, MeasuredChange, crossovers, measured_changes, words_of
from embedlab.scaling.error_growth import ErrorGrowth
from embedlab.scaling.fitting import fit
from embedlab.scaling.laws import Chinchilla
from embedlab.scaling.members import NO_WORTHS
from embedlab.scaling.method_laws import LawPart, MethodLaw
from embedlab.scaling.observations import Observation, runs_of
from helpers.observations import observation

SIZES = [1e6, 4e6, 1.6e7, 6.4e7, 2.56e8]
QUICK = {"E": 0.40, "A": 60.0, "B": 400.0, "alpha": 0.35, "beta": 0.35}
PATIENT = {"E": 0.35, "A": 60.0, "B": 1500.0, "alpha": 0.35, "beta": 0.40}
LOW, HIGH = 1e13, 1e19


def loss(truth: dict[str, float], size: float, tokens: float) -> float:
    return truth["E"] + truth["A"] / size ** truth["alpha"] + truth["B"] / tokens ** truth["beta"]


def true_crossovers(one: dict[str, float], other: dict[str, float], sizes: Sequence[float] = SIZES) -> list[float]:
    """By a grid that is much finer than the one that is tested."""
    budgets = np.geomspace(LOW, HIGH, 20001)

    def best(truth: dict[str, float]) -> np.ndarray:
        by_size = [[loss(truth, size, budget / (6 * size)) for budget in budgets] for size in sizes]
        return np.array(by_size).min(axis=0)

    is_better = best(one) < best(other)
    return [float(budget) for budget in budgets[:-1][is_better[:-1] & ~is_better[1:]]]


def true_crossover(one: dict[str, float], other: dict[str, float]) -> float:
    """The last of them; between few sizes, methods may change places and back."""
    return true_crossovers(one, other)[-1]


def law(
    method: str,
    truth: dict[str, float],
    *,
    noise: float = 0.0,
    seed: int = 0,
    error: float = 0.0,
    num: int = 100,
    highest: float = 1e18,
    sizes: Sequence[float] = SIZES,
) -> MethodLaw:
    """``error``: of the law, per decade beyond the highest budget."""
    generator = np.random.default_rng(seed)
    rows = [
        observation(
            method,
            size,
            flops,
            flops / (6 * size),
            loss(truth, size, flops / (6 * size)) * float(np.exp(noise * generator.standard_normal())),
        )
        for size in sizes
        for flops in np.geomspace(1e13, highest, 8)
    ]
    runs = runs_of(rows)
    found = fit(Chinchilla(), runs, huber_delta=None)
    replicates = bootstrap(found, runs, num_replicates=num, seed=seed)
    growth = ErrorGrowth(noise, error, degrees=5.0, is_measured=True)
    return MethodLaw(method, tuple(rows), (), (LawPart(1.0, replicates, NO_WORTHS),), (), growth)


def crossover(one: MethodLaw, other: MethodLaw) -> Crossover:
    (found,) = crossovers([one, other])
    return found


def test_the_crossover_is_where_the_truth_has_it() -> None:
    expected = true_crossover(QUICK, PATIENT)
    found = crossover(law("quick", QUICK, num=5), law("patient", PATIENT, num=5))
    assert (found.below, found.above) == ("quick", "patient")
    assert found.flops == pytest.approx(expected, rel=0.01) and found.exists and found.probability == 1
    turned = crossover(law("patient", PATIENT, num=5), law("quick", QUICK, num=5))
    assert (turned.below, turned.above) == ("quick", "patient")
    assert turned.flops == pytest.approx(found.flops, rel=0.01)


def test_noise_and_hold_out_errors_make_it_an_interval() -> None:
    expected = true_crossover(QUICK, PATIENT)
    laws = [law("quick", QUICK, noise=0.002, seed=1), law("patient", PATIENT, noise=0.002, seed=2)]
    found = crossover(*laws)
    assert found.interval_95.low <= found.interval_80.low < found.interval_80.high <= found.interval_95.high
    assert expected in found.interval_95

    def width(error: float, highest: float) -> float:
        quick = law("quick", QUICK, noise=0.002, seed=1, error=error, highest=highest)
        patient = law("patient", PATIENT, noise=0.002, seed=2, highest=highest)
        low, high = crossover(quick, patient).interval_80
        return high / low

    assert width(0.05, 1e18) == width(0.0, 1e18), "inside the data the law has no error but that of its fit"
    before = expected / 9  # smaller budgets, at which the methods do not change places
    assert width(0.02, before) > 1.2 * width(0.0, before)


def test_a_method_that_is_better_throughout_has_no_crossover() -> None:
    worse = QUICK | {"E": 0.6}
    found = crossover(law("worse", worse, num=20), law("quick", QUICK, num=20))
    assert found.above == "quick" and found.flops == 0 and not found.exists and found.probability == 0


def test_where_the_runs_do_not_say_a_bound_is_open() -> None:
    alike = QUICK | {"E": 0.401}
    laws = [law("one", QUICK, noise=0.01, seed=1), law("other", alike, noise=0.01, seed=2)]
    found = crossover(*laws)
    assert found.interval_95.low == 0 or found.interval_95.high == np.inf
    assert found.probability < 0.95


def run(method: str, flops: float, loss: float, backbone: str = "one") -> Observation:
    return observation(method, 1e6, flops, flops / 6e6, loss, backbone=backbone)


def test_a_measured_change_of_places_is_bracketed_by_the_best_runs_of_two_levels() -> None:
    quick = [run("quick", 1.02e13, 1.0), run("quick", 4e13, 0.8), run("quick", 4.1e13, 0.9, "other")]
    patient = [run("patient", 1e13, 1.1), run("patient", 4.1e13, 0.7), run("patient", 1.6e14, 0.6)]
    changes = measured_changes(quick, patient)
    assert changes == measured_changes(patient, quick) == (MeasuredChange("quick", "patient", Interval(1.02e13, 4e13)),)
    assert words_of(changes) == "In the runs, quick is better up to 1.02e+13 FLOPs, and patient from 4e+13 FLOPs on."


def test_every_measured_change_is_told_and_equal_losses_are_none() -> None:
    one = [run("one", 1e13, 1.0), run("one", 2e13, 0.9), run("one", 4e13, 0.8), run("one", 8e13, 0.5)]
    other = [run("other", 1e13, 1.1), run("other", 2e13, 0.9), run("other", 4e13, 0.7), run("other", 8e13, 0.6)]
    changes = measured_changes(one, other)
    assert [(change.above, *change.bracket) for change in changes] == [("other", 1e13, 4e13), ("one", 4e13, 8e13)]
    assert words_of(changes).startswith(
        "In the runs, one and other change places 2 times: between 1e+13 and 4e+13 FLOPs,"
    )
    assert measured_changes(one, [run("other", 1e10, 1.0)]) == (), "no common level"


def test_the_change_in_the_runs_says_which_change_of_the_laws_is_meant() -> None:
    laws = [law("quick", QUICK, noise=0.002, seed=1), law("patient", PATIENT, noise=0.002, seed=2)]
    found = crossover(*laws)
    (change,) = found.measured
    assert (change.below, change.above) == (found.below, found.above) == ("quick", "patient")
    assert change.bracket.low < found.flops < change.bracket.high
    assert found.words.startswith(words_of(found.measured) + " By the laws, quick is better up to 2.9e+17 FLOPs (80 % ")


def test_of_many_methods_only_pairs_on_the_frontier_or_with_a_measured_change_are_told() -> None:
    laws = [law("quick", QUICK, num=5), law("patient", PATIENT, num=5), law("worse", PATIENT | {"E": 0.5}, num=5)]
    pairs = {frozenset((one.below, one.above)): one for one in crossovers(laws)}
    assert len(pairs) == 3
    told = [pair for pair, one in pairs.items() if one.is_told(len(laws))]
    assert frozenset(("quick", "patient")) in told and frozenset(("patient", "worse")) not in told
    between = pairs[frozenset(("quick", "patient"))]
    assert between.is_on_frontier and between.flops == pytest.approx(true_crossover(QUICK, PATIENT), rel=0.02)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_90_percent_interval_of_the_crossover_covers_the_truth_in_85_to_95_of_100_simulations() -> None:
    num_simulations, covered = 200, 0
    sizes = np.geomspace(1e6, 2.56e8, 13).tolist()
    (expected,) = true_crossovers(QUICK, PATIENT, sizes)  # between fewer sizes there are several
    for seed in range(num_simulations):
        laws = [
            law("quick", QUICK, noise=0.003, seed=2 * seed, num=200, sizes=sizes),
            law("patient", PATIENT, noise=0.003, seed=2 * seed + 1, num=200, sizes=sizes),
        ]
        covered += expected in crossover(*laws).interval_90
    assert 0.85 <= covered / num_simulations <= 0.95, covered
