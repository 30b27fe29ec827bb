"""Numerical minimization of residuals, which fits a law to runs.

Names of arrays end in their axes: P points, one per run; K parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import optimize

_FLATTEST = 1e-12  # minimum curvature of a direction, as a share of the maximum curvature

Residuals = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Function of the parameters (K,) that returns the residuals (P,) and their derivatives by parameter (K, P)."""


def least_huber(
    residuals: Residuals,
    start_K: np.ndarray,
    weights_P: np.ndarray,
    bounds: list[tuple[float, float]],
    tolerance: float,
    delta: float,
    *,
    near: bool = False,
) -> tuple[np.ndarray, float]:
    """Minimize the weighted sum of Huber losses of residuals with L-BFGS-B, from one starting point.

    Args:
        residuals: Residuals and their derivatives as a function of the parameters.
        start_K: Starting values of the parameters.
        weights_P: Weight of each residual in the sum.
        bounds: Lower and upper bound of each parameter.
        tolerance: Relative change of the sum at which the descent stops.
        delta: Absolute residual above which the Huber loss is linear.
        near: Whether the start is near the minimum. The curvature at the start then rescales the parameters, which
            shortens the descent. If this descent leaves the bounds, an ordinary descent replaces it.

    Returns:
        The parameters at the minimum that the descent found, and the sum of Huber losses there.
    """

    def objective(theta_K: np.ndarray) -> tuple[float, np.ndarray]:  # divided by delta
        residual_P, jacobian_KP = residuals(theta_K)
        slope_P = np.clip(residual_P, -delta, delta)
        value_P = slope_P * (residual_P - 0.5 * slope_P)
        return float(weights_P @ value_P) / delta, jacobian_KP @ (weights_P * slope_P) / delta

    options = {"maxiter": 5000, "maxfun": 20000, "ftol": tolerance, "gtol": 1e-10}
    if near:
        low_K, high_K = np.array(bounds).T
        residual_P, jacobian_KP = residuals(start_K)
        curvature_P = weights_P / np.maximum(np.abs(residual_P), delta)
        units_KK = _inverse_root((jacobian_KP * curvature_P) @ jacobian_KP.T)

        def in_units(step_K: np.ndarray) -> tuple[float, np.ndarray]:
            value, gradient_K = objective(start_K + units_KK @ step_K)
            return value, units_KK.T @ gradient_K

        with np.errstate(all="ignore"):
            end = optimize.minimize(in_units, np.zeros_like(start_K), jac=True, method="L-BFGS-B", options=options)
        theta_K = start_K + units_KK @ end.x
        if np.isfinite(end.fun) and ((low_K <= theta_K) & (theta_K <= high_K)).all():
            return theta_K, float(end.fun) * delta
    end = optimize.minimize(objective, start_K, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    return end.x, float(end.fun) * delta


def _inverse_root(matrix_KK: np.ndarray) -> np.ndarray:
    """Return a square root of the inverse of a symmetric matrix (K, K), with the stretch of flat directions limited."""
    values_K, vectors_KK = np.linalg.eigh(matrix_KK)
    floor = max(float(values_K[-1]), 1e-300) * _FLATTEST
    return np.asarray(vectors_KK / np.sqrt(np.maximum(values_K, floor)))


def least_squares(
    residuals: Residuals,
    start_K: np.ndarray,
    weights_P: np.ndarray,
    bounds: list[tuple[float, float]],
    tolerance: float,
) -> tuple[np.ndarray, float]:
    """Minimize half the weighted sum of squared residuals, from one starting point.

    Levenberg-Marquardt is tried first. It is several times faster but ignores bounds, so a descent within the bounds
    follows if the minimum lies outside.

    Args:
        residuals: Residuals and their derivatives as a function of the parameters.
        start_K: Starting values of the parameters.
        weights_P: Weight of each squared residual in the sum.
        bounds: Lower and upper bound of each parameter.
        tolerance: Value of ``ftol``, ``xtol`` and ``gtol`` of ``scipy.optimize.least_squares``.

    Returns:
        The parameters at the minimum that the descent found, and half the weighted sum of squares there.
    """
    roots_P = np.sqrt(weights_P)
    low_K, high_K = np.array(bounds).T

    def descent(start_K: np.ndarray, **options: Any) -> tuple[np.ndarray, float]:
        end = optimize.least_squares(
            lambda theta_K: roots_P * residuals(theta_K)[0],
            start_K,
            jac=lambda theta_K: (roots_P * residuals(theta_K)[1]).T,
            x_scale="jac",
            ftol=tolerance,
            xtol=tolerance,
            gtol=tolerance,
            max_nfev=2000,
            **options,
        )
        return end.x, float(end.cost)

    start_K = np.clip(start_K, low_K, high_K)
    with np.errstate(over="ignore", invalid="ignore"):
        theta_K, least = descent(start_K, method="lm")
    if np.isfinite(least) and ((low_K <= theta_K) & (theta_K <= high_K)).all():
        return theta_K, least
    return descent(start_K, bounds=(low_K, high_K))
