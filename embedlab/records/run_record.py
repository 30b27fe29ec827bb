"""The record of one training run, written once and whole: laws and recipes are based on records.

Each run has its record in its own folder, so any number of machines can write records on a shared file system. A ledger
is not a file but a view over such folders. A record may come from anybody: it is read as data, and each field is
checked against its annotation.
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
"""A name of a run that cannot leave its folder when it becomes part of a path."""
_Name = Annotated[str, Pattern(r"(?s).{1,4096}", "1 to 4096 characters")]
_Count = Annotated[int, Range(0)]
_CountFromOne = Annotated[int, Range(1)]
_Amount = Annotated[float, Range(0)]
_Measured = Annotated[float, Range(0, may_be_unknown=True)]

_MOST_LINES = 5  # lines printed about broken records


@dataclass(frozen=True, kw_only=True)
class LossDefinition:
    """The definition of a held-out loss. Losses with different definitions cannot be compared.

    Attributes:
        loss: Name of the contrastive loss of the evaluation, which does not depend on the training loss.
        temperature: Temperature of the evaluation's loss.
        candidates: Number of candidate documents per query, the query's own document included.
        evaluation_set: Name and fingerprint of the held-out texts.
    """

    loss: str
    temperature: Annotated[float, Range(1e-12)]
    candidates: _CountFromOne
    evaluation_set: str


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """The record of one training run.

    Attributes:
        run_id: Unique identifier of the run.
        status: How the run ended. Laws are fitted to finished runs only; a stopped run ended before its plan was done.
        stop_reason: Reason why a stopped run ended before its plan was done; None for every other run.
        steps: Number of optimizer steps taken; None in records of versions that did not count steps.
        planned_steps: Number of optimizer steps planned; None if a budget of FLOPs ends the run.
        planned_flops: Budget of the run in algorithmic FLOPs; None if a number of steps ends the run.
        backbone: Path or model id of the backbone, or the name of a rung of the ladder, for example ``ladder:r0``.
        backbone_options: Options of loading and pooling that change what the backbone learns: direction of attention,
            dtype of the weights, and pooling.
        random_weights: Whether the run started from random weights in place of pre-trained weights.
        method: Class name of the fine-tuning method.
        method_options: Arguments of the fine-tuning method, by name.
        parameters: Number of parameters of the backbone, together with the parameters that the method adds.
        nonembedding_parameters: Number of non-embedding parameters of the backbone, N.
        forward_weights: Number of weights in the matrix products of a token's forward pass, N_F. Weights of the
            backbone and of the method count, and tables that are multiplied with.
        backward_weights: Number of weights in the matrix products that propagate gradients of activations, N_B.
        update_weights: Number of weights whose own gradients are computed by matrix products, N_U.
        tokens: Number of tokens seen, without padding, D.
        padded_tokens: Number of tokens seen, with padding.
        pairs: Number of training pairs seen. A pair that was seen in two epochs counts twice.
        unique_pairs: Number of different training pairs seen.
        batch_size: Number of pairs per optimizer step.
        max_length: Maximum number of tokens of a text.
        training_loss: Class and arguments of the loss of the training, as text.
        learning_rate: Peak learning rate.
        schedule: Class and arguments of the learning-rate schedule, as text.
        seed: Seed of all random numbers of the run.
        data_hash: Fingerprint of the tokenized training pairs.
        loss_definition: Definition of ``loss``.
        loss: Loss on held-out pairs at the end of the run; NaN for a run that diverged or failed.
        loss_standard_error: Standard error of ``loss`` over the held-out pairs; None if unknown.
        metrics: All metrics of the evaluation at the end of the run, by name.
        flops_algorithmic: Number of FLOPs without padding and recomputation.
        flops_executed: Number of FLOPs with padding and recomputation.
        seconds: Duration of the training in seconds, without evaluation.
        peak_memory_bytes: Peak memory of the first rank in bytes: allocated on its GPU, or resident in its process for
            training on a CPU; None if unknown.
        device: Name and number of the devices.
        peak_flops_per_second: Peak FLOP/s of all devices together, from the data sheet or measured; None if unknown.
        versions: Versions of Python and of packages, by name.
        git_revision: Git commit of the working directory; None outside a git repository.
        parent_run_id: Identifier of the first run of the family, if this run went on from a checkpoint of another run.
        branch_step: Optimizer step at which this run went on from another run's checkpoint.
        branch_flops: Algorithmic FLOPs up to ``branch_step``, which another run spent. ``flops_algorithmic`` includes
            them.
        changes: Options that were changed when the run went on from a checkpoint, each with the step of the change;
            empty if no option was changed.
        schema: Version of the record's format.
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
        """The identifier of the run's family: a trunk and its branches, which have noise in common."""
        return self.parent_run_id or self.run_id

    @property
    def flops_added(self) -> int:
        """The algorithmic FLOPs that only this run spent, so that a sum over runs counts the FLOPs of a trunk once."""
        return self.flops_algorithmic - (self.branch_flops or 0)

    @property
    def left_out(self) -> str | None:
        """The reason why laws are fitted without this run; None if laws are fitted to the run."""
        if self.status == "stopped":
            return f"stopped before its plan was done: {self.stop_reason}"
        if self.status != "finished":
            return self.status
        if self.changes:
            return f"options were changed during the run: {'; '.join(self.changes)}"
        if self.random_weights:
            return "the run started from random weights"
        if not math.isfinite(self.loss):
            return f"the loss is {self.loss}"
        for name in ("loss", "learning_rate"):
            if not getattr(self, name) > 0:
                return f"the {name} is 0"
        return None


