"""Laws of several methods that share one irreducible loss E, for methods whose losses end at the same value.

If few runs of each method come near E, all methods together determine E better than each method alone. Names of arrays
end in their axes:

    M  methods      R  bootstrap replicates      P  points of all methods, one per run
    K  parameters of one law      J  parameters of all laws, with E once
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from embedlab.errors import ConfigError
from embedlab.scaling.bootstrap import REPLICATE_TOLERANCE, Replicates, random_weights, spread_of
from embedlab.scaling.descent import least_huber
from embedlab.scaling.fitting import NO_NOISE, SAME_BASIN, Fit, LogResiduals, Runs, refit
from embedlab.scaling.members import FittedMember, Member, worths_of
from embedlab.scaling.method_laws import LawPart, MethodLaw, errors_of_mean, with_shared_errors
from embedlab.scaling.validation import HELD_OUT, NUM_STARTS, Choice, HoldOut, errors_of, without_largest

_EXACT = 1e-15


def share_irreducible_loss(laws: Sequence[MethodLaw], *, num_replicates: int) -> list[MethodLaw]:
    """Fit the laws of several methods again, with one irreducible loss E for all of them.

    Bootstrap replicates and errors on held-out budget levels are computed anew, too. A shared E is used only on
    request: the user has to know whether all methods approach the same loss. The effect on the held-out error can be
    read from ``MethodLaw.choices``: the first entry is the law with the shared E, the second is the law alone.

    Args:
        laws: Laws of the methods, each fitted with Huber residuals of log loss.
        num_replicates: Number of bootstrap replicates. In each replicate, every method has random weights of its own.

    Raises:
        ConfigError: If a method has too few families to draw from, or if a law cannot share E.
    """
    runs_M = [law.runs for law in laws]
    joint = _Joint([law.fit for law in laws], runs_M)
    fits_M = joint.fit()
    weights = zip(*(random_weights(runs, num_replicates, seed) for seed, runs in enumerate(runs_M)), strict=True)
    replicates_R = [joint.descent(fits_M, weights_M, REPLICATE_TOLERANCE) for weights_M in weights]
    held_out = [found for number in HELD_OUT if (found := _hold_outs(laws, runs_M, number))]
    shared = []
    for number, (law, one, runs) in enumerate(zip(laws, fits_M, runs_M, strict=True)):
        hold_outs = tuple(found[number] for found in held_out)
        error = float(np.mean(np.abs(np.concatenate([held.errors for held in hold_outs])))) if hold_outs else np.inf
        fitted = _with_worths(one, runs)
        choice = Choice(fitted.member, hold_outs, error, weight=1.0, shares_irreducible_loss=True)
        replicates = Replicates(one, tuple(fits[number] for fits in replicates_R), spread_of(one, runs))
        of_mean = errors_of_mean([fitted], [choice], runs)
        without = (replace(other, weight=0.0) for other in law.choices)
        shared.append(
            replace(
                law,
                choices=(choice, *without),
                parts=(LawPart(1.0, replicates, fitted.worths),),
                hold_outs=of_mean[0],
                growth=of_mean[1],
            )
        )
    return with_shared_errors(shared)


def _with_worths(found: Fit, runs: Runs) -> FittedMember:
    """Return a fitted law as a member with worths of the backbones, where the runs show any."""
    return FittedMember(Member(found.law, False, True), found, np.ones(len(runs)), worths_of(found, runs))


def _hold_outs(laws: Sequence[MethodLaw], runs_M: Sequence[Runs], num_budgets: int) -> list[HoldOut] | None:
    """Return the errors of each method on its largest budget levels, from joint fits to the other runs.

    Args:
        laws: Laws of the methods.
        runs_M: Runs of each method.
        num_budgets: Number of budget levels to hold out of each method.

    Returns:
        The hold-out of each method, or None if the remaining runs of a method are too few for its law.
    """
    parts_M = [without_largest(runs, num_budgets) for runs in runs_M]
    rest_M, held_out_M = ([part[i] for part in parts_M if part is not None] for i in (0, 1))
    if len(rest_M) < len(laws):
        return None
    try:
        alone_M = [refit(law.fit, rest, num_starts=NUM_STARTS) for law, rest in zip(laws, rest_M, strict=True)]
    except ConfigError:
        return None
    fits_M = _Joint(alone_M, rest_M).fit()
    return [
        errors_of(_with_worths(one, rest), rest, held_out, num_budgets)
        for one, rest, held_out in zip(fits_M, rest_M, held_out_M, strict=True)
    ]


class _Joint:
    """The joint fit of the laws of all methods with one E, which is the first parameter of each law.

    Args:
        alone_M: Fit of each law alone.
        runs_M: Runs of each method.

    Raises:
        ConfigError: If a law has no E, or was not fitted with Huber residuals of log loss.
    """

    def __init__(self, alone_M: Sequence[Fit], runs_M: Sequence[Runs]) -> None:
        for one in alone_M:
            if one.names[0] != "E" or one.huber_delta is None or not one.in_log:
                raise ConfigError(
                    f"{type(one.law).__name__} cannot share E. Expected a law with E that was fitted with Huber "
                    "residuals of log loss. Fit the laws without a shared E."
                )
        self._alone_M = alone_M
        self._runs_M = runs_M
        self._residuals_M = [LogResiduals(one.law, runs) for one, runs in zip(alone_M, runs_M, strict=True)]
        low, high = np.array([one.bounds[0] for one in alone_M]).T
        rest = [bounds for one in alone_M for bounds in one.bounds[1:]]
        self._bounds = [(float(low.max()), float(high.min())), *rest]

    def fit(self) -> list[Fit]:
        """Fit the laws jointly, starting from the E of each method in turn, and return the best fits.

        For each start, the other parameters of every law are first fitted to this E.
        """
        tried = []
        for first in self._alone_M:
            constant = float(np.clip(first.theta_K[0], *self._bounds[0]))
            suited_M = [
                refit(one, runs, fixed={0: constant}) for one, runs in zip(self._alone_M, self._runs_M, strict=True)
            ]
            tried.append(self.descent(suited_M, [np.ones(len(runs)) for runs in self._runs_M], _EXACT))
        objectives = [sum(one.objective for one in fits_M) for fits_M in tried]
        least = int(np.argmin(objectives))
        in_basin = sum(objective <= (1 + SAME_BASIN) * objectives[least] + NO_NOISE for objective in objectives)
        return [replace(one, num_starts=len(tried), num_in_basin=in_basin) for one in tried[least]]

    def descent(self, from_M: Sequence[Fit], weights_M: Sequence[np.ndarray], tolerance: float) -> list[Fit]:
        """Minimize the joint objective, starting from fits that have one E.

        Args:
            from_M: Fit of each law to start from.
            weights_M: Weights of the runs of each method, (P,) each.
            tolerance: Relative change of the objective at which the descent stops.
        """
        delta = self._alone_M[0].huber_delta
        assert delta is not None
        start_J = np.concatenate([from_M[0].theta_K[:1], *(one.theta_K[1:] for one in from_M)])
        theta_J, _ = least_huber(
            self._residuals, start_J, np.concatenate(weights_M), self._bounds, tolerance, delta, near=True
        )
        return [
            replace(one, theta_K=theta_K, objective=_objective(residuals(theta_K)[0], weights_P, delta))
            for one, theta_K, residuals, weights_P in zip(
                from_M, self._split(theta_J), self._residuals_M, weights_M, strict=True
            )
        ]

    def _split(self, theta_J: np.ndarray) -> list[np.ndarray]:
        ends = np.cumsum([len(one.theta_K) - 1 for one in self._alone_M])[:-1]
        return [np.concatenate([theta_J[:1], rest]) for rest in np.split(theta_J[1:], ends)]

    def _residuals(self, theta_J: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found_M = [of(theta_K) for of, theta_K in zip(self._residuals_M, self._split(theta_J), strict=True)]
        residual_P = np.concatenate([residual for residual, _ in found_M])
        jacobian_JP = np.zeros((len(theta_J), len(residual_P)))
        row, column = 1, 0
        for residual, jacobian_KP in found_M:
            rows, columns = len(jacobian_KP) - 1, len(residual)
            jacobian_JP[0, column : column + columns] = jacobian_KP[0]
            jacobian_JP[row : row + rows, column : column + columns] = jacobian_KP[1:]
            row, column = row + rows, column + columns
        return residual_P, jacobian_JP


def _objective(residual_P: np.ndarray, weights_P: np.ndarray, delta: float) -> float:
    """Return the weighted sum of Huber losses of residuals, in the units of ``Fit.objective``."""
    slope_P = np.clip(residual_P, -delta, delta)
    return float(weights_P @ (slope_P * (residual_P - 0.5 * slope_P)))
