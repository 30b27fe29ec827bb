"""A correction of other laws for training data that are repeated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from embedlab.scaling.laws.law import Law, LawShape, Points, Terms


class Repeated(Law):
    """A law in which repeated tokens count less than new tokens (Muennighoff et al. 2023, arXiv:2305.16264, eq. 5).

    D tokens, of which U are unique, count as U + U R (1 - exp(-(D / U - 1) / R)) tokens. Much beyond R repetitions,
    more epochs improve nothing.

    Args:
        law: Law that gives the loss for the number of tokens after this correction.
    """

    def __init__(self, law: Law) -> None:
        self.law = law

    @property
    def name(self) -> str:
        return f"{self.law.name}, repeated"

    @property
    def coefficients(self) -> tuple[str, ...]:
        return self.law.coefficients

    @property
    def shapes(self) -> tuple[LawShape, ...]:
        return (*self.law.shapes, LawShape("R", np.log(0.1), np.log(1e4), (np.log(4.0), np.log(15.0)), is_log=True))

    def terms(self, shape_S: np.ndarray, points: Points) -> Terms:
        epochs = np.exp(shape_S[-1])
        repeats_P = np.expm1(points.log_epochs_P)
        decay_P = np.exp(-repeats_P / epochs)
        worth_P = 1 + epochs * (1 - decay_P)  # effective tokens, in units of the unique tokens
        tokens_P = points.log_tokens_P - points.log_epochs_P + np.log(worth_P)
        inner = self.law.terms(shape_S[:-1], replace(points, log_tokens_P=tokens_P))
        by_epochs_P = (epochs * (1 - decay_P) - repeats_P * decay_P) / worth_P
        by_tokens_P = (1 + repeats_P) * decay_P / worth_P
        by_shape_TSP = np.concatenate([inner.by_shape_TSP, (inner.by_tokens_TP * by_epochs_P)[:, None]], axis=1)
        return Terms(inner.log_TP, by_shape_TSP, inner.by_tokens_TP * by_tokens_P)

    def uncentered(
        self, coefficients: Mapping[str, float], shapes: Mapping[str, float], center_N: float, center_D: float
    ) -> dict[str, float]:
        inner = {name: value for name, value in shapes.items() if name != "R"}
        return {**self.law.uncentered(coefficients, inner, center_N, center_D), "R": shapes["R"]}
