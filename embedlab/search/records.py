"""What one training run did, written once and whole: the facts that laws and recipes rest on.

Each run has its record in its own folder, so any number of machines write beside each other on a shared file system. A
ledger is no file but a view over such folders.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from embedlab.errors import RecordError

FILE = "record.json"
SCHEMA = 1
Status = Literal["finished", "stopped", "diverged", "failed"]


@dataclass(frozen=True, kw_only=True)
class LossDefinition:
    """What a held-out loss is the loss of: losses under different definitions cannot be compared.

    Attributes:
        loss: the contrastive loss of the evaluation, whatever is trained with.
        temperature: of the evaluation.
        candidates: that each query is told apart from, its own document included.
        evaluation_set: name and fingerprint of the held-out texts.
    """

    loss: str
    temperature: float
    candidates: int
    evaluation_set: str


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One training run.

    Attributes:
        run_id: unique.
        status: how the run ended. Only a finished run is fitted; a stopped run ended before its plan did.
        stop_reason: Why a stopped run ended before its plan did; None for every other run.
        steps: Number of optimizer steps taken; None in records of versions that did not count them.
        planned_steps: Number of optimizer steps planned; None where a budget of FLOPs ends the run.
        planned_flops: Budget of the run in algorithmic FLOPs; None where a number of steps ends the run.
        backbone: path or id.
        backbone_options: how it was loaded and pooled, where that changes what it learns: the direction of attention,
            the type of the weights, pooling.
        random_weights: whether it began from fresh ones in place of pre-trained ones.
        method: class of the fine-tuning method.
        method_options: its arguments.
        parameters: all of the backbone and what the method adds.
        nonembedding_parameters: N.
        forward_weights: N_F of all matrix products with weights: of the backbone, of the method, and of tables where
            they are multiplied with.
        backward_weights: N_B of the same.
        update_weights: N_U of the same.
        tokens: real ones seen, D.
        padded_tokens: with padding.
        pairs: seen.
        unique_pairs: different ones among them.
        batch_size: pairs a step.
        max_length: tokens of a text, at most.
        training_loss: class and arguments of the loss that was trained with, as written.
        learning_rate: peak.
        schedule: class and arguments, as written.
        seed: of everything.
        data_hash: fingerprint of the tokenised training pairs.
        loss_definition: what ``loss`` is.
        loss: on held-out pairs, at the end; NaN if it came to no such end.
        loss_standard_error: over those pairs.
        metrics: all that was measured at the end, by name.
        flops_algorithmic: without padding and recomputation.
        flops_executed: with both.
        seconds: of training, evaluation left out.
        peak_memory_bytes: allocated on the first rank's GPU; on the CPU, resident in its process.
        device: its name, and how many.
        peak_flops_per_second: of all of them, by their data sheet or as measured; None where it is not known.
        versions: of packages.
        git_revision: of the working directory, where there is one.
        parent_run_id: the first run of the family, where this one went on from a checkpoint of another.
        branch_step: where it did.
        branch_flops: algorithmic FLOPs up to there, which are another run's; ``flops_algorithmic`` has them too.
        changes: Options that were changed when the run went on from a checkpoint, each with where; empty if none were.
        schema: of this record.
    """

    run_id: str
    status: Status
    backbone: str
    backbone_options: Mapping[str, Any] = field(default_factory=dict)
    random_weights: bool = False
    method: str
    method_options: Mapping[str, Any] = field(default_factory=dict)
    parameters: int
    nonembedding_parameters: int
    forward_weights: float
    backward_weights: float
    update_weights: float
    tokens: int
    padded_tokens: int
    pairs: int
    unique_pairs: int
    batch_size: int
    max_length: int
    training_loss: str | None = None
    learning_rate: float
    schedule: str
    seed: int
    data_hash: str
    loss_definition: LossDefinition
    loss: float
    loss_standard_error: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    flops_algorithmic: int
    flops_executed: int
    seconds: float
    peak_memory_bytes: int | None = None
    device: str
    peak_flops_per_second: float | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    git_revision: str | None = None
    parent_run_id: str | None = None
    branch_step: int | None = None
    branch_flops: int | None = None
    stop_reason: str | None = None
    steps: int | None = None
    planned_steps: int | None = None
    planned_flops: float | None = None
    changes: Sequence[str] = ()
    schema: int = SCHEMA

    @property
    def family(self) -> str:
        """Runs of one have noise in common: a trunk and the branches off it."""
        return self.parent_run_id or self.run_id

    @property
    def flops_added(self) -> int:
        """Algorithmic FLOPs that were spent for this run alone: over the records of a search each is counted once."""
        return self.flops_algorithmic - (self.branch_flops or 0)

    @property
    def left_out(self) -> str | None:
        """Why no law is fitted to it; None if one is."""
        if self.status == "stopped":
            return f"stopped before its plan was done: {self.stop_reason}"
        if self.status != "finished":
            return self.status
        if self.changes:
            return f"its options were changed on the way: {'; '.join(self.changes)}"
        if self.random_weights:
            return "it began from random weights"
        if not math.isfinite(self.loss):
            return f"its loss is {self.loss}"
        return None


