"""Numerical minimization of residuals, which fits a law to runs.

Names of arrays end in their axes: P points, one per run; K parameters; R problems that share the residuals but not the
weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import optimize

_FLATTEST = 1e-12  # minimum curvature of a direction, as a share of the maximum curvature
_MOST_STEPS = 200  # of a descent of many problems
_LONGEST = 0.5  # change of a parameter in a step; parameters are logarithms and exponents
_DAMPING = 4.0  # factor by which the damping falls after a step down, and rises after a step that is not taken

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
        value_P, slope_P = _huber(residual_P, delta)
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


def least_huber_of_many(
    residuals: Residuals,
    start_K: np.ndarray,
    weights_RP: np.ndarray,
    bounds: list[tuple[float, float]],
    tolerance: float,
    delta: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Minimize many weighted sums of Huber losses of the same residuals at once, from one starting point.

    Each step solves a linear system for each problem. Its matrix has the curvature of the residuals below ``delta``,
    and a share of the curvature of iteratively reweighted least squares of the others: with the whole share each step
    is short but goes down, and with none it is Newton's, which ends at the minimum. The share adapts as the damping of
    Levenberg and Marquardt does. A parameter at a bound beyond which the sum would fall is held (Bertsekas 1982,
    projected Newton methods).

    Args:
        residuals: Residuals (R, P) and their derivatives (K, R, P), as a function of the parameters (K, R).
        start_K: Starting values of the parameters of all problems, near the minima.
        weights_RP: Weight of each residual in each sum.
        bounds: Lower and upper bound of each parameter.
        tolerance: Expected relative change of a sum at which its descent stops.
        delta: Absolute residual above which the Huber loss is linear; infinite for half the sum of squares.

    Returns:
        Parameters at the end (R, K), sums of Huber losses there (R,), and whether a descent came to a minimum (R,).
    """
    num_problems = len(weights_RP)
    low_K, high_K = np.array(bounds).T
    theta_RK = np.repeat(np.clip(start_K, low_K, high_K)[None], num_problems, axis=0)
    is_found_R = np.zeros(num_problems, dtype=bool)
    active_R = np.arange(num_problems)
    damping_R = np.ones(num_problems)
    with np.errstate(all="ignore"):
        residual_RP, jacobian_KRP = residuals(theta_RK.T)
        value_R = (weights_RP * _huber(residual_RP, delta)[0]).sum(axis=1)
        for _ in range(_MOST_STEPS):
            here_RK, of_active_RP = theta_RK[active_R], weights_RP[active_R]
            gradient_RK = np.einsum("krp,rp->rk", jacobian_KRP, of_active_RP * _huber(residual_RP, delta)[1])
            is_held_RK = np.where(gradient_RK > 0, here_RK <= low_K, here_RK >= high_K)
            gradient_RK[is_held_RK] = 0.0
            curvature_RP = of_active_RP * _curvature(residual_RP, delta, damping_R)
            step_RK = _newton_step(gradient_RK, jacobian_KRP.transpose(1, 0, 2), curvature_RP, is_held_RK)
            target_RK = np.clip(here_RK + step_RK, low_K, high_K)
            step_RK = target_RK - here_RK
            expected_R = -(gradient_RK * step_RK).sum(axis=1)
            is_over_R = (damping_R <= 1) & (expected_R <= tolerance * value_R[active_R])
            is_found_R[active_R[is_over_R]] = True
            goes_on_R = ~is_over_R & np.isfinite(step_RK).all(axis=1)
            active_R, damping_R, trial_RK = active_R[goes_on_R], damping_R[goes_on_R], target_RK[goes_on_R]
            residual_RP, jacobian_KRP = residual_RP[goes_on_R], jacobian_KRP[:, goes_on_R]
            if not len(active_R):
                break
            residual, jacobian = residuals(trial_RK.T)
            value = (weights_RP[active_R] * _huber(residual, delta)[0]).sum(axis=1)
            is_down_R = value < value_R[active_R]
            down_R = active_R[is_down_R]
            theta_RK[down_R], value_R[down_R] = trial_RK[is_down_R], value[is_down_R]
            residual_RP = np.where(is_down_R[:, None], residual, residual_RP)
            jacobian_KRP = np.where(is_down_R[:, None], jacobian, jacobian_KRP)
            damping_R = np.where(is_down_R, damping_R / _DAMPING, damping_R * _DAMPING)
    return theta_RK, value_R, is_found_R


def _huber(residual: np.ndarray, delta: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the Huber loss of each residual, and its derivative."""
    slope = np.clip(residual, -delta, delta)
    return slope * (residual - 0.5 * slope), slope


def _curvature(residual_RP: np.ndarray, delta: float, damping_R: np.ndarray) -> np.ndarray:
    """Return the curvature of each residual's loss in the matrix of a step (R, P).

    It is 1 below ``delta``. Beyond, where that of the Huber loss is 0, it is a share of the curvature of iteratively
    reweighted least squares: ``damping_R``, up to 1. A damping above 1 raises all curvatures, for shorter steps.
    """
    size_RP = np.abs(residual_RP)
    share_RP = np.where(size_RP <= delta, 1.0, np.minimum(damping_R, 1.0)[:, None] * delta / size_RP)
    return np.asarray(share_RP * np.maximum(damping_R, 1.0)[:, None])


def _newton_step(
    gradient_RK: np.ndarray, jacobian_RKP: np.ndarray, curvature_RP: np.ndarray, is_held_RK: np.ndarray
) -> np.ndarray:
    """Return the step of each problem (R, K), which is 0 for held parameters and nowhere longer than ``_LONGEST``."""
    matrix_RKK = (jacobian_RKP * curvature_RP[:, None]) @ jacobian_RKP.transpose(0, 2, 1)
    matrix_RKK[is_held_RK[:, :, None] | is_held_RK[:, None, :]] = 0.0
    diagonal_RK = np.einsum("rkk->rk", matrix_RKK)
    diagonal_RK += _FLATTEST * diagonal_RK.max(axis=1, keepdims=True) + 1e-300
    step_RK = -np.linalg.solve(matrix_RKK, gradient_RK[..., None])[..., 0]
    return np.asarray(step_RK * np.minimum(1.0, _LONGEST / np.abs(step_RK).max(axis=1, keepdims=True)))


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
