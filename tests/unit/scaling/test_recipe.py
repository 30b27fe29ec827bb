"""A recipe is what the truth would say, as far as the runs tell, and it keeps within what it is given."""

from __future__ import annotations

from dataclasses import replace

import pytest

from embedlab.errors import ConfigError
from embedlab.scaling.method_laws import MethodLaw, laws_of
from embedlab.scaling.observations import by_method
from embedlab.scaling.recipe import Constraints, recipe
from helpers.two_methods import PRICES, SIZES, runs, true_loss

LOW, MIDDLE, HIGH = 3e13, 1e16, 3e18
MISSED = "so the laws miss something here: at this budget, the run is the safer choice."


@pytest.fixture(scope="module")
def laws() -> list[MethodLaw]:
    found, refused = laws_of(by_method(runs()), num_replicates=100)
    assert not refused
    return found


def truth(budget: float) -> dict[tuple[str, str], float]:
    return {
        (method, backbone): true_loss(method, size, budget / (PRICES[method] * size))
        for method in PRICES
        for backbone, size in SIZES.items()
    }


@pytest.mark.parametrize("budget", [LOW, MIDDLE, HIGH])
def test_the_best_configuration_is_among_those_that_cannot_be_told_apart(laws: list[MethodLaw], budget: float) -> None:
    answer = recipe(laws, budget)
    losses = truth(budget)
    best = min(losses, key=lambda one: losses[one])
    alike = {(one.method, one.backbone): one for one in answer.configurations if one.cannot_be_told_apart}
    assert best in alike and len(alike) < len(losses)
    assert losses[best] in alike[best].interval_95
    assert losses[answer.best.method, answer.best.backbone] < 1.01 * losses[best]
    assert [one.loss for one in answer.configurations] == sorted(one.loss for one in answer.configurations)
    for one in answer.configurations:
        assert one.interval_95.low <= one.interval_80.low <= one.loss <= one.interval_80.high <= one.interval_95.high
        assert one.tokens == pytest.approx(budget / (PRICES[one.method] * one.parameters))
    assert sum(answer.method_probability.values()) == pytest.approx(1)
    assert answer.extrapolation == pytest.approx(budget / 1e18)


def test_the_recommendation_agrees_with_the_best_run_at_its_budget_or_says_why_not(laws: list[MethodLaw]) -> None:
    for budget in sorted({row.flops for law in laws for row in law.observations}):
        answer = recipe(laws, budget)
        at_budget = [row for law in laws for row in law.observations if row.flops == budget]
        best = min(at_budget, key=lambda row: row.loss)
        assert answer.measured is not None and answer.measured.num_runs == len(at_budget)
        assert (answer.measured.method, answer.measured.backbone) == (best.method, best.backbone)
        is_best = (answer.best.method, answer.best.backbone) == (best.method, best.backbone)
        assert answer.measured.is_recommended == is_best
        assert answer.measured.words.startswith("The runs agree" if is_best else "The runs differ")


def test_a_run_that_the_laws_do_not_expect_outranks_them(laws: list[MethodLaw]) -> None:
    budget = laws[0].largest_flops
    worst = recipe(laws, budget).configurations[-1]
    better = 0.9 * min(row.loss for law in laws for row in law.observations if row.flops == budget)
    changed = [
        replace(
            law,
            observations=tuple(
                replace(row, loss=better)
                if (row.flops, row.method, row.backbone) == (budget, worst.method, worst.backbone)
                else row
                for row in law.observations
            ),
        )
        for law in laws
    ]
    measured = recipe(changed, budget).measured
    assert measured is not None and not measured.is_recommended and measured.words.endswith(MISSED)
    assert f"one of {worst.backbone} with {worst.method} has the lowest loss ({better:.4g} at" in measured.words


def test_without_runs_at_the_budget_nothing_is_compared(laws: list[MethodLaw]) -> None:
    largest = laws[0].largest_flops
    assert recipe(laws, 5 * largest).measured is None
    measured = recipe(laws, largest, Constraints(max_parameters=5e6)).measured
    assert measured is not None and measured.backbone in ("tiny", "small"), "only runs that meet the constraints"


def test_methods_change_places_with_the_budget(laws: list[MethodLaw]) -> None:
    assert recipe(laws, LOW).method_probability["full"] > 0.9
    assert recipe(laws, HIGH).method_probability["lora"] > 0.9


