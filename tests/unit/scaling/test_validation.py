"""A law is judged by budgets larger than those it has seen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from embedlab.scaling.fitting import Runs
from embedlab.scaling.laws import Chinchilla, Law, Multiplicative, Rectified
from embedlab.scaling.members import Member
from embedlab.scaling.validation import averaged, choices, hold_out
from helpers.tables import TRUTHS, chinchilla_runs, made, needs_shared


def test_budgets_are_halvings_of_the_largest_whatever_a_step_adds() -> None:
    flops = np.array([4.01e15, 4.0e15, 1.0e15, 1.003e15, 2.5e14])
    runs = Runs(np.ones(5), np.ones(5), np.ones(5), flops_P=flops)
    assert runs.budget_P.tolist() == [0, 0, 2, 2, 4]
    assert Runs(np.array([1.0, 2.0]), np.array([8.0, 8.0]), np.ones(2)).budget_P.tolist() == [1, 0]


def plain(law: Law) -> Member:
    return Member(law, is_near_best=False, has_worths=False)


def test_a_law_that_holds_predicts_what_it_has_not_seen_to_the_noise() -> None:
    law, truth = TRUTHS[0]
    (found,) = hold_out([plain(law)], made(law, truth, noise=0.005), 2, huber_delta=None)
    assert found is not None and found.num_runs >= 2 and min(found.decades) > 0
    assert found.root_mean_square < 0.02 and found.largest >= found.root_mean_square >= abs(found.bias)


def test_what_is_held_out_does_not_move_the_fit() -> None:
    law, truth = TRUTHS[0]
    runs = made(law, truth)
    wrong = replace(runs, loss_P=np.where(runs.budget_P == 0, 2 * runs.loss_P, runs.loss_P))
    for near in (False, True):
        (found,) = hold_out([Member(law, near, has_worths=False)], wrong, 1)
        assert found is not None and found.bias == pytest.approx(-np.log(2), abs=1e-3)


@pytest.mark.parametrize(
    ("law", "truth"), [TRUTHS[0], TRUTHS[2], TRUTHS[3]], ids=["chinchilla", "product", "rectified"]
)
def test_the_law_that_runs_follow_has_the_say(law: Law, truth: dict[str, float]) -> None:
    members = [plain(one) for one in (Chinchilla(), Multiplicative(), Rectified())]
    ranked = choices(members, made(law, truth), huber_delta=None)
    of_kind = next(choice for choice in ranked if type(choice.member.law) is type(law))
    assert of_kind is ranked[0] or of_kind.error == pytest.approx(ranked[0].error, abs=1e-4)
    assert [choice.weight for choice in ranked] == sorted((choice.weight for choice in ranked), reverse=True)
    assert [choice.error for choice in ranked] == sorted(choice.error for choice in ranked)
    assert sum(choice.weight for choice in ranked) == pytest.approx(1) and ranked[0].error < 1e-3


def test_too_few_budgets_leave_a_law_without_a_hold_out_and_the_preferred_one_with_the_say() -> None:
    law, truth = TRUTHS[0]
    runs = made(law, truth)
    one_budget = runs.where(runs.budget_P == np.bincount(runs.budget_P).argmax())
    assert hold_out([plain(law)], one_budget, 1) == [None]
    first, second = choices([plain(law), plain(Multiplicative())], one_budget)
    assert first.hold_outs == () and first.error == np.inf
    assert first.member.law is law and (first.weight, second.weight) == (1.0, 0.0)


@pytest.mark.parametrize(("num_held_out", "power"), [(1, 1), (5, 4)])
def test_a_single_held_out_run_hardly_decides(num_held_out: int, power: int) -> None:
    sizes_P = np.concatenate([np.tile(np.geomspace(1e6, 1.6e7, 5), 2), np.geomspace(1e6, 1.6e7, 5)[:num_held_out]])
    flops_P = np.repeat([1e15, 4e15, 1.6e16], [5, 5, num_held_out])
    tokens_P = flops_P / (6 * sizes_P)
    noise_P = 0.01 * np.random.default_rng(0).standard_normal(len(sizes_P))
    runs = Runs(sizes_P, tokens_P, (0.4 + 60 / sizes_P**0.35 + 400 / tokens_P**0.35) * np.exp(noise_P))
    better, worse = choices([plain(Chinchilla()), plain(Chinchilla(tied=True))], runs)
    assert [held.num_families for held in better.hold_outs] == [num_held_out] and better.error < worse.error
    assert better.weight / worse.weight == pytest.approx((worse.error / better.error) ** power)


def test_the_mean_of_two_laws_has_the_mean_of_their_errors() -> None:
    law, truth = TRUTHS[1]
    ranked = choices([plain(law), plain(Chinchilla())], made(law, truth, noise=0.02))
    weights = [choice.weight for choice in ranked]
    assert min(weights) > 0
    for held in averaged(ranked):
        each = [next(one for one in choice.hold_outs if one.num_budgets == held.num_budgets) for choice in ranked]
        assert held.errors == pytest.approx(
            weights[0] * np.array(each[0].errors) + weights[1] * np.array(each[1].errors)
        )
        assert held.decades == each[0].decades


@needs_shared
def test_chinchilla_s_largest_budgets_are_predicted_within_three_percent() -> None:
    runs = chinchilla_runs()
    for number in (1, 2, 3):
        (found,) = hold_out([plain(Chinchilla())], runs, number)
        assert found is not None and found.root_mean_square < 0.03
