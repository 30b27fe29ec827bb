"""What laws are fitted to, whoever ran it: one row a run, from embedlab's records or from somebody else's table."""

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

_NEAR_CHANCE = 0.95  # of the loss of a guess
_SAME_DATA = 0.02  # amounts of data that differ by less are the same one


@dataclass(frozen=True, kw_only=True)
class Observation:
    """One run.

    Attributes:
        name: unique among the runs.
        method: what was trained, and how; a law is fitted to each.
        backbone: path, id or size.
        parameters: N, without tables.
        tokens: D, seen in training, repeats too.
        loss: on held-out data.
        flops: of training; 6 N D where nothing else is known.
        unique_tokens: how many of the tokens are different.
        family: runs of the same one have noise in common.
        learning_rate: peak; None where it is not known.
        pairs: seen in training; None where it is not known.
        seconds: of training; None where it is not known.
        utilization: of the device's peak, by ``flops``; None where it is not known.
        memory_bytes: of a device, at its peak; None where it is not known.
        folder: of the run, with its configuration; None if it is somebody else's.
        left_out: why no law is fitted to it; None if one is.
        chance: loss of one that guesses; None where it is not known.
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
        """Whether it has hardly learned to tell texts apart: laws describe what comes after that."""
        return self.chance is not None and self.loss > _NEAR_CHANCE * self.chance


def of_ledger(ledger: Ledger) -> list[Observation]:
    """Rows of all records of a ledger that can be used, with the folders of their runs; a line says what cannot.

    Raises:
        RecordError: If none can be used, or the losses of runs to be fitted are of different definitions.
    """
    entries = ledger.usable()
    return of_records([record for _, record in entries], [path.parent for path, _ in entries])


def of_records(records: Iterable[RunRecord], folders: Iterable[Path] | None = None) -> list[Observation]:
    """Rows of records; a method that was run with several options is as many methods.

    Args:
        records: of the runs.
        folders: of each, where its configuration is to be found.

    Raises:
        RecordError: if the losses of runs to be fitted are of different definitions.
    """
    records = list(records)
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
            left_out=record.left_out,
            chance=math.log(record.loss_definition.candidates),
        )
        for record, folder in zip(records, of_record, strict=True)
    ]


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
        f"Losses of different definitions cannot be compared: {described} ({len(its)} runs like {its[0]}, "
        f"{len(others)} like {others[0]}). Fit them apart."
    )


def with_best_learning_rates(observations: Sequence[Observation]) -> list[Observation]:
    """The same rows, but of runs that differ in their learning rate alone only the best is fitted.

    A law is about what a size and an amount of data can reach; what a bad learning rate costs is no part of it.
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
                worse[row.name] = f"learning rate {best.learning_rate:g} is better ({best.name})"
    return [replace(row, left_out=worse.get(row.name, row.left_out)) for row in observations]


def by_method(observations: Iterable[Observation]) -> dict[str, list[Observation]]:
    """The rows that laws are fitted to.

    Raises:
        RecordError: if there is none.
    """
    found: dict[str, list[Observation]] = {}
    reasons: Counter[str] = Counter()
    for row in observations:
        if row.left_out is None:
            found.setdefault(row.method, []).append(row)
        else:
            reasons[row.left_out] += 1
    if not found:
        why = "; ".join(f"{plain_text(reason)} ({count} of them)" for reason, count in reasons.most_common(3))
        raise RecordError(
            f"There is no run to fit a law to; {reasons.total()} were left out{': ' + why if why else ''}. Expected "
            "finished ones, with a loss."
        )
    return dict(sorted(found.items()))


def runs_of(observations: Sequence[Observation]) -> Runs:
    """The numbers of some rows."""
    _, family_P = np.unique([row.family for row in observations], return_inverse=True)
    return Runs(
        parameters_P=np.array([row.parameters for row in observations]),
        tokens_P=np.array([row.tokens for row in observations]),
        loss_P=np.array([row.loss for row in observations]),
        unique_tokens_P=np.array([row.unique_tokens for row in observations]),
        family_P=family_P,
        flops_P=np.array([row.flops for row in observations]),
    )
