"""How far a law is off where it was not fitted: on the largest budgets, which is where it will be used.

In-sample error falls with every parameter; a law is chosen by what it says of runs that cost more than all that it has
seen, and its intervals are widened by what it was off there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from embedlab.errors import ConfigError
from embedlab.search.fitting import HUBER_DELTA, Runs, fit
from embedlab.search.laws import Law

HELD_OUT = (1, 2, 3)
"""Budgets that are held out, the largest first."""


@dataclass(frozen=True)
class HoldOut:
    """A law's errors on budgets that it was not fitted to.

    Attributes:
        num_budgets: how many of the largest were held out.
        num_runs: that they had.
        root_mean_square: of log predicted less log measured.
        bias: its mean: above 0 where the prediction is too high.
        largest: of its absolute values.
    """

    num_budgets: int
    num_runs: int
    root_mean_square: float
    bias: float
    largest: float


def hold_out(law: Law, runs: Runs, num_budgets: int, *, huber_delta: float | None = HUBER_DELTA) -> HoldOut | None:
    """Fits without the largest budgets and predicts them; None if what remains is too little for the law."""
    budgets = np.unique(runs.budget_P)
    if num_budgets >= len(budgets):
        return None
    is_held_out_P = runs.budget_P <= budgets[num_budgets - 1]
    try:
        found = fit(law, runs.where(~is_held_out_P), huber_delta=huber_delta)
    except ConfigError:
        return None
    errors = found.residuals(runs.where(is_held_out_P))
    return HoldOut(
        num_budgets=num_budgets,
        num_runs=len(errors),
        root_mean_square=float(np.sqrt(np.mean(errors**2))),
        bias=float(errors.mean()),
        largest=float(np.abs(errors).max()),
    )


@dataclass(frozen=True)
class Choice:
    """A law and why it was chosen, or not.

    Attributes:
        law: the form.
        hold_outs: by number of budgets; those that the runs allow.
        error: the mean of their root-mean-square errors; infinite if there is none.
    """

    law: Law
    hold_outs: tuple[HoldOut, ...]
    error: float


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
