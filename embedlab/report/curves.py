"""Computes the curves of a report over a range of budgets: the minimum loss of each method, and the crossovers.

Names of arrays end in their axes:

    R  bootstrap replicates      G  budgets on a grid      C  model sizes
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from embedlab.scaling.crossover import Crossover, crossover
from embedlab.scaling.method_laws import FARTHEST, MethodLaw
from embedlab.scaling.recipe import suite_of

_BUDGETS = 49  # number of budgets on the grid of a figure
_NO_BETTER = 1e-3  # tolerance as a share of the loss, because a crossover is interpolated between budgets
_MOST_SIZES = 200  # maximum number of model sizes among which the minimum loss is searched


def budgets_of(laws: Sequence[MethodLaw]) -> np.ndarray:
    """Return a grid of budgets in FLOPs, from the smallest run to ``FARTHEST`` times the largest run: (G,).

    Args:
        laws: Laws of the methods, at least 1.
    """
    flops = [row.flops for law in laws for row in law.observations]
    return np.geomspace(min(flops), FARTHEST * max(flops), _BUDGETS)


def frontier(law: MethodLaw, sizes_C: np.ndarray, flops_G: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the logarithm of the minimum loss of a method over the sizes of the backbones, at each budget.

    Args:
        law: Law of the method.
        sizes_C: Model sizes, in parameters. If there are more than 200 different sizes, 200 of them are used.
        flops_G: Budgets, in FLOPs.

    Returns:
        The estimates (G,), and the values in the bootstrap replicates with errors of the law added (R, G). A value is
        NaN at a budget that the law cannot predict.
    """
    sizes_C = np.unique(sizes_C)
    if len(sizes_C) > _MOST_SIZES:
        sizes_C = sizes_C[np.linspace(0, len(sizes_C) - 1, _MOST_SIZES).astype(int)]
    return law.frontier(sizes_C, flops_G)


def crossovers(laws: Sequence[MethodLaw]) -> list[Crossover]:
    """Return the crossovers of all pairs of methods.

    Budgets from the smallest run of a pair to ``FARTHEST`` times its largest run are searched. With two methods, the
    result is returned even if one method is better at all budgets. With three or more methods, a crossover is returned
    only if no third method is better there.

    Args:
        laws: Laws of the methods.
    """
    sizes = [size for _, size in suite_of(laws)]
    found = []
    for number, one in enumerate(laws):
        for other in laws[number + 1 :]:
            flops = [row.flops for row in (*one.observations, *other.observations)]
            between = crossover(one, other, sizes, min(flops), FARTHEST * max(flops))
            if between is None:
                continue
            if len(laws) == 2 or (between.exists and _leads(one, laws, np.array(sizes), between.flops)):
                found.append(between)
    return found


def _leads(law: MethodLaw, laws: Sequence[MethodLaw], sizes_C: np.ndarray, flops: float) -> bool:
    """Return whether no method has a lower loss than a given method at a budget.

    Args:
        law: Law of the given method.
        laws: Laws of all methods.
        sizes_C: Model sizes, in parameters.
        flops: Budget in FLOPs.
    """

    def least(one: MethodLaw) -> float:
        tokens_C = flops / one.flops_per_token(sizes_C)
        return float(np.where(one.knows(sizes_C, tokens_C), one.fit.loss(sizes_C, tokens_C), np.inf).min())

    return least(law) <= (1 + _NO_BETTER) * min(least(one) for one in laws)
