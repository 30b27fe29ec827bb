"""Validation on held-out runs with the largest budgets, because laws are used to predict larger runs.

The error on the fitted runs falls with every parameter that a law has. The members of a prediction are therefore
weighted by their errors on runs that cost more than all runs of the fit, and these errors, at the distances at which
they were made, give the intervals of predictions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from embedlab.errors import ConfigError
from embedlab.scaling.error_growth import RECENCY
from embedlab.scaling.fitting import HUBER_DELTA, Runs
from embedlab.scaling.members import FittedMember, Member, fitted_members

HELD_OUT = (1, 2, 3, 4, 5, 6)
"""Numbers of budget levels that are held out, counted from the largest level down."""

NUM_STARTS = 4
"""Number of starting points for the fits of a hold-out: the starting points nearest to the measured losses.

A hold-out needs few starting points: on every tested table, 9 or more of 16 led to the best minimum.
"""

_FEWEST_LEVELS = 2  # of budget, that remain in a fit
_LARGEST_ERROR = 0.2  # of log loss: larger errors are equally bad, so that no single run decides
_BEST = 0.3  # log loss over the best run of a budget at which a run's say in the weights has fallen by a factor of e
_SHARPNESS = 4.0  # largest power of the inverse error that weights members
_LEAST_SHARE = 0.02  # weight below which a member is left out


@dataclass(frozen=True)
class HoldOut:
    """Errors of predictions for budget levels that were held out of the fit, as log predicted minus log measured loss.

    Attributes:
        num_budgets: Number of the largest budget levels that were held out.
        num_families: Number of families of the held-out runs; different families share no noise.
        decades: Decimal logarithm of the FLOPs of each held-out run over those of the largest fitted run.
        errors: Error of each held-out run, in the order of the runs.
    """

    num_budgets: int
    num_families: int
    decades: tuple[float, ...]
    errors: tuple[float, ...]

    @property
    def num_runs(self) -> int:
        """Number of runs at the held-out levels."""
        return len(self.errors)

    @property
    def root_mean_square(self) -> float:
        """Root mean square of the errors."""
        return float(np.sqrt(np.mean(np.square(self.errors))))

    @property
    def bias(self) -> float:
        """Mean of the errors; above 0 if predictions are too high on average."""
        return float(np.mean(self.errors))

    @property
    def largest(self) -> float:
        """Maximum absolute error."""
        return float(np.abs(self.errors).max())


@dataclass(frozen=True)
class Choice:
    """A member that was tried, with its errors on held-out runs.

    Attributes:
        member: What was fitted: a law, and how.
        hold_outs: Errors for each number of held-out budget levels; numbers that the runs do not allow are missing.
        error: Mean absolute error of log loss on held-out runs, in which runs near the best of their budget and
            hold-outs of few levels weigh more; infinite without a hold-out.
        weight: Share of the member in predictions, from 0 to 1.
        shares_irreducible_loss: Whether the laws of all methods share the E of this law.
    """

    member: Member
    hold_outs: tuple[HoldOut, ...]
    error: float
    weight: float
    shares_irreducible_loss: bool = False

    @property
    def name(self) -> str:
        """Name of the law, with what else the member does."""
        extras = [
            *(["near the best size"] if self.member.is_near_best else []),
            *(["worths of backbones"] if self.member.has_worths else []),
            *(["one E for all methods"] if self.shares_irreducible_loss else []),
        ]
        return ", ".join([self.member.law.name, *extras])


def without_largest(runs: Runs, num_budgets: int) -> tuple[Runs, Runs] | None:
    """Split runs into the runs below the largest budget levels and the runs at these levels.

    Args:
        runs: Runs of one method.
        num_budgets: Number of the largest budget levels to split off.

    Returns:
        The remaining runs and the split-off runs, or None if fewer than two levels would remain.
    """
    budgets = np.unique(runs.budget_P)
    if len(budgets) - num_budgets < _FEWEST_LEVELS:
        return None
    is_held_out_P = runs.budget_P <= budgets[num_budgets - 1]
    return runs.where(~is_held_out_P), runs.where(is_held_out_P)


def hold_out(
    members: Sequence[Member], runs: Runs, num_budgets: int, *, huber_delta: float | None = HUBER_DELTA
) -> list[HoldOut | None]:
    """Fit members without the runs of the largest budget levels, and return their errors on these runs.

    Args:
        members: Members to fit.
        runs: Runs of one method.
        num_budgets: Number of budget levels to hold out.
        huber_delta: Absolute residual of log loss above which the Huber loss is linear; None for least squares.

    Returns:
        The errors of each member, or None if the remaining runs are too few for its law.
    """
    parts = without_largest(runs, num_budgets)
    if parts is None:
        return [None] * len(members)
    rest, held_out = parts
    found: list[HoldOut | None] = []
    for members_of_law in _by_law(members):
        try:
            fitted = fitted_members(members_of_law, rest, huber_delta=huber_delta, num_starts=NUM_STARTS)
        except ConfigError:
            found += [None] * len(members_of_law)
        else:
            found += [errors_of(one, rest, held_out, num_budgets) for one in fitted]
    return found


def _by_law(members: Sequence[Member]) -> list[list[Member]]:
    """Return runs of consecutive members with the same law."""
    groups: list[list[Member]] = []
    for member in members:
        if groups and groups[-1][0].law is member.law:
            groups[-1].append(member)
        else:
            groups.append([member])
    return groups


def errors_of(found: FittedMember, rest: Runs, held_out: Runs, num_budgets: int) -> HoldOut:
    """Return the errors of a member on runs that it was not fitted to.

    Args:
        found: Member, fitted to the other runs.
        rest: Runs that the member was fitted to.
        held_out: Runs to predict.
        num_budgets: Number of budget levels of the held-out runs.
    """
    predicted_P = found.log_loss(held_out.configurations)
    errors_P = predicted_P - np.log(held_out.loss_P)
    return HoldOut(
        num_budgets=num_budgets,
        num_families=len(errors_P) if held_out.family_P is None else len(np.unique(held_out.family_P)),
        decades=tuple(np.log10(held_out.cost_P / rest.cost_P.max()).tolist()),
        errors=tuple(errors_P.tolist()),
    )


def choices(members: Sequence[Member], runs: Runs, *, huber_delta: float | None = HUBER_DELTA) -> list[Choice]:
    """Weight members by their errors on held-out budget levels; the member with the largest weight comes first.

    Only the numbers of held-out levels that leave enough runs for every comparable member count, so that all members
    are compared on the same runs. A member is comparable if it can be fitted without the largest level. If no level
    can be held out, the first member has all the weight.

    Args:
        members: Members in order of preference; members with the same law are neighbors.
        runs: Runs of one method.
        huber_delta: Absolute residual of log loss above which the Huber loss is linear; None for least squares.
    """
    tried = [hold_out(members, runs, number, huber_delta=huber_delta) for number in HELD_OUT]
    of_member = list(zip(*tried, strict=True))
    possible = [number for number, found in enumerate(of_member) if found[0] is not None]
    common = [i for i in range(len(HELD_OUT)) if possible and all(of_member[number][i] for number in possible)]
    importance = [_importance(runs, HELD_OUT[i]) for i in common]
    errors = [
        _error([of_member[n][i] for i in common], importance) if n in possible else np.inf for n in range(len(members))
    ]
    num_runs = max((of_member[possible[0]][i].num_families for i in common), default=0)
    ranked = [
        Choice(member, tuple(one for one in found if one is not None), error, weight)
        for member, found, error, weight in zip(members, of_member, errors, _weights(errors, num_runs), strict=True)
    ]
    return sorted(ranked, key=lambda choice: -choice.weight)


def _importance(runs: Runs, num_budgets: int) -> np.ndarray:
    """Return the weights of held-out runs in the error of a member (P,): runs near the best of their budget weigh more.

    Args:
        runs: Runs of one method.
        num_budgets: Number of the largest budget levels that are held out.
    """
    levels_P, log_loss_P = runs.budget_P, np.log(runs.loss_P)
    budgets, place_P = np.unique(levels_P, return_inverse=True)
    least = np.full(len(budgets), np.inf)
    np.minimum.at(least, place_P, log_loss_P)
    weight_P = np.exp(-(log_loss_P - least[place_P]) / _BEST)[place_P < num_budgets]
    return np.asarray(weight_P * RECENCY ** (num_budgets - 1) / len(weight_P) ** 0.5)


def _error(hold_outs: Sequence[HoldOut | None], importance: Sequence[np.ndarray]) -> float:
    """Return the weighted mean absolute error of hold-outs, with the weights of the runs of each hold-out."""
    total = weights = 0.0
    for held, weight_P in zip(hold_outs, importance, strict=True):
        assert held is not None
        total += float(weight_P @ np.minimum(np.abs(held.errors), _LARGEST_ERROR))
        weights += float(weight_P.sum())
    return total / weights


def _weights(errors: Sequence[float], num_runs: int) -> list[float]:
    """Return the shares of members in predictions, which fall with a power of their errors.

    The power is at most the number of held-out runs, as in the likelihood of errors whose scale is unknown: a single
    run hardly tells which member is better.

    Args:
        errors: Mean absolute error of each member on held-out runs.
        num_runs: Number of held-out runs that share no noise.
    """
    if not np.isfinite(errors).any():
        return [1.0, *[0.0] * (len(errors) - 1)]
    floor = max(min(errors), 1e-9)
    shares = np.array([(max(error, 1e-9) / floor) ** -min(_SHARPNESS, num_runs) for error in errors])
    shares /= shares.sum()
    shares[shares < _LEAST_SHARE] = 0.0
    return [float(share) for share in shares / shares.sum()]


def averaged(ranked: Sequence[Choice]) -> tuple[HoldOut, ...]:
    """Return the errors of the weighted mean of members, for each number of held-out levels that all of them allow.

    Args:
        ranked: Members with their weights.
    """
    used = [choice for choice in ranked if choice.weight > 0]
    by_number = [{held.num_budgets: held for held in choice.hold_outs} for choice in used]
    found = []
    for number in HELD_OUT:
        if all(number in held_outs for held_outs in by_number):
            errors_P = sum(
                choice.weight * np.array(held_outs[number].errors)
                for choice, held_outs in zip(used, by_number, strict=True)
            )
            one = by_number[0][number]
            found.append(HoldOut(number, one.num_families, one.decades, tuple(np.asarray(errors_P).tolist())))
    return tuple(found)
