"""A law is judged by budgets larger than those it has seen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from embedlab.scaling.fitting import Runs
from embedlab.scaling.laws import Chinchilla, Law, Multiplicative, Rectified
from embedlab.scaling.validation import Choice, HoldOut, choices, hold_out, preferred
from helpers.tables import TRUTHS, chinchilla_runs, made, needs_shared


def test_budgets_are_halvings_of_the_largest_whatever_a_step_adds() -> None:
    flops = np.array([4.01e15, 4.0e15, 1.0e15, 1.003e15, 2.5e14])
    runs = Runs(np.ones(5), np.ones(5), np.ones(5), flops_P=flops)
    assert runs.budget_P.tolist() == [0, 0, 2, 2, 4]
    assert Runs(np.array([1.0, 2.0]), np.array([8.0, 8.0]), np.ones(2)).budget_P.tolist() == [1, 0]


def test_a_law_that_holds_predicts_what_it_has_not_seen_to_the_noise() -> None:
    law, truth = TRUTHS[0]
    found = hold_out(law, made(law, truth, noise=0.005), 2, huber_delta=None)
    assert found is not None and found.num_runs >= 2
    assert found.root_mean_square < 0.02 and found.largest >= found.root_mean_square >= abs(found.bias)


def test_what_is_held_out_does_not_move_the_fit() -> None:
    law, truth = TRUTHS[0]
    runs = made(law, truth)
    wrong = replace(runs, loss_P=np.where(runs.budget_P == 0, 2 * runs.loss_P, runs.loss_P))
    found = hold_out(law, wrong, 1)
    assert found is not None and found.bias == pytest.approx(-np.log(2), abs=1e-3)


@pytest.mark.parametrize(
    ("law", "truth"), [TRUTHS[0], TRUTHS[2], TRUTHS[3]], ids=["chinchilla", "product", "rectified"]
)
def test_the_law_that_runs_follow_is_chosen(law: Law, truth: dict[str, float]) -> None:
    laws = [Chinchilla(), Multiplicative(), Rectified()]
    ranked = choices(laws, made(law, truth), huber_delta=None)
    best = ranked[0]
    assert type(best.law) is type(law) or best.error == pytest.approx(
        next(choice.error for choice in ranked if type(choice.law) is type(law)), abs=1e-4
    )
    assert [choice.error for choice in ranked] == sorted(choice.error for choice in ranked)
    assert best.error < 1e-3


def test_too_few_budgets_leave_a_law_without_a_hold_out() -> None:
    law, truth = TRUTHS[0]
    runs = made(law, truth)
    one_budget = runs.where(runs.budget_P == np.bincount(runs.budget_P).argmax())
    assert hold_out(law, one_budget, 1) is None
    (choice,) = choices([law], one_budget)
    assert choice.hold_outs == () and choice.error == np.inf


def judged(law: Law, *errors: float) -> Choice:
    rms = float(np.sqrt(np.mean(np.square(errors))))
    return Choice(law, (HoldOut(1, len(errors), len(errors), rms, float(np.mean(errors)), max(errors), errors),), rms)


def test_a_preferred_law_gives_way_only_to_one_that_is_clearly_better() -> None:
    sum_, product = Chinchilla(), Multiplicative()
    clearly = [judged(product, 0.01, 0.01, 0.011), judged(sum_, 0.02, 0.021, 0.02)]
    assert preferred(clearly, [sum_, product]).law is product
    by_chance = [judged(product, 0.01, 0.02, 0.01), judged(sum_, 0.005, 0.03, 0.005)]
    assert preferred(by_chance, [sum_, product]).law is sum_
    one_run = [judged(product, 0.01), judged(sum_, 0.02)]
    assert preferred(one_run, [sum_, product]).law is sum_, "one run tells nothing"
    impossible = [judged(product, 0.01, 0.02), Choice(sum_, (), np.inf)]
    assert preferred(impossible, [sum_, product]).law is product


@needs_shared
def test_chinchilla_s_largest_budgets_are_predicted_within_three_percent() -> None:
    runs = chinchilla_runs()
    for number in (1, 2, 3):
        found = hold_out(Chinchilla(), runs, number)
        assert found is not None and found.root_mean_square < 0.03
