"""A prediction is a property of the runs, and one bad run hardly moves it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

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
