"""A member is fitted where the answer is, and knows what a backbone is worth as far as its runs show it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from embedlab.scaling.fitting import Configurations, Runs, fit
from embedlab.scaling.laws import Chinchilla
from embedlab.scaling.members import FittedMember, Member, fitted_members, worths_of
from helpers.tables import TRUTHS, made

LAW, TRUTH = TRUTHS[0]


def with_backbones(runs: Runs, names: list[str]) -> Runs:
    return replace(runs, backbones=tuple(names))


def fitted(runs: Runs, *, near: bool = False, worths: bool = False) -> FittedMember:
    (found,) = fitted_members([Member(LAW, near, worths)], runs, huber_delta=1e-3, num_starts=4)
    return found


def test_a_run_weighs_less_the_worse_its_size_is_for_its_budget() -> None:
    runs = made(LAW, TRUTH)
    weights_P = fitted(runs, near=True).weights_P
    sizes_C = np.unique(runs.parameters_P)[:, None]
    others = runs.cost_P / (6 * sizes_C)
    best_P = (TRUTH["E"] + TRUTH["A"] / sizes_C ** TRUTH["alpha"] + TRUTH["B"] / others ** TRUTH["beta"]).min(axis=0)
    excess_P = np.log(runs.loss_P / best_P)
    assert weights_P == pytest.approx(np.exp(-excess_P / 0.03) + 0.05, rel=0.05)
    assert weights_P.max() == pytest.approx(1.05, abs=0.001) and weights_P.min() < 0.1


def test_runs_far_from_the_best_size_do_not_drag_a_law_that_is_fitted_near_it() -> None:
    """The runs far off do not follow the law: their losses are higher, the farther they are from the best size."""
    runs = made(LAW, TRUTH)
    excess_P = -np.log(np.clip(fitted(runs, near=True).weights_P - 0.05, 1e-12, 1)) * 0.03
    bent = replace(runs, loss_P=runs.loss_P * np.exp(0.5 * excess_P))
    near_P = excess_P < 0.01
    errors = {near: np.abs(fitted(bent, near=near).fit.residuals(bent)[near_P]).mean() for near in (False, True)}
    assert errors[True] < 0.5 * errors[False]


def test_the_weights_do_not_follow_the_noise_of_a_run() -> None:
    runs = made(LAW, TRUTH)
    wrong = replace(runs, loss_P=np.where(np.arange(len(runs)) == 17, 1.3 * runs.loss_P, runs.loss_P))
    assert fitted(wrong, near=True).weights_P == pytest.approx(fitted(runs, near=True).weights_P, abs=0.02)


def test_backbones_of_one_size_have_worths_of_their_own() -> None:
    runs = made(LAW, TRUTH, noise=0.002)
    twice = Runs(*(np.concatenate([values, values]) for values in (runs.parameters_P, runs.tokens_P, runs.loss_P)))
    better_P = np.arange(len(twice)) < len(runs)
    twice = with_backbones(
        replace(twice, loss_P=twice.loss_P * np.where(better_P, 0.98, 1.02)),
        [
            f"{'better' if is_better else 'worse'} {size:g}"
            for is_better, size in zip(better_P, twice.parameters_P, strict=True)
        ],
    )
    found = fitted(twice, worths=True)

    def losses(backbones: list[str] | None) -> np.ndarray:
        return np.exp(found.log_loss(Configurations(np.full(2, 1e7), np.full(2, 1e9), None, backbones)))

    better, worse = losses(["better 1e+07", "worse 1e+07"])
    truth = TRUTH["E"] + TRUTH["A"] / 1e7 ** TRUTH["alpha"] + TRUTH["B"] / 1e9 ** TRUTH["beta"]
    assert better / truth == pytest.approx(0.98, abs=0.004) and worse / truth == pytest.approx(1.02, abs=0.004)
    assert losses(["never seen", "nor this"]) == pytest.approx(losses(None)), "the law of its size"


def test_noise_is_no_worth() -> None:
    runs = made(LAW, TRUTH, noise=0.01)
    runs = with_backbones(runs, [f"{size:g}" for size in runs.parameters_P])
    found = worths_of(fit(LAW, runs), runs)
    assert all(abs(constant) < 0.005 for constant in found.constants.values())


def test_one_bad_run_gives_its_backbone_no_worth() -> None:
    runs = made(LAW, TRUTH, noise=0.002)
    names = [f"{size:g}" for size in runs.parameters_P]
    wrong = with_backbones(
        replace(runs, loss_P=np.where(np.arange(len(runs)) == len(runs) - 1, 1.5 * runs.loss_P, runs.loss_P)), names
    )
    found = worths_of(fit(LAW, wrong), wrong)
    assert all(abs(constant) < 0.01 for constant in found.constants.values())


def test_members_with_one_law_share_its_fit() -> None:
    runs = with_backbones(made(LAW, TRUTH), ["one"] * 20 + ["other"] * 20)
    law = Chinchilla()
    members = [Member(law, near, worths) for near in (False, True) for worths in (False, True)]
    evenly, evenly_with, near, near_with = fitted_members(members, runs, huber_delta=1e-3, num_starts=4)
    assert evenly.fit is evenly_with.fit and near.fit is near_with.fit and near.fit is not evenly.fit
