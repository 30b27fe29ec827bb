"""How far a fitted law may be off: intervals from a bootstrap over families of runs, and from profiles.

Replicates weight whole families, as often as each was drawn, so that runs which share noise move together. Quantiles of
few runs are too narrow by about the root of P / (P - K), K being the parameters that the same runs have paid for:
replicates are spread by that factor about the estimate. Coverage is tested by simulation. Names end in their axes:

    R  replicates      P  points      B  budgets
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.stats import chi2

from embedlab.errors import ConfigError
from embedlab.scaling.fitting import Fit, Runs, fit

NUM_REPLICATES = 1000
REPLICATE_TOLERANCE = 1e-10
"""Relative, of a replicate's objective: far less than replicates differ by."""


class Interval(NamedTuple):
    """Between two bounds, with a stated probability; a bound may be infinite."""

    low: float
    high: float

    def __contains__(self, value: object) -> bool:
        return isinstance(value, int | float | np.floating) and bool(self.low <= value <= self.high)


@dataclass(frozen=True)
class Replicates:
    """A fit and what it might have been.

    Attributes:
        fit: to all runs.
        fits_R: to runs drawn anew.
        spread: by how much replicates are moved away from the estimate before quantiles are taken.
    """

    fit: Fit
    fits_R: tuple[Fit, ...]
    spread: float

    def quantity(self, of: Callable[[Fit], np.ndarray | float]) -> tuple[np.ndarray, np.ndarray]:
        """Something that a fit implies, best on a scale without bounds: its estimate, and (R, ...) what it might be."""
        estimate = np.asarray(of(self.fit), dtype=float)
        replicates_R = np.stack([np.asarray(of(one), dtype=float) for one in self.fits_R])
        return estimate, estimate + self.spread * (replicates_R - estimate)

    def interval(self, of: Callable[[Fit], float], level: float = 0.9) -> Interval:
        """That holds a positive quantity with a probability; its quantiles are taken of its logarithm."""
        _, replicates_R = self.quantity(lambda one: np.log(of(one)))
        low, high = np.exp(quantiles(replicates_R, level))
        return Interval(float(low), float(high))

    def parameter(self, name: str, level: float = 0.9) -> Interval:
        """Of the law's formula, in its units."""
        return self.interval(lambda one: one.parameters[name], level)

    def standard_error(self, of: Callable[[Fit], float]) -> float:
        """The standard deviation over replicates, which are not moved away from the estimate."""
        return float(np.std([of(one) for one in self.fits_R], ddof=1))


def quantiles(values_R: np.ndarray, level: float) -> np.ndarray:
    """The two between which lies a share of the values, as much of the rest below as above."""
    bounds: np.ndarray = np.quantile(values_R, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return bounds


def bootstrap(estimate: Fit, runs: Runs, *, num_replicates: int = NUM_REPLICATES, seed: int = 0) -> Replicates:
    """Fits to families of runs drawn with replacement, each begun at the estimate.

    Args:
        estimate: to the same runs.
        runs: with their families.
        num_replicates: R.
        seed: of the draws.

    Raises:
        ConfigError: if there are too few families to draw from.
    """
    found: dict[bytes, Fit] = {}  # with few families many draws are the same
    draws = list(drawn_weights(runs, num_replicates, seed))
    for weights_P in draws:
        if weights_P.tobytes() not in found:
            found[weights_P.tobytes()] = fit(
                estimate.law,
                runs,
                huber_delta=estimate.huber_delta,
                in_log=estimate.in_log,
                weights_P=weights_P,
                starts=[estimate.theta_K],
                tolerance=REPLICATE_TOLERANCE,
            )
    fits = tuple(found[weights_P.tobytes()] for weights_P in draws)
    return Replicates(estimate, fits, spread_of(estimate, runs))


def drawn_weights(runs: Runs, num_replicates: int, seed: int) -> Iterator[np.ndarray]:
    """(P,) for each replicate: how often the family of each run was drawn.

    Raises:
        ConfigError: if there are too few families to draw from.
    """
    families, family_P = np.unique(
        np.arange(len(runs)) if runs.family_P is None else runs.family_P, return_inverse=True
    )
    if len(families) < 3:
        raise ConfigError(
            f"The {len(runs)} runs are of {len(families)} families, and an interval needs at least 3 that are "
            "independent. Add runs with another seed, size or learning rate."
        )
    generator = np.random.default_rng(seed)
    for _ in range(num_replicates):
        drawn = generator.multinomial(len(families), np.full(len(families), 1 / len(families)))
        yield drawn[family_P].astype(float)


def spread_of(estimate: Fit, runs: Runs) -> float:
    """By what replicates are too near each other, for the parameters that the runs have paid for."""
    num_free = max(1, len(runs) - len(estimate.theta_K))
    return float(np.sqrt(len(runs) / num_free))


def profile_interval(estimate: Fit, runs: Runs, name: str, *, level: float = 0.9) -> Interval:
    """Values of a parameter at which the other parameters can still nearly make up for it (profile likelihood).

    A parameter whose interval has no bound on one side is not identified there by the runs.

    Args:
        estimate: to the same runs.
        runs: all of them.
        name: of the parameter, as in ``Fit.names``.
        level: the probability.
    """
    number = estimate.names.index(name)
    # The objective's rise that a chi-squared with one degree of freedom allows, in units of its residual dispersion.
    dispersion = 2 * estimate.objective / max(1, len(runs) - len(estimate.theta_K))
    allowed = 0.5 * float(chi2.ppf(level, 1)) * dispersion

    def excess(value: float) -> float:
        start_K = estimate.theta_K.copy()
        start_K[number] = value
        fixed = fit(
            estimate.law,
            runs,
            huber_delta=estimate.huber_delta,
            in_log=estimate.in_log,
            starts=[start_K],
            fixed={number: value},
        )
        return fixed.objective - estimate.objective - allowed

    def bound(limit: float) -> float:
        center, step = float(estimate.theta_K[number]), np.sign(limit - estimate.theta_K[number]) * 0.05
        inside = center
        while step:
            outside = center + step
            if abs(outside - center) >= abs(limit - center):
                return float(np.sign(step) * np.inf)
            if excess(outside) > 0:
                return float(brentq(excess, inside, outside, xtol=1e-4))
            inside, step = outside, 2 * step
        return center

    low, high = (bound(limit) for limit in estimate.bounds[number])
    return Interval(estimate.natural(number, low), estimate.natural(number, high))


_WEAK = 10.0  # times as large at one end of its interval as at the other


def weakly_identified(replicates: Replicates, runs: Runs) -> dict[str, Interval]:
    """The parameters that the runs hardly determine, with their profile intervals (90 %).

    Profiles take many fits, so only those are looked at that stand at a bound or differ much between replicates.
    """
    found = {}
    for name in replicates.fit.names:
        low, high = replicates.parameter(name)
        if name in replicates.fit.at_bound or high > _WEAK * low:
            found[name] = profile_interval(replicates.fit, runs, name)
    return {name: profile for name, profile in found.items() if not profile.high < _WEAK * profile.low}
