"""IsoFLOP profiles: loss against size at one budget, a look at the runs that needs no law (Hoffmann et al. 2022, 3.2).

A diagnostic only: it shows whether a best size lies between the sizes that were tried.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from embedlab.scaling.fitting import Runs

_FEWEST_SIZES = 4  # one more than a parabola has parameters


@dataclass(frozen=True)
class IsoFlopProfile:
    """A parabola of log loss in log N through the runs of one budget.

    Attributes:
        flops: of the budget, the geometric mean of its runs.
        num_runs: that it goes through.
        curvature: above 0 where the loss has a least value.
        optimal_parameters: N at the vertex.
        loss: there.
        is_interior: whether the vertex is a least value between the smallest and the largest N of the runs.
    """

    flops: float
    num_runs: int
    curvature: float
    optimal_parameters: float
    loss: float
    is_interior: bool


def isoflop_profiles(runs: Runs) -> list[IsoFlopProfile]:
    """One for each budget that has enough sizes, the largest budget first."""
    flops_P = 6 * runs.parameters_P * runs.tokens_P if runs.flops_P is None else runs.flops_P
    found = []
    for budget in np.unique(runs.budget_P):
        mask_P = runs.budget_P == budget
        log_n, log_c = np.log(runs.parameters_P[mask_P]), np.log(flops_P[mask_P])
        if len(np.unique(log_n)) < _FEWEST_SIZES:
            continue
        n, c = log_n - log_n.mean(), log_c - log_c.mean()
        columns = [n**2, n, np.ones_like(n)]
        if np.ptp(c) > 0.1 and len(n) > len(columns) + 1:
            columns.append(c)  # a budget's runs may differ by up to its double
        (curvature, slope, constant), *_ = np.split(
            np.linalg.lstsq(np.stack(columns, axis=1), np.log(runs.loss_P[mask_P]), rcond=None)[0], [3]
        )
        vertex = -slope / (2 * curvature) if curvature else np.inf
        found.append(
            IsoFlopProfile(
                flops=float(np.exp(log_c.mean())),
                num_runs=len(n),
                curvature=float(curvature),
                optimal_parameters=float(np.exp(vertex + log_n.mean())),
                loss=float(np.exp(constant - curvature * vertex**2)),
                is_interior=bool(curvature > 0 and n.min() < vertex < n.max()),
            )
        )
    return found


def has_interior_optimum(runs: Runs) -> bool:
    """Whether most budgets, and two at least, have their best size between the sizes that were tried."""
    profiles = isoflop_profiles(runs)
    interior = sum(profile.is_interior for profile in profiles)
    return interior >= 2 and 2 * interior > len(profiles)
