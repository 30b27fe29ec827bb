"""Intervals hold what they say they hold, and are as wide as published ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from embedlab.errors import ConfigError
from embedlab.scaling.bootstrap import bootstrap, profile_interval, random_weights
from embedlab.scaling.fitting import Fit, Runs, fit
from embedlab.scaling.laws import Chinchilla
from helpers.tables import TRUTHS, chinchilla_runs, made, needs_shared

LAW, TRUTH = TRUTHS[0]
BUDGET = 1e20


def balance(found: Fit) -> float:
    """The exponent with which the optimal size grows with compute."""
    return found.parameters["beta"] / (found.parameters["alpha"] + found.parameters["beta"])


def optimal_size(parameters: dict[str, float]) -> float:
    """Of a budget of 6 N D FLOPs, in closed form (Hoffmann et al. 2022, eq. 4)."""
    a, b = parameters["alpha"], parameters["beta"]
    scale = (a * parameters["A"] / (b * parameters["B"])) ** (1 / (a + b))
    return float(scale * (BUDGET / 6) ** (b / (a + b)))


def loss_of(found: Fit) -> float:
    return float(found.loss(1e9, BUDGET / 6e9)[0])


@needs_shared
def test_the_standard_error_on_chinchilla_s_runs_is_the_published_one() -> None:
    runs = chinchilla_runs()
    replicates = bootstrap(fit(Chinchilla(), runs), runs, num_replicates=200)
    assert replicates.standard_error(balance) == pytest.approx(0.019, abs=0.003)


def test_runs_of_a_family_have_one_weight() -> None:
    runs = made(LAW, TRUTH, noise=0.01)
    twice = runs.where(np.repeat(np.arange(len(runs)), 2))
    together = replace(twice, family_P=np.repeat(np.arange(len(runs)), 2))
    errors = {}
    for name, table in (("once", runs), ("together", together), ("apart", twice)):
        replicates = bootstrap(fit(LAW, table, huber_delta=None), table, num_replicates=200)
        errors[name] = replicates.standard_error(balance)
    assert errors["together"] == pytest.approx(errors["once"], rel=1e-3), "a copy says nothing new"
    assert errors["apart"] < 0.85 * errors["once"]


def test_random_weights_are_those_of_families_and_one_in_the_mean() -> None:
    runs = made(LAW, TRUTH, noise=0.01)
    runs = replace(runs, family_P=np.arange(len(runs)) % 5)
    weights_RP = random_weights(runs, 2000, seed=0)
    np.testing.assert_allclose(weights_RP.mean(axis=1), 1)
    np.testing.assert_array_equal(weights_RP[:, :5], weights_RP[:, 5:10])
    assert weights_RP.min() > 0, "no run is ever left out"
    np.testing.assert_allclose(weights_RP[:, :5].var(axis=0), 4 / 6, rtol=0.1)  # of a Dirichlet distribution


def test_two_families_are_too_few() -> None:
    runs = made(LAW, TRUTH, noise=0.01)
    runs = replace(runs, family_P=np.arange(len(runs)) % 2)
    with pytest.raises(ConfigError, match="40 runs belong to 2 families, and an interval needs at least 3"):
        bootstrap(fit(LAW, runs), runs)


def test_a_profile_holds_what_is_identified_and_is_open_where_nothing_is() -> None:
    runs = made(LAW, TRUTH, noise=0.01)
    found = fit(LAW, runs, huber_delta=None)
    interval = profile_interval(found, runs, "beta")
    assert found.parameters["beta"] in interval and interval.high - interval.low < 0.3
    one_size = Runs(np.full(40, 1e6) * np.geomspace(1, 1.01, 40), runs.tokens_P, runs.loss_P)
    found = fit(LAW, one_size, huber_delta=None)
    interval = profile_interval(found, one_size, "A")
    assert interval.low == 0 or interval.high == np.inf, "one size does not say what size is worth"


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("huber_delta", [None, 1e-2])
def test_intervals_of_90_percent_cover_the_truth_in_85_to_95_of_100_simulations(huber_delta: float | None) -> None:
    num_simulations, exact = 200, made(LAW, TRUTH)
    quantities = {name: (lambda found, name=name: found.parameters[name]) for name in TRUTH}
    quantities |= {"optimum": lambda found: optimal_size(found.parameters), "loss": loss_of}
    truths = TRUTH | {"optimum": optimal_size(TRUTH)}
    truths["loss"] = TRUTH["E"] + TRUTH["A"] / 1e9 ** TRUTH["alpha"] + TRUTH["B"] / (BUDGET / 6e9) ** TRUTH["beta"]
    covered = dict.fromkeys(quantities, 0)
    generator = np.random.default_rng(0)
    for seed in range(num_simulations):
        runs = replace(exact, loss_P=exact.loss_P * np.exp(0.01 * generator.standard_normal(len(exact))))
        replicates = bootstrap(fit(LAW, runs, huber_delta=huber_delta), runs, num_replicates=200, seed=seed)
        for name, quantity in quantities.items():
            covered[name] += truths[name] in replicates.interval(quantity)
    shares = {name: count / num_simulations for name, count in covered.items()}
    assert all(0.85 <= share <= 0.95 for share in shares.values()), list(shares.items())
