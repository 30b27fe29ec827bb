"""Computes the curves of a report over a range of budgets: the minimum loss of each method.

Names of arrays end in their axes:

    R  bootstrap replicates      G  budgets on a grid      C  model sizes
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from embedlab.scaling.method_laws import FARTHEST, MethodLaw

_BUDGETS = 49  # number of budgets on the grid of a figure
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
