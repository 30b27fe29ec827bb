"""A prediction is a property of the runs, and one bad run hardly moves it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from embedlab.scaling.bootstrap import quantiles
from embedlab.scaling.fitting import Configurations, Runs
from embedlab.scaling.laws import Bounded
from embedlab.scaling.method_laws import law_of, laws_of, members_to_try
from embedlab.scaling.observations import by_method, runs_of
from helpers.near_chance import CHANCE, runs_near_chance
from helpers.two_methods import runs


def test_predictions_do_not_depend_on_the_number_of_replicates() -> None:
    rows = by_method(runs())["lora"]
    at = Configurations(np.full(3, 1.6e7), np.geomspace(1e9, 1e11, 3))
    few, many = (law_of("lora", rows, num_replicates=number).log_losses(at) for number in (1, 40))
    assert few[0].tolist() == many[0].tolist() and few[1].tolist() == many[1].tolist()


@pytest.mark.parametrize(("factor", "size"), [(1.5, 1.6e7), (0.5, 6.4e7)])
def test_one_bad_run_at_the_largest_budget_hardly_moves_a_prediction_and_its_interval(
    factor: float, size: float
) -> None:
    rows = by_method(runs())["lora"]
    largest = max(row.flops for row in rows)
    (bad,) = (number for number, row in enumerate(rows) if row.flops > 0.9 * largest and row.parameters == size)
    wrong = [replace(row, loss=factor * row.loss) if number == bad else row for number, row in enumerate(rows)]
    at = Configurations(np.array([6.4e7]), np.array([1e18 / (4.5 * 6.4e7)]))
    laws = [law_of("lora", its, num_replicates=1) for its in (rows, wrong)]
    (before, log_before), (after, log_after) = (law.log_losses(at) for law in laws)
    assert abs(after[0] - before[0]) < 0.005
    width_before, width_after = (np.diff(quantiles(log_RC[:, 0], 0.8))[0] for log_RC in (log_before, log_after))
    assert width_after < 1.33 * width_before
    assert laws[0].outliers == () and laws[0].caution == ""
    (outlier,) = laws[1].outliers
    assert outlier.name == rows[bad].name and outlier.deviation == pytest.approx(factor - 1, abs=0.03)
    assert f"{rows[bad].name} (" in laws[1].caution and "times their spread" in laws[1].caution
    assert outlier.name not in {row.name for row in laws[1].observations}


def test_losses_that_begin_near_a_guess_are_predicted_by_a_bounded_law() -> None:
    rows = runs_near_chance()
    known = [row for row in rows if row.flops < 1e14]
    larger = runs_of([row for row in rows if row.flops > 1e14])
    bounded = law_of("lora", known, num_replicates=1)
    assert isinstance(bounded.choices[0].member.law, Bounded)
    plain = law_of("lora", [replace(row, chance=None) for row in known], num_replicates=1)
    assert not any(isinstance(choice.member.law, Bounded) for choice in plain.choices)
    off, off_of_plain = (
        np.sqrt(np.mean((law.log_loss(larger.configurations) - np.log(larger.loss_P)) ** 2)) for law in (bounded, plain)
    )
    assert off < 0.5 * off_of_plain
    assert "The law is bounded by this loss" in bounded.chance_warning


def test_a_bounded_law_is_tried_only_for_losses_near_those_of_a_guess() -> None:
    def of(loss: float, repeats: float) -> set[str]:
        numbers_P = np.array([1.0, 2.0, 4.0])
        runs_P = Runs(numbers_P, numbers_P, loss / numbers_P, unique_tokens_P=numbers_P / repeats, chance=CHANCE)
        return {member.law.name for member in members_to_try(runs_P)}

    assert not {name for name in of(0.49 * CHANCE, 1) if "bounded" in name}
    assert {name for name in of(0.51 * CHANCE, 1) if "bounded" in name} == {"Chinchilla, bounded"}
    assert "Chinchilla, repeated, bounded" in of(0.9 * CHANCE, 2)


def test_errors_that_methods_share_cancel_in_a_difference() -> None:
    (full, lora) = (
        replace(law, growth=replace(law.growth, per_decade=0.05, noise=1e-6, degrees=30.0))
        for law in laws_of(by_method(runs()), num_replicates=5)[0]
    )
    at = Configurations(np.array([1.6e7]), np.array([1e20 / (6 * 1.6e7)]))

    def widths(shared: float) -> tuple[float, float]:
        alike = [replace(law, growth=replace(law.growth, shared=shared)) for law in (full, lora)]
        one_RC, other_RC = (law.log_losses(at)[1] for law in alike)
        return float(one_RC.std()), float((one_RC - other_RC).std())

    (alone, apart), (of_one, together) = widths(0.0), widths(0.9)
    assert of_one == pytest.approx(alone, rel=1e-6), "the error of one method is as large as before"
    assert apart == pytest.approx(2**0.5 * alone, rel=0.1) and together < 0.4 * apart
    few, many = (replace(full, growth=replace(full.growth, shared=0.9)).draws("", count) for count in (50, 1000))
    assert np.corrcoef(few, many[:50])[0, 1] > 0.95, "methods with fewer replicates are paired, too"
