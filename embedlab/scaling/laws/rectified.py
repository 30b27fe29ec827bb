"""A law of fine-tuning in which pre-training counts as data that were seen earlier."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from embedlab.scaling.laws.law import IRREDUCIBLE, Law, LawShape, Points, Terms, exponent


class Rectified(Law):
    """The rectified law E + A / N^alpha + B / (D_0 + D^beta), in which pre-training counts as data seen earlier.

    D_0 expresses how much data pre-training is worth. Lin et al. 2024 (arXiv:2402.02314) propose the law for one
    model, without the term in N; the term in N is added here.

    Args:
        one_model: Leave out the term in N, for runs of a single backbone.
    """

    def __init__(self, *, one_model: bool = False) -> None:
        self.one_model = one_model

    @property
    def coefficients(self) -> tuple[str, ...]:
        return (IRREDUCIBLE, "B") if self.one_model else (IRREDUCIBLE, "A", "B")

    @property
    def shapes(self) -> tuple[LawShape, ...]:
        # In the units of the fit, D is near 1, so the bounds let D_0 range from nothing to far more than all data.
        start = LawShape("D_0", -20.0, 20.0, (-3.0, 0.0, 3.0), is_log=True)
        of_tokens = (start, exponent("beta"))
        return of_tokens if self.one_model else (exponent("alpha"), *of_tokens)

    def terms(self, shape_S: np.ndarray, points: Points) -> Terms:
        n_P, d_P = points.log_parameters_P, points.log_tokens_P
        zero_P = np.zeros_like(n_P)
        log_start, beta = shape_S[-2:]
        log_data_P = np.logaddexp(log_start, beta * d_P)
        of_start_P = np.exp(log_start - log_data_P)
        of_data_P = 1 - of_start_P
        by_beta_P = -of_data_P * d_P
        if self.one_model:
            log_TP = np.stack([zero_P, -log_data_P])
            by_shape_TSP = np.stack([[zero_P, zero_P], [-of_start_P, by_beta_P]])
            return Terms(log_TP, by_shape_TSP, np.stack([zero_P, -beta * of_data_P]))
        log_TP = np.stack([zero_P, -shape_S[0] * n_P, -log_data_P])
        nothing = [zero_P, zero_P, zero_P]
        by_shape_TSP = np.stack([nothing, [-n_P, zero_P, zero_P], [zero_P, -of_start_P, by_beta_P]])
        return Terms(log_TP, by_shape_TSP, np.stack([zero_P, zero_P, -beta * of_data_P]))

    def uncentered(
        self, coefficients: Mapping[str, float], shapes: Mapping[str, float], center_N: float, center_D: float
    ) -> dict[str, float]:
        scale = np.exp(shapes["beta"] * center_D)
        found = {IRREDUCIBLE: coefficients[IRREDUCIBLE]}
        if not self.one_model:
            found["A"] = coefficients["A"] * np.exp(shapes["alpha"] * center_N)
        return {**found, "B": coefficients["B"] * scale, **shapes, "D_0": shapes["D_0"] * scale}
