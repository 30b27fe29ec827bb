"""A run leaves one record of itself that agrees with its checkpoint, however often it was stopped and gone on with."""

from __future__ import annotations

import itertools
import math
import os
import signal
import time
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from embedlab.errors import RecordError
from embedlab.records import FILE, Ledger, RunRecord, read_record
from embedlab.scaling.observations import by_method, of_records
from embedlab.training.callbacks import step_clock
from embedlab.training.module import EmbeddingModule
from helpers.runs import SteppedTime, error_of, fit, scalars, start_fit, start_ranks, write_config, write_pairs

HELD_OUT = {"validation_fraction": 0.3}
EVERY_STEP = ["--checkpoint.every_n_steps", "1"]
AS_OF_ITS_OWN = {"peak_flops_per_second", "run_id", "peak_memory_bytes", "seconds"}


class Failure(Callback):
    """Breaks the run after four steps."""

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == 4:
            raise RuntimeError("broken")


class Divergence(Callback):
    """Makes the weights infinite after four steps."""

    def on_train_batch_end(self, trainer: Trainer, module: EmbeddingModule, *_: Any) -> None:
        if trainer.global_step == 4:
            with torch.no_grad():
                next(p for p in module.parameters() if p.requires_grad).fill_(math.inf)


class KillInLastValidation(Callback):
    """Ends the process where the last step is taken and saved, and the run is about to be evaluated."""

    def on_validation_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.should_stop or trainer.global_step == 24:
            os.kill(os.getpid(), signal.SIGKILL)


def of_callback(callback: type[Callback]) -> list[str]:
    return ["--trainer.callbacks+", f"{callback.__module__}.{callback.__name__}"]


def checkpoint_of(run: Path) -> dict[str, Any]:
    saved: dict[str, Any] = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    return saved


def records_of(run: Path) -> list[RunRecord]:
    return Ledger([run]).records()


def comparable(record: RunRecord) -> dict[str, Any]:
    return {name: value for name, value in asdict(record).items() if name not in AS_OF_ITS_OWN}


@pytest.fixture
def stepped_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_clock, "time", SimpleNamespace(perf_counter=lambda: SteppedTime.now))


def test_a_finished_run_has_a_record_that_agrees_with_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stepped_time: None
) -> None:
    monkeypatch.chdir(tmp_path)
    config = write_config(tmp_path, method={"class_path": "LoRA", "init_args": {"rank": 2}}, **HELD_OUT)
    fit(config, *of_callback(SteppedTime))
    (record,) = records_of(tmp_path / "run")
    saved = checkpoint_of(tmp_path / "run")
    steps = saved["global_step"]
    assert record.status == "finished" and record.left_out is None and record.family == record.run_id
    assert (record.backbone, record.method) == (str(tmp_path / "backbone"), "LoRA")
    assert record.method_options["rank"] == 2 and not record.random_weights
    counts = saved["flops"]
    assert (record.tokens, record.padded_tokens, record.pairs) == (
        counts["tokens"],
        counts["padded_tokens"],
        counts["pairs"],
    )
    assert (record.flops_algorithmic, record.flops_executed) == (counts["algorithmic"], counts["executed"])
    weights = record.forward_weights + record.backward_weights + record.update_weights
    assert 2 * weights * record.tokens < record.flops_algorithmic < 3 * weights * record.tokens, "and attention"
    assert record.pairs == steps * 5
    assert record.pairs / 2 <= record.unique_pairs <= 60 - 10, "each epoch sees them once, and some are held out"
    assert record.nonembedding_parameters < record.parameters
    assert (record.batch_size, record.max_length, record.learning_rate, record.seed) == (5, 32, 1e-2, 1)
    assert record.schedule == "WarmupCosine(warmup=0.1, final=0.0)"
    assert record.training_loss is not None and record.training_loss.startswith("SymmetricInfoNCE(temperature=0.025, ")
    assert record.backbone_options == {"attention_direction": "causal", "dtype": "float32", "pooling": "mean"}
    assert record.peak_flops_per_second is not None and record.peak_flops_per_second > 1e8
    assert record.metrics == saved["evaluation"]
    assert record.loss == saved["evaluation"]["validation/pairs/loss"]
    assert record.loss_standard_error == saved["evaluation"]["validation/pairs/loss_standard_error"]
    definition = record.loss_definition
    assert (definition.loss, definition.temperature) == ("symmetric InfoNCE", 0.025)
    assert steps // 2 * 5 + 5 > 60 - definition.candidates >= steps // 2 * 5, "of the 60, some fill no batch"
    assert definition.evaluation_set.startswith("pairs ")
    assert record.seconds == 10 * steps, "evaluation is left out"
    assert record.peak_memory_bytes is not None and record.peak_memory_bytes > 2**26
    assert record.device == "cpu x 1" and record.versions["torch"] == torch.__version__
    assert record.git_revision is None, "the working directory is no repository"


