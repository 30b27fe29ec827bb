"""Crossovers of methods: the budget above which one method is better than another, with intervals.

An interval is open on a side where the searched budgets do not limit the crossover. Names of arrays end in their axes:

    R  bootstrap replicates      G  budgets on a grid      C  sizes of the backbones
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from embedlab.scaling.bootstrap import Interval
from embedlab.scaling.method_laws import MethodLaw

_GRID = 81  # number of budgets


@dataclass(frozen=True)
class Crossover:
    """The budget at which two methods change places: below it one method is better, above it the other.

    Attributes:
        below: Name of the method that is better at small budgets.
        above: Name of the method that is better at large budgets.
        flops: Budget of the crossover in FLOPs; 0 or infinity if one method is better at all searched budgets.
        interval_80: 80 % interval of the budget in FLOPs. A bound of 0 or infinity means that the searched budgets do
            not limit the crossover on that side.
        interval_90: 90 % interval of the budget in FLOPs, with bounds as in ``interval_80``.
        interval_95: 95 % interval of the budget in FLOPs, with bounds as in ``interval_80``.
        probability: Probability that the methods change places within the searched budgets.
        looked_at: Smallest and largest searched budget in FLOPs; only budgets that both laws can predict are searched.
    """

    below: str
    above: str
    flops: float
    interval_80: Interval
    interval_90: Interval
    interval_95: Interval
    probability: float
    looked_at: Interval

    @property
    def exists(self) -> bool:
        """Whether the estimated crossover lies within the searched budgets."""
        return 0 < self.flops < np.inf


def crossover(one: MethodLaw, other: MethodLaw, sizes_C: Sequence[float], low: float, high: float) -> Crossover | None:
    """Find the budget at which the minimum losses of two methods over all model sizes are equal.

    Args:
        one: Law of one method.
        other: Law of the other method.
        sizes_C: Numbers of parameters of the backbones (N).
        low: Smallest budget to search, in FLOPs.
        high: Largest budget to search, in FLOPs.

    Returns:
        The crossover, or None if fewer than two budgets on the grid can be predicted by both laws.
    """
    log_flops_G = np.linspace(np.log(low), np.log(high), _GRID)
    first_G, first_RG = one.frontier(np.asarray(sizes_C), np.exp(log_flops_G))
    second_G, second_RG = other.frontier(np.asarray(sizes_C), np.exp(log_flops_G))
    count = min(len(first_RG), len(second_RG))
    more_G, more_RG = first_G - second_G, first_RG[:count] - second_RG[:count]
    is_known_G = np.isfinite(more_G)
    if is_known_G.sum() < 2:
        return None
    more_G, more_RG, log_flops_G = more_G[is_known_G], more_RG[:, is_known_G], log_flops_G[is_known_G]
    if more_G[-1] < 0:  # the first method is better at the largest budget
        one, other, more_G, more_RG = other, one, -more_G, -more_RG
    largest = max(one.largest_flops, other.largest_flops)
    inside = _changes(more_G[log_flops_G <= np.log(largest)], log_flops_G)
    log_flops = _change(more_G, log_flops_G, inside[-1] if len(inside) else np.inf)
    flops, flops_R = np.exp(log_flops), np.exp([_change(row_G, log_flops_G, log_flops) for row_G in more_RG])
    # Quantiles must be values of replicates: a mean of two replicates is undefined if both are infinite.
    intervals = [
        Interval(*(float(q) for q in np.quantile(flops_R, [(1 - p) / 2, (1 + p) / 2], method="inverted_cdf")))
        for p in (0.8, 0.9, 0.95)
    ]
    return Crossover(
        below=one.method,
        above=other.method,
        flops=float(flops),
        interval_80=intervals[0],
        interval_90=intervals[1],
        interval_95=intervals[2],
        probability=float(np.mean((flops_R > 0) & np.isfinite(flops_R))),
        looked_at=Interval(float(np.exp(log_flops_G[0])), float(np.exp(log_flops_G[-1]))),
    )


def _changes(more_G: np.ndarray, log_flops_G: np.ndarray) -> np.ndarray:
    """Return the logarithms of the budgets at which the first method ceases to have the lower loss, in rising order.

    Budgets between grid points come from linear interpolation over log FLOPs.

    Args:
        more_G: Log loss of the first method minus log loss of the second method.
        log_flops_G: Natural logarithms of the budgets in FLOPs; may go on beyond ``more_G``.
    """
    last = np.flatnonzero((more_G[:-1] < 0) & (more_G[1:] >= 0))
    share = more_G[last] / (more_G[last] - more_G[last + 1])
    return np.asarray(log_flops_G[last] + share * (log_flops_G[last + 1] - log_flops_G[last]))


def _change(more_G: np.ndarray, log_flops_G: np.ndarray, near: float) -> float:
    """Return the logarithm of the budget at which the first method ceases to have the lower loss.

    Of several such budgets, the one nearest to ``near`` is returned: a change that the runs show is not replaced by
    one far beyond the runs. The result is minus infinity if the first method does not have the lower loss at the
    largest budget and there is no change, and infinity if it has the lower loss there and there is no change.

    Args:
        more_G: Log loss of the first method minus log loss of the second method.
        log_flops_G: Natural logarithms of the budgets in FLOPs.
        near: Natural logarithm of the budget near which the change is wanted; infinity for the last change.
    """
    found = _changes(more_G, log_flops_G)
    if len(found) == 0 or (np.isinf(near) and more_G[-1] < 0):
        return float(np.inf if more_G[-1] < 0 else -np.inf)
    return float(found[-1] if np.isinf(near) else found[np.abs(found - near).argmin()])
