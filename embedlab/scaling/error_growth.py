"""How far predictions are off: the noise of a run, and an error of the law that grows with the distance from the runs.

Both are measured on the budgets that were held out of fits. Inside the data only the noise of the runs counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy import optimize

_TAILS = 5.0  # degrees of freedom of the t-distribution that the errors are fitted with, so that one bad run is one
_USUAL_GROWTH = 0.01  # per decade of FLOPs; a prior, as of the public tables that the project was developed with
_PRIOR_RUNS = 0.5  # weight of the prior, in hold-outs
_PRIOR_SPREAD = 0.7  # standard deviation of the prior, of the logarithms of both sizes
_LEAST_NOISE = 5e-4
_PRIOR_HOLD_OUTS = 1.0  # hold-outs without a correlation of the errors of methods, which count beside those of the runs
_MOST_DEGREES, _FEWEST_DEGREES, _ADDED_DEGREES = 30.0, 3.0, 2.0
RECENCY = 0.7
"""Weight of a hold-out over that of the hold-out with one budget level less.

The more is held out, the less a hold-out resembles a prediction from all runs.
"""


@dataclass(frozen=True)
class ErrorGrowth:
    """Sizes of the errors of predictions of log loss, which is about a share of the loss.

    Attributes:
        noise: Scale of the errors inside the data.
        per_decade: Scale of the additional error per factor of 10 in FLOPs beyond the runs. All predictions of a method
            share this error.
        degrees: Degrees of freedom of the t-distribution of the errors. They grow with the number of hold-outs and not
            with the number of runs, because runs of one hold-out share the error of the law.
        is_measured: Whether any budget could be held out. If not, the sizes come from the fitted runs and from what is
            usual.
        shared: Correlation of the additional errors of all methods that were compared, from 0 to 1. What they share
            cancels in a difference of two methods.
    """

    noise: float
    per_decade: float
    degrees: float
    is_measured: bool
    shared: float = 0.0

    def at(self, decades: float) -> float:
        """Return the scale of all errors at a distance from the runs.

        Args:
            decades: Decimal logarithm of the FLOPs over those of the largest run; at most 0 inside the data.
        """
        return float(np.hypot(self.noise, self.per_decade * max(decades, 0.0)))


def shared_error(errors_M: Sequence[Mapping[int, float]]) -> float:
    """Return the correlation of the errors of several methods on the same held-out budgets, from 0 to 1.

    Laws predict too low or too high losses for all methods if the reason lies in the data or in the backbones. The
    correlation is uncentered, because errors are differences from 0, and is the smaller, the fewer hold-outs there are.

    Args:
        errors_M: Mean error of log loss of each method, by the number of held-out budget levels.
    """
    product = square = 0.0
    numbers: set[int] = set()
    for one, other in combinations(errors_M, 2):
        for number in one.keys() & other.keys():
            weight = RECENCY ** (number - 1)
            product += weight * one[number] * other[number]
            square += weight * (one[number] ** 2 + other[number] ** 2) / 2
            numbers.add(number)
    if square == 0:
        return 0.0
    weights = np.array([RECENCY ** (number - 1) for number in numbers])
    effective = float(weights.sum() ** 2 / np.sum(weights**2))
    return float(np.clip(product / square * effective / (effective + _PRIOR_HOLD_OUTS), 0.0, 1.0))


def error_growth(
    residuals_P: np.ndarray, hold_outs: Sequence[tuple[np.ndarray, np.ndarray]], num_fitted: int = 0
) -> ErrorGrowth:
    """Return the error growth that hold-outs show.

    The scales maximize the likelihood of the errors, whose variance is the sum of the variances of noise and growth.

    Args:
        residuals_P: Residuals of log loss of the fitted runs.
        hold_outs: Decades beyond the fitted runs, and errors of log loss, of the runs of each hold-out; the hold-out
            with the fewest budget levels comes first.
        num_fitted: Number of parameters that were fitted (K). A fit by absolute errors passes through about K runs, so
            the K smallest residuals say nothing of the noise.
    """
    sizes_P = np.sort(np.abs(residuals_P))[min(num_fitted, len(residuals_P) - 1) :]
    noise = max(1.4826 * float(np.median(sizes_P)), _LEAST_NOISE)
    usual = max(_USUAL_GROWTH, noise)
    if not hold_outs:
        return ErrorGrowth(2 * noise, 2 * usual, _FEWEST_DEGREES, is_measured=False)
    weights_H = RECENCY ** np.arange(len(hold_outs))
    weights_H /= weights_H.sum()
    effective = float(1 / np.sum(weights_H**2))
    decades_P, errors_P = (np.concatenate([one[part] for one in hold_outs]) for part in (0, 1))
    weight_P = np.concatenate(
        [
            np.full(len(one[1]), effective * weight / len(one[1]))
            for one, weight in zip(hold_outs, weights_H, strict=True)
        ]
    )
    usual_log = np.log([noise, usual])

    def objective(log_scales: np.ndarray) -> float:
        variance_P = np.exp(2 * log_scales[0]) + np.exp(2 * log_scales[1]) * decades_P**2
        tail_P = (_TAILS + 1) / 2 * np.log1p(errors_P**2 / (_TAILS * variance_P))
        prior = _PRIOR_RUNS * 0.5 * float(np.sum(((log_scales - usual_log) / _PRIOR_SPREAD) ** 2))
        return float(weight_P @ (0.5 * np.log(variance_P) + tail_P)) + prior

    found = optimize.minimize(objective, usual_log, method="L-BFGS-B")
    degrees = min(max(effective + _ADDED_DEGREES, _FEWEST_DEGREES), _MOST_DEGREES)
    noise, per_decade = (float(scale) for scale in np.exp(found.x))
    return ErrorGrowth(noise, per_decade, degrees, is_measured=True)
