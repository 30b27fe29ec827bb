"""Fits a law to the losses of runs from many starting points, and reports how well the data determine the fit.

The objective is the sum over runs of a Huber loss of log L predicted minus log L measured, as in Hoffmann et al. 2022
(arXiv:2203.15556, appendix D.3). The objective is a sum because the gradient of a mean soon falls below the tolerance
of any optimizer (Besiroglu et al. 2024, arXiv:2404.10102). The logarithms of N and D are centered; without centering,
the parameters are so correlated that few starts reach the same minimum. Names of arrays end in their axes:

    P  points, one per run      T  terms of the law      S  shapes of the law
    K  all parameters: log coefficients, then shapes      F  the parameters that are not fixed
    R  fits of one law to the same runs with different weights
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product

import numpy as np

from embedlab.errors import ConfigError
from embedlab.scaling.descent import least_huber, least_huber_of_many, least_squares
from embedlab.scaling.laws import Law, Points

HUBER_DELTA = 1e-3
"""Absolute residual of log loss above which the Huber loss is linear. Without noise, all residuals are smaller."""

NUM_STARTS = 16
_POINTS_AT_ONCE = 50_000  # runs times fits that are computed together: some tens of MiB
_ROUGH_RUNS = 250  # maximum number of runs for the first descents; the last descent uses all runs
# Relative changes of the objective at which a descent stops: first descents of both methods, then the last descent.
_ROUGH_SQUARES, _ROUGH_HUBER, _EXACT = 1e-9, 1e-8, 1e-15
SAME_BASIN = 1e-3  # share by which objectives may differ in one basin
NO_NOISE = 1e-12  # an objective up to this value counts as 0: residuals as small as the rounding of a loss in float32
_VANISHING = 1e-6  # minimum coefficient as a share of the mean loss: a term this small is absent
_LARGE = 1e6  # maximum coefficient as a multiple of the mean loss
_ABSENT = 1e-2  # distance from a bound, as a share of the range, up to which a parameter counts as at the bound


@dataclass(frozen=True)
class Configurations:
    """What is known of runs before training, from which laws predict losses: arrays with one entry per configuration.

    Attributes:
        parameters_C: Number of parameters of the backbone, without embedding tables (N).
        tokens_C: Number of tokens seen in training, repeated tokens included (D).
        unique_tokens_C: Number of tokens seen in training, each repeated token counted once; None if no token is
            repeated.
        backbones: Name of the backbone of each configuration; None for models of these sizes in general.
    """

    parameters_C: np.ndarray
    tokens_C: np.ndarray
    unique_tokens_C: np.ndarray | None = None
    backbones: Sequence[str] | None = None


@dataclass(frozen=True)
class Runs:
    """The numbers that laws are fitted to: arrays with one entry per finished run.

    Attributes:
        parameters_P: Number of parameters of the backbone, without embedding tables (N).
        tokens_P: Number of tokens seen in training, repeated tokens included (D).
        loss_P: Loss on held-out data.
        unique_tokens_P: Number of tokens seen in training, each repeated token counted once. By default, no token is
            repeated.
        family_P: Number of the family. Runs of one family share noise (for example a trunk and its branches, or runs
            with one seed), so the bootstrap draws them together. By default, each run is a family of its own.
        flops_P: Training cost in FLOPs; 6 N D by default.
        backbones: Name of the backbone of each run. By default, runs are told apart by model size alone.
        chance: Loss of a model that guesses uniformly among the candidates; None if it is unknown.

    Raises:
        ConfigError: If a number is not finite or not above 0.
    """

    parameters_P: np.ndarray
    tokens_P: np.ndarray
    loss_P: np.ndarray
    unique_tokens_P: np.ndarray | None = None
    family_P: np.ndarray | None = None
    flops_P: np.ndarray | None = None
    backbones: tuple[str, ...] | None = None
    chance: float | None = None

    def __post_init__(self) -> None:
        for name in ("parameters_P", "tokens_P", "loss_P", "unique_tokens_P", "flops_P"):
            values_P = getattr(self, name)
            if values_P is None:
                continue
            assert len(values_P) == len(self.loss_P)
            wrong = np.flatnonzero(~(np.isfinite(values_P) & (values_P > 0)))
            if len(wrong):
                raise ConfigError(
                    f"{name[:-2]} of run {wrong[0]} is {values_P[wrong[0]]}. Expected a finite number above 0, "
                    f"which {len(wrong)} of {len(values_P)} runs lack. Leave these runs out."
                )

    def __len__(self) -> int:
        return len(self.loss_P)

    def where(self, mask_P: np.ndarray) -> Runs:
        """Return the runs that a mask or an array of indices selects."""
        return Runs(
            self.parameters_P[mask_P],
            self.tokens_P[mask_P],
            self.loss_P[mask_P],
            None if self.unique_tokens_P is None else self.unique_tokens_P[mask_P],
            None if self.family_P is None else self.family_P[mask_P],
            None if self.flops_P is None else self.flops_P[mask_P],
            None if self.backbones is None else tuple(np.asarray(self.backbones, dtype=object)[mask_P].tolist()),
            self.chance,
        )

    @property
    def configurations(self) -> Configurations:
        """The configurations of the runs."""
        return Configurations(self.parameters_P, self.tokens_P, self.unique_tokens_P, self.backbones)

    @property
    def cost_P(self) -> np.ndarray:
        """The training cost of each run in FLOPs, which is 6 N D where it is not given."""
        return 6 * self.parameters_P * self.tokens_P if self.flops_P is None else self.flops_P

    @property
    def budget_P(self) -> np.ndarray:
        """The budget level of each run: 0 for the largest budget, and 1 more for each halving, rounded."""
        halvings_P: np.ndarray = np.rint(np.log2(self.cost_P.max() / self.cost_P)).astype(int)
        return halvings_P


@dataclass(frozen=True)
class Fit:
    """A law that was fitted to runs.

    Attributes:
        law: Formula of the law.
        theta_K: Fitted parameters at centered points: natural logarithms of the coefficients, then the shapes.
        center_N: Mean of log N over the runs.
        center_D: Mean of log D over the runs.
        log_mean_loss: Mean of log L over the runs.
        objective: Minimum of the objective: the weighted sum of Huber losses, or half the weighted sum of squares.
        num_runs: Number of runs that the law was fitted to.
        num_starts: Number of starting points that were tried.
        num_in_basin: Number of starting points from which the descent ended at the lowest objective.
        at_bound: Names of the parameters that ended at a bound. The data do not determine these parameters.
        huber_delta: Absolute residual above which the Huber loss is linear; None for least squares.
        in_log: Whether the residuals are differences of log loss; otherwise they are differences of the loss.
    """

    law: Law
    theta_K: np.ndarray
    center_N: float
    center_D: float
    log_mean_loss: float
    objective: float
    num_runs: int
    num_starts: int
    num_in_basin: int
    at_bound: tuple[str, ...]
    huber_delta: float | None
    in_log: bool

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters, in the order of ``theta_K``."""
        return self.law.names

    @cached_property
    def parameters(self) -> dict[str, float]:
        """Parameters of the formula by name, in the units of the formula: N in parameters, D in tokens."""
        values = {}
        for number, name in enumerate(self.law.coefficients):
            values[name] = float(np.exp(self.theta_K[number]))
        shapes = {}
        for shape, value in zip(self.law.shapes, self.theta_K[len(values) :], strict=True):
            shapes[shape.name] = float(np.exp(value)) if shape.is_log else float(value)
        found = self.law.uncentered(values, shapes, self.center_N, self.center_D)
        return {name: float(found[name]) for name in self.names}

    @property
    def bounds(self) -> list[tuple[float, float]]:
        """Lower and upper bound of each entry of ``theta_K``."""
        return _bounds(self.law, self.log_mean_loss)

    def natural(self, number: int, value: float) -> float:
        """Return the value of one parameter in the units of the formula, with all other parameters as fitted.

        Args:
            number: Index of the parameter in ``theta_K``.
            value: Value that the entry of ``theta_K`` would have.
        """
        of_shape = number - len(self.law.coefficients)
        if of_shape >= 0 and not self.law.shapes[of_shape].is_log:
            return value
        return self.parameters[self.names[number]] * float(np.exp(value - self.theta_K[number]))

    def loss(
        self, parameters_P: np.ndarray | float, tokens_P: np.ndarray | float, unique_tokens_P: np.ndarray | None = None
    ) -> np.ndarray:
        """Return the loss that the law predicts.

        Args:
            parameters_P: Number of parameters N.
            tokens_P: Number of tokens seen D.
            unique_tokens_P: Number of tokens, each repeated token counted once; None if no token is repeated.
        """
        parameters_P, tokens_P = np.broadcast_arrays(np.atleast_1d(parameters_P), np.atleast_1d(tokens_P))
        points = _points(parameters_P, tokens_P, unique_tokens_P, self.center_N, self.center_D)
        return np.asarray(np.exp(self.law.log_loss(self.theta_K, points)[0]))

    def residuals(self, runs: Runs) -> np.ndarray:
        """Return the logarithm of the predicted loss minus that of the measured loss, as an array (P,) with
        one entry per run."""
        predicted_P = self.loss(runs.parameters_P, runs.tokens_P, runs.unique_tokens_P)
        return np.asarray(np.log(predicted_P) - np.log(runs.loss_P))


