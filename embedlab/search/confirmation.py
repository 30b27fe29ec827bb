"""Confirmation of a recipe: compares a predicted loss with the measured loss of a run larger than the fitted runs.

The prediction is written to a file before the run is trained, and never changed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

from embedlab.errors import ConfigError, TrainingError
from embedlab.files import write_whole
from embedlab.records import FILE, read_record
from embedlab.records.renamed import current_fields
from embedlab.records.stored import Range, from_plain, read_json
from embedlab.scaling.bootstrap import NUM_REPLICATES, Interval
from embedlab.scaling.method_laws import MANY_EPOCHS, laws_of
from embedlab.scaling.observations import Observation, by_method
from embedlab.scaling.recipe import recipe
from embedlab.scaling.recipe_config import recipe_config
from embedlab.search.jobs import JobRunner
from embedlab.search.launchers.launcher import Job

_SLACK = 1.02  # a run exceeds its budget by less than a step
_Positive = Annotated[float, Range(1e-36)]
_PREDICTION, _RECIPE, _RUN = "prediction.json", "recipe.yaml", "run"


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The prediction for a run that was not yet trained.

    Attributes:
        budget: Budget of the run in FLOPs.
        backbone: Path, Hugging Face id or ladder rung of the backbone.
        method: Name of the method, with its options.
        learning_rate: Peak learning rate; None if no fitted run states a learning rate.
        tokens: Number of tokens to train on (D).
        loss: Predicted loss on held-out data.
        interval_80: 80 % interval of the loss.
        interval_95: 95 % interval of the loss.
        largest_flops: Training cost of the largest run that the laws were fitted to, in FLOPs.
        num_runs: Number of runs that the laws were fitted to.
        epochs: Maximum number of epochs of a single fitted run.
    """

    budget: _Positive
    backbone: str
    method: str
    learning_rate: _Positive | None
    tokens: _Positive
    loss: _Positive
    interval_80: Interval
    interval_95: Interval
    largest_flops: _Positive
    num_runs: Annotated[int, Range(1)]
    epochs: _Positive


@dataclass(frozen=True)
class Confirmation:
    """A prediction and the measured loss of the predicted run.

    Attributes:
        prediction: Prediction that was written before the run.
        loss: Measured loss on held-out data. None if the run has not ended; NaN if the run ended without a loss or
            before its budget was spent.
        folder: Folder of the prediction and the run.
        epochs: Number of epochs of the run; None if the run has not ended.
    """

    prediction: Prediction
    loss: float | None
    folder: Path
    epochs: float | None = None

    def __str__(self) -> str:
        said = self.prediction
        (low, high), (lowest, highest) = said.interval_80, said.interval_95
        text = (
            f"{said.budget:g} FLOPs, {said.method} of {said.backbone}: predicted {said.loss:.4g} (80 % {low:.4g} to "
            f"{high:.4g}, 95 % {lowest:.4g} to {highest:.4g}) from {said.num_runs} runs of at most "
            f"{said.largest_flops:.3g} FLOPs; "
        )
        if self.loss is None:
            return text + "not trained yet."
        if not math.isfinite(self.loss):
            return text + "the run ended without a held-out loss."
        off = self.loss / said.loss - 1
        return text + f"measured {self.loss:.4g}, {self.where} ({off:+.1%}).{self.caution}"

    @property
    def caution(self) -> str:
        """A warning if the run repeated its data much more often than the fitted runs; else empty."""
        epochs = self.epochs or 0.0
        if epochs < MANY_EPOCHS * max(1.0, self.prediction.epochs):
            return ""
        return (
            f" The run saw its pairs {epochs:.2g} times, but no fitted run more than {self.prediction.epochs:.2g} "
            "times. The laws therefore cannot predict the effect of the repeated data."
        )

    @property
    def where(self) -> str:
        """The position of the measured loss relative to the predicted intervals, as text."""
        for name, (low, high) in (("80 %", self.prediction.interval_80), ("95 %", self.prediction.interval_95)):
            if self.loss is not None and low <= self.loss <= high:
                return f"within the {name} interval"
        return "outside of both intervals"


