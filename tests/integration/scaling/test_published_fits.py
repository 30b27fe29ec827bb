"""Laws fit public tables of fine-tuning as well as the papers say."""

from __future__ import annotations

import numpy as np
import pytest

from embedlab.scaling.fitting import Runs, fit
from embedlab.scaling.laws import Rectified
from helpers.tables import needs_shared, table


@needs_shared
@pytest.mark.parametrize(("name", "published"), [("flan", 0.0065), ("gigaword", 0.0052), ("wmt19", 0.0123)])
def test_the_rectified_law_fits_fine_tuning_as_published(name: str, published: float) -> None:
    rows = table(f"rectified_ft/{name}.csv")
    tokens = np.array([float(column) for column in rows[0] if column.isdigit() and column != "0"])
    errors = []
    for row in rows:
        losses = np.array([float(row[str(int(seen))]) for seen in tokens])
        runs = Runs(np.full(len(tokens), float(row["size"])), tokens, losses)
        found = fit(Rectified(one_model=True), runs, huber_delta=None)
        errors.append(np.sqrt(np.mean(found.residuals(runs) ** 2)))
    assert np.mean(errors) <= published
