"""A few real steps of every combination, before a search spends anything: what fits, what it costs, how long it takes.

What does not load, or does not fit together, fails here and not in the tenth hour.
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
_SHORTEST = 1e-6  # seconds of a run: a clock may say 0
_Positive = Annotated[float, Range(1e-36)]
_SECONDS_TO_END = 300.0  # that a worker whose search was killed has to finish its step and save it


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What a few steps of a candidate have shown.

    Attributes:
        parameters: N, without tables.
        flops_per_token: algorithmic, attention included.
        flops_per_step: algorithmic.
        learning_rate: the method's own for this backbone.
        flops_per_second: of training.
        other_seconds: of loading and evaluation.
        memory_bytes: at its peak; None where it is not known.
        checkpoint_bytes: that a run leaves on disk.
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
        """That a run takes."""
        return self.other_seconds + flops / self.flops_per_second


@dataclass(frozen=True)
class Probed:
    """The combinations of a search.

    Attributes:
        probes: of what trains.
        refused: why the others do not.
    """

    probes: dict[Candidate, Probe]
    refused: dict[Candidate, str]


def probe(candidates: Sequence[Candidate], budget: float, fit: Path, folder: Path, runner: JobRunner) -> Probed:
    """Trains each candidate for a few steps, unless that was done before.

    Args:
        candidates: without a learning rate.
        budget: FLOPs of the largest run, which must not be refused later.
        fit: configuration of ``embedlab fit`` that they are laid over.
        folder: for the runs.
        runner: of their jobs.

    Raises:
        TrainingError: if somebody else is training one of them.
    """
    jobs = {_job(one, budget, fit, folder / one.named(budget)): one for one in candidates}
    probes = {one: found for at, one in jobs.items() if (found := _measured(at.folder)) is not None}
    refused: dict[Candidate, str] = {}
    missing = _backbones_in_turn({at: one for at, one in jobs.items() if one not in probes})
    for at in missing:  # killed before it was measured
        _clear(at.folder)
    if missing and not probes:  # the first one tokenizes the data, which no other run will have to
        first = _job(jobs[missing[0]], budget, fit, folder / "first")
        _clear(first.folder)
        for _ in runner.run([first]):
            pass
        (first.folder / FILE).unlink(missing_ok=True)
        shutil.rmtree(first.folder / CHECKPOINTS, ignore_errors=True)
    for ended in runner.run(missing):
        if ended.record is not None and ended.record.status in ("finished", "stopped"):  # as it was asked to
            probes[jobs[ended.job]] = _measure(ended)
        else:
            refused[jobs[ended.job]] = ended.error or f"It {ended.record and ended.record.status} in its first steps."
    # The first run of a backbone may have downloaded or pre-trained it, and others have waited for that.
    loading: dict[str, float] = {}
    for one, found in probes.items():
        loading[one.backbone] = min(found.other_seconds, loading.get(one.backbone, math.inf))
    return Probed(
        {one: replace(probes[one], other_seconds=loading[one.backbone]) for one in candidates if one in probes},
        refused,
    )


def _backbones_in_turn(jobs: Mapping[Job, Candidate]) -> list[Job]:
    """Each backbone once before any comes again: two workers do not wait for the pre-training of the same rung."""
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
    """Removes what a killed probe has left, when the worker that was on it has saved its last step."""
    if not folder.exists():
        return
    try:
        with locked_folder(folder, owner="run", seconds=_SECONDS_TO_END):
            shutil.rmtree(folder, ignore_errors=True)
    except ConfigError as error:
        raise TrainingError(
            f"Another process is training in {folder}. Stop it, or wait for its end, and start the search again."
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
    (folder / FILE).unlink()  # nobody wants a law of runs of three steps
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    return found


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def _measured(folder: Path) -> Probe | None:
    path = folder / _MEASURED
    if not path.exists() or (folder / FILE).exists():
        return None
    return from_plain(Probe, read_json(path, "what a probe has measured"), path)
