"""The common form of all runs that laws are fitted to: one row per run.

Rows come from the run records of embedlab, or from a table of runs that were trained elsewhere.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from embedlab.errors import RecordError, plain_text
from embedlab.records import Ledger, LossDefinition, RunRecord
from embedlab.scaling.fitting import Runs

_NEAR_CHANCE = 0.95  # share of the loss of uniform guessing above which a run has hardly learned
_SAME_DATA = 0.02  # share by which amounts of data may differ and still count as equal


@dataclass(frozen=True, kw_only=True)
class Observation:
    """One training run, as the fit of a law sees the run.

    Attributes:
        name: Name of the run, unique among the runs.
        method: Name of the fine-tuning method, with its options where they differ between runs. Each method gets a law.
        backbone: Path or id of the backbone, or a description of its size.
        parameters: Number of parameters of the backbone, without embedding tables (N).
        tokens: Number of tokens seen in training, repeated tokens included (D).
        loss: Loss on held-out data.
        flops: Training cost in FLOPs; 6 N D where the source of the row states no cost.
        unique_tokens: Number of tokens seen in training, each repeated token counted once.
        family: Name of the family of the run. Runs of one family share noise, for example a trunk and its branches.
        learning_rate: Peak learning rate; None if unknown.
        pairs: Number of text pairs seen in training; None if unknown.
        seconds: Duration of training in seconds; None if unknown.
        utilization: ``flops`` per second as a share of the peak FLOP/s of the devices; None if unknown.
        memory_bytes: Peak memory of one device in bytes; None if unknown.
        folder: Folder of the run, which holds its configuration; None for a row of a table.
        left_out: Reason why no law is fitted to the run; None if the run is used.
        chance: Loss of a model that guesses uniformly among the candidates; None if unknown.
    """

    name: str
    method: str
    backbone: str
    parameters: float
    tokens: float
    loss: float
    flops: float
    unique_tokens: float
    family: str
    learning_rate: float | None = None
    pairs: float | None = None
    seconds: float | None = None
    utilization: float | None = None
    memory_bytes: float | None = None
    folder: str | None = None
    left_out: str | None = None
    chance: float | None = None

    @property
    def is_near_chance(self) -> bool:
        """Whether the run has hardly learned to tell texts apart. Laws describe losses after this phase."""
        return self.chance is not None and self.loss > _NEAR_CHANCE * self.chance


def of_ledger(ledger: Ledger, metric: str | None = None) -> list[Observation]:
    """Return the rows of all usable records of a ledger, with the folders of their runs.

    For records that cannot be used, the ledger prints lines to standard error.

    Args:
        ledger: The ledger to read.
        metric: See ``of_records``.

    Raises:
        RecordError: If a folder is missing, if no record can be used, if the losses of the runs to fit have different
            definitions, or if no record has the metric.
    """
    entries = ledger.usable()
    return of_records([record for _, record in entries], [path.parent for path, _ in entries], metric)


def of_records(
    records: Iterable[RunRecord], folders: Iterable[Path] | None = None, metric: str | None = None
) -> list[Observation]:
    """Return the rows of run records.

    A method that was run with several sets of options becomes several methods, one for each set.

    Args:
        records: Records of the runs.
        folders: Folder of each run, in the order of ``records``; None if the folders are unknown.
        metric: Name of a metric of the records that takes the place of the loss. Of a metric from 0 to 1, for which
            higher is better, 1 minus the metric is the loss, and 1 that of a guess; of a metric whose name ends in
            ``loss`` it is the metric itself. None for the loss of the records.

    Raises:
        RecordError: If the losses of the runs to fit have different definitions, or if no record has the metric.
    """
    records = list(records)
    if metric is not None:
        records = _with_metric(records, metric)
    _require_one_definition([record for record in records if record.left_out is None])
    options: dict[str, set[str]] = {}
    for record in records:
        options.setdefault(record.method, set()).add(_written(record.method_options))
    of_record = [None] * len(records) if folders is None else [str(folder) for folder in folders]
    return [
        Observation(
            name=record.run_id,
            method=record.method + (_written(record.method_options) if len(options[record.method]) > 1 else ""),
            backbone=record.backbone,
            parameters=float(record.nonembedding_parameters),
            tokens=float(record.tokens),
            loss=record.loss,
            flops=float(record.flops_algorithmic),
            unique_tokens=record.tokens / max(1.0, record.pairs / max(1, record.unique_pairs)),
            family=record.family,
            learning_rate=record.learning_rate,
            pairs=float(record.pairs),
            seconds=record.seconds,
            utilization=_utilization(record),
            memory_bytes=record.peak_memory_bytes,
            folder=folder,
            left_out=_left_out(record, metric),
            chance=math.log(record.loss_definition.candidates) if metric is None or is_loss(metric) else 1.0,
        )
        for record, folder in zip(records, of_record, strict=True)
    ]


def _left_out(record: RunRecord, metric: str | None) -> str | None:
    if metric is None or metric in record.metrics or record.status != "finished":
        return record.left_out
    return f"it has no metric {metric}"


def is_loss(metric: str) -> bool:
    """Return whether a metric of a record is a loss, for which lower is better; others are from 0 to 1.

    Args:
        metric: Name of the metric, for example ``validation/arxiv/loss``.
    """
    return metric.rpartition("/")[2] == "loss"


def _with_metric(records: Sequence[RunRecord], metric: str) -> list[RunRecord]:
    """Return the records with the loss that a metric stands for; it is undefined where a record lacks the metric.

    Raises:
        RecordError: If no record has the metric, or if it is neither a loss nor from 0 to 1.
    """
    used = [record for record in records if record.left_out is None]
    values = [record.metrics[metric] for record in used if metric in record.metrics]
    if not values:
        known = sorted({name for record in used for name in record.metrics if not name.endswith("_standard_error")})
        raise RecordError(
            f"No run has the metric {plain_text(metric)}. The runs have: {plain_text(', '.join(known), longest=None)}. "
            "Name one of these."
        )
    outside = [value for value in values if not 0 <= value <= 1]
    if outside and not is_loss(metric):
        raise RecordError(
            f"The metric {plain_text(metric)} has a value of {outside[0]:g}. Expected a loss, or a metric from 0 to 1 "
            "for which higher is better. Name another metric."
        )
    found = []
    for record in records:
        value = record.metrics.get(metric, math.nan)
        found.append(replace(record, loss=value if is_loss(metric) else 1 - value))
    return found


def _utilization(record: RunRecord) -> float | None:
    if record.peak_flops_per_second is None or not record.seconds:
        return None
    return record.flops_algorithmic / (record.seconds * record.peak_flops_per_second)


def _written(options: Mapping[str, Any]) -> str:
    return "(" + ", ".join(f"{name}={value}" for name, value in sorted(options.items())) + ")"


def _require_one_definition(records: Sequence[RunRecord]) -> None:
    by_definition: dict[LossDefinition, list[str]] = {}
    for record in records:
        by_definition.setdefault(record.loss_definition, []).append(record.run_id)
    if len(by_definition) < 2:
        return
    (one, its), (other, others) = list(by_definition.items())[:2]
    differ = [name for name in vars(one) if getattr(one, name) != getattr(other, name)]
    described = "; ".join(
        f"{name} {plain_text(getattr(one, name))} and {plain_text(getattr(other, name))}" for name in differ
    )
    raise RecordError(
        f"Losses of different definitions cannot be compared: {described} (number of runs: {len(its)} like {its[0]}, "
        f"{len(others)} like {others[0]}). Fit each group of runs separately."
    )


def with_best_learning_rates(observations: Sequence[Observation]) -> list[Observation]:
    """Return the rows, marking a run as left out if a similar run with another learning rate has a lower loss.

    Runs are similar if they have the same method, backbone and size, and about the same number of tokens. A law
    predicts the loss that a model size and an amount of data can reach; the loss that a bad learning rate adds is not
    part of the law.

    Args:
        observations: Rows of the runs.

    Returns:
        All rows in the given order. The field ``left_out`` of a run that is not fitted states the reason.
    """
    alike: dict[tuple[str, str, float, int], list[Observation]] = {}
    for row in observations:
        if row.left_out is None and row.learning_rate is not None:
            amount = round(math.log(row.tokens) / _SAME_DATA)
            alike.setdefault((row.method, row.backbone, row.parameters, amount), []).append(row)
    worse: dict[str, str] = {}
    for rows in alike.values():
        best = min(rows, key=lambda row: row.loss)
        for row in rows:
            if row.learning_rate != best.learning_rate:
                worse[row.name] = f"learning rate {best.learning_rate:g} gave a lower loss ({best.name})"
    return [replace(row, left_out=worse.get(row.name, row.left_out)) for row in observations]


def by_method(observations: Iterable[Observation]) -> dict[str, list[Observation]]:
    """Return the rows that laws are fitted to, by the name of the method.

    Args:
        observations: Rows of the runs. Rows that state a reason in ``left_out`` are dropped.

    Raises:
        RecordError: If no row is left.
    """
    found: dict[str, list[Observation]] = {}
    reasons: Counter[str] = Counter()
    for row in observations:
        if row.left_out is None:
            found.setdefault(row.method, []).append(row)
        else:
            reasons[row.left_out] += 1
    if not found:
        total = reasons.total()
        why = "; ".join(f"{plain_text(reason)} ({count} of {total})" for reason, count in reasons.most_common(3))
        raise RecordError(
            f"There is no run to fit a law to; number of runs left out: {total}{', because: ' + why if why else ''}. "
            "Add finished runs with a loss."
        )
    return dict(sorted(found.items()))


def runs_of(observations: Sequence[Observation]) -> Runs:
    """Return the numbers of the rows as arrays, one entry per row."""
    chances = {row.chance for row in observations}
    _, family_P = np.unique([row.family for row in observations], return_inverse=True)
    return Runs(
        parameters_P=np.array([row.parameters for row in observations]),
        tokens_P=np.array([row.tokens for row in observations]),
        loss_P=np.array([row.loss for row in observations]),
        unique_tokens_P=np.array([row.unique_tokens for row in observations]),
        family_P=family_P,
        flops_P=np.array([row.flops for row in observations]),
        backbones=tuple(row.backbone for row in observations),
        chance=chances.pop() if len(chances) == 1 else None,
    )