_KNOWN = {entry.name for entry in fields(RunRecord)}
_DEFINITION = {entry.name for entry in fields(LossDefinition)}
_NUMBERS = ("nonembedding_parameters", "tokens", "pairs", "unique_pairs", "flops_algorithmic", "seconds", "loss")
_NEEDED = {e.name for e in fields(RunRecord) if e.default is MISSING and e.default_factory is MISSING}


def write_record(record: RunRecord, folder: Path) -> Path:
    """Writes a record into a run's folder: whole, and once.

    Raises:
        RecordError: if there is one already, or it cannot be written.
    """
    path, unfinished = folder / FILE, folder / f"{FILE}.{uuid4().hex}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with unfinished.open("x", encoding="utf-8") as file:
                file.write(json.dumps(asdict(record), indent=1) + "\n")
                file.flush()
                os.fsync(file.fileno())
            os.link(unfinished, path)  # unlike a rename, never over another
        finally:
            unfinished.unlink(missing_ok=True)
    except FileExistsError as error:
        raise RecordError(f"{path} is there already, and a record is written once. Choose another folder.") from error
    except OSError as error:
        raise RecordError(f"The record of {record.run_id} could not be written to {path}: {error}.") from error
    return path


def read_record(path: Path) -> RunRecord:
    """A record from its file.

    Raises:
        RecordError: if it is none, is of a later version, lacks something, or has something else in its place.
    """
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise RecordError(f"{path} cannot be read as a run record: {error}.") from error
    if not isinstance(values, dict) or not isinstance(values.get("schema"), int):
        raise RecordError(f"{path} is no run record: it has no schema number. `embedlab fit` writes {FILE}.")
    if values["schema"] > SCHEMA:
        raise RecordError(
            f"{path} is a record of schema {values['schema']}, and this embedlab reads up to {SCHEMA}. Update embedlab."
        )
    missing = _NEEDED - values.keys()
    if missing:
        raise RecordError(
            f"{path} is a record without {', '.join(sorted(missing))}. Write it anew, or leave the run out."
        )
    definition = values["loss_definition"]
    if not isinstance(definition, dict) or definition.keys() != _DEFINITION:
        raise RecordError(
            f"{path} is a record whose loss_definition is {definition!r}. Expected {', '.join(sorted(_DEFINITION))}. "
            "Write it anew, or leave the run out."
        )
    for name in _NUMBERS:
        if isinstance(values[name], bool) or not isinstance(values[name], int | float):
            raise RecordError(
                f"{path} is a record whose {name} is {values[name]!r}. Expected a number. Write it anew, or leave the "
                "run out."
            )
    values["loss_definition"] = LossDefinition(**definition)
    for name in values.keys() - _KNOWN:
        del values[name]
    return RunRecord(**values)


@dataclass(frozen=True)
class Ledger:
    """All records below some folders.

    Attributes:
        folders: each a run's, or one that holds runs at any depth.
    """

    folders: Sequence[Path]

    def paths(self) -> Iterator[Path]:
        """Of the records, in the order of their names.

        Raises:
            RecordError: if a folder is not there.
        """
        for folder in self.folders:
            if not folder.is_dir():
                raise RecordError(f"There is no folder {folder} with runs. Expected one that `embedlab fit` wrote.")
            for run in sorted(at for at, _, files in os.walk(folder) if FILE in files):
                yield Path(run, FILE)

    def records(self) -> list[RunRecord]:
        """Every one, read anew: other machines may have written more.

        Raises:
            RecordError: if one cannot be read, or two have the same identifier.
        """
        found: dict[str, Path] = {}
        records = []
        for path in self.paths():
            record = read_record(path)
            if record.run_id in found:
                raise RecordError(
                    f"{path} and {found[record.run_id]} are records of the same run, {record.run_id}. Remove the copy."
                )
            found[record.run_id] = path
            records.append(record)
        return records