def test_a_record_says_what_was_trained_on_and_measured_on(tmp_path: Path) -> None:
    def recorded(name: str, **data: Any) -> RunRecord:
        (tmp_path / name).mkdir()
        config = write_config(tmp_path / name, **(HELD_OUT | data))
        fit(config, "--trainer.max_steps", "2")
        return read_record(tmp_path / name / "run" / FILE)

    one, again, shorter, fewer = (
        recorded("one"),
        recorded("again", batch_size=6),
        recorded("shorter", max_length=16),
        recorded("fewer", validation_fraction=0.1),
    )
    assert one.git_revision is not None and len(one.git_revision) == 40
    assert one.data_hash == again.data_hash and len({one.data_hash, shorter.data_hash, fewer.data_hash}) == 3
    assert one.loss_definition == again.loss_definition == shorter.loss_definition != fewer.loss_definition


def test_a_killed_run_goes_on_to_the_record_of_an_undisturbed_one(tmp_path: Path, stepped_time: None) -> None:
    config = write_config(tmp_path, **HELD_OUT)
    clock = of_callback(SteppedTime)
    fit(config, "--output", str(tmp_path / "undisturbed"), *clock)
    killed = tmp_path / "killed"
    process = start_fit(config, "--output", str(killed), *EVERY_STEP, "--trainer.callbacks+", "helpers.runs.StepFile")
    while not (killed / "checkpoints" / "last.ckpt").exists():
        assert process.is_alive(), process.printed()
        time.sleep(0.002)
    process.kill()
    process.join()
    before = checkpoint_of(killed)
    assert records_of(killed) == []
    fit(config, "--output", str(killed), "--ckpt_path", "last", *clock)
    (record,), (whole,) = records_of(killed), records_of(tmp_path / "undisturbed")
    assert comparable(record) == comparable(whole)
    kept = next(state for name, state in before["callbacks"].items() if name.startswith("RunRecorder"))
    steps = checkpoint_of(killed)["global_step"] - before["global_step"]
    assert record.run_id == kept["run_id"] != whole.run_id
    assert kept["seconds"] > 0 and record.seconds == pytest.approx(kept["seconds"] + 10 * steps)


@pytest.mark.parametrize("ends_by", ["budget", "steps", "epochs"])
def test_a_run_that_was_killed_in_its_last_validation_has_its_record_when_it_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ends_by: str
) -> None:
    config = write_config(tmp_path, **HELD_OUT)
    end = {"budget": ["--budget", "3e8"], "steps": ["--trainer.max_steps", "5"], "epochs": []}[ends_by]
    fit(config, "--output", str(tmp_path / "undisturbed"), *end)
    (whole,) = records_of(tmp_path / "undisturbed")
    process = start_fit(config, *end, *EVERY_STEP, *of_callback(KillInLastValidation))
    process.printed()
    assert process.exitcode == -signal.SIGKILL and records_of(tmp_path / "run") == []
    assert checkpoint_of(tmp_path / "run")["global_step"] == whole.pairs / 5
    fit(config, *end, "--ckpt_path", "last")
    (record,) = records_of(tmp_path / "run")
    assert comparable(record) == comparable(whole)
    if ends_by == "budget":
        assert "has spent" in error_of(capsys, ["fit", "--config", str(config), *end, "--ckpt_path", "last"])


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_has_no_record(tmp_path: Path, sent: signal.Signals) -> None:
    config = write_config(tmp_path, **HELD_OUT)
    process = start_fit(config, "--trainer.callbacks+", "helpers.runs.StepFile")
    while not (tmp_path / "run" / "step").exists():
        assert process.is_alive(), process.printed()
        time.sleep(0.002)
    assert process.pid is not None
    os.kill(process.pid, sent)
    assert "Go on with --ckpt_path last" in process.printed()
    assert records_of(tmp_path / "run") == []
    fit(config, "--ckpt_path", "last")
    (record,) = records_of(tmp_path / "run")
    assert record.status == "finished" and record.parent_run_id is None


def test_a_run_that_is_given_more_is_another_of_its_family(tmp_path: Path) -> None:
    config = write_config(tmp_path, **HELD_OUT)
    fit(config, "--output", str(tmp_path / "one"), "--trainer.max_steps", "1")
    step = checkpoint_of(tmp_path / "one")["flops"]["algorithmic"]
    fit(config, "--budget", str(3 * step))
    (first,) = records_of(tmp_path / "run")
    budgets = [first.flops_algorithmic + 2 * step, first.flops_algorithmic + 5 * step]
    for budget in budgets:
        fit(config, "--ckpt_path", "last", "--budget", str(budget))
    found = sorted(records_of(tmp_path / "run"), key=lambda record: record.flops_algorithmic)
    assert found[0] == first and len({record.run_id for record in found}) == 3
    assert [record.family for record in found] == [first.run_id] * 3
    assert [record.parent_run_id for record in found] == [None, first.run_id, first.run_id]
    for record, budget, before in zip(found[1:], budgets, found, strict=False):
        assert budget <= record.flops_algorithmic < budget + 2 * step
        assert record.branch_step == before.pairs / 5 and record.seconds > before.seconds
    assert found[2].flops_algorithmic == checkpoint_of(tmp_path / "run")["flops"]["algorithmic"]


