"""What a law says of runs that it has not seen holds as often as it says."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from embedlab.search.method_laws import law_of
from embedlab.search.observations import runs_of
from embedlab.search.uncertainty import quantiles
from embedlab.search.validation import HELD_OUT
from published import COLUMNS, published
from tables import needs_shared


def held_out_runs(name: str, num_budgets: int) -> Counter[str]:
    """How many runs of the largest budgets there are, and how many lie in the interval that the others give."""
    counts: Counter[str] = Counter()
    for method, rows in published(name).items():
        budget_P = runs_of(rows).budget_P
        is_held_out_P = budget_P <= np.unique(budget_P)[num_budgets - 1]
        held_out = [row for row, is_out in zip(rows, is_held_out_P, strict=True) if is_out]
        law = law_of(method, [row for row in rows if row not in held_out], num_replicates=30)
        sizes_C, tokens_C = (np.array([getattr(row, what) for row in held_out]) for what in ("parameters", "tokens"))
        _, log_RC = law.log_losses(sizes_C, tokens_C)
        log_loss_C = np.log([row.loss for row in held_out])
        counts["runs"] += len(held_out)
        for level in (0.8, 0.95):
            low_C, high_C = quantiles(log_RC, level)
            counts[f"{level:.0%}"] += int(((low_C <= log_loss_C) & (log_loss_C <= high_C)).sum())
    return counts


@needs_shared
def test_intervals_cover_the_largest_budgets_of_every_public_table_as_often_as_they_say() -> None:
    found = {(name, number): held_out_runs(name, number) for name in COLUMNS for number in HELD_OUT}
    print(found)
