"""Uncertainty of fitted laws: intervals from a bootstrap over families of runs, and from profile likelihoods.

It is the Bayesian bootstrap (Rubin 1981): each replicate weights whole families with random weights, so runs that share
noise stay together. No run is ever left out, so a replicate of few runs determines a law as well as the runs do.
Intervals from few runs are too narrow by a factor that grows with K / P for P runs and K fitted parameters
(``spread_of``), so the distance of each replicate from the estimate is multiplied by this factor. Simulations in the
tests check the coverage of the intervals. Names of arrays end in their axes:

    R  bootstrap replicates      P  points, one per run      K  parameters
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.stats import chi2

from embedlab.errors import ConfigError
from embedlab.scaling.fitting import Fit, Runs, refit, refit_many

NUM_REPLICATES = 1000
REPLICATE_TOLERANCE = 1e-10
"""Relative change of the objective at which the fit of a replicate stops; replicates differ by far more."""


class Interval(NamedTuple):
    """An interval that contains a quantity with a stated probability.

    Attributes:
        low: Lower bound; may be infinite.
        high: Upper bound; may be infinite.
    """

    low: float
    high: float

    def __contains__(self, value: object) -> bool:
        return isinstance(value, int | float | np.floating) and bool(self.low <= value <= self.high)


@dataclass(frozen=True)
class Replicates:
    """A fit with its bootstrap replicates.

    Attributes:
        fit: Fit to all runs.
        fits_R: Fits to runs with random weights, one per replicate.
        spread: Factor that multiplies the distance of each replicate from the estimate before quantiles are computed.
        weights_P: Weight of each run in the fit to all runs; None if all runs weigh the same.
    """

    fit: Fit
    fits_R: tuple[Fit, ...]
    spread: float
    weights_P: np.ndarray | None = None

    def quantity(self, of: Callable[[Fit], np.ndarray | float]) -> tuple[np.ndarray, np.ndarray]:
        """Return the estimate of a quantity that a fit implies, and the values (R, ...) in the replicates.

        Args:
            of: Function that returns the quantity of a fit. The quantity should be on a scale without bounds, for
                example the logarithm of a loss, because ``spread`` moves the replicates away from the estimate.
        """
        estimate = np.asarray(of(self.fit), dtype=float)
        replicates_R = np.stack([np.asarray(of(one), dtype=float) for one in self.fits_R])
        return estimate, estimate + self.spread * (replicates_R - estimate)

    def interval(self, of: Callable[[Fit], float], level: float = 0.9) -> Interval:
        """Return the interval of a positive quantity; quantiles are computed from the logarithm of the quantity.

        Args:
            of: Function that returns the quantity of a fit.
            level: Probability that the interval contains the quantity.
        """
        _, replicates_R = self.quantity(lambda one: np.log(of(one)))
        low, high = np.exp(quantiles(replicates_R, level))
        return Interval(float(low), float(high))

    def parameter(self, name: str, level: float = 0.9) -> Interval:
        """Return the interval of a parameter of the law, in the units of the formula.

        Args:
            name: Name of the parameter, as in ``Fit.names``.
            level: Probability that the interval contains the parameter.
        """
        return self.interval(lambda one: one.parameters[name], level)

    def standard_error(self, of: Callable[[Fit], float]) -> float:
        """Return the standard deviation of a quantity over the replicates, without the factor ``spread``."""
        return float(np.std([of(one) for one in self.fits_R], ddof=1))


def quantiles(values_R: np.ndarray, level: float) -> np.ndarray:
    """Return the bounds (2, ...) of the central interval that contains a share of the values.

    Args:
        values_R: Values (R, ...), one per replicate.
        level: Share of the values between the bounds.
    """
    # Of R values, the others leave a share of about 1 / R too much outside.
    bounds: np.ndarray = np.quantile(values_R, [(1 - level) / 2, (1 + level) / 2], axis=0, method="weibull")
    return bounds


def bootstrap(
    estimate: Fit,
    runs: Runs,
    *,
    num_replicates: int = NUM_REPLICATES,
    seed: int = 0,
    weights_P: np.ndarray | None = None,
) -> Replicates:
    """Fit a law to runs whose families have random weights; each fit starts at the estimate.

    Args:
        estimate: Fit of the law to all runs.
        runs: Runs that the estimate was fitted to, with their families.
        num_replicates: Number of bootstrap replicates (R).
        seed: Seed of the random weights.
        weights_P: Weight of each run in the estimate; 1 by default.

    Raises:
        ConfigError: If there are fewer than 3 families.
    """
    random_RP = random_weights(runs, num_replicates, seed)
    fits = refit_many(
        estimate, runs, random_RP if weights_P is None else random_RP * weights_P, tolerance=REPLICATE_TOLERANCE
    )
    return Replicates(estimate, tuple(fits), spread_of(estimate, runs, weights_P), weights_P)


def random_weights(runs: Runs, num_replicates: int, seed: int) -> np.ndarray:
    """Return the weights (R, P) of the runs in each replicate: the same for all runs of a family, 1 in the mean.

    Args:
        runs: Runs with their families.
        num_replicates: Number of bootstrap replicates.
        seed: Seed of the random weights.

    Raises:
        ConfigError: If there are fewer than 3 families.
    """
    families, family_P = np.unique(
        np.arange(len(runs)) if runs.family_P is None else runs.family_P, return_inverse=True
    )
    if len(families) < 3:
        raise ConfigError(
            f"The {len(runs)} runs belong to {len(families)} families, and an interval needs at least 3 independent "
            "families. Add runs with another seed, size or learning rate."
        )
    shares_RF = np.random.default_rng(seed).dirichlet(np.ones(len(families)), num_replicates)
    return np.asarray(len(families) * shares_RF[:, family_P])


def spread_of(estimate: Fit, runs: Runs, weights_P: np.ndarray | None = None) -> float:
    """Return the factor by which an interval from P runs and K fitted parameters is too narrow.

    It is sqrt(P / (P - K)) for a fit by absolute errors and P / (P - K) for a fit by squares, whose residuals are
    smaller at runs with much influence (the corrections HC1 and HC3 of MacKinnon and White 1985); between them for a
    Huber loss, by the share of the residuals that it squares. Random weights of F families have a variance of
    (F - 1) / (F + 1), where drawing with replacement has (F - 1) / F, so sqrt((F + 1) / F) is a factor, too.

    Args:
        estimate: Fit of the law to all runs.
        runs: Runs that the law was fitted to.
        weights_P: Weight of each run in the fit, in which case P is the effective number of runs.
    """
    num_runs, num_fitted = _effective(runs, weights_P), len(estimate.theta_K)
    squared = 1.0
    if estimate.huber_delta is not None:
        # A fit by absolute errors passes through about K runs.
        within = int(np.sum(np.abs(estimate.residuals(runs)) <= estimate.huber_delta))
        squared = max(0, within - num_fitted) / max(1, len(runs) - num_fitted)
    num_families = len(runs) if runs.family_P is None else len(np.unique(runs.family_P))
    of_weights = ((num_families + 1) / num_families) ** 0.5
    return float(of_weights * (num_runs / max(1.0, num_runs - num_fitted)) ** (0.5 + 0.5 * squared))


def _effective(runs: Runs, weights_P: np.ndarray | None) -> float:
    """Return the effective number of runs (Kish 1965): the number of equally weighted runs that tell as much."""
    return float(len(runs)) if weights_P is None else float(weights_P.sum() ** 2 / np.sum(weights_P**2))


def profile_interval(
    estimate: Fit, runs: Runs, name: str, *, level: float = 0.9, weights_P: np.ndarray | None = None
) -> Interval:
    """Return the profile likelihood interval of a parameter, in the units of the formula.

    For each value of the parameter, all other parameters are fitted again. The interval contains the values at which
    the objective stays close to its minimum. Where the runs do not limit the parameter on one side, the bound is
    infinite; the lower bound of a parameter that is fitted as a logarithm is then 0.

    Args:
        estimate: Fit of the law to all runs.
        runs: Runs that the estimate was fitted to.
        name: Name of the parameter, as in ``Fit.names``.
        level: Probability that the interval contains the parameter.
        weights_P: Weight of each run in the estimate; 1 by default.
    """
    number = estimate.names.index(name)
    # Allowed rise of the objective: a chi-squared quantile with 1 degree of freedom, times the residual dispersion.
    total = len(runs) if weights_P is None else float(weights_P.sum())
    share = max(1.0, _effective(runs, weights_P) - len(estimate.theta_K)) / _effective(runs, weights_P)
    dispersion = 2 * estimate.objective / (total * share)
    allowed = 0.5 * float(chi2.ppf(level, 1)) * dispersion

    def excess(value: float) -> float:
        start_K = estimate.theta_K.copy()
        start_K[number] = value
        fixed = refit(estimate, runs, weights_P=weights_P, start_K=start_K, fixed={number: value})
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


_WEAK = 10.0  # upper bound of an interval divided by lower bound, above which the runs hardly determine a parameter


def weakly_identified(replicates: Replicates, runs: Runs) -> dict[str, Interval]:
    """Return the parameters that the runs hardly determine, with their 90 % profile likelihood intervals.

    A profile takes many fits, so it is computed only for parameters that ended at a bound or vary much between
    replicates.

    Args:
        replicates: Fit of the law to all runs, with bootstrap replicates.
        runs: Runs that the law was fitted to.
    """
    found = {}
    for name in replicates.fit.names:
        low, high = replicates.parameter(name)
        if name in replicates.fit.at_bound or high > _WEAK * low:
            found[name] = profile_interval(replicates.fit, runs, name, weights_P=replicates.weights_P)
    return {name: profile for name, profile in found.items() if not profile.high < _WEAK * profile.low}
