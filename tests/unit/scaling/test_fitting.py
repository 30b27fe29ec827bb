"""Fits give what is published for real runs, what is true for made ones, and say when they cannot."""

from __future__ import annotations

import numpy as np
import pytest

from embedlab.errors import ConfigError
from embedlab.scaling import fitting
from embedlab.scaling.bootstrap import random_weights
from embedlab.scaling.fitting import Runs, fit, refit, refit_many
from embedlab.scaling.laws import Chinchilla, Law, Multiplicative, Rectified
from helpers.tables import TRUTHS, chinchilla_runs, column, made, needs_shared, table


@needs_shared
def test_chinchilla_s_runs_give_the_published_parameters() -> None:
    found = fit(Chinchilla(), chinchilla_runs())
    published = {"A": 477.8, "B": 2143.0, "E": 1.8172, "alpha": 0.3473, "beta": 0.3672}
    for name, value in published.items():
        assert found.parameters[name] == pytest.approx(value, rel=0.005)
    assert found.objective == pytest.approx(0.00101827, abs=1e-8)
    assert found.num_starts >= 16 and found.num_in_basin >= 15 and not found.at_bound


@needs_shared
def test_small_runs_predict_the_over_trained_large_ones_as_published() -> None:
    rows = [row for row in table("gadre/gadre_104_runs.csv") if row["dataset_name"] == "rpj"]
    small = [
        row
        for row in rows
        if (float(row["N"]) < 1e9 and float(row["tok_mult"]) == 20)
        or (float(row["N"]) < 2e7 and float(row["tok_mult"]) == 320)
    ]
    runs = Runs(column(small, "N"), column(small, "D"), column(small, "loss_c4_val"))
    assert len(runs) == 5
    found = fit(Chinchilla(tied=True), runs, huber_delta=None, in_log=False)
    for name, published in (("rpj-open_lm_1b-32.0", 0.710), ("rpj-open_lm_7b-1.0", 0.732)):
        (row,) = (row for row in rows if row["name"] == name)
        error = abs(found.loss(float(row["N"]), float(row["D"]))[0] / float(row["loss_c4_val"]) - 1)
        assert 100 * error == pytest.approx(published, abs=0.01)


@pytest.mark.parametrize("huber_delta", [None, 1e-3])
@pytest.mark.parametrize(("law", "truth"), TRUTHS, ids=[f"{type(law).__name__}{len(t)}" for law, t in TRUTHS])
def test_runs_without_noise_give_back_every_parameter(
    law: Law, truth: dict[str, float], huber_delta: float | None
) -> None:
    found = fit(law, made(law, truth), huber_delta=huber_delta)
    for name, value in truth.items():
        assert found.parameters[name] == pytest.approx(value, rel=1e-4), name


def test_an_outlier_moves_the_huber_fit_less_than_least_squares() -> None:
    law, truth = TRUTHS[0]
    runs = made(law, truth)
    runs.loss_P[7] *= 1.5
    robust, squares = (fit(law, runs, huber_delta=delta).parameters for delta in (1e-3, None))
    assert abs(robust["alpha"] - truth["alpha"]) < 0.1 * abs(squares["alpha"] - truth["alpha"])


def test_a_weight_of_two_is_a_run_twice() -> None:
    law, truth = TRUTHS[0]
    runs = made(law, truth, noise=0.01)
    twice = runs.where(np.array([0, *range(len(runs))]))
    weights_P = np.ones(len(runs))
    weights_P[0] = 2
    weighted, repeated = fit(law, runs, weights_P=weights_P), fit(law, twice)
    for name in truth:
        assert weighted.parameters[name] == pytest.approx(repeated.parameters[name], rel=1e-4)


def test_a_term_that_is_not_there_stands_at_its_bound() -> None:
    law, truth = TRUTHS[0]
    assert "A" in fit(law, made(law, truth | {"A": 0.0}), huber_delta=None).at_bound


def test_too_few_runs_and_runs_of_one_size_are_refused() -> None:
    law, truth = TRUTHS[0]
    runs = made(law, truth)
    with pytest.raises(ConfigError, match=r"5 parameters .* at least 6 runs, got 5"):
        fit(law, runs.where(np.arange(0, 40, 9)))
    with pytest.raises(ConfigError, match="the same size, 1e\\+06"):
        fit(law, runs.where(runs.parameters_P == runs.parameters_P.min()))
    with pytest.raises(ConfigError, match="the same amount of data, 1e\\+06"):
        fit(Multiplicative(), runs.where(runs.tokens_P == runs.tokens_P.min()))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, -1.0])
def test_a_loss_that_is_no_number_above_0_is_refused(value: float) -> None:
    with pytest.raises(ConfigError, match=r"loss of run 1 is .*1 of 3"):
        Runs(np.ones(3), np.ones(3), np.array([1.0, value, 1.0]))


@pytest.mark.parametrize("huber_delta", [None, 1e-3])
@pytest.mark.parametrize(("law", "truth"), TRUTHS, ids=[f"{type(law).__name__}{len(t)}" for law, t in TRUTHS])
def test_fits_that_are_computed_together_are_those_that_are_computed_alone(
    monkeypatch: pytest.MonkeyPatch, law: Law, truth: dict[str, float], huber_delta: float | None
) -> None:
    runs = made(law, truth, noise=0.01)
    found = fit(law, runs, huber_delta=huber_delta)
    weights_RP = random_weights(runs, 20, seed=1)
    alone = [refit(found, runs, weights_P=weights_P, tolerance=1e-10) for weights_P in weights_RP]
    calls = []
    monkeypatch.setattr(fitting, "refit", lambda *_, weights_P, **__: calls.append(weights_P) or found)
    together = refit_many(found, runs, weights_RP, tolerance=1e-10)
    assert len(calls) <= 10, "few are computed alone"
    for weights_P, one, other in zip(weights_RP, alone, together, strict=True):
        if not any(weights_P is call or np.array_equal(weights_P, call) for call in calls):
            assert other.objective <= one.objective * (1 + 1e-6)
            assert (one.names, one.num_runs, one.num_starts) == (other.names, other.num_runs, other.num_starts)


def test_fits_that_are_computed_together_stay_within_the_bounds() -> None:
    runs = made(*TRUTHS[0], noise=0.01)
    law = Rectified()
    found = fit(law, runs, fixed={law.names.index("D_0"): law.shapes[1].low})  # no data are seen earlier
    assert found.at_bound == ("D_0",)
    weights_RP = random_weights(runs, 20, seed=2)
    for weights_P, one in zip(weights_RP, refit_many(found, runs, weights_RP, tolerance=1e-10), strict=True):
        alone = refit(found, runs, weights_P=weights_P, tolerance=1e-10)
        assert all(low <= value <= high for value, (low, high) in zip(one.theta_K, one.bounds, strict=True))
        assert one.objective <= alone.objective * (1 + 1e-6)
