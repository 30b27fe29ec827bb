"""How loss depends on model size and data: each law is a sum of a constant and power terms, with its own gradient.

L(N, D) = sum over terms t of c_t phi_t(N, D; s), with coefficients c_t > 0 and shapes s (exponents, mostly). Being
linear in the coefficients gives every law a good start; being a sum of positive terms, the logarithm of its loss is a
log-sum-exp, which is how it is fitted. Names end in their axes:

    P  points, one a run      T  terms      S  shapes
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

IRREDUCIBLE = "E"
"""The coefficient of the constant: what no size and no data take away."""


@dataclass(frozen=True)
class Points:
    """Where a law is evaluated.

    Attributes:
        log_parameters_P: natural logarithm of N, less a center.
        log_tokens_P: natural logarithm of D, the tokens seen, less a center.
        log_passes_P: natural logarithm of D over the tokens that are unique: 0 where none is seen twice.
    """

    log_parameters_P: np.ndarray
    log_tokens_P: np.ndarray
    log_passes_P: np.ndarray

    def where(self, some_P: np.ndarray | slice) -> Points:
        """Those that indices select."""
        return Points(self.log_parameters_P[some_P], self.log_tokens_P[some_P], self.log_passes_P[some_P])


class LawShape(NamedTuple):
    """A parameter that a law is not linear in.

    Attributes:
        name: as in the law's formula.
        low: its bound below.
        high: its bound above.
        starts: values to begin a fit from.
        is_log: whether it is the logarithm of what the formula names.
    """

    name: str
    low: float
    high: float
    starts: tuple[float, ...]
    is_log: bool = False


class Terms(NamedTuple):
    """A law's terms at some points, for coefficients of 1.

    Attributes:
        log_TP: their logarithms.
        by_shape_TSP: the gradient of those.
        by_tokens_TP: their derivatives by log D.
    """

    log_TP: np.ndarray
    by_shape_TSP: np.ndarray
    by_tokens_TP: np.ndarray


def _exponent(name: str) -> LawShape:
    return LawShape(name, 1e-3, 3.0, (0.1, 0.25, 0.5, 1.0))


class Law(ABC):
    """A form that losses of runs may follow."""

    @property
    @abstractmethod
    def coefficients(self) -> tuple[str, ...]:
        """Names of the terms' coefficients, the constant's first."""

    @property
    @abstractmethod
    def shapes(self) -> tuple[LawShape, ...]:
        """What it is not linear in."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of all parameters: the coefficients, then the shapes."""
        return (*self.coefficients, *(shape.name for shape in self.shapes))

    @abstractmethod
    def terms(self, shape_S: np.ndarray, points: Points) -> Terms:
        """Its terms at some points, and their gradients."""

    @abstractmethod
    def uncentered(
        self, coefficients: Mapping[str, float], shapes: Mapping[str, float], center_N: float, center_D: float
    ) -> dict[str, float]:
        """The formula's parameters, from those of a fit at centered points (``center_N`` is a mean of log N)."""


class Chinchilla(Law):
    """E + A / N^alpha + B / D^beta (Hoffmann et al. 2022, arXiv:2203.15556, approach 3).

    Args:
        tied: one exponent for both, as Gadre et al. 2024 (arXiv:2403.08540) find for over-trained models: their
            E + (a M^eta + b M^-eta) C^-eta with M = D / N and C = 6 N D is this with alpha = beta = 2 eta.
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
    """E + A / (N^alpha D^beta) (Zhang et al. 2024, arXiv:2402.17193, for fine-tuning)."""

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
    """E + A / N^alpha + B / (D_0 + D^beta): fine-tuning starts with data that pre-training has seen.

    Lin et al. 2024 (arXiv:2402.02314) give it for one model, without the term in N; D_0 is what pre-training is worth.

    Args:
        one_model: leave out the term in N, for runs of a single backbone.
    """

    def __init__(self, *, one_model: bool = False) -> None:
        self.one_model = one_model

    @property
    def coefficients(self) -> tuple[str, ...]:
        return (IRREDUCIBLE, "B") if self.one_model else (IRREDUCIBLE, "A", "B")

    @property
    def shapes(self) -> tuple[LawShape, ...]:
        # In the fit's units D is near 1: D_0 from nothing to more than all data add.
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
    """Another law over what repeated data are worth (Muennighoff et al. 2023, arXiv:2305.16264, eq. 5).

    D tokens of which U are unique are worth U + U R (1 - exp(-(D / U - 1) / R)): beyond some R epochs more teach
    nothing.
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
        worth_P = 1 + epochs * (1 - decay_P)  # in units of the unique tokens
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
