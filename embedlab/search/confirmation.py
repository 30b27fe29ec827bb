"""Whether a recipe comes true: it is written down for a budget outside of the fit, trained as it is, and compared."""

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

_SLACK = 1.02  # a run overshoots its budget by less than a step
_Positive = Annotated[float, Range(1e-36)]
_PREDICTION, _RECIPE, _RUN = "prediction.json", "recipe.yaml", "run"


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What was said before the run.

    Attributes:
        budget: FLOPs.
        backbone: path or id.
        method: with its options.
        learning_rate: peak.
        tokens: D.
        loss: expected.
        interval_80: holds the loss with that probability.
        interval_95: likewise.
        largest_flops: of the runs that the laws were fitted to.
        num_runs: how many these are.
        epochs: over the data, the most of one of them.
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
    """A prediction and what came of it.

    Attributes:
        prediction: that was made.
        loss: that was measured; None where the run has not ended, NaN where it has without one.
        folder: of both.
        epochs: of the run over the data; None where it has not ended.
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
            return text + "it came to no loss."
        off = self.loss / said.loss - 1
        return text + f"it came to {self.loss:.4g}, {self.where} ({off:+.1%}).{self.caution}"

    @property
    def caution(self) -> str:
        """What to know before the two are compared; empty where there is nothing."""
        epochs = self.epochs or 0.0
        if epochs < MANY_EPOCHS * max(1.0, self.prediction.epochs):
            return ""
        return (
            f" It saw its pairs {epochs:.2g} times, and no fitted run did so more than {self.prediction.epochs:.2g} "
            "times: what repeated data are worth, these laws cannot know."
        )

    @property
    def where(self) -> str:
        """The loss beside the intervals."""
        for name, (low, high) in (("80 %", self.prediction.interval_80), ("95 %", self.prediction.interval_95)):
            if self.loss is not None and low <= self.loss <= high:
                return f"within the interval of {name}"
        return "outside of both intervals"


def next_budget(budgets: Sequence[float]) -> float:
    """As far beyond the largest budget as that is beyond the one before; four times where there is only one."""
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
    """Predicts, writes that down, and trains. What was predicted before is not predicted anew.

    Args:
        budget: FLOPs; only runs of smaller ones are fitted.
        observations: of the search.
        folder: for predictions and their runs.
        runner: that trains.
        fit: Configuration that all runs of the search have in common, which the user wrote: what it says and a recipe
            may not say, such as a class of the user's own, holds for the run of the recipe, too.
        num_replicates: of the bootstrap.

    Raises:
        ConfigError: if the runs of smaller budgets give no law, or none that reaches that far.
        TrainingError: if the run leaves no record.
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
            f"No run had fewer than {budget:g} FLOPs, so there is nothing to predict that budget from. Confirm a "
            "larger one."
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
        epochs=max(row.tokens / row.unique_tokens for row in smaller),
    )
    write_whole(at / _RECIPE, recipe_config(answer, laws).text)
    write_whole(at / _PREDICTION, json.dumps(asdict(prediction), indent=1) + "\n")


def confirmations(folder: Path) -> list[Confirmation]:
    """All that a search has made, the smallest budget first.

    Raises:
        RecordError: if one cannot be read.
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
    loss = record.loss if record.status == "finished" else math.nan  # one that was stopped did not have the budget
    return Confirmation(prediction, loss, at, record.pairs / max(1, record.unique_pairs))
