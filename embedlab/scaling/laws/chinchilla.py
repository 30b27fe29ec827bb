"""The usual law of pre-training: a constant plus a power term in model size and a power term in data."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from embedlab.scaling.laws.law import IRREDUCIBLE, Law, LawShape, Points, Terms, exponent


class Chinchilla(Law):
    """The law E + A / N^alpha + B / D^beta (Hoffmann et al. 2022, arXiv:2203.15556, approach 3).

    Args:
        tied: Use one exponent for N and D, as Gadre et al. 2024 (arXiv:2403.08540) do for over-trained models. The
            law of Gadre et al., E + (a M^eta + b M^-eta) C^-eta with M = D / N and C = 6 N D, is the tied law with
            alpha = beta = 2 eta.
    """

    def __init__(self, *, tied: bool = False) -> None:
        self.tied = tied

    @property
    def coefficients(self) -> tuple[str, ...]:
        return (IRREDUCIBLE, "A", "B")

    @property
    def shapes(self) -> tuple[LawShape, ...]:
        return (exponent("alpha"),) if self.tied else (exponent("alpha"), exponent("beta"))

    def terms(self, shape_S: np.ndarray, points: Points) -> Terms:
        n_P, d_P = points.log_parameters_P, points.log_tokens_P
        zero_P = np.zeros_like(n_P)
        log_TP = np.stack([zero_P, -shape_S[0] * n_P, -shape_S[-1] * d_P])
        if self.tied:
            by_shape_TSP = np.stack([[zero_P], [-n_P], [-d_P]])
        else:
            by_shape_TSP = np.stack([[zero_P, zero_P], [-n_P, zero_P], [zero_P, -d_P]])
        return Terms(log_TP, by_shape_TSP, np.stack([zero_P, zero_P, zero_P - shape_S[-1]]))

    def uncentered(
        self, coefficients: Mapping[str, float], shapes: Mapping[str, float], center_N: float, center_D: float
    ) -> dict[str, float]:
        alpha = shapes["alpha"]
        beta = shapes.get("beta", alpha)
        a, b = coefficients["A"] * np.exp(alpha * center_N), coefficients["B"] * np.exp(beta * center_D)
        return {IRREDUCIBLE: coefficients[IRREDUCIBLE], "A": a, "B": b, **shapes}