def write_record(record: RunRecord, folder: Path) -> Path:
    """Write a record into a run's folder: whole, and once.

    Returns:
        The path of the record's file.

    Raises:
        RecordError: If the folder already holds a record, or the record cannot be written.
    """
    path = folder / FILE
    try:
        write_whole(path, json.dumps(asdict(record), indent=1) + "\n", replace=False)
    except OSError as error:
        # Without a file at the path, the error means that the folder is a file.
        if isinstance(error, FileExistsError) and path.exists():
            raise RecordError(
                f"{path} exists already, and a record is never overwritten. Choose another folder."
            ) from error
        raise RecordError(f"The record of {record.run_id} could not be written to {path}: {error}.") from error
    return path


def read_record(path: Path) -> RunRecord:
    """Read a record from a file, and check every field.

    Raises:
        RecordError: If the file is not a record, has a later schema, lacks a field, or holds a wrong value. The message
            names the file, the field, the received value and the expected values.
    """
    values = read_json(path, "a run record")
    schema = values.get("schema")
    if type(schema) is not int:
        raise RecordError(
            f"{plain_text(path, longest=None)} is not a run record: the file has no schema number. Expected a {FILE} "
            "that `embedlab fit` wrote."
        )
    if schema > SCHEMA:
        raise RecordError(
            f"{plain_text(path, longest=None)} is a record of schema {plain_text(schema, longest=20)}. This version of "
            f"embedlab reads records up to schema {SCHEMA}. Update embedlab."
        )
    record = from_plain(RunRecord, values, path)
    _require_consistency(record, path)
    return record


def _require_consistency(record: RunRecord, path: Path) -> None:
    """Refuse a finished or stopped run whose counts contradict each other.

    Raises:
        RecordError: If a count is 0, or larger than another count allows.
    """
    if record.status not in ("finished", "stopped"):
        return
    for name in ("tokens", "pairs", "unique_pairs", "flops_algorithmic"):
        if getattr(record, name) < 1:
            raise wrong_field(path, name, getattr(record, name), f"at least 1 for a {record.status} run")
    for name, limit in (("unique_pairs", "pairs"), ("branch_flops", "flops_algorithmic")):
        value, most = getattr(record, name), getattr(record, limit)
        if value is not None and value > most:
            raise wrong_field(path, name, value, f"at most {limit}, which is {most}")


