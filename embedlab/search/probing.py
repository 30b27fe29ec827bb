"""Probing: trains every combination for a few steps before the search, to measure memory, FLOPs and time.

A combination that cannot be loaded or trained is found here, and not after hours of training.
"""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

from embedlab.errors import ConfigError, TrainingError
from embedlab.files import locked_folder, write_whole
from embedlab.records import FILE
from embedlab.records.stored import Range, from_plain, read_json
from embedlab.search.jobs import JobRunner
from embedlab.search.launchers.launcher import Job, JobResult
from embedlab.search.space import Candidate
from embedlab.search.trials import CHECKPOINTS, job

STEPS = 3
_MEASURED = "probe.json"
_SHORTEST = 1e-6  # minimum duration of a run in seconds: a clock may measure 0
_Positive = Annotated[float, Range(1e-36)]
_SECONDS_TO_END = 300.0  # time for a worker whose search was killed to finish its step and save a checkpoint


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Measurements from a few training steps of a candidate.

    Attributes:
        parameters: Number of parameters of the backbone, without embedding tables (N).
        flops_per_token: Algorithmic FLOPs of training per token, including attention.
        flops_per_step: Algorithmic FLOPs of training per step.
        learning_rate: Default peak learning rate of the method for the backbone.
        flops_per_second: Algorithmic FLOPs of training per second.
        other_seconds: Time of a run outside of training, such as loading and evaluation, in seconds.
        memory_bytes: Peak memory of one device in bytes, or of the process on CPU; None if unknown.
        checkpoint_bytes: Size of the checkpoints that a run leaves on disk, in bytes.
    """

    parameters: _Positive
    flops_per_token: _Positive
    flops_per_step: _Positive
    learning_rate: _Positive
    flops_per_second: _Positive
    other_seconds: Annotated[float, Range(0)]
    memory_bytes: Annotated[int, Range(0)] | None
    checkpoint_bytes: Annotated[int, Range(0)]

    def seconds(self, flops: float) -> float:
        """Return the projected duration of a run in seconds.

        Args:
            flops: Training cost of the run in FLOPs.
        """
        return self.other_seconds + flops / self.flops_per_second


@dataclass(frozen=True)
class Probed:
    """Results of probing the combinations of a search.

    Attributes:
        probes: Probe of each combination that can be trained.
        refused: Reason of each combination that cannot be trained.
    """

    probes: dict[Candidate, Probe]
    refused: dict[Candidate, str]


def probe(candidates: Sequence[Candidate], budget: float, fit: Path, folder: Path, runner: JobRunner) -> Probed:
    """Train each candidate for a few steps, and measure the run. Candidates that were measured before are not trained.

    Args:
        candidates: Candidates without a learning rate.
        budget: Budget of the largest run of the search in FLOPs. Each probe uses this budget, so that a budget which
            training would refuse is found here.
        fit: Path of the configuration of ``embedlab fit`` that all runs share.
        folder: Folder for the probes.
        runner: Runner that trains the probes.

    Raises:
        TrainingError: If another process is training in the folder of a probe.
    """
    jobs = {_job(one, budget, fit, folder / one.named(budget)): one for one in candidates}
    probes = {one: found for at, one in jobs.items() if (found := _measured(at.folder)) is not None}
    refused: dict[Candidate, str] = {}
    missing = _backbones_in_turn({at: one for at, one in jobs.items() if one not in probes})
    for at in missing:  # a probe that was killed before it was measured
        _clear(at.folder)
    if missing and not probes:  # the first run tokenizes the data for all other runs
        first = _job(jobs[missing[0]], budget, fit, folder / "first")
        _clear(first.folder)
        for _ in runner.run([first]):
            pass
        (first.folder / FILE).unlink(missing_ok=True)
        shutil.rmtree(first.folder / CHECKPOINTS, ignore_errors=True)
    for ended in runner.run(missing):
        if ended.record is not None and ended.record.status in ("finished", "stopped"):  # FewSteps stops each run
            probes[jobs[ended.job]] = _measure(ended)
        else:
            refused[jobs[ended.job]] = (
                ended.error or f"The run {ended.record and ended.record.status} in its first steps."
            )
    # The time of one run may include the download or the pre-training of its backbone, so the minimum over the runs of
    # a backbone is taken.
    loading: dict[str, float] = {}
    for one, found in probes.items():
        loading[one.backbone] = min(found.other_seconds, loading.get(one.backbone, math.inf))
    return Probed(
        {one: replace(probes[one], other_seconds=loading[one.backbone]) for one in candidates if one in probes},
        refused,
    )


def _backbones_in_turn(jobs: Mapping[Job, Candidate]) -> list[Job]:
    """Return the jobs in an order that runs each backbone once before any backbone comes again.

    Several workers then rarely wait for the download or pre-training of one backbone.
    """
    before: Counter[str] = Counter()
    turns = {}
    for at, one in jobs.items():
        turns[at] = before[one.backbone]
        before[one.backbone] += 1
    return sorted(jobs, key=turns.__getitem__)


def _job(one: Candidate, budget: float, fit: Path, folder: Path) -> Job:
    few = {"class_path": "FewSteps", "init_args": {"steps": STEPS}}
    return job(fit, folder, folder.name, one, {"budget": budget, "trainer.callbacks+": few})


def _clear(folder: Path) -> None:
    """Remove the folder of a killed probe, as soon as its worker has ended.

    Raises:
        TrainingError: If another process is still training in the folder.
    """
    if not folder.exists():
        return
    try:
        with locked_folder(folder, owner="run", seconds=_SECONDS_TO_END):
            shutil.rmtree(folder, ignore_errors=True)
    except ConfigError as error:
        raise TrainingError(
            f"Another process is training in {folder}. Stop it or wait for its end, then start the search again."
        ) from error


def _measure(ended: JobResult) -> Probe:
    record, folder = ended.record, ended.job.folder
    assert record is not None and ended.seconds is not None
    found = Probe(
        parameters=float(record.nonembedding_parameters),
        flops_per_token=record.flops_algorithmic / record.tokens,
        flops_per_step=record.flops_algorithmic * record.batch_size / record.pairs,
        learning_rate=record.learning_rate,
        flops_per_second=record.flops_algorithmic / max(record.seconds, _SHORTEST),
        other_seconds=max(0.0, ended.seconds - record.seconds),
        memory_bytes=record.peak_memory_bytes,
        checkpoint_bytes=sum(path.stat().st_size for path in _files(folder / CHECKPOINTS)),
    )
    write_whole(folder / _MEASURED, json.dumps(asdict(found), indent=1) + "\n")
    (folder / FILE).unlink()  # a run of three steps must not enter a scaling law
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    return found


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def _measured(folder: Path) -> Probe | None:
    path = folder / _MEASURED
    if not path.exists() or (folder / FILE).exists():
        return None
    return from_plain(Probe, read_json(path, "what a probe has measured"), path)
