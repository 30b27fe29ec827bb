"""A run is an outlier if it is far from all others, and not because a law, a backbone or a budget is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from embedlab.scaling.laws import Chinchilla
from embedlab.scaling.observations import Observation, by_method, runs_of
from embedlab.scaling.outliers import Outlier, outliers_of
from helpers.two_methods import runs

ROWS = by_method(runs())["lora"]
TOP = max(row.flops for row in ROWS)


def with_losses(is_wrong: Callable[[Observation], bool], factor: float = 1.5) -> list[Observation]:
    return [replace(row, loss=factor * row.loss) if is_wrong(row) else row for row in ROWS]


def found(rows: list[Observation]) -> list[Outlier]:
    return outliers_of(Chinchilla(), rows, runs_of(rows), 1e-3)


@pytest.mark.parametrize("row", [row for row in ROWS if row.flops > 0.9 * TOP], ids=lambda row: row.name)
@pytest.mark.parametrize("factor", [0.5, 1.5])
def test_a_run_far_from_all_others_is_named(row: Observation, factor: float) -> None:
    (outlier,) = found(with_losses(lambda one: one is row, factor))
    assert outlier.name == row.name and outlier.deviation == pytest.approx(factor - 1, abs=0.03)
    assert outlier.spreads > 100


@pytest.mark.parametrize(
    "is_wrong",
    [
        lambda row: False,
        lambda row: row.parameters == 1.6e7,
        lambda row: row.flops > 0.9 * TOP,
        lambda row: row.flops < 1e15,
    ],
    ids=["none", "a backbone", "the largest budget", "many"],
)
def test_runs_that_are_alike_are_no_outliers(is_wrong: Callable[[Observation], bool]) -> None:
    assert found(with_losses(is_wrong)) == []


def test_noise_makes_no_outliers() -> None:
    generator = np.random.default_rng(0)
    for noise in (0.0, 0.01, 0.1):
        noisy = [replace(row, loss=row.loss * float(np.exp(noise * generator.standard_normal()))) for row in ROWS]
        assert found(noisy) == []


def test_runs_too_few_for_the_law_have_no_outliers() -> None:
    assert found(ROWS[:3]) == []
