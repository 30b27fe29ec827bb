"""A form of other laws for losses that cannot exceed the known loss of random guessing."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from embedlab.scaling.laws.law import Law, LawShape, Points, Terms, log_sum, split

_NEAR_CHANCE = 0.02  # least distance from the loss of a guess, as a share of it, at which coefficients are started


class Bounded(Law):
    """The law E + (L_0 - E) h / (1 + h), which lies between E and the loss L_0 of random guessing.

    h is the sum of the terms of another law, without its constant. Far below L_0 the law is the other law, with
    coefficients that are L_0 - E times as large; near L_0 it flattens, as losses do at the beginning of training.
    Alabdulmohsin et al. 2022 (arXiv:2209.06640) bound the errors of classifiers in a similar way.

    Args:
        law: Law with a constant as its first term.
        chance: The loss L_0 of random guessing, which is log of the number of candidates for a contrastive loss.
    """

    def __init__(self, law: Law, chance: float) -> None:
        self.law = law
        self.chance = chance

    @property
    def name(self) -> str:
        return f"{self.law.name}, bounded"

    @property
    def coefficients(self) -> tuple[str, ...]:
        return self.law.coefficients

    @property
    def shapes(self) -> tuple[LawShape, ...]:
        return self.law.shapes

    def terms(self, shape_S: np.ndarray, points: Points) -> Terms:
        return self.law.terms(shape_S, points)

    def log_loss(self, theta_K: np.ndarray, points: Points) -> tuple[np.ndarray, np.ndarray]:
        log_coefficients, shapes = split(self, theta_K)
        terms = self.law.terms(shapes, points)
        log_h_P, share_TP, by_shape_SP = log_sum(log_coefficients[1:] + terms.log_TP[1:], terms.by_shape_TSP[1:])
        log_above_P = np.log(self.chance) + log_h_P
        log_total_P = np.logaddexp(log_coefficients[0], log_above_P)
        log_below_P = np.logaddexp(0.0, log_h_P)
        by_constant_P = np.exp(log_coefficients[0] - log_total_P)
        by_h_P = np.exp(log_above_P - log_total_P) - np.exp(log_h_P - log_below_P)
        jacobian_KP = np.concatenate([by_constant_P[None], by_h_P * share_TP, by_h_P * by_shape_SP])
        return log_total_P - log_below_P, jacobian_KP

    def coefficients_near(
        self, shape_S: np.ndarray, points: Points, loss_P: np.ndarray, constant: float | None
    ) -> np.ndarray:
        if constant is None:  # the law is not linear in its constant
            constant = 0.7 * float(loss_P.min())
        h_P = (loss_P - constant) / np.maximum(self.chance - loss_P, _NEAR_CHANCE * self.chance)
        return np.array([constant, *super().coefficients_near(shape_S, points, h_P, 0.0)[1:]])

    def uncentered(
        self, coefficients: Mapping[str, float], shapes: Mapping[str, float], center_N: float, center_D: float
    ) -> dict[str, float]:
        return self.law.uncentered(coefficients, shapes, center_N, center_D)
