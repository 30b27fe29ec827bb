"""A policy keeps to the rules of a search, whatever it finds; extrapolation finds good models for little compute."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence

import numpy as np
import pytest

import embedlab.search.policies  # noqa: F401  imports them all
from embedlab.errors import ConfigError, PluginError, RecordError
from embedlab.scaling.tables import read_table
from embedlab.search.loop import TrialRunner, search
from embedlab.search.policies.extrapolated_halving import ExtrapolatedHalving
from embedlab.search.policies.policy import History, Policy, RoundPolicy, TrialResult
from embedlab.search.policies.successive_halving import SuccessiveHalving
from embedlab.search.simulation import RunTable, TrialSimulator, run_table
from embedlab.search.space import Candidate, Cost, MethodGrid, Space, Trial, space_of
from helpers.published import COLUMNS
from helpers.tables import PUBLISHED, needs_shared


def policies(base: type[Policy] = RoundPolicy) -> list[type[Policy]]:
    """All that are registered by being there."""
    return [one for one in base.__subclasses__() if not one.__module__.startswith("test")]


POLICIES = pytest.mark.parametrize("policy", policies(), ids=lambda one: one.__name__)
SHARES = (0.02, 0.2, 1.0)


def made_table(num: int = 8, *, cooldown: float = 1.0, diverging: Collection[int] = ()) -> RunTable:
    """Models of rising size on rising data; some diverge from a rung on."""
    losses = {}
    for number, size in enumerate(np.geomspace(1e6, 1e8, num)):
        candidate = Candidate(backbone=f"m{number}", method="full", parameters=size, flops_per_token=6 * size)
        for rung, tokens in enumerate(np.geomspace(1e6, 1e9, 7)):
            loss = 1.0 + 30 / size**0.3 + 300 / (50 + tokens**0.4) * (1 + 0.1 * math.sin(number))
            losses[Trial(candidate, 6 * size * tokens)] = math.inf if number in diverging and rung > 2 else float(loss)
    return RunTable(Space(losses, cooldown=cooldown), losses)


class BitByBit(TrialRunner):
    """Runs only some of the trials that it is asked for, as a search does that is killed again and again."""

    def __init__(self, simulator: TrialSimulator, most: int) -> None:
        self.simulator = simulator
        self.most = most

    def run(self, trials: Sequence[Trial]) -> Iterable[TrialResult]:
        return self.simulator.run(trials[: self.most])


@pytest.mark.parametrize("num_budgets", [2, 3, 4, 5])
def test_extrapolated_halving_tries_all_candidates_of_a_search_of_few_budgets(num_budgets: int) -> None:
    whole = made_table()
    losses = {
        trial: whole.losses[trial]
        for one in whole.space.candidates
        for trial in whole.space.up_to(6, one)[-num_budgets:]
    }
    table = RunTable(Space(losses), losses)
    total = table.space.price(table.space.trials)
    found = search(ExtrapolatedHalving(), TrialSimulator(table, total), History(table.space), total)
    assert {one.trial.candidate for one in found} == set(table.space.candidates)
    targets = [one for one in found if one.trial == table.space.target(one.trial.candidate)]
    assert 1 <= len(targets) <= 4, "short runs of all, and long ones of the better half"


@POLICIES
@pytest.mark.parametrize("cooldown", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("diverging", [(), (0, 3)])
def test_a_policy_spends_no_more_than_there_is_and_runs_nothing_twice(
    policy: type[Policy], cooldown: float, diverging: tuple[int, ...]
) -> None:
    table = made_table(cooldown=cooldown, diverging=diverging)
    total = table.space.price(table.space.trials)
    for share in SHARES:
        found = search(policy(), TrialSimulator(table, share * total), History(table.space), share * total)
        assert found.spent <= share * total * (1 + 1e-6) and len(found) == len({one.trial for one in found})
        if any(math.isfinite(one.loss) for one in found):
            assert math.isfinite(table.losses[table.space.target(policy().choose(found))])


@POLICIES
def test_an_interrupted_search_goes_on_to_what_it_would_have_found(policy: type[Policy]) -> None:
    table = made_table()
    budget = 0.3 * table.space.price(table.space.trials)
    whole = search(policy(), TrialSimulator(table, budget), History(table.space), budget)
    bit_by_bit = search(policy(), BitByBit(TrialSimulator(table, budget), most=1), History(table.space), budget)
    assert {one.trial for one in bit_by_bit} == {one.trial for one in whole}
    assert policy().choose(bit_by_bit) == policy().choose(whole)


@POLICIES
def test_with_the_whole_budget_the_best_or_nearly_is_found(policy: type[Policy]) -> None:
    table = made_table()
    budget = table.space.price(table.space.trials)
    found = search(policy(), TrialSimulator(table, budget), History(table.space), budget)
    assert table.regret(policy().choose(found)) < 0.02


def test_a_replay_shows_no_loss_that_was_not_paid_for() -> None:
    table = made_table()
    cheap, dear = table.space.at(0)[0], table.space.target(table.space.candidates[-1])
    simulator = TrialSimulator(table, 1.5 * table.space.price([cheap]))
    (result,) = simulator.run([cheap])
    assert (result.loss, result.cost) == (table.losses[cheap], table.space.price([cheap]))
    with pytest.raises(ConfigError, match=r"costs .* FLOPs, but only .* FLOPs of the budget are left"):
        simulator.run([dear])


def test_a_trunk_is_paid_once_and_each_end_of_its_own() -> None:
    table = made_table(2, cooldown=0.25)
    first, second, *_ = table.space.up_to(6, table.space.candidates[0])
    assert table.space.price([first]) == pytest.approx(first.budget)
    assert table.space.price([second], [first]) == pytest.approx(second.budget - 0.75 * first.budget)
    assert table.space.price([first, second]) == pytest.approx(second.budget + 0.25 * first.budget)
    assert table.space.price([first], [second]) == pytest.approx(0.25 * first.budget)


class Cheat(Policy):
    """Proposes what it is told to."""

    def __init__(self, *trials: Trial) -> None:
        self.trials = trials

    def propose(self, history: History, remaining: float) -> list[Trial]:
        return list(self.trials)

    def choose(self, history: History) -> Candidate:
        return history.space.candidates[0]


def test_a_policy_that_breaks_a_rule_is_named() -> None:
    table = made_table()
    first, *_, last = table.space.trials
    stranger = Trial(first.candidate, 1.0)
    for trials, named in (((first, first), "twice"), ((stranger,), "not in the search's space"), ((last,), "remain")):
        with pytest.raises(PluginError, match=f"The policy Cheat proposes .*{named}"):
            search(Cheat(*trials), TrialSimulator(table, 1e13), History(table.space), 2 * first.budget)
    done = History(table.space, [TrialResult(trial=first, loss=1.0, cost=0.0)])
    with pytest.raises(PluginError, match="has been run"):
        search(Cheat(first), TrialSimulator(table, 1e13), done, 1e13)


def test_where_nothing_has_a_loss_there_is_nothing_to_choose_from() -> None:
    table = made_table()
    for policy in policies():
        with pytest.raises(RecordError, match="nothing to choose from"):
            policy().choose(History(table.space))


def test_a_space_has_every_backbone_by_every_variant_of_every_method() -> None:
    methods = [
        MethodGrid(method="LoRA", options={"rank": [8, 32]}, learning_rates=[1e-3, 3e-3]),
        MethodGrid(method="full"),
    ]
    space = space_of(["a", "b"], methods, lambda *_: Cost(1e6, 6e6), budgets=[1e12, 4e12], seeds=(0, 1))
    assert len(space.candidates) == 2 * (2 * 2 + 1) * 2 and len(space.trials) == 2 * len(space.candidates)
    assert len({trial.id for trial in space.trials}) == len(space.trials)
    assert space.trials[0].tokens == pytest.approx(1e12 / 6e6)
    with pytest.raises(ConfigError, match="not both"):
        space_of(["a"], methods, lambda *_: Cost(1e6, 6e6))
    with pytest.raises(ConfigError, match=r"Option 'rank' of LoRA is 8\. Expected a list"):
        space_of(["a"], [MethodGrid(method="LoRA", options={"rank": 8})], lambda *_: Cost(1, 1), budgets=[1.0])  # type: ignore[dict-item]


@needs_shared
@pytest.mark.parametrize("name", [name for name in COLUMNS if name.startswith("rectified_ft")])
@pytest.mark.parametrize("cooldown", [0.0, 1.0])
def test_extrapolated_halving_has_little_regret_at_four_percent_of_the_grid(name: str, cooldown: float) -> None:
    table = run_table(read_table(PUBLISHED / f"{name}.csv", COLUMNS[name]), cooldown=cooldown)
    total = table.space.price(table.space.trials)

    def regret(policy: Policy) -> float:
        found = search(policy, TrialSimulator(table, 0.04 * total), History(table.space), 0.04 * total)
        assert found.spent <= 0.04 * total * (1 + 1e-6)
        return table.regret(policy.choose(found))

    mine = regret(ExtrapolatedHalving())
    assert mine <= 0.021 and mine <= regret(SuccessiveHalving())
