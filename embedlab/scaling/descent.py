"""Descents to the parameters at which residuals are least: the numerical work of fitting a law.

Names end in their axes: P points, one a run; K parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import optimize

_FLATTEST = 1e-12

Residuals = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Of parameters: the residual of each run, and their gradients."""


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
    """The parameters with the least sum of Huber losses that a descent from a start finds, and that sum.

    Args:
        residuals: to be small.
        start_K: where the descent begins.
        weights_P: of the residuals.
        bounds: of the parameters.
        tolerance: relative change of the sum at which it ends.
        delta: of the Huber loss.
        near: whether the start is near the end, so that the curvature there is a guide to a shorter way.
    """

    def objective(theta_K: np.ndarray) -> tuple[float, np.ndarray]:  # in units of delta
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
    """A root of the inverse of a symmetric matrix; nearly flat directions are not stretched without end."""
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
    """The same for half the sum of squares, which has a faster method."""
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
        theta_K, least = descent(start_K, method="lm")  # knows no bounds, and is several times faster
    if np.isfinite(least) and ((low_K <= theta_K) & (theta_K <= high_K)).all():
        return theta_K, least
    return descent(start_K, bounds=(low_K, high_K))