def next_budget(budgets: Sequence[float]) -> float:
    """Return a budget beyond the largest budget of a search, in FLOPs.

    The ratio to the largest budget is the ratio between the two largest budgets, or 4 if there is only one budget.

    Args:
        budgets: Budgets of the search in FLOPs.
    """
    largest = sorted(budgets)[-2:]
    return largest[-1] * (largest[-1] / largest[0] if len(largest) == 2 else 4.0)


def confirm(
    budget: float,
    observations: Sequence[Observation],
    folder: Path,
    runner: JobRunner,
    *,
    fit: Path | None = None,
    num_replicates: int = NUM_REPLICATES,
) -> Confirmation:
    """Predict the loss of the recipe for a budget, write the prediction to a file, and train the recipe.

    If the folder contains a prediction for the budget already, no new prediction is made.

    Args:
        budget: Budget in FLOPs. The laws are fitted only to runs with a smaller cost.
        observations: Runs of the search.
        folder: Folder for predictions and their runs.
        runner: Runner that trains the recipe.
        fit: Path of the configuration that all runs of the search share. The run of the recipe uses its options, too,
            because a recipe must not set some of them, for example a class that the user wrote. None for no such
            configuration.
        num_replicates: Number of bootstrap replicates.

    Raises:
        ConfigError: If no law can be fitted to the runs of smaller budgets, or the budget is too far beyond these runs.
        TrainingError: If the run leaves no record.
    """
    at = folder / f"{budget:g}"
    if not (at / _PREDICTION).exists():
        _predict(budget, observations, at, num_replicates)
    common = () if fit is None else ("--config", str(fit))
    words = (*common, "--config", str(at / _RECIPE), "--output", str(at / _RUN), "--ckpt_path", "auto")
    for ended in runner.run([Job(f"confirmation-{budget:g}", words, at / _RUN)]):
        if ended.record is None:
            raise TrainingError(f"The run of the recipe for {budget:g} FLOPs failed: {ended.error}")
    return _read(at)


def _predict(budget: float, observations: Sequence[Observation], at: Path, num_replicates: int) -> None:
    smaller = [row for row in observations if row.flops * _SLACK < budget]
    if not smaller:
        raise ConfigError(
            f"No run cost less than {budget:g} FLOPs, so no law can predict the loss at this budget. Give "
            "--confirm a larger budget."
        )
    laws, _ = laws_of(by_method(smaller), num_replicates=num_replicates)
    answer = recipe(laws, budget)
    best = answer.best
    prediction = Prediction(
        budget=budget,
        backbone=best.backbone,
        method=best.method,
        learning_rate=best.learning_rate,
        tokens=best.tokens,
        loss=best.loss,
        interval_80=best.interval_80,
        interval_95=best.interval_95,
        largest_flops=max(law.largest_flops for law in laws),
        num_runs=sum(law.fit.num_runs for law in laws),
        epochs=max(row.tokens / row.unique_tokens for row in smaller if row.left_out is None),
    )
    write_whole(at / _RECIPE, recipe_config(answer, laws).text)
    write_whole(at / _PREDICTION, json.dumps(asdict(prediction), indent=1) + "\n")


def confirmations(folder: Path) -> list[Confirmation]:
    """Return all confirmations of a search; the smallest budget comes first.

    Args:
        folder: Folder for predictions and their runs.

    Raises:
        RecordError: If a prediction or a record cannot be read.
    """
    found = [_read(path.parent) for path in folder.glob(f"*/{_PREDICTION}")]
    return sorted(found, key=lambda one: one.prediction.budget)


def _read(at: Path) -> Confirmation:
    path = at / _PREDICTION
    stored = from_plain(Prediction, current_fields(read_json(path, "a prediction")), path)
    prediction = replace(stored, interval_80=Interval(*stored.interval_80), interval_95=Interval(*stored.interval_95))
    path = at / _RUN / FILE
    if not path.exists():
        return Confirmation(prediction, None, at)
    record = read_record(path)
    loss = record.loss if record.status == "finished" else math.nan  # a run that was stopped did not spend its budget
    return Confirmation(prediction, loss, at, record.pairs / max(1, record.unique_pairs))
