"""What laws say over budgets: the least loss and the best size, each with what it might be.

Names end in their axes:

    R  replicates      G  budgets of a grid      C  sizes
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from embedlab.search.crossover import Crossover, crossover
from embedlab.search.fitting import Fit
from embedlab.search.method_laws import FARTHEST, MethodLaw
from embedlab.search.recipe import suite_of

_BUDGETS = 49
_SIZES_TO_TRY = 97
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


def best_sizes(law: MethodLaw, flops_G: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logarithms of the N with the least loss, whether or not a backbone has it: (G,) and (R, G).

    It is looked for up to ``FARTHEST`` times beyond the sizes of the runs; NaN in the estimate where it is farther.
    """
    sizes = [row.parameters for row in law.observations]
    log_C = np.linspace(np.log(min(sizes) / FARTHEST), np.log(max(sizes) * FARTHEST), _SIZES_TO_TRY)
    step = log_C[1] - log_C[0]
    tokens_GC = flops_G[:, None] / law.flops_per_token(np.exp(log_C))
    sizes_GC = np.broadcast_to(np.exp(log_C), tokens_GC.shape)
    rows_G = np.arange(len(flops_G))

    def best(fit: Fit) -> np.ndarray:
        loss_GC = np.log(fit.loss(sizes_GC.ravel(), tokens_GC.ravel())).reshape(tokens_GC.shape)
        least_G = loss_GC.argmin(axis=1)
        inner_G = np.clip(least_G, 1, len(log_C) - 2)
        before_G, at_G, after_G = (loss_GC[rows_G, inner_G + shift] for shift in (-1, 0, 1))
        bend_G = before_G - 2 * at_G + after_G
        shift_G = np.where(bend_G > 0, 0.5 * (before_G - after_G) / np.where(bend_G > 0, bend_G, 1), 0)
        found_G = log_C[inner_G] + step * np.clip(shift_G, -1, 1)
        return np.asarray(np.where(least_G == inner_G, found_G, log_C[least_G]))

    estimate_G, log_RG = law.replicates.quantity(best)
    is_end_G = np.isclose(estimate_G, log_C[0]) | np.isclose(estimate_G, log_C[-1])
    return np.where(is_end_G, np.nan, estimate_G), np.clip(log_RG, log_C[0], log_C[-1])


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
