"""IsoFLOP profiles: loss by model size at one budget, without a law (Hoffmann et al. 2022, arXiv:2203.15556, 3.2).

The profiles are a diagnostic: they show whether the best size lies between the sizes of the runs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from embedlab.scaling.fitting import Runs

_FEWEST_SIZES = 4  # of one budget: one more than the parameters of a parabola


@dataclass(frozen=True)
class IsoFlopProfile:
    """A parabola of log loss over log N, fitted to the runs of one budget level.

    Attributes:
        flops: Budget in FLOPs: the geometric mean over the runs.
        num_runs: Number of runs that the parabola was fitted to.
        curvature: Coefficient of (log N)^2; above 0 if the parabola has a minimum.
        optimal_parameters: Number of parameters N at the vertex.
        loss: Loss at the vertex.
        is_interior: Whether the vertex is a minimum between the smallest and the largest N of the runs.
    """

    flops: float
    num_runs: int
    curvature: float
    optimal_parameters: float
    loss: float
    is_interior: bool


def isoflop_profiles(runs: Runs) -> list[IsoFlopProfile]:
    """Fit a profile to the runs of each budget level that has at least 4 sizes; the largest budget comes first.

    Args:
        runs: Runs of one method.
    """
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
            columns.append(c)  # runs of one budget level may differ by up to a factor of 2 in FLOPs
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
    """Return whether most profiles, and at least 2, have their best size between the sizes of the runs."""
    profiles = isoflop_profiles(runs)
    interior = sum(profile.is_interior for profile in profiles)
    return interior >= 2 and 2 * interior > len(profiles)
