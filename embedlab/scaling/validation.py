"""How far a law is off where it was not fitted: on the largest budgets, which is where it will be used.

In-sample error falls with every parameter; a law is chosen by what it says of runs that cost more than all that it has
seen, and its intervals are widened by what it was off there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from embedlab.errors import ConfigError
from embedlab.scaling.fitting import HUBER_DELTA, Fit, Runs, fit
from embedlab.scaling.laws import Law

HELD_OUT = (1, 2, 3)
"""Budgets that are held out, the largest first."""

NUM_STARTS = 6
"""The nearest to the losses: of sixteen, nine or more end at the best place on every table that was tried."""

_HARDLY = 0.05  # of squared errors: a law that has another as a limit may differ from it by as little


@dataclass(frozen=True)
class HoldOut:
    """A law's errors on budgets that it was not fitted to.

    Attributes:
        num_budgets: how many of the largest were held out.
        num_runs: that they had.
        num_families: of those, which have no noise in common.
        root_mean_square: of log predicted less log measured.
        bias: its mean: above 0 where the prediction is too high.
        largest: of its absolute values.
        errors: all of them, in the order of the runs.
    """

    num_budgets: int
    num_runs: int
    num_families: int
    root_mean_square: float
    bias: float
    largest: float
    errors: tuple[float, ...]


def hold_out(law: Law, runs: Runs, num_budgets: int, *, huber_delta: float | None = HUBER_DELTA) -> HoldOut | None:
    """Fits without the largest budgets and predicts them; None if what remains is too little for the law."""
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
    """The runs without their largest budgets, and those of these; None if there are no others."""
    budgets = np.unique(runs.budget_P)
    if num_budgets >= len(budgets):
        return None
    is_held_out_P = runs.budget_P <= budgets[num_budgets - 1]
    return runs.where(~is_held_out_P), runs.where(is_held_out_P)


def errors_of(found: Fit, held_out: Runs, num_budgets: int) -> HoldOut:
    """Those of a law that was fitted without some runs, on them."""
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
    """A law and why it was chosen, or not.

    Attributes:
        law: the form.
        hold_outs: by number of budgets; those that the runs allow.
        error: the mean of their root-mean-square errors; infinite if there is none.
        shares_irreducible_loss: whether its E is that of the laws of all methods.
    """

    law: Law
    hold_outs: tuple[HoldOut, ...]
    error: float
    shares_irreducible_loss: bool = False


def choices(laws: Sequence[Law], runs: Runs, *, huber_delta: float | None = HUBER_DELTA) -> list[Choice]:
    """The laws, the one that predicts held-out budgets best first.

    Only numbers of budgets that every comparable law could do without count, so that all are judged on the same runs.
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
    """The first of the laws that is not told to be worse than the best one, by the rule of one standard error.

    A few held-out runs rank laws almost by chance: one that is preferred for other reasons gives way only to a law
    whose squared errors are smaller by more than the standard error of that difference (Breiman et al. 1984, 3.4.3).

    Args:
        ranked: choices between them, the best first.
        laws: the preferred ones first.
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