def test_a_run_from_a_checkpoint_of_another_folder_is_another_of_its_family(tmp_path: Path) -> None:
    config = write_config(tmp_path, **HELD_OUT)
    fit(config, "--trainer.max_steps", "3")
    trunk = tmp_path / "run" / "checkpoints" / "last.ckpt"
    fit(config, "--output", str(tmp_path / "branch"), "--ckpt_path", str(trunk), "--trainer.max_steps", "5")
    first, second = read_record(tmp_path / "run" / FILE), read_record(tmp_path / "branch" / FILE)
    assert (second.parent_run_id, second.branch_step) == (first.run_id, 3)


def test_going_on_with_a_run_that_has_ended_adds_no_record(tmp_path: Path) -> None:
    config = write_config(tmp_path, **HELD_OUT)
    fit(config)
    written = records_of(tmp_path / "run")
    fit(config, "--ckpt_path", "last")
    assert records_of(tmp_path / "run") == written


@pytest.mark.parametrize(("callback", "status"), [(Failure, "failed"), (Divergence, "diverged")])
def test_a_run_that_breaks_says_so_and_can_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], callback: type[Callback], status: str
) -> None:
    config = write_config(tmp_path, **HELD_OUT)
    command = ["fit", "--config", str(config), "--checkpoint.every_n_steps", "3", *of_callback(callback)]
    if callback is Divergence:
        assert "DivergenceError: The loss is nan at step 4" in error_of(capsys, command)
    else:
        with pytest.raises(RuntimeError, match="broken"):
            fit(config, *command[3:])
    (broken,) = records_of(tmp_path / "run")
    assert broken.status == status == broken.left_out
    assert broken.pairs == 4 * 5 and math.isnan(broken.loss) and broken.metrics == {}
    fit(config, "--ckpt_path", "last")
    first, finished = sorted(records_of(tmp_path / "run"), key=lambda record: record.pairs)
    assert first.run_id == broken.run_id
    assert (finished.status, finished.family, finished.branch_step) == ("finished", broken.run_id, 3)
    assert finished.tokens == checkpoint_of(tmp_path / "run")["flops"]["tokens"]


def test_two_ranks_write_one_record_of_both(tmp_path: Path) -> None:
    config = write_config(tmp_path, batch_size=6, **HELD_OUT)
    options = ["--trainer.max_steps", "4", "--data.max_padding", "0", "--trainer.precision", "64-true"]
    fit(config, *options, "--output", str(tmp_path / "one"))
    command = ["fit", "--config", str(config), *options, "--output", str(tmp_path / "two"), "--trainer.devices", "2"]
    for process in start_ranks([[*command, "--trainer.strategy", "ddp"]], tmp_path):
        assert "Error" not in process.printed() and process.exitcode == 0, process.printed()
    (one,), (two,) = records_of(tmp_path / "one"), records_of(tmp_path / "two")
    assert two.device == "cpu x 2"
    assert two.metrics == pytest.approx(one.metrics, rel=1e-5)
    measured = {"device", "peak_flops_per_second", "metrics", "loss", "loss_standard_error"}
    left, right = comparable(one), comparable(two)
    assert {name for name in left if left[name] != right[name]} <= measured


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--data.validation_fraction", "0"], "there are no held-out pairs"),
        (["--trainer.check_val_every_n_epoch", "3"], "was not evaluated at its end"),
    ],
)
def test_a_run_without_a_loss_at_its_end_has_no_record_and_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], reason: str
) -> None:
    fit(write_config(tmp_path, **HELD_OUT), *options)
    assert "No run record is written: " in (printed := capsys.readouterr().out) and reason in printed
    assert records_of(tmp_path / "run") == []


def test_padded_tokens_are_those_of_every_step(tmp_path: Path) -> None:
    options = {"max_length": 64, "tokens_per_chunk": 512, "max_padding": 1.0}
    fit(write_config(tmp_path, **HELD_OUT, **options), "--trainer.log_every_n_steps", "1")
    (record,) = records_of(tmp_path / "run")
    seen = scalars(tmp_path / "run")
    tokens = [after - before for before, after in itertools.pairwise([0.0, *seen["flops/tokens"]])]
    padded = sum(count * (1 + padding) for count, padding in zip(tokens, seen["train/padding"], strict=True))
    assert record.padded_tokens == pytest.approx(padded, rel=1e-5) and padded > 1.1 * record.tokens


