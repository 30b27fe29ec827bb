"""What a candidate will reach with more data than it has seen, from the losses of its short runs.

A law with four parameters goes through a handful of losses in many ways that part soon after, so the answer is the mean
of all that go through them within the noise, with their spread.
Names end in their axes:

    P  points, one a run      G  laws of the grid
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from typing import NamedTuple

import numpy as np

from embedlab.scaling.laws import Points, Rectified

NOISE = 0.01
"""By which losses differ from any law, as a share of them."""

_LAW = Rectified(one_model=True)
# Of data in units of the longest run: pre-training is worth from nothing to a hundred times as much.
_LOG_STARTS = (-20.0, *np.log(np.geomspace(1e-3, 1e2, 16)))
_EXPONENTS = np.linspace(0.05, 1.0, 20)


class Extrapolation(NamedTuple):
    """A loss that was not measured.

    Attributes:
        loss: expected.
        spread: standard deviation of its logarithm, over the laws that explain the losses.
    """

    loss: float
    spread: float


def extrapolated(
    tokens: Sequence[float], losses: Sequence[float], target: float, *, noise: float = NOISE
) -> Extrapolation:
    """The loss at an amount of data, by the rectified law (Lin et al. 2024, arXiv:2402.02314).

    L(D) = E + B / (D_0 + D^beta), with E and B of least squares for each of a grid of D_0 and beta. Each law of the
    grid weighs as much as the losses are likely under it: exp(-sum of squares / 2 noise^2).

    Args:
        tokens: D of the runs, rising.
        losses: of the runs, finite.
        target: D to say the loss of.
        noise: standard deviation of a loss, as a share of it.
    """
    unit = tokens[-1]
    basis_GP, at_target_G = _basis(tuple(amount / unit for amount in tokens), target / unit)
    loss_P = np.asarray(losses)
    # Relative residuals E x_P + B y_GP - 1, whose squares are least at the solution of two normal equations.
    x_P, y_GP = 1 / loss_P, basis_GP / loss_P
    xx, xy_G, yy_G = x_P @ x_P, y_GP @ x_P, (y_GP**2).sum(axis=1)
    x, y_G = x_P.sum(), y_GP.sum(axis=1)
    determinant_G = np.maximum(xx * yy_G - xy_G**2, 1e-12 * xx * yy_G)  # of one run only the sum is known
    constant_G = np.maximum((x * yy_G - y_G * xy_G) / determinant_G, 0.0)
    scale_G = np.maximum((y_G - xy_G * constant_G) / yy_G, 0.0)
    constant_G = np.where(scale_G > 0, constant_G, x / xx)
    squares_G = ((constant_G[:, None] * x_P + scale_G[:, None] * y_GP - 1) ** 2).sum(axis=1)
    weight_G = np.exp((squares_G.min() - squares_G) / (2 * noise**2))
    log_loss_G = np.log(constant_G + scale_G * at_target_G)
    mean = float(np.average(log_loss_G, weights=weight_G))
    spread = float(np.sqrt(np.average((log_loss_G - mean) ** 2, weights=weight_G)))
    return Extrapolation(float(np.exp(mean)), spread)


@lru_cache(maxsize=1024)  # candidates that have seen the same amounts have it in common
def _basis(amounts: tuple[float, ...], target: float) -> tuple[np.ndarray, np.ndarray]:
    log_tokens_P = np.log([*amounts, target])
    nothing_P = np.zeros_like(log_tokens_P)
    points = Points(nothing_P, log_tokens_P, nothing_P)
    grid = product(_LOG_STARTS, _EXPONENTS)
    all_GP = np.exp([_LAW.terms(np.array(shape_S), points).log_TP[1] for shape_S in grid])
    return all_GP[:, :-1], all_GP[:, -1]
