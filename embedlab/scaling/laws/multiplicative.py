"""A law of fine-tuning in which model size and data enter as one product."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from embedlab.scaling.laws.law import IRREDUCIBLE, Law, LawShape, Points, Terms, exponent


class Multiplicative(Law):
    """The law E + A / (N^alpha D^beta), proposed for fine-tuning (Zhang et al. 2024, arXiv:2402.17193)."""

    @property
    def coefficients(self) -> tuple[str, ...]:
        return (IRREDUCIBLE, "A")

    @property
    def shapes(self) -> tuple[LawShape, ...]:
        return (exponent("alpha"), exponent("beta"))

    def terms(self, shape_S: np.ndarray, points: Points) -> Terms:
        n_P, d_P = points.log_parameters_P, points.log_tokens_P
        zero_P = np.zeros_like(n_P)
        log_TP = np.stack([zero_P, -shape_S[0] * n_P - shape_S[1] * d_P])
        by_shape_TSP = np.stack([[zero_P, zero_P], [-n_P, -d_P]])
        return Terms(log_TP, by_shape_TSP, np.stack([zero_P, zero_P - shape_S[1]]))

    def uncentered(
        self, coefficients: Mapping[str, float], shapes: Mapping[str, float], center_N: float, center_D: float
    ) -> dict[str, float]:
        scale = np.exp(shapes["alpha"] * center_N + shapes["beta"] * center_D)
        return {IRREDUCIBLE: coefficients[IRREDUCIBLE], "A": coefficients["A"] * scale, **shapes}
