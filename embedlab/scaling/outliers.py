"""Single runs that are far from all others, for example because they diverged late or were written down wrongly.

No law is fitted to such runs, and they say nothing about the errors of laws. A law that does not hold far from the best
size, a backbone that is better or worse than its size, or a budget with other settings make no outliers: a run is one
only if it is also far from the other runs of its backbone and of its budget level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from embedlab.errors import ConfigError
from embedlab.scaling.fitting import Runs, fit
from embedlab.scaling.laws import Law
from embedlab.scaling.observations import Observation

_FAR = 10.0  # robust standard deviations of the residuals
_LEAST = 0.25  # of log loss, so that a law that hardly misses anything makes no outliers of ordinary runs
_FEWEST_OTHERS = 2  # runs of a backbone or level, to which a run is compared
_MOST = 0.25  # outliers per degree of freedom of the fit: more are no single bad runs, but a law that does not hold
_LEAST_SPREAD = 1e-6
_NUM_STARTS = 4


@dataclass(frozen=True)
class Outlier:
    """A run that is left out of the law of its method, because its loss is far from those of the other runs.

    Attributes:
        name: Name of the run.
        deviation: Measured loss over the loss that the other runs suggest, minus 1.
        spreads: Distance of the log losses in robust standard deviations of the other runs.
    """

    name: str
    deviation: float
    spreads: float

    @property
    def words(self) -> str:
        """The run and how far off it is, for a list."""
        side = "above" if self.deviation > 0 else "below"
        return (
            f"{self.name} ({abs(self.deviation):.0%} {side} the law of the other runs, {self.spreads:.3g} times their "
            "spread)"
        )


def outliers_of(law: Law, observations: Sequence[Observation], runs: Runs, huber_delta: float | None) -> list[Outlier]:
    """Return the runs that are far from all others.

    Args:
        law: Formula that the runs follow about.
        observations: Runs of one method.
        runs: The same runs as arrays.
        huber_delta: Absolute residual of log loss above which the Huber loss is linear; None for least squares, in
            which case no run is an outlier, since every residual counts.
    """
    if huber_delta is None:
        return []
    try:
        found = fit(law, runs, huber_delta=huber_delta, num_starts=_NUM_STARTS)
    except ConfigError:  # which is raised again where the law is fitted for good
        return []
    residual_P = -found.residuals(runs)
    spread = max(1.4826 * float(np.median(np.abs(residual_P))), _LEAST_SPREAD)
    far = max(_FAR * spread, _LEAST)
    is_far_P = np.abs(residual_P) > far
    for groups in (runs.budget_P, runs.backbones):
        if groups is not None:
            is_far_P &= _are_far_from_others(residual_P, np.asarray(groups), far)
    if is_far_P.sum() > _MOST * (len(runs) - len(found.theta_K)):
        return []
    return [
        Outlier(observations[place].name, float(np.expm1(residual_P[place])), abs(float(residual_P[place])) / spread)
        for place in np.flatnonzero(is_far_P).tolist()
    ]


def _are_far_from_others(residual_P: np.ndarray, groups_P: np.ndarray, far: float) -> np.ndarray:
    """Return whether each run is far from the median of the other runs of its group, or has too few of them: (P,)."""
    are_far_P = np.ones(len(residual_P), dtype=bool)
    for group in np.unique(groups_P[np.abs(residual_P) > far]):
        its = np.flatnonzero(groups_P == group)
        for place in its[np.abs(residual_P[its]) > far]:
            others = residual_P[its[its != place]]
            if len(others) >= _FEWEST_OTHERS:
                are_far_P[place] = abs(residual_P[place] - np.median(others)) > far
    return are_far_P