@dataclass(frozen=True)
class Entries:
    """The records of a ledger at the time of reading.

    Attributes:
        records: Pairs of file and record, in the order of the files' names.
        broken: Errors, one for each file that cannot be used.
    """

    records: Sequence[tuple[Path, RunRecord]]
    broken: Sequence[RecordError]


@dataclass(frozen=True)
class Ledger:
    """A view of all run records below some folders.

    Attributes:
        folders: Folders of single runs, or folders that hold folders of runs at any depth.
    """

    folders: Sequence[Path]

    def paths(self) -> Iterator[Path]:
        """Yield the paths of the records' files, per folder in the order of their names.

        Raises:
            RecordError: If a folder of the ledger does not exist, or a folder cannot be listed.
        """
        for found in self._walk():
            if isinstance(found, RecordError):
                raise found
            yield found

    def records(self) -> list[RunRecord]:
        """Read and return all records. Every call reads the files again, because other machines may write records.

        Raises:
            RecordError: If a record cannot be read, or two different records have the same identifier.
        """
        entries = self.entries()
        if entries.broken:
            raise entries.broken[0]
        return [record for _, record in entries.records]

    def entries(self) -> Entries:
        """Read every record once, and return usable records and the errors of unusable files separately.

        Among copies of a record, the first is used. Different records with the same run identifier are all left out,
        because it is unknown which record is right.

        Raises:
            RecordError: If a folder of the ledger does not exist.
        """
        broken: list[RecordError] = []
        by_id: dict[str, list[tuple[Path, RunRecord]]] = {}
        for found in self._walk():
            try:
                if isinstance(found, RecordError):
                    raise found
                record = read_record(found)
            except RecordError as error:
                if isinstance(found, RecordError) or os.path.lexists(found):  # not if the file was just removed
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
                    f"the same run, {run_id}. Remove the wrong record."
                )
            )
        return Entries(used, broken)

    def usable(self) -> list[tuple[Path, RunRecord]]:
        """Read every record once, and print a line to standard error about each file that cannot be used.

        Returns:
            Pairs of file and record; an empty list if there are no records.

        Raises:
            RecordError: If a folder of the ledger does not exist, or there are records but none can be used.
        """
        entries = self.entries()
        if entries.broken and not entries.records:
            count = len(entries.broken)
            raise RecordError(f"None of the records can be used. {entries.broken[0]}" + _and_more(count - 1))
        for error in entries.broken[:_MOST_LINES]:
            print(f"Left out: {error}", file=sys.stderr)
        if len(entries.broken) > _MOST_LINES:
            print(f"Left out: {len(entries.broken) - _MOST_LINES} more files.", file=sys.stderr)
        return list(entries.records)

    def _walk(self) -> Iterator[Path | RecordError]:
        """Yield the paths of the records' files, and errors about folders that cannot be listed.

        Raises:
            RecordError: If a folder of the ledger does not exist.
        """
        for folder in self.folders:
            if not is_folder(folder):
                raise RecordError(
                    f"There is no folder {plain_text(folder, longest=None)}. Expected a folder of runs that `embedlab "
                    "fit` wrote."
                )
        for folder in self.folders:
            hidden: list[OSError] = []
            runs = sorted(at for at, _, files in os.walk(folder, onerror=hidden.append) if FILE in files)
            for error in hidden:
                if not isinstance(error, FileNotFoundError):  # a folder that was just removed is no error
                    where = plain_text(error.filename, longest=None)
                    yield RecordError(f"The folder {where} cannot be listed: {error.strerror}.")
            yield from (Path(run, FILE) for run in runs)


def _and_more(count: int) -> str:
    return f" Files that cannot be used: {count} more." if count else ""
