"""The ways to predict losses that are tried for a method: a law, which runs it is fitted to, and what else it knows.

A prediction is the weighted mean of several members. They differ in the formula of the law; in whether the law is
fitted to all runs alike, or mainly to runs near the best model size of their budget, since that is where recipes look;
and in whether each backbone has a worth of its own, since model size alone does not say what pre-training is worth.
Names of arrays end in their axes:

    P  points, one per run      C  model sizes      B  backbones
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from embedlab.scaling.fitting import Configurations, Fit, Runs, fit, refit
from embedlab.scaling.laws import Law

_NEAR = 0.03  # excess of log loss over the best size at which the weight of a run has fallen by a factor of e
_LEAST_WEIGHT = 0.05  # near the best size, size and data rise together, so runs far from it tell their effects apart
_NEAR_STARTS = 4  # starting points, because the best fit near the best size may lie in another basin
_FARTHEST_RESIDUAL = 4.0  # robust standard deviations at which a residual is cut off before backbones are judged
_SLOPE = 0.3  # prior variance of a backbone's slope over its constant, for log tokens in units of ``_SPAN``
_SPAN = 3.0  # of log tokens
_FEWEST_NEIGHBORS = 3  # pairs of runs of one backbone; from fewer, no common part is estimated
_HARDLY = 0.05  # share of the squared residuals that backbones must explain


class Member(NamedTuple):
    """One way to predict losses.

    Attributes:
        law: Formula of the law.
        is_near_best: Whether a run weighs less in the fit, the more its model size costs over the best size.
        has_worths: Whether each backbone has a worth of its own.
    """

    law: Law
    is_near_best: bool
    has_worths: bool


@dataclass(frozen=True)
class Worths:
    """How much the losses of each backbone differ from the law, as far as its runs show it.

    The difference of log loss is linear in log tokens. It is partially pooled: the fewer runs a backbone has, and the
    less the residuals of one backbone resemble each other, the nearer it is to 0.

    Attributes:
        center: Natural logarithm of the number of tokens at which ``constants`` hold.
        constants: Difference of log loss, measured minus law, by the name of the backbone.
        slopes: Change of the difference per unit of log tokens, by the name of the backbone.
    """

    center: float
    constants: Mapping[str, float]
    slopes: Mapping[str, float]

    def of(self, backbones: Sequence[str], log_tokens_C: np.ndarray) -> np.ndarray:
        """Return the difference of log loss from the law (C,), which is 0 for a backbone without runs.

        Args:
            backbones: Name of the backbone of each configuration.
            log_tokens_C: Natural logarithm of the number of tokens of each configuration.
        """
        constants_C = np.array([self.constants.get(name, 0.0) for name in backbones])
        slopes_C = np.array([self.slopes.get(name, 0.0) for name in backbones])
        return np.asarray(constants_C + slopes_C * (log_tokens_C - self.center))


NO_WORTHS = Worths(0.0, {}, {})


def weighted_sum(worths: Iterable[tuple[float, Worths]]) -> Worths:
    """Return the weighted sum of worths that were estimated from the same runs.

    Args:
        worths: Weights, and the worths of the backbones, which may be ``NO_WORTHS``.
    """
    known = [(weight, one) for weight, one in worths if one.constants]
    if not known:
        return NO_WORTHS
    constants, slopes = (
        {name: sum(weight * getattr(one, part)[name] for weight, one in known) for name in known[0][1].constants}
        for part in ("constants", "slopes")
    )
    return Worths(known[0][1].center, constants, slopes)


def log_loss(one: Fit, worths: Worths, at: Configurations) -> np.ndarray:
    """Return the natural logarithm of the loss that a law predicts (C,), with the worths of known backbones.

    Args:
        one: Fit of the law.
        worths: Worths of the backbones; ``NO_WORTHS`` for the law alone.
        at: Configurations to predict the losses of.
    """
    log_loss_C = np.log(one.loss(at.parameters_C, at.tokens_C, at.unique_tokens_C))
    if at.backbones is None or not worths.constants:
        return np.asarray(log_loss_C)
    return np.asarray(log_loss_C + worths.of(at.backbones, np.log(at.tokens_C)))


@dataclass(frozen=True)
class FittedMember:
    """A member after its fit.

    Attributes:
        member: What was fitted.
        fit: Fit of the law.
        weights_P: Weight of each run in the fit.
        worths: Worths of the backbones; empty if the member has none.
    """

    member: Member
    fit: Fit
    weights_P: np.ndarray
    worths: Worths

    def log_loss(self, at: Configurations) -> np.ndarray:
        """Return the natural logarithm of the predicted loss of each configuration (C,).

        Args:
            at: Configurations to predict the losses of.
        """
        return log_loss(self.fit, self.worths, at)


def fitted_members(
    members: Sequence[Member], runs: Runs, *, huber_delta: float | None, num_starts: int
) -> list[FittedMember]:
    """Fit members to runs. Members with the same law share its fit.

    Args:
        members: Members to fit.
        runs: Runs to fit to.
        huber_delta: Absolute residual of log loss above which the Huber loss is linear; None for least squares.
        num_starts: Number of starting points of each fit.

    Raises:
        ConfigError: If there are too few runs, sizes or amounts of data for a law.
    """
    of_law: dict[tuple[int, bool], tuple[Fit, np.ndarray]] = {}
    found = []
    for member in members:
        key = (id(member.law), member.is_near_best)
        if key not in of_law:
            all_key = (id(member.law), False)
            if all_key not in of_law:
                evenly = fit(member.law, runs, huber_delta=huber_delta, num_starts=num_starts)
                of_law[all_key] = (evenly, np.ones(len(runs)))
            if member.is_near_best:
                of_law[key] = _near_best(of_law[all_key][0], runs)
        one, weights_P = of_law[key]
        worths = worths_of(one, runs) if member.has_worths else NO_WORTHS
        found.append(FittedMember(member, one, weights_P, worths))
    return found


def _near_best(evenly: Fit, runs: Runs) -> tuple[Fit, np.ndarray]:
    """Return the fit to runs near the best size of their budget, and the weights of the runs (P,).

    The distance from the best size is that of the law and not of the measured losses, so that the noise of a run does
    not change its weight.

    Args:
        evenly: Fit to all runs alike, from which the first weights come.
        runs: Runs to fit to.
    """
    once = refit(evenly, runs, weights_P=_weights(evenly, runs))
    weights_P = _weights(once, runs)
    return refit(once, runs, weights_P=weights_P, num_starts=_NEAR_STARTS), weights_P


def _weights(found: Fit, runs: Runs) -> np.ndarray:
    """Return the weight of each run in a fit near the best size (P,)."""
    return np.asarray(np.exp(-_excess(found, runs) / _NEAR) + _LEAST_WEIGHT)


def _excess(found: Fit, runs: Runs) -> np.ndarray:
    """Return the log loss of each run's size over that of the best size of the runs, at the FLOPs of the run: (P,)."""
    flops_P = runs.cost_P
    sizes_C = np.unique(runs.parameters_P)
    prices_C = np.array([np.median((flops_P / runs.tokens_P)[runs.parameters_P == size]) for size in sizes_C])
    tokens_PC = flops_P[:, None] / prices_C
    sizes_PC = np.broadcast_to(sizes_C, tokens_PC.shape)
    least_P = found.loss(sizes_PC.ravel(), tokens_PC.ravel()).reshape(tokens_PC.shape).min(axis=1)
    own_P = found.loss(runs.parameters_P, runs.tokens_P)
    return np.asarray(np.maximum(np.log(own_P) - np.log(least_P), 0.0))


