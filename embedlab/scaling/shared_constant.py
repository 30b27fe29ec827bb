"""Laws of several methods with one irreducible loss: what no method learns is a matter of the data.

Where few runs of each method come near it, they know it together better than each alone. Names end in their axes:

    M  methods      P  points of all methods      K  parameters of a law      J  parameters of all, E once
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from embedlab.errors import ConfigError
from embedlab.scaling.bootstrap import REPLICATE_TOLERANCE, Replicates, drawn_weights, spread_of
from embedlab.scaling.descent import least_huber
from embedlab.scaling.fitting import NO_NOISE, SAME_BASIN, Fit, LogResiduals, Runs, fit
from embedlab.scaling.method_laws import MethodLaw
from embedlab.scaling.validation import HELD_OUT, NUM_STARTS, Choice, HoldOut, errors_of, without_largest

_EXACT = 1e-15


def share_irreducible_loss(laws: Sequence[MethodLaw], *, num_replicates: int) -> list[MethodLaw]:
    """The same laws, fitted again with one E for all of them, drawn anew and judged by budgets held out of all.

    It is done where it is asked for, and never chosen: whether methods have an end in common is for the user to know.
    What it does to the hold-outs' error is in ``MethodLaw.choices``, where the law alone comes second.

    Args:
        laws: of the methods, each with Huber residuals of log loss.
        num_replicates: of the bootstrap; in each, every method's families are drawn by themselves.

    Raises:
        ConfigError: if a method has too few families to draw from.
    """
    runs_M = [law.runs for law in laws]
    joint = _Joint([law.fit for law in laws], runs_M)
    fits_M = joint.fit()
    drawn = zip(*(drawn_weights(runs, num_replicates, seed) for seed, runs in enumerate(runs_M)), strict=True)
    replicates_R = [joint.descent(fits_M, weights_M, REPLICATE_TOLERANCE) for weights_M in drawn]
    held_out = [found for number in HELD_OUT if (found := _hold_outs(laws, runs_M, number))]
    shared = []
    for number, (law, one, runs) in enumerate(zip(laws, fits_M, runs_M, strict=True)):
        of_method = tuple(found[number] for found in held_out)
        errors = tuple(found.root_mean_square for found in of_method)
        choice = Choice(one.law, of_method, float(np.mean(errors)) if errors else np.inf, shares_irreducible_loss=True)
        shared.append(
            replace(
                law,
                choices=(choice, *law.choices),
                replicates=Replicates(one, tuple(fits[number] for fits in replicates_R), spread_of(one, runs)),
                held_out_error=errors,
                held_out_families=tuple(found.num_families for found in of_method),
            )
        )
    return shared


def _hold_outs(laws: Sequence[MethodLaw], runs_M: Sequence[Runs], num_budgets: int) -> list[HoldOut] | None:
    """Of each method, without the largest budgets of all; None if what remains is too little for a law."""
    parts_M = [without_largest(runs, num_budgets) for runs in runs_M]
    rest_M, held_out_M = ([part[i] for part in parts_M if part is not None] for i in (0, 1))
    if len(rest_M) < len(laws):
        return None
    try:
        alone_M = [
            fit(law.fit.law, rest, huber_delta=law.fit.huber_delta, num_starts=NUM_STARTS)
            for law, rest in zip(laws, rest_M, strict=True)
        ]
    except ConfigError:
        return None
    fits_M = _Joint(alone_M, rest_M).fit()
    return [errors_of(one, held_out, num_budgets) for one, held_out in zip(fits_M, held_out_M, strict=True)]


class _Joint:
    """The fit of all laws at once; E is the first parameter of each."""

    def __init__(self, alone_M: Sequence[Fit], runs_M: Sequence[Runs]) -> None:
        for one in alone_M:
            if one.names[0] != "E" or one.huber_delta is None or not one.in_log:
                raise ConfigError(f"{type(one.law).__name__} cannot share E: it has none, or is fitted otherwise.")
        self._alone_M = alone_M
        self._runs_M = runs_M
        self._residuals_M = [LogResiduals(one.law, runs) for one, runs in zip(alone_M, runs_M, strict=True)]
        low, high = np.array([one.bounds[0] for one in alone_M]).T
        rest = [bounds for one in alone_M for bounds in one.bounds[1:]]
        self._bounds = [(float(low.max()), float(high.min())), *rest]

    def fit(self) -> list[Fit]:
        """From each method's own E in turn, the others' parameters made to suit it."""
        tried = []
        for first in self._alone_M:
            constant = float(np.clip(first.theta_K[0], *self._bounds[0]))
            suited_M = [
                fit(one.law, runs, huber_delta=one.huber_delta, starts=[one.theta_K], fixed={0: constant})
                for one, runs in zip(self._alone_M, self._runs_M, strict=True)
            ]
            tried.append(self.descent(suited_M, [np.ones(len(runs)) for runs in self._runs_M], _EXACT))
        objectives = [sum(one.objective for one in fits_M) for fits_M in tried]
        least = int(np.argmin(objectives))
        in_basin = sum(objective <= (1 + SAME_BASIN) * objectives[least] + NO_NOISE for objective in objectives)
        return [replace(one, num_starts=len(tried), num_in_basin=in_basin) for one in tried[least]]

    def descent(self, from_M: Sequence[Fit], weights_M: Sequence[np.ndarray], tolerance: float) -> list[Fit]:
        """From fits with one E to better ones."""
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
    """In the units of ``Fit.objective``."""
    slope_P = np.clip(residual_P, -delta, delta)
    return float(weights_P @ (slope_P * (residual_P - 0.5 * slope_P)))
