"""What a token of training costs at any model size, computed from the runs of one method.

Names of arrays end in their axes:

    C  model sizes to compute the cost at      S  model sizes of the runs
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from embedlab.scaling.observations import Observation

_SAME_COST = 1e-3  # share by which costs may differ without being told apart
_HIGHEST_DEGREE = 2  # of the polynomial of smooth costs


class TokenCosts:
    """Training FLOPs per token as a function of model size.

    The FLOPs per token and parameter are medians over the runs of each size, and constant beyond the sizes of the runs,
    because the cost per parameter hardly changes with size.

    Args:
        observations: Runs of one method.
    """

    def __init__(self, observations: Sequence[Observation]) -> None:
        by_size: dict[float, list[float]] = {}
        for row in observations:
            by_size.setdefault(row.parameters, []).append(row.flops / (row.tokens * row.parameters))
        sizes = sorted(by_size)
        self._log_sizes_S = np.log(sizes)
        self._log_per_parameter_S = np.log([np.median(by_size[size]) for size in sizes])

    def interpolated(self, parameters_C: np.ndarray) -> np.ndarray:
        """Return the FLOPs per token (C,), interpolated between the sizes of the runs on logarithmic scales.

        Args:
            parameters_C: Model sizes, in parameters.
        """
        log_C = np.interp(np.log(parameters_C), self._log_sizes_S, self._log_per_parameter_S)
        return np.asarray(parameters_C * np.exp(log_C))

    def smooth(self, parameters_C: np.ndarray) -> np.ndarray:
        """Return the FLOPs per token (C,) of models in general, without what is special to single backbones.

        The FLOPs per token and parameter are a polynomial over the logarithm of size. Its degree has the least Bayesian
        information criterion (Schwarz 1978). Interpolated costs have kinks, at which an optimum over all sizes would
        get stuck, above all if a table states nominal FLOPs.

        Args:
            parameters_C: Model sizes, in parameters.
        """
        log_C = np.clip(np.log(parameters_C), self._log_sizes_S[0], self._log_sizes_S[-1])
        return np.asarray(parameters_C * np.exp(self._polynomial(log_C)))

    @cached_property
    def _polynomial(self) -> np.polynomial.Polynomial:
        """The logarithm of the FLOPs per token and parameter as a polynomial of the logarithm of size."""
        num_sizes = len(self._log_sizes_S)
        if num_sizes == 1:
            return np.polynomial.Polynomial(self._log_per_parameter_S)
        fitted = [
            np.polynomial.Polynomial.fit(self._log_sizes_S, self._log_per_parameter_S, degree)
            for degree in range(min(_HIGHEST_DEGREE, num_sizes - 2) + 1)
        ]

        def criterion(polynomial: np.polynomial.Polynomial) -> float:
            residual_S = polynomial(self._log_sizes_S) - self._log_per_parameter_S
            variance = max(float(np.mean(residual_S**2)), _SAME_COST**2)
            return num_sizes * float(np.log(variance)) + len(polynomial.coef) * float(np.log(num_sizes))

        return min(fitted, key=criterion)
