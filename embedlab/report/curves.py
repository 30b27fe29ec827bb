"""What laws say over budgets: the least loss of each method, with what it might be, and where methods change places.

Names end in their axes:

    R  replicates      G  budgets of a grid      C  sizes
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from embedlab.scaling.crossover import Crossover, crossover
from embedlab.scaling.method_laws import FARTHEST, MethodLaw
from embedlab.scaling.recipe import suite_of

_BUDGETS = 49
_NO_BETTER = 1e-3  # of the loss: a crossover is found between budgets of a grid
_MOST_SIZES = 200  # of a suite, that a frontier is looked for among


def budgets_of(laws: Sequence[MethodLaw]) -> np.ndarray:
    """(G,) FLOPs from the least run to as far beyond the largest as a law is trusted."""
    flops = [row.flops for law in laws for row in law.observations]
    return np.geomspace(min(flops), FARTHEST * max(flops), _BUDGETS)


def frontier(law: MethodLaw, sizes_C: np.ndarray, flops_G: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logarithms of the least loss over the sizes that exist: (G,) by the fit, (R, G) as it might be."""
    sizes_C = np.unique(sizes_C)
    if len(sizes_C) > _MOST_SIZES:
        sizes_C = sizes_C[np.linspace(0, len(sizes_C) - 1, _MOST_SIZES).astype(int)]
    return law.frontier(sizes_C, flops_G)


def crossovers(laws: Sequence[MethodLaw]) -> list[Crossover]:
    """Of each two methods, within the budgets of their runs and as far beyond as a law is trusted.

    Of three methods or more only where one of the two takes over the lead of all.
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
    """Whether no other method is better than this one at a budget."""

    def least(one: MethodLaw) -> float:
        tokens_C = flops / one.flops_per_token(sizes_C)
        return float(np.where(one.knows(sizes_C, tokens_C), one.fit.loss(sizes_C, tokens_C), np.inf).min())

    return least(law) <= (1 + _NO_BETTER) * min(least(one) for one in laws)
