"""What a law says of runs that it has not seen holds as often as it says."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from embedlab.scaling.bootstrap import quantiles
from embedlab.scaling.method_laws import law_of
from embedlab.scaling.observations import runs_of
from embedlab.scaling.validation import HELD_OUT
from helpers.published import COLUMNS, published
from helpers.tables import needs_shared


@cache
def share_inside(name: str, num_budgets: int, num_replicates: int = 60) -> dict[float, list[bool]]:
    """Of each run of a table's largest budgets, whether it lies in the intervals that the other runs give."""
    inside: dict[float, list[bool]] = {0.8: [], 0.95: []}
    for method, rows in published(name).items():
        budget_P = runs_of(rows).budget_P
        is_held_out_P = budget_P <= np.unique(budget_P)[num_budgets - 1]
        held_out = [row for row, is_out in zip(rows, is_held_out_P, strict=True) if is_out]
        law = law_of(method, [row for row in rows if row not in held_out], num_replicates=num_replicates)
        sizes_C, tokens_C = (np.array([getattr(row, what) for row in held_out]) for what in ("parameters", "tokens"))
        _, log_RC = law.log_losses(sizes_C, tokens_C)
        log_loss_C = np.log([row.loss for row in held_out])
        for level, found in inside.items():
            low_C, high_C = quantiles(log_RC, level)
            found += ((low_C <= log_loss_C) & (log_loss_C <= high_C)).tolist()
    return inside


@needs_shared
@pytest.mark.parametrize("name", COLUMNS)
def test_the_stated_interval_covers_the_largest_budgets_of_a_public_table(name: str) -> None:
    inside = share_inside(name, HELD_OUT[-1])
    # 11 to 17 runs a table, in few families: at 80 % two in three of them is within chance, at 95 % four in five.
    assert len(inside[0.8]) > 10 and np.mean(inside[0.8]) > 0.6 and np.mean(inside[0.95]) > 0.8


@needs_shared
@pytest.mark.slow
def test_intervals_cover_the_public_tables_largest_budgets_about_as_often_as_they_say() -> None:
    found = [share_inside(name, number, 400) for name in COLUMNS for number in HELD_OUT]
    share_80, share_95 = (np.mean([one for inside in found for one in inside[level]]) for level in (0.8, 0.95))
    count = sum(len(inside[0.8]) for inside in found)
    print(f"\n{share_80:.0%} of {count} held-out runs lie in the 80 % interval, {share_95:.0%} in that of 95 %.")
    # Fewer runs are different: the largest is held out three times, and what is off is off for many.
    assert 0.7 < share_80 < 0.9, "85 of 108 runs when this was written"
    assert share_95 > 0.9, "103"
