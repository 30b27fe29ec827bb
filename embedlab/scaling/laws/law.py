"""The interface of scaling laws: each law predicts the logarithm of a loss from model size and data, with derivatives.

Most laws are a constant plus power terms: L(N, D) = sum over terms t of c_t phi_t(N, D; s), with coefficients c_t > 0
and shapes s, most of which are exponents. All terms are positive, so the logarithm of the loss is a log-sum-exp; laws
are fitted in this form. Names of arrays end in their axes:

    P  points, one per run      T  terms      S  shapes      K  all parameters: log coefficients, then shapes
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.optimize import nnls

IRREDUCIBLE = "E"
"""Name of the coefficient of the constant term: the loss that remains at unlimited model size and data."""


@dataclass(frozen=True)
class Points:
    """Model sizes and amounts of data at which a law is evaluated.

    Attributes:
        log_parameters_P: Natural logarithm of the number of parameters N, minus a center.
        log_tokens_P: Natural logarithm of the number of tokens seen D, minus a center.
        log_epochs_P: Natural logarithm of the number of epochs, which is D / number of unique tokens. It is 0 where
            no token is repeated.
    """

    log_parameters_P: np.ndarray
    log_tokens_P: np.ndarray
    log_epochs_P: np.ndarray

    def repeated(self, num_copies: int) -> Points:
        """Return the points as arrays (R, P) with equal rows, to evaluate a law with R sets of parameters at once.

        Args:
            num_copies: Number of rows (R).
        """
        return Points(*(np.broadcast_to(values_P, (num_copies, len(values_P))) for values_P in vars(self).values()))

    def where(self, some_P: np.ndarray | slice) -> Points:
        """Return the points that indices, a mask or a slice select."""
        return Points(self.log_parameters_P[some_P], self.log_tokens_P[some_P], self.log_epochs_P[some_P])


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


def exponent(name: str) -> LawShape:
    """Return the shape of an exponent of a power law, with its usual bounds."""
    return LawShape(name, 1e-3, 3.0, (0.1, 0.25, 0.5, 1.0))


class Law(ABC):
    """A formula for the loss as a function of model size and data, with parameters that are to be fitted."""

    @property
    def name(self) -> str:
        """Name of the law in tables and reports."""
        return type(self).__name__

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
            shape_S: Values of the shapes, in the order of ``shapes``. The value of a shape may also be an array (R, 1),
                with points (R, P); all results then have an axis R in front of P.
            points: Points at which the terms are evaluated.
        """

    def log_loss(self, theta_K: np.ndarray, points: Points) -> tuple[np.ndarray, np.ndarray]:
        """Return the predicted log loss at each point (P,), and its derivatives by parameter (K, P).

        Args:
            theta_K: Natural logarithms of the coefficients, then the shapes. With parameters (K, R) and points (R, P),
                both results have an axis R in front of P.
            points: Points at which the loss is predicted.
        """
        log_coefficients, shapes = split(self, theta_K)
        terms = self.terms(shapes, points)
        log_sum_P, share_TP, by_shape_SP = log_sum(log_coefficients + terms.log_TP, terms.by_shape_TSP)
        return log_sum_P, np.concatenate([share_TP, by_shape_SP])

    def coefficients_near(
        self, shape_S: np.ndarray, points: Points, loss_P: np.ndarray, constant: float | None
    ) -> np.ndarray:
        """Return coefficients (T,) that bring the law near measured losses, to start a fit from.

        They come from least squares of relative residuals without negative coefficients.

        Args:
            shape_S: Values of the shapes, in the order of ``shapes``.
            points: Points of the measured losses.
            loss_P: Measured losses.
            constant: Value of the constant E; None to compute the constant, too.
        """
        basis_TP = np.exp(self.terms(shape_S, points).log_TP)
        if constant is None:
            return np.asarray(nnls((basis_TP / loss_P).T, np.ones(len(loss_P)))[0])
        others_T, _ = nnls((basis_TP[1:] / loss_P).T, 1 - constant / loss_P)
        return np.array([constant, *others_T])

    @abstractmethod
    def uncentered(
        self, coefficients: Mapping[str, float], shapes: Mapping[str, float], center_N: float, center_D: float
    ) -> dict[str, float]:
        """Return the parameters of the formula, from a fit in which the means of log N and log D were subtracted.

        Args:
            coefficients: Coefficients of the fit, by name.
            shapes: Parameters in which the law is not linear, such as exponents, by name, as in the formula.
            center_N: Mean of the natural logarithm of N over the fitted runs.
            center_D: Mean of the natural logarithm of D over the fitted runs.
        """


def split(law: Law, theta_K: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the log coefficients with a last axis for points, and the shapes as ``Law.terms`` takes them.

    Args:
        law: Law that the parameters belong to.
        theta_K: Log coefficients, then shapes: (K,) or (K, R).
    """
    num_terms = len(law.coefficients)
    shapes = theta_K[num_terms:]
    return theta_K[:num_terms, ..., None], shapes if shapes.ndim == 1 else shapes[..., None]


def log_sum(log_TP: np.ndarray, by_shape_TSP: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the logarithm of a sum of terms (P,), the shares of the terms (T, P), and derivatives by shape (S, P).

    Args:
        log_TP: Natural logarithms of the terms.
        by_shape_TSP: Derivatives of ``log_TP`` with respect to the shapes.
    """
    largest_P = log_TP.max(axis=0)
    share_TP = np.exp(log_TP - largest_P)
    total_P = share_TP.sum(axis=0)
    share_TP /= total_P
    return largest_P + np.log(total_P), share_TP, (share_TP[:, None] * by_shape_TSP).sum(axis=0)
