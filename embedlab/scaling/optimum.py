"""Optimal model size and amount of data for a budget, and their growth with compute, as if every model size existed.

Names of arrays end in their axes:

    R  bootstrap replicates      G  budgets      C  sizes on the search grid
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from embedlab.errors import plain_text
from embedlab.scaling.bootstrap import Interval, quantiles
from embedlab.scaling.fitting import Configurations
from embedlab.scaling.method_laws import FARTHEST, MethodLaw

_STEP = 0.1  # between two sizes on the search grid, in log N, at most
_FEWEST_SIZES = 97  # on the search grid
_BUDGETS_OF_GROWTH = 9


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


@dataclass(frozen=True, kw_only=True)
class OptimumGrowth:
    """How the optimal model size and amount of data of one method grow with compute C: N* ~ C^a and D* ~ C^b.

    The exponents are slopes of log N* and log D* over log C, between the smallest and the largest budget of the runs
    for which an optimum is known. Hoffmann et al. 2022 (arXiv:2203.15556) call them a and b.

    Attributes:
        method: Name of the method.
        parameters: Exponent a of the number of parameters.
        parameters_80: 80 % interval of the exponent a.
        tokens: Exponent b of the number of tokens.
        tokens_80: 80 % interval of the exponent b.
        from_flops: Smallest budget that the slopes are computed from, in FLOPs.
        to_flops: Largest budget that the slopes are computed from, in FLOPs.
    """

    method: str
    parameters: float
    parameters_80: Interval
    tokens: float
    tokens_80: Interval
    from_flops: float
    to_flops: float

    @property
    def words(self) -> str:
        """The exponents and their intervals as a sentence."""
        (low, high), (lowest, highest) = self.parameters_80, self.tokens_80
        return (
            f"{plain_text(self.method)}: from {self.from_flops:.3g} to {self.to_flops:.3g} FLOPs, the optimal N grows "
            f"with compute to the power of {self.parameters:.2f} ({low:.2f} to {high:.2f}), and the optimal D to the "
            f"power of {self.tokens:.2f} ({lowest:.2f} to {highest:.2f}; 80 % intervals)."
        )


def optimum(law: MethodLaw, budget: float) -> Optimum | None:
    """Return the optimal model size and amount of data of a method for a budget.

    Args:
        law: Law of the method.
        budget: Budget in FLOPs.

    Returns:
        The optimum, or None if the law has no optimal size in the range that ``best_sizes`` searches.
    """
    if not has_best_size(law):
        return None
    log_G, log_RG = best_sizes(law, np.array([budget]))
    if np.isnan(log_G[0]):
        return None
    size, size_R = np.exp(log_G), np.exp(log_RG[:, 0])
    tokens, tokens_R = (budget / law.token_costs.smooth(sizes) for sizes in (size, size_R))

    def interval(values_R: np.ndarray) -> Interval:
        return Interval(*np.exp(_interval_80(np.log(values_R))))

    return Optimum(
        method=law.method,
        parameters=float(size[0]),
        parameters_80=interval(size_R),
        tokens=float(tokens[0]),
        tokens_80=interval(tokens_R),
        tokens_per_parameter=float(tokens[0] / size[0]),
        tokens_per_parameter_80=interval(tokens_R / size_R),
    )


def _interval_80(values_R: np.ndarray) -> Interval:
    low, high = quantiles(values_R, 0.8)
    return Interval(float(low), float(high))


def optimum_growth(law: MethodLaw) -> OptimumGrowth | None:
    """Return how the optimal model size and amount of data of a method grow with compute.

    Args:
        law: Law of the method.

    Returns:
        The exponents, or None if the law has an optimal size at fewer than two budgets in the range of the runs.
    """
    if not has_best_size(law):
        return None
    flops = [row.flops for row in law.observations]
    flops_G = np.geomspace(min(flops), max(flops), _BUDGETS_OF_GROWTH)
    log_G, log_RG = best_sizes(law, flops_G)
    is_known_G = ~np.isnan(log_G)
    if is_known_G.sum() < 2:
        return None
    log_flops_G = np.log(flops_G[is_known_G])

    def slope(values: np.ndarray) -> np.ndarray:
        return np.asarray(np.polyfit(log_flops_G, values.T, 1)[0])

    log_size_G, log_size_RG = log_G[is_known_G], log_RG[:, is_known_G]
    log_tokens_G, log_tokens_RG = (
        log_flops_G - np.log(law.token_costs.smooth(np.exp(sizes))) for sizes in (log_size_G, log_size_RG)
    )
    return OptimumGrowth(
        method=law.method,
        parameters=float(slope(log_size_G)),
        parameters_80=_interval_80(slope(log_size_RG)),
        tokens=float(slope(log_tokens_G)),
        tokens_80=_interval_80(slope(log_tokens_RG)),
        from_flops=float(np.exp(log_flops_G[0])),
        to_flops=float(np.exp(log_flops_G[-1])),
    )


def has_best_size(law: MethodLaw) -> bool:
    """Return whether the law depends on model size and its runs have more than one size."""
    return "alpha" in law.fit.names and len({row.parameters for row in law.observations}) > 1


def best_sizes(law: MethodLaw, flops_G: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the logarithm of the model size N with the minimum loss at each budget, for sizes without a backbone, too.

    Sizes up to ``FARTHEST`` times beyond the sizes of the runs are searched, and further by as much as the largest
    budget is larger than that of the largest run.

    Args:
        law: Law of the method.
        flops_G: Budgets, in FLOPs.

    Returns:
        The estimates (G,), which are NaN where the optimum is not inside the searched range, and the values in the
        bootstrap replicates (R, G), which are limited to the range.
    """
    sizes = [row.parameters for row in law.observations]
    beyond = max(1.0, float(flops_G.max()) / law.largest_flops)
    ends = np.log(min(sizes) / FARTHEST), np.log(max(sizes) * FARTHEST * beyond)
    log_C = np.linspace(*ends, max(_FEWEST_SIZES, 1 + int(np.ceil((ends[1] - ends[0]) / _STEP))))
    step = log_C[1] - log_C[0]
    tokens_GC = flops_G[:, None] / law.token_costs.smooth(np.exp(log_C))
    sizes_GC = np.broadcast_to(np.exp(log_C), tokens_GC.shape)
    rows_G = np.arange(len(flops_G))

    at = Configurations(sizes_GC.ravel(), tokens_GC.ravel())

    def best(log_loss_C: np.ndarray) -> np.ndarray:
        loss_GC = log_loss_C.reshape(tokens_GC.shape)
        least_G = loss_GC.argmin(axis=1)
        inner_G = np.clip(least_G, 1, len(log_C) - 2)
        before_G, at_G, after_G = (loss_GC[rows_G, inner_G + shift] for shift in (-1, 0, 1))
        bend_G = before_G - 2 * at_G + after_G
        shift_G = np.where(bend_G > 0, 0.5 * (before_G - after_G) / np.where(bend_G > 0, bend_G, 1), 0)
        found_G = log_C[inner_G] + step * np.clip(shift_G, -1, 1)
        return np.asarray(np.where(least_G == inner_G, found_G, log_C[least_G]))

    estimate_G, log_RG = law.quantity(best, at)
    is_end_G = np.isclose(estimate_G, log_C[0]) | np.isclose(estimate_G, log_C[-1])
    return np.where(is_end_G, np.nan, estimate_G), np.clip(log_RG, log_C[0], log_C[-1])
