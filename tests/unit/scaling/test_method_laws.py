"""A prediction is a property of the runs, and one bad run hardly moves it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from embedlab.scaling.bootstrap import quantiles
from embedlab.scaling.fitting import Configurations
from embedlab.scaling.method_laws import law_of
from embedlab.scaling.observations import by_method
from helpers.two_methods import runs


def test_predictions_do_not_depend_on_the_number_of_replicates() -> None:
    rows = by_method(runs())["lora"]
    at = Configurations(np.full(3, 1.6e7), np.geomspace(1e9, 1e11, 3))
    few, many = (law_of("lora", rows, num_replicates=number).log_losses(at) for number in (1, 40))
    assert few[0].tolist() == many[0].tolist() and few[1].tolist() == many[1].tolist()


def test_one_bad_run_at_the_largest_budget_hardly_moves_a_prediction_and_its_interval() -> None:
    rows = by_method(runs())["lora"]
    worst = max(range(len(rows)), key=lambda number: (rows[number].flops, -rows[number].loss))
    wrong = [replace(row, loss=1.5 * row.loss) if number == worst else row for number, row in enumerate(rows)]
    at = Configurations(np.array([6.4e7]), np.array([1e18 / (4.5 * 6.4e7)]))
    (before, log_before), (after, log_after) = (
        law_of("lora", its, num_replicates=1).log_losses(at) for its in (rows, wrong)
    )
    assert abs(after[0] - before[0]) < 0.01
    width_before, width_after = (np.diff(quantiles(log_RC[:, 0], 0.8))[0] for log_RC in (log_before, log_after))
    assert width_after < 1.7 * width_before