def fit(
    law: Law,
    runs: Runs,
    *,
    huber_delta: float | None = HUBER_DELTA,
    in_log: bool = True,
    weights_P: np.ndarray | None = None,
    starts: Sequence[np.ndarray] | None = None,
    num_starts: int = NUM_STARTS,
    fixed: Mapping[int, float] | None = None,
    tolerance: float = _EXACT,
) -> Fit:
    """Fit a law to runs: return the fit with the lowest objective that any starting point leads to.

    Args:
        law: Formula of the law.
        runs: Runs to fit the law to: at least one more than the law has parameters.
        huber_delta: Absolute residual above which the Huber loss is linear; None for least squares.
        in_log: Use differences of log loss as residuals; otherwise differences of the loss.
        weights_P: Weight of each run in the objective; 1 by default.
        starts: Starting points, each in the form of ``Fit.theta_K`` for the given runs. By default, starting points
            combine the starting values of the shapes, with coefficients from non-negative least squares (variable
            projection).
        num_starts: Number of starting points to make if ``starts`` is None.
        fixed: Values of the entries of ``Fit.theta_K`` that are not fitted, by index; None to fit all entries.
        tolerance: Relative change of the objective at which the last descent stops.

    Raises:
        ConfigError: If there are too few runs, sizes or amounts of data.
    """
    _require_enough(law, runs)
    log_loss_P = np.log(runs.loss_P)
    center_N, center_D = float(np.log(runs.parameters_P).mean()), float(np.log(runs.tokens_P).mean())
    points = _points(runs.parameters_P, runs.tokens_P, runs.unique_tokens_P, center_N, center_D)
    weights_P = np.ones(len(runs)) if weights_P is None else weights_P
    bounds = _bounds(law, float(log_loss_P.mean()))
    starts = _starts(law, points, runs.loss_P, num_starts) if starts is None else starts

    fixed = {} if fixed is None else fixed
    free_F = [number for number in range(len(bounds)) if number not in fixed]
    of_free = [bounds[number] for number in free_F]
    theta_K = starts[0].copy()
    for number, value in fixed.items():
        theta_K[number] = value

    rough = _ROUGH_SQUARES if huber_delta is None else _ROUGH_HUBER
    is_at_bound = len(starts) == 1 and bool(_at_bound(law, theta_K, bounds))

    def descent(start_F: np.ndarray, tolerance: float, some_P: np.ndarray | slice) -> tuple[np.ndarray, float]:
        of_some, measured_P = points.where(some_P), runs.loss_P[some_P]

        def residuals(free_theta_F: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            theta_K[free_F] = free_theta_F
            predicted_P, jacobian_KP = law.log_loss(theta_K, of_some)
            if in_log:
                return predicted_P - log_loss_P[some_P], jacobian_KP[free_F]
            return np.exp(predicted_P) - measured_P, jacobian_KP[free_F] * np.exp(predicted_P)

        if huber_delta is None:
            return least_squares(residuals, start_F, weights_P[some_P], of_free, tolerance)
        near = tolerance != rough and not is_at_bound  # from a bound, the descent without bounds would cross it
        return least_huber(residuals, start_F, weights_P[some_P], of_free, tolerance, huber_delta, near=near)

    everything = slice(None)
    if len(starts) == 1:
        ends = [descent(starts[0][free_F], tolerance, everything)]
        theta_F, least = ends[0]
    else:
        some_P = _some(len(runs))
        ends = [descent(start[free_F], rough, some_P) for start in starts]
        theta_F, least = descent(min(ends, key=lambda end: end[1])[0], tolerance, everything)
    theta_K[free_F] = theta_F
    lowest = min(end[1] for end in ends)
    return Fit(
        law=law,
        theta_K=theta_K,
        center_N=center_N,
        center_D=center_D,
        log_mean_loss=float(log_loss_P.mean()),
        objective=least,
        num_runs=len(runs),
        num_starts=len(starts),
        num_in_basin=sum(end[1] <= (1 + SAME_BASIN) * lowest + NO_NOISE for end in ends),
        at_bound=_at_bound(law, theta_K, bounds),
        huber_delta=huber_delta,
        in_log=in_log,
    )


def refit(
    found: Fit,
    runs: Runs,
    *,
    start_K: np.ndarray | None = None,
    num_starts: int | None = None,
    weights_P: np.ndarray | None = None,
    fixed: Mapping[int, float] | None = None,
    tolerance: float = _EXACT,
) -> Fit:
    """Fit a law again, to other runs or with other weights, with residuals and Huber loss as before.

    Args:
        found: Earlier fit of the law.
        runs: Runs to fit the law to.
        start_K: The only starting point; by default the parameters of the earlier fit.
        num_starts: Number of starting points to make in place of the only one.
        weights_P: See ``fit``.
        fixed: See ``fit``.
        tolerance: See ``fit``.

    Raises:
        ConfigError: If there are too few runs, sizes or amounts of data.
    """
    return fit(
        found.law,
        runs,
        huber_delta=found.huber_delta,
        in_log=found.in_log,
        weights_P=weights_P,
        starts=None if num_starts else [found.theta_K if start_K is None else start_K],
        num_starts=num_starts or 1,
        fixed=fixed,
        tolerance=tolerance,
    )


def refit_many(found: Fit, runs: Runs, weights_RP: np.ndarray, *, tolerance: float) -> list[Fit]:
    """Fit a law again to the runs that it was fitted to, once with each set of weights.

    The fits are computed together, which is several times faster than ``refit``. A fit that does not end at a minimum
    is computed by ``refit``.

    Args:
        found: Fit of the law to the same runs.
        runs: The runs (P of them).
        weights_RP: Weights of the runs in each of R fits.
        tolerance: Relative change of the objective at which a fit stops.

    Raises:
        ConfigError: If there are too few runs, sizes or amounts of data.
    """
    # If a term has vanished, the way to where it has not is long and flat.
    if not found.in_log or set(found.at_bound) & set(found.law.coefficients):
        return [refit(found, runs, weights_P=weights_P, tolerance=tolerance) for weights_P in weights_RP]
    points = _points(runs.parameters_P, runs.tokens_P, runs.unique_tokens_P, found.center_N, found.center_D)
    log_loss_P = np.log(runs.loss_P)
    delta = np.inf if found.huber_delta is None else found.huber_delta

    def residuals(theta_KR: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        predicted_RP, jacobian_KRP = found.law.log_loss(theta_KR, points.repeated(theta_KR.shape[1]))
        return predicted_RP - log_loss_P, jacobian_KRP

    fits: list[Fit] = []
    at_once = max(1, _POINTS_AT_ONCE // len(runs))
    for begin in range(0, len(weights_RP), at_once):
        some_RP = weights_RP[begin : begin + at_once]
        ends = least_huber_of_many(residuals, found.theta_K, some_RP, found.bounds, tolerance, delta)
        for weights_P, theta_K, value, is_found in zip(some_RP, *ends, strict=True):
            if is_found:
                at_bound = _at_bound(found.law, theta_K, found.bounds)
                fits.append(
                    replace(
                        found,
                        theta_K=theta_K,
                        objective=float(value),
                        num_starts=1,
                        num_in_basin=1,
                        at_bound=at_bound,
                    )
                )
            else:
                fits.append(refit(found, runs, weights_P=weights_P, tolerance=tolerance))
    return fits


class LogResiduals:
    """Residuals of log loss as a function of the parameters of a law that is fitted jointly with other laws.

    Args:
        law: Formula of the law.
        runs: Runs whose losses are compared with the law (P runs).
    """

    def __init__(self, law: Law, runs: Runs) -> None:
        self._law = law
        self._log_loss_P = np.log(runs.loss_P)
        center_N, center_D = float(np.log(runs.parameters_P).mean()), float(np.log(runs.tokens_P).mean())
        self._points = _points(runs.parameters_P, runs.tokens_P, runs.unique_tokens_P, center_N, center_D)

    def __call__(self, theta_K: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return log predicted minus log measured loss (P,), and the derivatives by parameter (K, P).

        Args:
            theta_K: Parameters in the form of ``Fit.theta_K`` for the given runs.
        """
        predicted_P, jacobian_KP = self._law.log_loss(theta_K, self._points)
        return predicted_P - self._log_loss_P, jacobian_KP


def _some(num_runs: int) -> np.ndarray | slice:
    """Return indices of a fixed random choice of the runs if there are many runs; otherwise select all runs."""
    if num_runs <= _ROUGH_RUNS:
        return slice(None)
    return np.random.default_rng(0).choice(num_runs, _ROUGH_RUNS, replace=False)


def _at_bound(law: Law, theta_K: np.ndarray, bounds: list[tuple[float, float]]) -> tuple[str, ...]:
    found = []
    for name, value, (low, high) in zip(law.names, theta_K, bounds, strict=True):
        margin = _ABSENT * (high - low)
        if not low + margin < value < high - margin:
            found.append(name)
    return tuple(found)


def _require_enough(law: Law, runs: Runs) -> None:
    if not len(runs):
        raise ConfigError("There is no run to fit a law to. Add finished runs with a loss.")
    names = law.names
    for name, values_P in (("size", runs.parameters_P), ("amount of data", runs.tokens_P)):
        needed = "beta" in names if name != "size" else "alpha" in names
        if needed and len(np.unique(values_P)) < 2:
            raise ConfigError(
                f"All {len(runs)} runs have the same {name}, {values_P[0]:g}, so no law can tell its effect on the "
                f"loss. Add runs with another {name}."
            )
    if "alpha" in names and len(np.unique(runs.budget_P)) == 1:
        raise ConfigError(
            f"All {len(runs)} runs have about the same budget, so runs with more data have smaller models and no law "
            "can tell the two effects apart. Add runs with a budget four times as large or as small."
        )
    if len(runs) <= len(names):
        raise ConfigError(
            f"{type(law).__name__} has {len(names)} parameters ({', '.join(names)}), so a fit needs at least "
            f"{len(names) + 1} runs, got {len(runs)}. Add runs, or choose a law with fewer parameters."
        )


def _points(
    parameters_P: np.ndarray,
    tokens_P: np.ndarray,
    unique_tokens_P: np.ndarray | None,
    center_N: float,
    center_D: float,
) -> Points:
    log_tokens_P = np.log(tokens_P)
    epochs_P = np.zeros_like(log_tokens_P) if unique_tokens_P is None else log_tokens_P - np.log(unique_tokens_P)
    return Points(np.log(parameters_P) - center_N, log_tokens_P - center_D, np.maximum(epochs_P, 0.0))


def _bounds(law: Law, log_loss: float) -> list[tuple[float, float]]:
    of_coefficients = (log_loss + np.log(_VANISHING), log_loss + np.log(_LARGE))
    return [*(of_coefficients for _ in law.coefficients), *((shape.low, shape.high) for shape in law.shapes)]


def _starts(law: Law, points: Points, loss_P: np.ndarray, num_starts: int) -> list[np.ndarray]:
    """Return the starting points that are nearest to the measured losses, in the form of ``Fit.theta_K``.

    Each combination of starting values of the shapes gives a starting point, with coefficients from non-negative least
    squares. If there are fewer combinations than ``num_starts``, more starting points fix the constant at some shares
    of the lowest loss.
    """
    grid = [np.array(values) for values in product(*(shape.starts for shape in law.shapes))]
    constants: list[float | None] = [None, 0.9, 0.5, 0.1]
    starts = []
    for constant in constants[: -(-num_starts // len(grid))]:
        for shape_S in grid:
            fixed = None if constant is None else constant * float(loss_P.min())
            coefficients_T = law.coefficients_near(shape_S, points, loss_P, fixed)
            floor = 1e-3 * loss_P.mean()
            starts.append(np.concatenate([np.log(np.maximum(coefficients_T, floor)), shape_S]))
    log_loss_P = np.log(loss_P)
    starts.sort(key=lambda theta_K: float(np.abs(law.log_loss(theta_K, points)[0] - log_loss_P).sum()))
    return starts[:num_starts]
