"""Extrapolation of learning curves: predicts a loss with more data from the losses of a candidate's shorter runs.

Many curves of a law with four parameters fit a handful of losses, but differ widely for larger amounts of data. The
prediction is therefore a mean over all curves that fit within the noise, and the spread of the curves is the
uncertainty of the prediction. Names of arrays end in their axes:

    P  points, one per run      G  laws on the grid
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from typing import NamedTuple

import numpy as np

from embedlab.scaling.laws import Points, Rectified

NOISE = 0.01
"""Standard deviation of measured losses around a law, as a share of the loss."""

_LAW = Rectified(one_model=True)
# Logarithms of D_0 on the grid, with data in units of the longest run: D_0 is from about 0 to 100.
_LOG_STARTS = (-20.0, *np.log(np.geomspace(1e-3, 1e2, 16)))
_EXPONENTS = np.linspace(0.05, 1.0, 20)


class Extrapolation(NamedTuple):
    """The predicted loss of a run that was not made.

    Attributes:
        loss: Predicted loss.
        spread: Standard deviation of the logarithm of the predicted loss, over the laws on the grid as weighted.
    """

    loss: float
    spread: float


def extrapolated(
    tokens: Sequence[float], losses: Sequence[float], target: float, *, noise: float = NOISE
) -> Extrapolation:
    """Predict the loss at an amount of data with the rectified law (Lin et al. 2024, arXiv:2402.02314).

    The law is L(D) = E + B / (D_0 + D^beta). For each pair of D_0 and beta on a grid, E and B are fitted by least
    squares of relative residuals. Each law is weighted by its likelihood, exp(-sum of squares / (2 noise^2)).

    Args:
        tokens: Number of tokens of each run (D), in increasing order.
        losses: Loss of each run; all losses are finite.
        target: Number of tokens to predict the loss for.
        noise: Standard deviation of a loss, as a share of the loss.
    """
    unit = tokens[-1]
    basis_GP, at_target_G = _basis(tuple(amount / unit for amount in tokens), target / unit)
    loss_P = np.asarray(losses)
    # Relative residuals E x_P + B y_GP - 1, whose squares are least at the solution of two normal equations.
    x_P, y_GP = 1 / loss_P, basis_GP / loss_P
    xx, xy_G, yy_G = x_P @ x_P, y_GP @ x_P, (y_GP**2).sum(axis=1)
    x, y_G = x_P.sum(), y_GP.sum(axis=1)
    determinant_G = np.maximum(xx * yy_G - xy_G**2, 1e-12 * xx * yy_G)  # with one run, the system is singular
    constant_G = np.maximum((x * yy_G - y_G * xy_G) / determinant_G, 0.0)
    scale_G = np.maximum((y_G - xy_G * constant_G) / yy_G, 0.0)
    constant_G = np.where(scale_G > 0, constant_G, x / xx)
    squares_G = ((constant_G[:, None] * x_P + scale_G[:, None] * y_GP - 1) ** 2).sum(axis=1)
    weight_G = np.exp((squares_G.min() - squares_G) / (2 * noise**2))
    log_loss_G = np.log(constant_G + scale_G * at_target_G)
    mean = float(np.average(log_loss_G, weights=weight_G))
    spread = float(np.sqrt(np.average((log_loss_G - mean) ** 2, weights=weight_G)))
    return Extrapolation(float(np.exp(mean)), spread)


@lru_cache(maxsize=1024)  # candidates with the same amounts of data share a basis
def _basis(amounts: tuple[float, ...], target: float) -> tuple[np.ndarray, np.ndarray]:
    log_tokens_P = np.log([*amounts, target])
    nothing_P = np.zeros_like(log_tokens_P)
    points = Points(nothing_P, log_tokens_P, nothing_P)
    grid = product(_LOG_STARTS, _EXPONENTS)
    all_GP = np.exp([_LAW.terms(np.array(shape_S), points).log_TP[1] for shape_S in grid])
    return all_GP[:, :-1], all_GP[:, -1]
