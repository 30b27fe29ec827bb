"""From which budget on one method is better than another: an interval, which may have no end within reach.

Names end in their axes:

    R  replicates      G  budgets of a grid      C  sizes that exist
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from embedlab.scaling.bootstrap import Interval
from embedlab.scaling.method_laws import MethodLaw

_GRID = 81


@dataclass(frozen=True)
class Crossover:
    """The budget up to which one method is better, and from which on the other is.

    Attributes:
        below: the method that is better at small budgets.
        above: the one that is better at large ones.
        flops: of the budget; 0 or infinite if one method is better at all budgets that were looked at.
        interval_80: holds it with that probability; a bound of 0 or infinity is one that the runs do not give.
        interval_90: likewise.
        interval_95: likewise.
        probability: that there is one between the budgets that were looked at.
        looked_at: the smallest and the largest of those.
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
        """Whether the estimate lies between the budgets that were looked at."""
        return 0 < self.flops < np.inf


def crossover(one: MethodLaw, other: MethodLaw, sizes_C: Sequence[float], low: float, high: float) -> Crossover | None:
    """Where the best losses of two methods meet, each over all sizes; None if no budget is known to both of their laws.

    Args:
        one: a method.
        other: to compare it with.
        sizes_C: N of the backbones that exist.
        low: the smallest budget to look at, in FLOPs.
        high: the largest.
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
    if more_G[-1] < 0:  # the first is better at large budgets
        one, other, more_G, more_RG = other, one, -more_G, -more_RG
    flops = _last_lead(more_G[None], log_flops_G)[0]
    flops_R = _last_lead(more_RG, log_flops_G)
    # Quantiles between replicates, not of their mean, which infinite ones do not have.
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


def _last_lead(more_RG: np.ndarray, log_flops_G: np.ndarray) -> np.ndarray:
    """The largest budget at which the first method's loss is less, between budgets by a straight line."""
    found = []
    for more_G in more_RG:
        leads = np.flatnonzero(more_G < 0)
        if len(leads) == 0:
            found.append(0.0)
        elif leads[-1] == len(more_G) - 1:
            found.append(np.inf)
        else:
            last = leads[-1]
            share = more_G[last] / (more_G[last] - more_G[last + 1])
            found.append(float(np.exp(log_flops_G[last] + share * (log_flops_G[last + 1] - log_flops_G[last]))))
    return np.array(found)