def test_an_interval_is_wider_by_what_was_off_in_the_hold_out(laws: list[MethodLaw]) -> None:
    def width(of: list[MethodLaw]) -> float:
        low, high = recipe(of, HIGH).best.interval_80
        return high - low

    off = [replace(law, growth=replace(law.growth, per_decade=0.05, degrees=30.0)) for law in laws]
    assert width(off) > 1.5 * width(laws)
    few = [replace(law, growth=replace(law.growth, per_decade=0.05, degrees=2.0)) for law in laws]
    assert width(few) > 1.3 * width(off), "what two hold-outs say is not certain"
    inside = [recipe(of, MIDDLE).best.interval_80 for of in (laws, off)]
    assert inside[1].high / inside[1].low == pytest.approx(inside[0].high / inside[0].low, rel=0.05), "none inside"


def test_a_recipe_has_the_rate_the_time_and_the_pairs_of_the_runs(laws: list[MethodLaw]) -> None:
    best = recipe(laws, MIDDLE).best
    assert best.learning_rate == (1e-3 if best.backbone in ("tiny", "small") else 3e-4)
    assert best.hours == pytest.approx(MIDDLE / 1e13 / 3600)
    assert best.pairs == pytest.approx(best.tokens / 80)
    assert best.memory_bytes == pytest.approx(4 * 2**30 * best.parameters / 1e8)


def test_the_hours_on_another_device_are_at_the_utilization_of_the_runs() -> None:
    laws, _ = laws_of(by_method([replace(row, utilization=0.2) for row in runs()]), num_replicates=3)
    assert recipe(laws, MIDDLE, peak=1e15).best.hours == pytest.approx(MIDDLE / (0.2 * 1e15) / 3600)
    assert recipe(laws, MIDDLE).best.hours == pytest.approx(MIDDLE / 1e13 / 3600)


def test_constraints_rule_out_what_does_not_meet_them(laws: list[MethodLaw]) -> None:
    free = recipe(laws, HIGH)
    limit = free.best.parameters / 2
    bound = recipe(laws, HIGH, Constraints(max_parameters=limit))
    assert max(one.parameters for one in bound.configurations) <= limit
    assert bound.ruled_out["max_parameters"] > 0 and bound.best.loss > free.best.loss
    in_memory = recipe(laws, HIGH, Constraints(max_memory=1))
    assert max(one.memory_bytes or 0 for one in in_memory.configurations) <= 2**30


def test_a_model_that_serves_much_is_smaller_and_trained_with_what_serving_leaves(laws: list[MethodLaw]) -> None:
    free = recipe(laws, HIGH).best
    served = recipe(laws, HIGH, Constraints(serve_tokens=8e10)).best
    assert served.parameters < free.parameters
    assert served.flops == pytest.approx(HIGH - 2 * served.parameters * 8e10)


def test_few_pairs_are_not_seen_more_often_than_runs_have_shown_to_help(laws: list[MethodLaw]) -> None:
    pairs = recipe(laws, MIDDLE).best.pairs
    assert pairs is not None
    answer = recipe(laws, MIDDLE, Constraints(unique_pairs=pairs / 10))
    assert all(one.epochs is not None and one.epochs <= 4 for one in answer.configurations)
    assert answer.best.parameters > recipe(laws, MIDDLE).best.parameters, "it takes what has fewer tokens"


@pytest.mark.parametrize(
    ("budget", "constraints", "message"),
    [
        (-1.0, Constraints(), "finite number above 0"),
        (1e20, Constraints(), "100 times that of the largest run.*--extrapolate"),
        (HIGH, Constraints(max_parameters=10), "No configuration meets.*max_parameters rules out 10 of 10"),
        (HIGH, Constraints(hours=1e-6), "hours rules out"),
        (HIGH, Constraints(serve_tokens=1e30), "serve_tokens"),
    ],
)
def test_what_cannot_be_answered_is_one_clear_error(
    laws: list[MethodLaw], budget: float, constraints: Constraints, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        recipe(laws, budget, constraints)


def test_far_beyond_the_runs_is_answered_on_demand(laws: list[MethodLaw]) -> None:
    assert recipe(laws, 3e19, extrapolate=True).extrapolation == pytest.approx(30)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_a_constraint_is_a_number_above_0(value: float) -> None:
    with pytest.raises(ConfigError, match="hours is"):
        Constraints(hours=value)


def test_a_method_with_too_few_runs_is_left_out_with_the_reason() -> None:
    rows = by_method(runs())
    rows["lora"] = rows["lora"][:3]
    found, refused = laws_of(rows, num_replicates=3)
    assert [law.method for law in found] == ["full"]
    assert "lora" in refused["lora"] and "got 3" in refused["lora"]
    with pytest.raises(ConfigError, match="needs at least 5 runs, got 3"):
        laws_of({"lora": rows["lora"]})
