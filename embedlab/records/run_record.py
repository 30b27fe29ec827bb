"""What one training run did, written once and whole: the facts that laws and recipes rest on.

Each run has its record in its own folder, so any number of machines write beside each other on a shared file system. A
ledger is no file but a view over such folders. A record may be anybody's: it is read as data, and each field is checked
against its annotation.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from embedlab.errors import RecordError, plain_text
from embedlab.files import write_whole
from embedlab.records.stored import Pattern, Range, from_plain, is_folder, read_json, wrong_field

FILE = "record.json"
SCHEMA = 1
Status = Literal["finished", "stopped", "diverged", "failed"]

RunId = Annotated[str, Pattern("[A-Za-z0-9_-]{1,64}", "1 to 64 letters, digits, hyphens and underscores")]
"""A name that stays in its folder wherever it becomes part of a path."""
_Name = Annotated[str, Pattern(r"(?s).{1,4096}", "1 to 4096 characters")]
_Count = Annotated[int, Range(0)]
_CountFromOne = Annotated[int, Range(1)]
_Amount = Annotated[float, Range(0)]
_Measured = Annotated[float, Range(0, may_be_unknown=True)]

_MOST_LINES = 5  # about broken records


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
    temperature: Annotated[float, Range(1e-12)]
    candidates: _CountFromOne
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
        data_hash: fingerprint of the tokenized training pairs.
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

    run_id: RunId
    status: Status
    backbone: _Name
    backbone_options: Mapping[str, Any] = field(default_factory=dict)
    random_weights: bool = False
    method: _Name
    method_options: Mapping[str, Any] = field(default_factory=dict)
    parameters: _CountFromOne
    nonembedding_parameters: _CountFromOne
    forward_weights: _Amount
    backward_weights: _Amount
    update_weights: _Amount
    tokens: _Count
    padded_tokens: _Count
    pairs: _Count
    unique_pairs: _Count
    batch_size: _CountFromOne
    max_length: _CountFromOne
    training_loss: str | None = None
    learning_rate: _Amount
    schedule: str
    seed: int
    data_hash: str
    loss_definition: LossDefinition
    loss: _Measured
    loss_standard_error: _Measured | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    flops_algorithmic: _Count
    flops_executed: _Count
    seconds: _Amount
    peak_memory_bytes: _Count | None = None
    device: str
    peak_flops_per_second: Annotated[float, Range(1)] | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    git_revision: str | None = None
    parent_run_id: RunId | None = None
    branch_step: _Count | None = None
    branch_flops: _Count | None = None
    stop_reason: str | None = None
    steps: _Count | None = None
    planned_steps: _Count | None = None
    planned_flops: _Amount | None = None
    changes: Sequence[str] = ()
    schema: _CountFromOne = SCHEMA

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
        for name in ("loss", "learning_rate"):
            if not getattr(self, name) > 0:
                return f"its {name} is 0"
        return None


def write_record(record: RunRecord, folder: Path) -> Path:
    """Writes a record into a run's folder: whole, and once.

    Raises:
        RecordError: if there is one already, or it cannot be written.
    """
    path = folder / FILE
    try:
        write_whole(path, json.dumps(asdict(record), indent=1) + "\n", replace=False)
    except OSError as error:
        if isinstance(error, FileExistsError) and path.exists():  # and not the folder, being a file
            raise RecordError(
                f"{path} is there already, and a record is written once. Choose another folder."
            ) from error
        raise RecordError(f"The record of {record.run_id} could not be written to {path}: {error}.") from error
    return path


def read_record(path: Path) -> RunRecord:
    """Return the record that a file holds, when every field has been checked.

    Raises:
        RecordError: If the file is no record, is of a later version, or a field is missing or cannot be. The message
            names the file, the field, what it holds and what is expected.
    """
    values = read_json(path, "a run record")
    schema = values.get("schema")
    if type(schema) is not int:
        raise RecordError(
            f"{plain_text(path, longest=None)} is no run record: it has no schema number. `embedlab fit` writes {FILE}."
        )
    if schema > SCHEMA:
        raise RecordError(
            f"{plain_text(path, longest=None)} is a record of schema {plain_text(schema, longest=20)}, and this "
            f"embedlab reads up to {SCHEMA}. Update embedlab."
        )
    record = from_plain(RunRecord, values, path)
    _require_consistency(record, path)
    return record


def _require_consistency(record: RunRecord, path: Path) -> None:
    """Refuses numbers that cannot be beside each other, of a run whose counts are final."""
    if record.status not in ("finished", "stopped"):
        return
    for name in ("tokens", "pairs", "unique_pairs", "flops_algorithmic"):
        if getattr(record, name) < 1:
            raise wrong_field(path, name, getattr(record, name), f"1 or more of a {record.status} run")
    for name, limit in (("unique_pairs", "pairs"), ("branch_flops", "flops_algorithmic")):
        value, most = getattr(record, name), getattr(record, limit)
        if value is not None and value > most:
            raise wrong_field(path, name, value, f"no more than {limit}, which is {most}")


@dataclass(frozen=True)
class Entries:
    """What a ledger holds at a moment.

    Attributes:
        records: Each record with its file, in the order of the files' names.
        broken: What is wrong with each file that cannot be used.
    """

    records: Sequence[tuple[Path, RunRecord]]
    broken: Sequence[RecordError]


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
            RecordError: if a folder is not there, or one in it cannot be listed.
        """
        for found in self._walk():
            if isinstance(found, RecordError):
                raise found
            yield found

    def records(self) -> list[RunRecord]:
        """Every one, read anew: other machines may have written more.

        Raises:
            RecordError: if one cannot be read, or two that differ have the same identifier.
        """
        entries = self.entries()
        if entries.broken:
            raise entries.broken[0]
        return [record for _, record in entries.records]

    def entries(self) -> Entries:
        """Read every record once, and keep apart what cannot be used, so that the others can.

        Of copies of a record the first counts. Of different records that say they are of one run none does: nobody
        knows which is right.

        Raises:
            RecordError: If a folder of the ledger is not there.
        """
        broken: list[RecordError] = []
        by_id: dict[str, list[tuple[Path, RunRecord]]] = {}
        for found in self._walk():
            try:
                if isinstance(found, RecordError):
                    raise found
                record = read_record(found)
            except RecordError as error:
                if isinstance(found, RecordError) or os.path.lexists(found):  # it was not removed meanwhile
                    broken.append(error)
                continue
            by_id.setdefault(record.run_id, []).append((found, record))
        used = []
        for run_id, same in by_id.items():
            different = same if len(same) == 1 else list({repr(entry[1]): entry for entry in reversed(same)}.values())
            if len(different) == 1:
                used += different
                continue
            (other, _), (one, _) = different[-2:]
            broken.append(
                RecordError(
                    f"{plain_text(one, longest=None)} and {plain_text(other, longest=None)} are different records of "
                    f"the same run, {run_id}. Remove the one that is wrong."
                )
            )
        return Entries(used, broken)

    def usable(self) -> list[tuple[Path, RunRecord]]:
        """Read every record once, and print a line to standard error about each file that cannot be used.

        Raises:
            RecordError: If a folder of the ledger is not there, or there are records and none can be used.
        """
        entries = self.entries()
        if entries.broken and not entries.records:
            count = len(entries.broken)
            raise RecordError(f"None of the records can be used. {entries.broken[0]}" + _and_more(count - 1))
        for error in entries.broken[:_MOST_LINES]:
            print(f"Left out: {error}", file=sys.stderr)
        if len(entries.broken) > _MOST_LINES:
            print(f"Left out:{_and_more(len(entries.broken) - _MOST_LINES)}", file=sys.stderr)
        return list(entries.records)

    def _walk(self) -> Iterator[Path | RecordError]:
        """The files of records, and errors of folders that cannot be listed."""
        for folder in self.folders:
            if not is_folder(folder):
                raise RecordError(
                    f"There is no folder {plain_text(folder, longest=None)} with runs. Expected one that `embedlab "
                    "fit` wrote."
                )
        for folder in self.folders:
            hidden: list[OSError] = []
            runs = sorted(at for at, _, files in os.walk(folder, onerror=hidden.append) if FILE in files)
            for error in hidden:
                if not isinstance(error, FileNotFoundError):  # it was removed meanwhile
                    where = plain_text(error.filename, longest=None)
                    yield RecordError(f"The folder {where} cannot be listed: {error.strerror}.")
            yield from (Path(run, FILE) for run in runs)


def _and_more(count: int) -> str:
    return f" So it is with {count} more." if count else ""
