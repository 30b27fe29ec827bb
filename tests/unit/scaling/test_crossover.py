"""Where two methods change places is an interval that holds the truth, and open where the runs do not say."""

from __future__ import annotations

import numpy as np
import pytest

from embedlab.scaling.bootstrap import bootstrap
from embedlab.scaling.crossover import crossover
from embedlab.scaling.error_growth import ErrorGrowth
from embedlab.scaling.fitting import fit
from embedlab.scaling.laws import Chinchilla
from embedlab.scaling.method_laws import LawPart, MethodLaw
from embedlab.scaling.observations import Observation, runs_of

SIZES = [1e6, 4e6, 1.6e7, 6.4e7, 2.56e8]
QUICK = {"E": 0.40, "A": 60.0, "B": 400.0, "alpha": 0.35, "beta": 0.35}
PATIENT = {"E": 0.35, "A": 60.0, "B": 1500.0, "alpha": 0.35, "beta": 0.40}
LOW, HIGH = 1e13, 1e19


def loss(truth: dict[str, float], size: float, tokens: float) -> float:
    return truth["E"] + truth["A"] / size ** truth["alpha"] + truth["B"] / tokens ** truth["beta"]


def true_crossover(one: dict[str, float], other: dict[str, float]) -> float:
    """By a grid that is much finer than the one that is tested."""
    budgets = np.geomspace(LOW, HIGH, 20001)

    def best(truth: dict[str, float]) -> np.ndarray:
        by_size = [[loss(truth, size, budget / (6 * size)) for budget in budgets] for size in SIZES]
        return np.array(by_size).min(axis=0)

    return float(budgets[np.flatnonzero(best(one) < best(other))[-1]])


def law(
    method: str,
    truth: dict[str, float],
    *,
    noise: float = 0.0,
    seed: int = 0,
    error: float = 0.0,
    num: int = 100,
    highest: float = 1e18,
) -> MethodLaw:
    """``error``: of the law, per decade beyond the highest budget."""
    generator = np.random.default_rng(seed)
    rows = [
        Observation(
            name=f"{size}-{flops}",
            method=method,
            backbone=str(size),
            parameters=size,
            tokens=flops / (6 * size),
            loss=loss(truth, size, flops / (6 * size)) * float(np.exp(noise * generator.standard_normal())),
            flops=flops,
            unique_tokens=flops / (6 * size),
            family=f"{size}-{flops}",
        )
        for size in SIZES
        for flops in np.geomspace(1e13, highest, 8)
    ]
    runs = runs_of(rows)
    found = fit(Chinchilla(), runs, huber_delta=None)
    replicates = bootstrap(found, runs, num_replicates=num, seed=seed)
    growth = ErrorGrowth(noise, error, degrees=5.0, is_measured=True)
    return MethodLaw(method, tuple(rows), (), (LawPart(1.0, replicates, ()),), (), growth)


def test_the_crossover_is_where_the_truth_has_it() -> None:
    expected = true_crossover(QUICK, PATIENT)
    found = crossover(law("quick", QUICK, num=5), law("patient", PATIENT, num=5), SIZES, LOW, HIGH)
    assert (found.below, found.above) == ("quick", "patient")
    assert found.flops == pytest.approx(expected, rel=0.01) and found.exists and found.probability == 1
    turned = crossover(law("patient", PATIENT, num=5), law("quick", QUICK, num=5), SIZES, LOW, HIGH)
    assert (turned.below, turned.above) == ("quick", "patient")
    assert turned.flops == pytest.approx(found.flops, rel=0.01)


def test_noise_and_hold_out_errors_make_it_an_interval() -> None:
    expected = true_crossover(QUICK, PATIENT)
    laws = [law("quick", QUICK, noise=0.002, seed=1), law("patient", PATIENT, noise=0.002, seed=2)]
    found = crossover(*laws, SIZES, LOW, HIGH)
    assert found.interval_95.low <= found.interval_80.low < found.interval_80.high <= found.interval_95.high
    assert expected in found.interval_95

    def width(error: float, highest: float) -> float:
        quick = law("quick", QUICK, noise=0.002, seed=1, error=error, highest=highest)
        patient = law("patient", PATIENT, noise=0.002, seed=2, highest=highest)
        low, high = crossover(quick, patient, SIZES, LOW, HIGH).interval_80
        return high / low

    assert width(0.05, 1e18) == width(0.0, 1e18), "inside the data the law has no error but that of its fit"
    before = expected / 4
    assert width(0.02, before) > 1.2 * width(0.0, before)


def test_a_method_that_is_better_throughout_has_no_crossover() -> None:
    worse = QUICK | {"E": 0.6}
    found = crossover(law("worse", worse, num=20), law("quick", QUICK, num=20), SIZES, LOW, HIGH)
    assert found.above == "quick" and found.flops == 0 and not found.exists and found.probability == 0


def test_where_the_runs_do_not_say_a_bound_is_open() -> None:
    alike = QUICK | {"E": 0.401}
    laws = [law("one", QUICK, noise=0.01, seed=1), law("other", alike, noise=0.01, seed=2)]
    found = crossover(*laws, SIZES, LOW, HIGH)
    assert found.interval_95.low == 0 or found.interval_95.high == np.inf
    assert found.probability < 0.95


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_90_percent_interval_of_the_crossover_covers_the_truth_in_85_to_95_of_100_simulations() -> None:
    expected, num_simulations, covered = true_crossover(QUICK, PATIENT), 200, 0
    for seed in range(num_simulations):
        laws = [
            law("quick", QUICK, noise=0.003, seed=2 * seed, num=200),
            law("patient", PATIENT, noise=0.003, seed=2 * seed + 1, num=200),
        ]
        covered += expected in crossover(*laws, SIZES, LOW, HIGH).interval_90
    assert 0.85 <= covered / num_simulations <= 0.95
