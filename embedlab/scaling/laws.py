"""Scaling laws: how the loss depends on model size and data. Each law is a constant plus power terms, with gradients.

L(N, D) = sum over terms t of c_t phi_t(N, D; s), with coefficients c_t > 0 and shapes s, most of which are exponents.
A law is linear in its coefficients, so good starting values are easy to compute. All terms are positive, so the
logarithm of the loss is a log-sum-exp; laws are fitted in this form. Names of arrays end in their axes:

    P  points, one per run      T  terms      S  shapes
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

IRREDUCIBLE = "E"
"""Name of the coefficient of the constant term: the loss that remains at unlimited model size and data."""


@dataclass(frozen=True)
class Points:
    """Model sizes and amounts of data at which a law is evaluated.

    Attributes:
        log_parameters_P: Natural logarithm of the number of parameters N, minus a center.
        log_tokens_P: Natural logarithm of the number of tokens seen D, minus a center.
        log_passes_P: Natural logarithm of the number of epochs, which is D / number of unique tokens. It is 0 where
            no token is repeated.
    """

    log_parameters_P: np.ndarray
    log_tokens_P: np.ndarray
    log_passes_P: np.ndarray

    def where(self, some_P: np.ndarray | slice) -> Points:
        """Return the points that indices, a mask or a slice select."""
        return Points(self.log_parameters_P[some_P], self.log_tokens_P[some_P], self.log_passes_P[some_P])


class LawShape(NamedTuple):
    """A parameter of a law in which the law is not linear.

    Attributes:
        name: Name of the parameter in the formula of the law.
        low: Lower bound of the fitted value.
        high: Upper bound of the fitted value.
        starts: Values to start a fit from.
        is_log: Whether the fitted value is the natural logarithm of the parameter in the formula.
    """

    name: str
    low: float
    high: float
    starts: tuple[float, ...]
    is_log: bool = False


class Terms(NamedTuple):
    """The terms of a law at some points, with all coefficients set to 1.

    Attributes:
        log_TP: Natural logarithms of the terms.
        by_shape_TSP: Derivatives of ``log_TP`` with respect to the shapes.
        by_tokens_TP: Derivatives of ``log_TP`` with respect to log D.
    """

    log_TP: np.ndarray
    by_shape_TSP: np.ndarray
    by_tokens_TP: np.ndarray


def _exponent(name: str) -> LawShape:
    return LawShape(name, 1e-3, 3.0, (0.1, 0.25, 0.5, 1.0))


class Law(ABC):
    """A formula for the loss as a function of model size and data, with parameters that are to be fitted."""

    @property
    @abstractmethod
    def coefficients(self) -> tuple[str, ...]:
        """Names of the coefficients of the terms; the constant comes first."""

    @property
    @abstractmethod
    def shapes(self) -> tuple[LawShape, ...]:
        """The parameters in which the law is not linear."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all parameters: first the coefficients, then the shapes."""
        return (*self.coefficients, *(shape.name for shape in self.shapes))

    @abstractmethod
    def terms(self, shape_S: np.ndarray, points: Points) -> Terms:
        """Return the terms of the law at some points, with their derivatives.

        Args:
            shape_S: Values of the shapes, in the order of ``shapes``.
            points: Where to evaluate the terms.
        """

    @abstractmethod
    def uncentered(
        self, coefficients: Mapping[str, float], shapes: Mapping[str, float], center_N: float, center_D: float
    ) -> dict[str, float]:
        """Return the parameters of the formula, converted from a fit at centered points.

        Args:
            coefficients: Coefficients of the fit, by name.
            shapes: Shapes of the fit, by name; no logarithms.
            center_N: Mean of the natural logarithm of N over the fitted runs.
            center_D: Mean of the natural logarithm of D over the fitted runs.
        """


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
        return (_exponent("alpha"),) if self.tied else (_exponent("alpha"), _exponent("beta"))

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


class Multiplicative(Law):
    """The law E + A / (N^alpha D^beta), proposed for fine-tuning (Zhang et al. 2024, arXiv:2402.17193)."""

    @property
    def coefficients(self) -> tuple[str, ...]:
        return (IRREDUCIBLE, "A")

    @property
    def shapes(self) -> tuple[LawShape, ...]:
        return (_exponent("alpha"), _exponent("beta"))

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
        of_tokens = (start, _exponent("beta"))
        return of_tokens if self.one_model else (_exponent("alpha"), *of_tokens)

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
    def coefficients(self) -> tuple[str, ...]:
        return self.law.coefficients

    @property
    def shapes(self) -> tuple[LawShape, ...]:
        return (*self.law.shapes, LawShape("R", np.log(0.1), np.log(1e4), (np.log(4.0), np.log(15.0)), is_log=True))

    def terms(self, shape_S: np.ndarray, points: Points) -> Terms:
        epochs = np.exp(shape_S[-1])
        repeats_P = np.expm1(points.log_passes_P)
        decay_P = np.exp(-repeats_P / epochs)
        worth_P = 1 + epochs * (1 - decay_P)  # effective tokens, in units of the unique tokens
        tokens_P = points.log_tokens_P - points.log_passes_P + np.log(worth_P)
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
