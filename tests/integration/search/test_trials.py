"""Trials are trained for real, nothing twice, and what was stopped or failed is tried again."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from lightning.pytorch import Callback, Trainer

from embedlab.records import FILE, read_record
from embedlab.search.jobs import JobRunner
from embedlab.search.launchers.launcher import INTERRUPTED, Job, JobResult
from embedlab.search.loop import search
from embedlab.search.plan import SearchPlan
from embedlab.search.policies.isoflop_grid import IsoFlopGrid
from embedlab.search.policies.policy import History
from embedlab.search.space import Candidate, Cost, MethodGrid, Space, Trial, space_of
from embedlab.search.trials import TrialTrainer, job
from embedlab.testing.backbones import save_tiny_backbone
from helpers.run_records import record
from helpers.runs import write_config
from helpers.searches import InThisProcess, written

BUDGETS = (1e8, 4e8)


class FailsWhereThereIsNoFile(Callback):
    """Fails in its second step unless there is a file, as where a disk is full until somebody makes room."""

    def __init__(self, file: str) -> None:
        self.file = Path(file)

    def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
        if trainer.global_step == 2 and not self.file.exists():
            raise RuntimeError("no room")


class CountsEvaluations(Callback):
    """Writes down after which steps there were some."""

    def __init__(self, file: str) -> None:
        self.file = Path(file)

    def on_validation_end(self, trainer: Trainer, *_: object) -> None:
        with self.file.open("a") as file:
            print(trainer.global_step, file=file)


def fit_config(folder: Path, **trainer: object) -> Path:
    """What trials have in common."""
    config = write_config(folder, validation_fraction=0.2)
    values = yaml.safe_load(config.read_text())
    values["trainer"] |= {"max_epochs": 20, "num_sanity_val_steps": 0, "logger": False} | trainer
    config.write_text(yaml.safe_dump(values))
    return config


def space(backbone: str) -> Space:
    methods = [MethodGrid(method="FullFineTuning"), MethodGrid(method="LoRA", options={"rank": [2, 0]})]
    return space_of([backbone], methods, lambda *_: Cost(2e4, 2e5), budgets=BUDGETS)


def found(history: History) -> dict[str, tuple[float, float]]:
    return {one.trial.id: (one.loss, one.cost) for one in history}


def test_a_search_trains_each_trial_once_and_goes_on_from_its_folders(tmp_path: Path) -> None:
    fit = fit_config(tmp_path)
    whole = space(str(save_tiny_backbone(tmp_path / "tiny", "llama")))
    total = 2 * whole.price(whole.trials)
    folder = tmp_path / "search"
    killed = []
    with InThisProcess() as launcher:
        for result in TrialTrainer(fit, folder, JobRunner(launcher), whole).run(whole.trials):
            killed.append(result)
            if len(killed) == 2:
                break  # as a search does that is killed
    ended: list[tuple[Trial, float | None]] = []
    with InThisProcess() as launcher:
        runner = JobRunner(launcher)
        trainer = TrialTrainer(fit, folder, runner, whole, on_end=lambda trial, one: ended.append((trial, one.seconds)))
        first = search(IsoFlopGrid(), trainer, History(whole), total)
        refused = [trial for trial in whole.trials if trial.candidate.method_options.get("rank") == 0]
        assert set(trainer.errors) == set(refused)
        assert all("rank must be at least 1" in error for error in trainer.errors.values())
        before = written(folder)
        again = search(IsoFlopGrid(), TrialTrainer(fit, folder, runner, whole), History(whole), total)
    assert found(first) == found(again) and len(first) == 6
    assert written(folder) == before
    assert {trial for trial, _ in ended} == set(whole.trials)
    assert {trial for trial, seconds in ended if seconds is None} == {one.trial for one in killed}
    for one in first:
        if one.trial in refused:
            assert (one.loss, one.cost) == (math.inf, 0.0)
        else:
            assert one.cost == one.trial.budget and math.isfinite(one.loss)
    assert [found(first)[one.trial.id] for one in killed] == [(one.loss, one.cost) for one in killed]


def test_a_trial_of_many_epochs_is_evaluated_once_at_its_end(tmp_path: Path) -> None:
    counting = {"class_path": "test_trials.CountsEvaluations", "init_args": {"file": str(tmp_path / "evaluated")}}
    values = yaml.safe_load(fit_config(tmp_path, callbacks=[counting]).read_text())
    for name in ("output", "seed_everything"):
        del values[name]
    del values["model"]["backbone"], values["model"]["method"], values["model"]["optimizer"]["learning_rate"]
    fit = tmp_path / "fit.yaml"
    fit.write_text(
        yaml.safe_dump(SearchPlan(suite=("a", "b"), methods=("LoRA",), budgets=BUDGETS, fit=values).fit_config())
    )
    whole = space(str(save_tiny_backbone(tmp_path / "tiny", "llama")))
    trial = Trial(whole.trials[0].candidate, 3e9)
    with InThisProcess() as launcher:
        (result,) = TrialTrainer(fit, tmp_path / "search", JobRunner(launcher), whole).run([trial])
    record = read_record(tmp_path / "search" / trial.id / FILE)
    assert record.pairs > 3 * record.unique_pairs, "epochs"
    assert len((tmp_path / "evaluated").read_text().splitlines()) == 1
    assert result.loss == record.loss


@pytest.mark.parametrize("keep_checkpoints", [True, False])
def test_what_failed_in_mid_training_is_tried_again_and_goes_on(tmp_path: Path, keep_checkpoints: bool) -> None:
    file = tmp_path / "room"
    failing = {"class_path": "test_trials.FailsWhereThereIsNoFile", "init_args": {"file": str(file)}}
    fit = fit_config(tmp_path, callbacks=[failing])
    fit.write_text(yaml.safe_dump(yaml.safe_load(fit.read_text()) | {"checkpoint": {"every_n_steps": 1}}))
    whole = space(str(save_tiny_backbone(tmp_path / "tiny", "llama")))
    (trial, *_) = whole.trials
    with InThisProcess() as launcher:
        launcher.trained.clear()
        runner = JobRunner(launcher)
        trainer = TrialTrainer(fit, tmp_path / "search", runner, whole, keep_checkpoints=keep_checkpoints)
        (result,) = trainer.run([trial])
        assert result.loss == math.inf and launcher.trained == 2 * [trial.id], "it is tried twice"
        assert "no room" in trainer.errors[trial]
        assert (tmp_path / "search" / trial.id / "checkpoints" / "last.ckpt").exists(), "to go on from"
        file.touch()
        trainer = TrialTrainer(fit, tmp_path / "search", runner, whole, keep_checkpoints=keep_checkpoints)
        (result,) = trainer.run([trial])
    assert math.isfinite(result.loss) and not trainer.errors
    assert read_record(tmp_path / "search" / trial.id / FILE).status == "finished"
    assert len(list((tmp_path / "search").rglob(FILE))) == 1


class Scripted(InThisProcess):
    """Leaves the records that it is told to.

    Args:
        run: writes them, and says what went wrong.
    """

    def __init__(self, run: Callable[[Job], str | None]) -> None:
        super().__init__()
        self._run = run

    def wait(self) -> JobResult:
        one = self._waiting.popleft()
        return JobResult(one, self._run(one), 1.0)


def leaves(job: Job, status: str) -> None:
    """A record."""
    job.folder.mkdir(parents=True, exist_ok=True)
    values = vars(record(status=status, run_id=job.name)) | {"loss_definition": vars(record().loss_definition)}
    (job.folder / FILE).write_text(json.dumps(values))


def jobs(folder: Path, num: int = 1) -> list[Job]:
    return [Job(f"job-{number}", (), folder / str(number)) for number in range(num)]


def test_a_job_without_a_record_is_tried_as_often_as_it_may(tmp_path: Path) -> None:
    tried: list[str] = []

    def run(job: Job) -> str | None:
        tried.append(job.name)
        return "it fell over" if job.name == "job-0" else None

    ended = list(JobRunner(Scripted(run), retries=2).run(jobs(tmp_path, 2)))
    assert sorted(tried) == 3 * ["job-0"] + 3 * ["job-1"]
    errors = {one.job.name: one.error for one in ended}
    assert errors["job-0"] == "it fell over" and all(one.record is None for one in ended)
    assert str(errors["job-1"]).startswith("The run left no record.")


def test_a_run_that_diverged_is_over_and_one_that_failed_is_not(tmp_path: Path) -> None:
    tried: list[str] = []

    def run(job: Job) -> str | None:
        tried.append(job.name)
        leaves(job, "finished")
        return None

    diverged, failed, finished = jobs(tmp_path, 3)
    for one, status in ((diverged, "diverged"), (failed, "failed"), (finished, "finished")):
        leaves(one, status)
    ended = {one.job: one for one in JobRunner(Scripted(run)).run([diverged, failed, finished])}
    assert tried == [failed.name]
    assert [ended[one].record.status for one in (diverged, failed, finished)] == ["diverged", "finished", "finished"]  # type: ignore[union-attr]
    assert [ended[one].seconds for one in (diverged, failed, finished)] == [None, 1.0, None]


def test_a_job_that_fails_again_keeps_its_record_and_says_why(tmp_path: Path) -> None:
    def run(job: Job) -> str | None:
        assert not (job.folder / FILE).exists(), "a record is never written over"
        leaves(job, "failed")
        return "no room"

    (ended,) = JobRunner(Scripted(run)).run(jobs(tmp_path))
    assert ended.record is not None and ended.record.status == "failed" and ended.error == "no room"


def test_an_interrupted_job_ends_the_search(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        list(JobRunner(Scripted(lambda _: INTERRUPTED)).run(jobs(tmp_path)))


def test_a_job_lays_its_candidate_over_the_configuration(tmp_path: Path) -> None:
    candidate = Candidate(
        backbone="a/b",
        method="LoRA",
        method_options={"rank": 4, "targets": ["q", "v"]},
        learning_rate=1e-3,
        seed=3,
        parameters=1.0,
        flops_per_token=6.0,
    )
    words = job(tmp_path / "fit.yaml", tmp_path / "run", "name", candidate, {"budget": 1e9}).arguments
    said = dict(zip(words[::2], words[1::2], strict=True))
    assert said == {
        "--config": str(tmp_path / "fit.yaml"),
        "--model.backbone.path": "a/b",
        "--model.method": "LoRA",
        "--model.method.rank": "4",
        "--model.method.targets": '["q", "v"]',
        "--model.optimizer.learning_rate": "0.001",
        "--seed_everything": "3",
        "--budget": "1000000000.0",
        "--output": str(tmp_path / "run"),
        "--ckpt_path": "auto",
        "--checkpoint.keep_previous": "false",
    }


def test_a_finished_trial_removes_no_checkpoint_of_one_that_is_under_way(tmp_path: Path) -> None:
    fit = fit_config(tmp_path)
    whole = space(str(save_tiny_backbone(tmp_path / "tiny", "llama")))
    smaller, larger = whole.up_to(1, whole.candidates[0])
    under_way = tmp_path / "search" / smaller.id / "checkpoints" / "last.ckpt"
    under_way.parent.mkdir(parents=True)
    under_way.touch()
    with InThisProcess() as launcher:
        trainer = TrialTrainer(fit, tmp_path / "search", JobRunner(launcher), whole, keep_checkpoints=False)
        assert math.isfinite(next(iter(trainer.run([larger]))).loss)
    assert list((tmp_path / "search").rglob("*.ckpt")) == [under_way]
