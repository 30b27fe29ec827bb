"""Optimal model size and amount of data for a budget, as if a backbone of every size existed.

Names of arrays end in their axes:

    R  bootstrap replicates      G  budgets      C  sizes on the search grid
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from embedlab.scaling.bootstrap import Interval, quantiles
from embedlab.scaling.fitting import Configurations, Fit
from embedlab.scaling.method_laws import FARTHEST, LawPart, MethodLaw

_SIZES_TO_TRY = 97  # on the search grid


@dataclass(frozen=True, kw_only=True)
class Optimum:
    """The optimal model size and amount of data of one method for one budget, with bootstrap intervals.

    Attributes:
        method: Name of the method.
        parameters: Optimal number of parameters (N).
        parameters_80: 80 % interval of the optimal number of parameters.
        tokens: Optimal number of tokens (D).
        tokens_80: 80 % interval of the optimal number of tokens.
        tokens_per_parameter: Optimal number of tokens per parameter (D / N).
        tokens_per_parameter_80: 80 % interval of the optimal number of tokens per parameter.
    """

    method: str
    parameters: float
    parameters_80: Interval
    tokens: float
    tokens_80: Interval
    tokens_per_parameter: float
    tokens_per_parameter_80: Interval


def optimum(law: MethodLaw, budget: float) -> Optimum | None:
    """Return the optimal model size and amount of data of a method for a budget.

    Args:
        law: Law of the method.
        budget: Budget in FLOPs.

    Returns:
        The optimum, or None if the law has no optimal size within ``FARTHEST`` times the sizes of the runs.
    """
    if not has_best_size(law):
        return None
    log_G, log_RG = best_sizes(law, np.array([budget]))
    if np.isnan(log_G[0]):
        return None
    size, size_R = np.exp(log_G), np.exp(log_RG[:, 0])
    tokens, tokens_R = (budget / law.smooth_flops_per_token(sizes) for sizes in (size, size_R))

    def interval(values_R: np.ndarray) -> Interval:
        low, high = np.exp(quantiles(np.log(values_R), 0.8))
        return Interval(float(low), float(high))

    return Optimum(
        method=law.method,
        parameters=float(size[0]),
        parameters_80=interval(size_R),
        tokens=float(tokens[0]),
        tokens_80=interval(tokens_R),
        tokens_per_parameter=float(tokens[0] / size[0]),
        tokens_per_parameter_80=interval(tokens_R / size_R),
    )


def has_best_size(law: MethodLaw) -> bool:
    """Return whether the law depends on model size and its runs have more than one size."""
    return "alpha" in law.fit.names and len({row.parameters for row in law.observations}) > 1


def best_sizes(law: MethodLaw, flops_G: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the logarithm of the model size N with the minimum loss at each budget, for sizes without a backbone, too.

    Sizes up to ``FARTHEST`` times beyond the sizes of the runs are searched.

    Args:
        law: Law of the method.
        flops_G: Budgets, in FLOPs.

    Returns:
        The estimates (G,), which are NaN where the optimum is not inside the searched range, and the values in the
        bootstrap replicates (R, G), which are limited to the range.
    """
    sizes = [row.parameters for row in law.observations]
    log_C = np.linspace(np.log(min(sizes) / FARTHEST), np.log(max(sizes) * FARTHEST), _SIZES_TO_TRY)
    step = log_C[1] - log_C[0]
    tokens_GC = flops_G[:, None] / law.smooth_flops_per_token(np.exp(log_C))
    sizes_GC = np.broadcast_to(np.exp(log_C), tokens_GC.shape)
    rows_G = np.arange(len(flops_G))

    at = Configurations(sizes_GC.ravel(), tokens_GC.ravel())

    def log_loss(part: LawPart, fit: Fit) -> np.ndarray:
        return part.log_loss(fit, at).reshape(tokens_GC.shape)

    def best(loss_GC: np.ndarray) -> np.ndarray:
        least_G = loss_GC.argmin(axis=1)
        inner_G = np.clip(least_G, 1, len(log_C) - 2)
        before_G, at_G, after_G = (loss_GC[rows_G, inner_G + shift] for shift in (-1, 0, 1))
        bend_G = before_G - 2 * at_G + after_G
        shift_G = np.where(bend_G > 0, 0.5 * (before_G - after_G) / np.where(bend_G > 0, bend_G, 1), 0)
        found_G = log_C[inner_G] + step * np.clip(shift_G, -1, 1)
        return np.asarray(np.where(least_G == inner_G, found_G, log_C[least_G]))

    estimate_G = best(np.sum([part.share * log_loss(part, part.replicates.fit) for part in law.parts], axis=0))
    _, log_RG = law.quantity(lambda part, fit: best(log_loss(part, fit)))
    is_end_G = np.isclose(estimate_G, log_C[0]) | np.isclose(estimate_G, log_C[-1])
    return np.where(is_end_G, np.nan, estimate_G), np.clip(log_RG, log_C[0], log_C[-1])
