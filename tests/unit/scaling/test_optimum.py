"""The best size and amount of data are the formula's, and on Chinchilla's runs as uncertain as published."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from embedlab.scaling.fitting import Runs
from embedlab.scaling.laws import Chinchilla
from embedlab.scaling.members import Member
from embedlab.scaling.method_laws import law_of
from embedlab.scaling.observations import Observation
from embedlab.scaling.optimum import optimum
from helpers.tables import TRUTHS, chinchilla_runs, made, needs_shared


def observations(runs: Runs) -> list[Observation]:
    return [
        Observation(
            name=str(number),
            method="all",
            backbone=f"{size:g}",
            parameters=size,
            tokens=tokens,
            loss=loss,
            flops=6 * size * tokens,
            unique_tokens=tokens,
            family=str(number),
        )
        for number, (size, tokens, loss) in enumerate(zip(runs.parameters_P, runs.tokens_P, runs.loss_P, strict=True))
    ]


def test_the_optimum_is_the_formula_s() -> None:
    law = law_of("all", observations(made(*TRUTHS[0])), num_replicates=3)
    found = optimum(law, 1e18)
    p = TRUTHS[0][1]
    # Hoffmann et al. 2022, arXiv:2203.15556, eq. 4.
    share = p["beta"] / (p["alpha"] + p["beta"])
    scale = (p["alpha"] * p["A"] / (p["beta"] * p["B"])) ** (1 / (p["alpha"] + p["beta"]))
    assert found is not None and found.parameters == pytest.approx(scale * (1e18 / 6) ** share, rel=1e-3)
    assert found.tokens == pytest.approx(1e18 / 6 / found.parameters)


@needs_shared
def test_chinchilla_s_tokens_a_parameter_are_as_uncertain_as_published() -> None:
    alone = [Member(Chinchilla(), is_near_best=False, has_worths=False)]
    law = law_of("all", observations(chinchilla_runs()), members=alone, num_replicates=300)
    found = optimum(law, 5.76e23)
    assert found is not None
    low, high = found.tokens_per_parameter_80
    # An 80 % interval of 10 to 29 (../shared/paper.md's issue); two bootstraps differ by some tenths of its ends.
    assert low == pytest.approx(10, rel=0.25) and high == pytest.approx(29, rel=0.25), (low, high)
    assert np.sqrt(low * high) == pytest.approx(found.tokens_per_parameter, rel=0.15)


def test_nominal_costs_leave_the_optimum_without_kinks() -> None:
    """A table that states planned FLOPs has costs per token that jump from size to size."""
    law, truth = TRUTHS[0]
    rows = observations(made(law, truth))
    off = np.random.default_rng(0).normal(0, 0.05, 5)
    sizes = sorted({row.parameters for row in rows})
    jumping = [replace(row, flops=row.flops * float(np.exp(off[sizes.index(row.parameters)]))) for row in rows]
    smooth, kinked = (law_of("all", its, num_replicates=3) for its in (rows, jumping))
    budgets = np.geomspace(1e15, 1e18, 7)
    expected, found = (np.array([optimum(one, budget).parameters for budget in budgets]) for one in (smooth, kinked))  # type: ignore[union-attr]
    assert np.abs(np.log(found / expected)).max() < 0.1
    steps = np.diff(np.log(found))
    assert steps.max() < 1.3 * steps.min(), "best sizes rise evenly with the budget"
