"""Validation of laws on held-out runs with the largest budgets, because laws are used to predict larger runs.

The error on the fitted runs falls with every parameter that a law has. A law is therefore chosen by its errors on runs
that cost more than all runs of the fit, and the intervals of its predictions are widened by these errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from embedlab.errors import ConfigError
from embedlab.scaling.fitting import HUBER_DELTA, Fit, Runs, fit
from embedlab.scaling.laws import Law

HELD_OUT = (1, 2, 3)
"""Numbers of budget levels that are held out, counted from the largest level down."""

NUM_STARTS = 6
"""Number of starting points for the fit of a hold-out: the starting points nearest to the measured losses.

A hold-out needs few starting points: on every tested table, 9 or more of 16 led to the best minimum.
"""

_HARDLY = 0.05  # share of the squared errors: a law may differ this little from a law that is a limiting case


@dataclass(frozen=True)
class HoldOut:
    """Errors of a law on budget levels that were held out of the fit, as log predicted minus log measured loss.

    Attributes:
        num_budgets: Number of the largest budget levels that were held out.
        num_runs: Number of runs at the held-out levels.
        num_families: Number of families of the held-out runs; different families share no noise.
        root_mean_square: Root mean square of the errors.
        bias: Mean of the errors; above 0 if predictions are too high on average.
        largest: Maximum absolute error.
        errors: Error of each held-out run, in the order of the runs.
    """

    num_budgets: int
    num_runs: int
    num_families: int
    root_mean_square: float
    bias: float
    largest: float
    errors: tuple[float, ...]


def hold_out(law: Law, runs: Runs, num_budgets: int, *, huber_delta: float | None = HUBER_DELTA) -> HoldOut | None:
    """Fit a law without the runs of the largest budget levels, and return its errors on these runs.

    Args:
        law: Formula of the law.
        runs: Runs of one method.
        num_budgets: Number of budget levels to hold out.
        huber_delta: Absolute residual of log loss above which the Huber loss is linear; None for least squares.

    Returns:
        The errors, or None if the remaining runs are too few for the law.
    """
    parts = without_largest(runs, num_budgets)
    if parts is None:
        return None
    rest, held_out = parts
    try:
        found = fit(law, rest, huber_delta=huber_delta, num_starts=NUM_STARTS)
    except ConfigError:
        return None
    return errors_of(found, held_out, num_budgets)


def without_largest(runs: Runs, num_budgets: int) -> tuple[Runs, Runs] | None:
    """Split runs into the runs below the largest budget levels and the runs at these levels.

    Args:
        runs: Runs of one method.
        num_budgets: Number of the largest budget levels to split off.

    Returns:
        The remaining runs and the split-off runs, or None if no run would remain.
    """
    budgets = np.unique(runs.budget_P)
    if num_budgets >= len(budgets):
        return None
    is_held_out_P = runs.budget_P <= budgets[num_budgets - 1]
    return runs.where(~is_held_out_P), runs.where(is_held_out_P)


def errors_of(found: Fit, held_out: Runs, num_budgets: int) -> HoldOut:
    """Return the errors of a fitted law on runs that it was not fitted to.

    Args:
        found: Fit of the law to the other runs.
        held_out: Runs to predict.
        num_budgets: Number of budget levels of the held-out runs.
    """
    errors = found.residuals(held_out)
    return HoldOut(
        num_budgets=num_budgets,
        num_runs=len(errors),
        num_families=len(errors) if held_out.family_P is None else len(np.unique(held_out.family_P)),
        root_mean_square=float(np.sqrt(np.mean(errors**2))),
        bias=float(errors.mean()),
        largest=float(np.abs(errors).max()),
        errors=tuple(errors.tolist()),
    )


@dataclass(frozen=True)
class Choice:
    """A law that was tried, with its errors on held-out runs.

    Attributes:
        law: Formula of the law.
        hold_outs: Errors for 1, 2 and 3 held-out budget levels; numbers that the runs do not allow are missing.
        error: Mean of the root mean square errors of the hold-outs that are compared; infinite without a hold-out.
        shares_irreducible_loss: Whether the laws of all methods share the E of this law.
    """

    law: Law
    hold_outs: tuple[HoldOut, ...]
    error: float
    shares_irreducible_loss: bool = False


def choices(laws: Sequence[Law], runs: Runs, *, huber_delta: float | None = HUBER_DELTA) -> list[Choice]:
    """Rank laws by their errors on held-out budget levels; the law with the smallest error comes first.

    Only the numbers of held-out levels that leave enough runs for every comparable law count, so that all laws are
    compared on the same runs. A law is comparable if it can be fitted without the largest level.

    Args:
        laws: Formulas of the laws.
        runs: Runs of one method.
        huber_delta: Absolute residual of log loss above which the Huber loss is linear; None for least squares.
    """
    tried = {law: [hold_out(law, runs, number, huber_delta=huber_delta) for number in HELD_OUT] for law in laws}
    possible = {law: found for law, found in tried.items() if found[0] is not None}
    common = [i for i in range(len(HELD_OUT)) if possible and all(found[i] is not None for found in possible.values())]
    ranked = []
    for law, found in tried.items():
        errors = [found[i].root_mean_square for i in common if found[i] is not None]  # type: ignore[union-attr]
        error = float(np.mean(errors)) if law in possible else np.inf
        ranked.append(Choice(law, tuple(one for one in found if one is not None), error))
    return sorted(ranked, key=lambda choice: choice.error)


def preferred(ranked: Sequence[Choice], laws: Sequence[Law]) -> Choice:
    """Return the first law, in order of preference, that is not clearly worse than the best law on held-out runs.

    With few held-out runs, chance decides most of the ranking. A law that is preferred for other reasons is therefore
    replaced only by a law whose mean squared error is smaller by more than one standard error of the difference
    (Breiman et al. 1984, section 3.4.3) and by more than 5 %.

    Args:
        ranked: The laws as ranked by ``choices``, the best first.
        laws: The laws in order of preference.
    """
    best = ranked[0]
    by_law = {choice.law: choice for choice in ranked}
    for law in laws:
        choice = by_law[law]
        if not np.isfinite(choice.error) and np.isfinite(best.error):
            continue
        common = min(len(choice.hold_outs), len(best.hold_outs))
        if common == 0:
            return choice
        own, least = (np.square(one.hold_outs[common - 1].errors) for one in (choice, best))
        more = own - least
        by_chance = more.std(ddof=1) / np.sqrt(len(more)) if len(more) > 1 else np.inf
        if more.mean() <= max(by_chance, _HARDLY * least.mean()):
            return choice
    return best
