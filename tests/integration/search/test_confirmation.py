"""A recipe is predicted from smaller runs alone, written down, trained as it is, and compared with what was said."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from embedlab.errors import ConfigError, RecordError, TrainingError
from embedlab.records import FILE, read_record
from embedlab.scaling.observations import Observation, of_records
from embedlab.search.confirmation import Confirmation, confirm, confirmations, next_budget
from embedlab.search.jobs import JobRunner
from helpers.run_records import prediction, record
from helpers.searches import InThisProcess, write_search

REPLICATES = 10
BUDGETS = (2e7, 4e7, 8e7, 1.6e8)
SIZES = {"small": 4480.0, "large": 15520.0}


@pytest.fixture(scope="module")
def observations(tmp_path_factory: pytest.TempPathFactory) -> list[Observation]:
    """Runs whose losses are made, with configurations that train."""
    folder = tmp_path_factory.mktemp("observed")
    common = yaml.safe_load(write_search(folder).read_text())["fit"]
    records, folders = [], []
    for name, size in SIZES.items():
        for budget in BUDGETS:
            at = folder / f"{name}-{budget:g}"
            at.mkdir()
            model = {"backbone": {"path": str(folder / name)}, "method": "FullFineTuning"}
            (at / "config.yaml").write_text(yaml.safe_dump(common | {"model": model, "seed_everything": 0}))
            tokens = budget / (7 * size)
            values = {
                "backbone": str(folder / name),
                "method": "FullFineTuning",
                "method_options": {},
                "nonembedding_parameters": size,
                "tokens": round(tokens),
                "pairs": round(tokens / 50),
                "unique_pairs": 48,
                "loss": 1.0 + 30 / size**0.4 + 40 / tokens**0.5,
                "flops_algorithmic": round(budget * 1.01),  # a run overshoots by less than a step
            }
            records.append(record(len(records), **values))
            folders.append(at)
    return of_records(records, folders)


@pytest.fixture
def launcher() -> Iterator[InThisProcess]:
    InThisProcess.trained.clear()
    with InThisProcess() as one:
        yield one


def test_a_recipe_is_predicted_from_smaller_budgets_trained_and_compared(
    tmp_path: Path, observations: list[Observation], launcher: InThisProcess
) -> None:
    runner = JobRunner(launcher)
    made = confirm(1.6e8, observations, tmp_path, runner, num_replicates=REPLICATES)
    assert launcher.trained == ["confirmation-1.6e+08"]
    assert made.prediction.num_runs == 6 and made.prediction.largest_flops == pytest.approx(8e7, rel=0.02)
    run = read_record(tmp_path / "1.6e+08" / "run" / FILE)
    assert made.epochs == run.pairs / run.unique_pairs
    assert made.loss == run.loss and run.flops_algorithmic == pytest.approx(1.6e8, rel=0.2)
    assert run.backbone == made.prediction.backbone and run.method == made.prediction.method
    recipe = yaml.safe_load((tmp_path / "1.6e+08" / "recipe.yaml").read_text())
    assert recipe["budget"] == pytest.approx(1.6e8)
    low, high = made.prediction.interval_80
    assert low <= made.prediction.loss <= high
    (again,) = confirmations(tmp_path)
    assert again == made


def test_runs_that_no_law_is_fitted_to_do_not_count_as_repeating_data(
    tmp_path: Path, observations: list[Observation], launcher: InThisProcess
) -> None:
    repeating = replace(observations[0], tokens=100 * observations[0].tokens, left_out="diverged")
    made = confirm(1.6e8, [repeating, *observations], tmp_path, JobRunner(launcher), num_replicates=REPLICATES)
    fitted = [row for row in observations if row.flops < 1.5e8]
    assert made.prediction.epochs == max(row.tokens / row.unique_tokens for row in fitted)


def test_what_was_predicted_is_not_predicted_anew(
    tmp_path: Path, observations: list[Observation], launcher: InThisProcess
) -> None:
    runner = JobRunner(launcher)
    first = confirm(1.6e8, observations, tmp_path, runner, num_replicates=REPLICATES)
    again = confirm(1.6e8, [], tmp_path, runner)
    assert again == first and len(launcher.trained) == 1


def test_without_smaller_runs_there_is_nothing_to_predict_from(
    tmp_path: Path, observations: list[Observation], launcher: InThisProcess
) -> None:
    with pytest.raises(ConfigError, match=r"No run cost less than 2e\+07 FLOPs, so no law can predict the loss"):
        confirm(2e7, observations, tmp_path, JobRunner(launcher))
    with pytest.raises(ConfigError, match="No law can be fitted to the runs of FullFineTuning"):
        confirm(4e7, observations, tmp_path, JobRunner(launcher))
    assert not list(tmp_path.iterdir()) and not launcher.trained


def test_a_run_that_leaves_no_record_is_an_error_with_its_reason(
    tmp_path: Path, observations: list[Observation], launcher: InThisProcess
) -> None:
    confirm(1.6e8, observations, tmp_path, JobRunner(launcher), num_replicates=REPLICATES)
    recipe = tmp_path / "1.6e+08" / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(yaml.safe_load(recipe.read_text()) | {"budget": 1.0}))
    for name in (FILE, "checkpoints/last.ckpt"):
        (tmp_path / "1.6e+08" / "run" / name).unlink()
    with pytest.raises(
        TrainingError, match=r"The run of the recipe for 1\.6e\+08 FLOPs failed: ConfigError: .*budget of 1"
    ):
        confirm(1.6e8, observations, tmp_path, JobRunner(launcher))


@pytest.mark.parametrize(
    ("budgets", "following"), [((1e9,), 4e9), ((1e9, 2e9), 4e9), ((9e9, 1e9, 3e9), 2.7e10), ((1e9, 1e10), 1e11)]
)
def test_the_next_budget_is_as_far_beyond_the_largest_as_that_is_beyond_the_one_before(
    budgets: tuple[float, ...], following: float
) -> None:
    assert next_budget(budgets) == pytest.approx(following)


SAID = prediction()


@pytest.mark.parametrize(
    ("loss", "told"),
    [
        (None, "not trained yet."),
        (math.nan, "the run ended without a held-out loss."),
        (2.05, "measured 2.05, within the 80 % interval (+2.5%)."),
        (1.85, "measured 1.85, within the 95 % interval (-7.5%)."),
        (3.0, "measured 3, outside of both intervals (+50.0%)."),
    ],
)
def test_a_confirmation_tells_what_was_said_and_what_came_of_it(tmp_path: Path, loss: float | None, told: str) -> None:
    assert str(Confirmation(SAID, loss, tmp_path)) == (
        "4e+09 FLOPs, LoRA of ladder:r1: predicted 2 (80 % 1.9 to 2.1, 95 % 1.8 to 2.2) from 6 runs of at most 1e+09 "
        f"FLOPs; {told}"
    )


@pytest.mark.parametrize(("epochs", "cautioned"), [(None, False), (0.3, False), (1.4, False), (1.6, True), (4.0, True)])
def test_a_run_that_repeats_its_data_as_no_fitted_one_did_says_so(
    tmp_path: Path, epochs: float | None, cautioned: bool
) -> None:
    told = str(Confirmation(SAID, 3.0, tmp_path, epochs))
    assert told.endswith("the effect of the repeated data.") == cautioned
    assert (f"The run saw its pairs {epochs or 0:g} times, but no fitted run more than 1 times" in told) == cautioned
    repeating = replace(SAID, epochs=3.0)
    assert not Confirmation(repeating, 3.0, tmp_path, epochs).caution


@pytest.mark.parametrize("text", ["{", "[]", json.dumps({"budget": 1.0}), json.dumps({"interval_80": 3})])
def test_a_prediction_that_cannot_be_read_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "4e+09").mkdir()
    (tmp_path / "4e+09" / "prediction.json").write_text(text)
    with pytest.raises(RecordError, match=r"prediction\.json (cannot be read as a prediction: |lacks backbone)"):
        confirmations(tmp_path)