def test_a_run_that_is_not_counted_has_no_record_and_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path, **HELD_OUT)
    fit(config, "--trainer.max_steps", "2", "--output", str(tmp_path / "first"))
    path = tmp_path / "first" / "checkpoints" / "last.ckpt"
    torch.save(checkpoint_of(tmp_path / "first") | {"flops": None}, path)
    with pytest.warns(UserWarning, match="does not say how many FLOPs"):
        fit(config, "--trainer.max_steps", "4", "--ckpt_path", str(path))
    assert "the FLOPs of the whole run are not known" in capsys.readouterr().out
    assert records_of(tmp_path / "run") == []


def test_of_several_held_out_sets_one_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sources = [{"path": str(write_pairs(tmp_path / f"{name}.jsonl", seed=seed))} for seed, name in enumerate("ab")]
    config = write_config(tmp_path, train=sources, **HELD_OUT)
    for name, options in (("a", []), ("b", ["--record.evaluation_set", "b"])):
        fit(config, "--trainer.max_steps", "2", "--output", str(tmp_path / name), *options)
        (record,) = records_of(tmp_path / name)
        assert record.loss == record.metrics[f"validation/{name}/loss"]
        assert record.loss_definition.evaluation_set.startswith(f"{name} ")
        assert ("will hold the loss on 'a'" in capsys.readouterr().out) == (name == "a")
    command = ["fit", "--config", str(config), "--output", str(tmp_path / "c"), "--record.evaluation_set", "c"]
    assert "no held-out pairs have this name. There are: a, b." in error_of(capsys, command)


def test_records_of_runs_are_what_laws_are_fitted_to(tmp_path: Path) -> None:
    config = write_config(tmp_path, **HELD_OUT)
    for steps in ("2", "4", "6"):
        fit(config, "--output", str(tmp_path / "runs" / steps), "--trainer.max_steps", steps)
    fit(config, "--output", str(tmp_path / "runs" / "control"), "--model.backbone.random_weights", "true")
    rows = of_records(Ledger([tmp_path / "runs"]).records())
    assert [row.left_out for row in rows] == [None, None, None, "the run started from random weights"]
    assert [row.pairs for row in rows[:3]] == [10, 20, 30]
    assert all(row.unique_tokens == row.tokens for row in rows[:3]), "less than an epoch"
    assert rows[3].unique_tokens == pytest.approx(rows[3].tokens / 2, rel=0.2), "two epochs"


EARLY = [
    *("--trainer.callbacks+", "EarlyStopping"),
    *("--trainer.callbacks.mode", "max", "--trainer.callbacks.patience", "1"),
]
ON_LOSS = [*EARLY, "--trainer.callbacks.monitor", "validation/pairs/loss"]
ON_TRAINING = [*EARLY, "--trainer.callbacks.monitor", "train/loss"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--trainer.max_epochs", "200", *ON_LOSS], "EarlyStopping"),
        (["--trainer.max_steps", "400", "--trainer.max_epochs", "null", *ON_LOSS], "EarlyStopping"),
        (["--trainer.max_epochs", "200", "--budget", "1e10", *ON_LOSS], "EarlyStopping"),
        (["--trainer.max_epochs", "200", "--trainer.val_check_interval", "3", *ON_LOSS], "EarlyStopping"),
        (
            [
                *("--trainer.max_epochs", "200", *ON_TRAINING),
                *("--trainer.callbacks.check_on_train_epoch_end", "true"),
            ],
            "EarlyStopping",
        ),
        (
            [
                *("--trainer.max_epochs", "200", "--trainer.max_time", "00:00:00:01"),
                *("--trainer.callbacks+", "helpers.runs.StepFile"),
            ],
            "time limit",
        ),
    ],
    ids=["epochs", "steps", "budget", "within an epoch", "on the training loss", "time limit"],
)
def test_a_run_that_ends_before_its_plan_is_not_recorded_as_finished(
    tmp_path: Path, options: list[str], reason: str
) -> None:
    config = write_config(tmp_path, **HELD_OUT)
    fit(config, *options)
    (record,) = records_of(tmp_path / "run")
    assert record.status == "stopped" and record.left_out is not None
    assert record.stop_reason is not None and reason in record.stop_reason
    if record.planned_flops is not None:
        assert record.planned_steps is None and record.flops_algorithmic < record.planned_flops
    else:
        assert record.steps is not None and record.planned_steps is not None and record.steps < record.planned_steps
    assert math.isfinite(record.loss), "it was evaluated where it ended"
    with pytest.raises(RecordError, match="stopped before its plan was done"):
        by_method(of_records([record]))