def worths_of(found: Fit, runs: Runs) -> Worths:
    """Return the worths of the backbones: the best linear unbiased predictor from the residuals of their runs.

    Args:
        found: Fit of a law.
        runs: Runs that the law was fitted to, with the names of their backbones.
    """
    if runs.backbones is None:
        return NO_WORTHS
    residual_P = -found.residuals(runs)
    spread = 1.4826 * float(np.median(np.abs(residual_P)))
    residual_P = np.clip(residual_P, -_FARTHEST_RESIDUAL * spread, _FARTHEST_RESIDUAL * spread)
    log_tokens_P = np.log(runs.tokens_P)
    names_P = np.asarray(runs.backbones)
    of_backbone = {}
    for name in dict.fromkeys(runs.backbones):
        places = np.flatnonzero(names_P == name)
        of_backbone[name] = places[np.argsort(log_tokens_P[places], kind="stable")]
    products = np.concatenate([residual_P[its[1:]] * residual_P[its[:-1]] for its in of_backbone.values()])
    variance = float(np.mean(residual_P**2))
    if len(products) < _FEWEST_NEIGHBORS or variance == 0:
        return NO_WORTHS
    share = float(np.clip(products.mean() / variance, 0.0, 0.999))  # of the variance that runs of a backbone share
    if share < _HARDLY:
        return NO_WORTHS
    center = float(log_tokens_P.max())
    constants, slopes = {}, {}
    prior = share * np.diag([1.0, _SLOPE])
    for name, places in of_backbone.items():
        design = np.stack([np.ones(len(places)), (log_tokens_P[places] - center) / _SPAN], axis=1)
        covariance = design @ prior @ design.T + (1 - share) * np.eye(len(places))
        constant, slope = prior @ design.T @ np.linalg.solve(covariance, residual_P[places])
        constants[name], slopes[name] = float(constant), float(slope) / _SPAN
    return Worths(center, constants, slopes)
