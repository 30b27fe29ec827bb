"""Training through the command line: learns, resumes bit for bit, and is the same however the batch is cut."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Callback, Trainer

from embedlab.cli.commands import main
from embedlab.method.registry import discover
from helpers.runs import (
    assert_same_bits,
    fit,
    scalars,
    start_fit,
    start_ranks,
    trained_weights,
    write_config,
    write_pairs,
)

METHODS = sorted(discover())


def steps_of(checkpoint: Path) -> int:
    return int(torch.load(checkpoint, weights_only=True)["global_step"])


def assert_close(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor], tolerance: float) -> None:
    assert left.keys() == right.keys()
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.parametrize("method", METHODS)
def test_a_killed_run_goes_on_to_the_same_bits(tmp_path: Path, method: str) -> None:
    config = write_config(tmp_path, method=method)
    fit(config, "--output", str(tmp_path / "undisturbed"))
    killed = tmp_path / "killed"
    process = start_fit(config, "--output", str(killed), "--checkpoint.every_n_steps", "1")
    checkpoint = killed / "checkpoints" / "last.ckpt"
    while not checkpoint.exists() or steps_of(checkpoint) < 3:
        assert process.is_alive(), process.printed()
        time.sleep(0.002)
    process.kill()
    process.join()
    at_kill = steps_of(checkpoint)
    assert at_kill < 24 and at_kill % 12 != 0, "killed in mid-epoch"
    fit(config, "--output", str(killed), "--ckpt_path", "last")
    assert_same_bits(trained_weights(killed), trained_weights(tmp_path / "undisturbed"))


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_keeps_its_last_step_and_goes_on(tmp_path: Path, sent: signal.Signals) -> None:
    config = write_config(tmp_path)
    fit(config, "--output", str(tmp_path / "undisturbed"))
    stopped = tmp_path / "stopped"
    process = start_fit(config, "--output", str(stopped), "--trainer.callbacks+", "helpers.runs.StepFile")
    while not (stopped / "step").exists():
        assert process.is_alive(), process.printed()
        time.sleep(0.002)
    assert process.pid is not None
    os.kill(process.pid, sent)
    printed = process.printed()
    step = steps_of(stopped / "checkpoints" / "last.ckpt")
    assert 0 < step < 24 and f"Saved at step {step}. Go on with --ckpt_path last." in printed
    assert process.exitcode != 0
    fit(config, "--output", str(stopped), "--ckpt_path", "last")
    assert_same_bits(trained_weights(stopped), trained_weights(tmp_path / "undisturbed"))


def test_what_goes_on_if_it_can_begins_or_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    fit(config, "--output", str(tmp_path / "undisturbed"))
    killed, auto = tmp_path / "killed", ["--ckpt_path", "auto"]
    options = ["--output", str(killed), *auto, "--trainer.callbacks+", "helpers.runs.StepFile"]
    process = start_fit(config, *options)
    while not (killed / "step").exists():  # before its first checkpoint
        assert process.is_alive(), process.printed()
        time.sleep(0.002)
    process.kill()
    process.join()
    assert (killed / "config.yaml").exists() and not (killed / "checkpoints").exists()
    process = start_fit(config, *options, "--checkpoint.every_n_steps", "1")
    checkpoint = killed / "checkpoints" / "last.ckpt"
    while not checkpoint.exists() or steps_of(checkpoint) < 3:
        assert process.is_alive(), process.printed()
        time.sleep(0.002)
    process.kill()
    process.join()
    at_kill = steps_of(checkpoint)
    assert 3 <= at_kill < 24
    fit(config, "--output", str(killed), *auto)
    assert_same_bits(trained_weights(killed), trained_weights(tmp_path / "undisturbed"))
    assert steps_of(checkpoint) == 24


@pytest.mark.parametrize("validation_fraction", [0.0, 0.3])
def test_an_extended_run_draws_the_same_dropout_and_keeps_the_temperature(
    tmp_path: Path, validation_fraction: float
) -> None:
    loss = {"class_path": "InfoNCE", "init_args": {"learnable_temperature": True, "temperature": 0.05}}
    config = write_config(tmp_path, family="gpt2", dropout=0.2, loss=loss, validation_fraction=validation_fraction)
    constant = ["--model.schedule", "Constant"]  # so that a shorter run is the beginning of a longer one
    fit(config, "--output", str(tmp_path / "undisturbed"), *constant)
    stopped = ["--output", str(tmp_path / "stopped"), *constant]
    fit(config, *stopped, "--trainer.max_steps", "7")
    assert steps_of(tmp_path / "stopped" / "checkpoints" / "last.ckpt") == 7
    fit(config, *stopped, "--ckpt_path", "last")
    whole = trained_weights(tmp_path / "undisturbed")
    assert_same_bits(trained_weights(tmp_path / "stopped"), whole)
    assert whole["loss.log_scale"].item() != pytest.approx(torch.tensor(20.0).log().item(), abs=1e-4)


@pytest.mark.parametrize("options", [["--model.recompute=always"], ["--model.recompute=never"]])
def test_the_recompute_policy_does_not_change_a_bit(tmp_path: Path, options: list[str]) -> None:
    config = write_config(tmp_path, family="gpt2", dropout=0.2)
    fit(config, "--output", str(tmp_path / "auto"))
    fit(config, "--output", str(tmp_path / "other"), *options)
    assert_same_bits(trained_weights(tmp_path / "other"), trained_weights(tmp_path / "auto"))


@pytest.mark.parametrize("method", METHODS)
def test_the_size_of_chunks_does_not_change_the_model(tmp_path: Path, method: str) -> None:
    config = write_config(tmp_path, method=method)
    for name, tokens in (("small", "32"), ("large", "4096")):
        options = ["--data.tokens_per_chunk", tokens, "--trainer.precision", "64-true", "--trainer.max_steps", "6"]
        fit(config, "--output", str(tmp_path / name), *options)
    assert_close(trained_weights(tmp_path / "small"), trained_weights(tmp_path / "large"), 1e-7)


@pytest.fixture(scope="module")
def on_one_and_two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ten steps of each method on one rank and on two, the same two processes serving all methods."""
    folder = tmp_path_factory.mktemp("ranks")
    loss = {"class_path": "SymmetricInfoNCE", "init_args": {"learnable_temperature": True}}
    options = ["--trainer.precision", "64-true", "--trainer.max_steps", "10", "--trainer.log_every_n_steps", "1"]
    options += ["--data.tokens_per_chunk", "32"]  # several chunks a rank, of which the last alone synchronizes
    options += ["--data.max_padding", "0"]  # so that both execute the same
    commands = []
    for method in METHODS:
        (folder / method).mkdir()
        config = write_config(folder / method, method=method, loss=loss, batch_size=6, validation_fraction=0.3)
        command = ["fit", "--config", str(config), *options]
        main([*command, "--output", str(folder / method / "one")])
        reductions = counting_reductions(folder / method)
        commands.append([*command, "--config", str(reductions), "--output", str(folder / method / "two")])
    for process in start_ranks(commands, folder):
        assert "Error" not in process.printed() and process.exitcode == 0, process.printed()
    return folder


def counting_reductions(folder: Path) -> Path:
    """A configuration of two ranks whose gradient reductions are written down, one line each."""
    strategy = {"class_path": "helpers.runs.CountingReductions", "init_args": {"file": str(folder / "reductions")}}
    overlay = folder / "ddp.yaml"
    overlay.write_text(yaml.safe_dump({"trainer": {"devices": 2, "strategy": strategy}}))
    return overlay


@pytest.mark.parametrize("method", METHODS)
def test_two_ranks_train_measure_and_count_as_one(on_one_and_two_ranks: Path, method: str) -> None:
    one, two = (on_one_and_two_ranks / method / name for name in ("one", "two"))
    assert_close(trained_weights(two), trained_weights(one), 1e-7)
    assert scalars(two)["train/loss"] == pytest.approx(scalars(one)["train/loss"], rel=1e-5)
    reductions = (on_one_and_two_ranks / method / "reductions").read_text().split()
    assert len(reductions) == 2 * 10, "one a step and rank: a tiny model fills one bucket"
    by_one, by_two = (torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (one, two))
    assert by_one["evaluation"] and by_two["evaluation"] == pytest.approx(by_one["evaluation"], rel=1e-5)
    assert by_one["flops"]["algorithmic"] > 0 and by_two["flops"] == by_one["flops"]


def test_a_batch_that_ranks_cannot_share_equally_is_refused(tmp_path: Path) -> None:
    config = write_config(tmp_path, batch_size=5)
    command = ["fit", "--config", str(config), "--trainer.devices", "2", "--trainer.strategy", "ddp"]
    for process in start_ranks([command], tmp_path):
        assert "data.batch_size 5 cannot be divided equally among 2 processes" in process.printed()
        assert process.exitcode == 2


def test_training_learns_and_is_watched(tmp_path: Path) -> None:
    config = write_config(tmp_path, validation_fraction=0.3, batch_size=16)
    write_pairs(tmp_path / "pairs.jsonl", 300)
    options = ["--data.tokens_per_chunk", "1024", "--trainer.max_epochs", "10"]
    fit(config, *options, "--trainer.log_every_n_steps", "1")
    seen = scalars(tmp_path / "run")
    assert seen["train/loss"][-1] < 0.75 * seen["train/loss"][0]
    assert max(seen["train/learning_rate"]) <= 1e-2
    assert seen["train/negatives"][0] == 15
    for metric in ("mrr@10", "ndcg@10", "recall@1", "recall@10", "loss", "loss_standard_error"):
        values = seen[f"validation/pairs/{metric}"]
        assert len(values) == 11, "before training and after every epoch"
    assert seen["validation/pairs/mrr@10"][-1] > 3 * seen["validation/pairs/mrr@10"][0]
    assert {"tokens/s", "pairs/s", "train/padding"} <= seen.keys()
    assert (tmp_path / "run" / "config.yaml").is_file() and (tmp_path / "run" / "hparams.yaml").is_file()


def test_a_run_of_few_steps_is_warned_of(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"This run has 1 step, .* Lower data.batch_size"):
        fit(write_config(tmp_path), "--trainer.max_steps", "1")


def test_a_run_ends_with_what_it_reached_and_how_to_use_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(write_config(tmp_path, validation_fraction=0.3), "--trainer.max_steps", "1")
    printed = capsys.readouterr().out
    assert re.search(r"pairs: loss \d\.\d+  mrr@10 \d\.\d+  recall@10 \d\.\d+\n", printed)
    assert f"embedlab export --checkpoint {tmp_path / 'run' / 'checkpoints' / 'last.ckpt'} --output" in printed


@pytest.mark.parametrize(("method", "part"), [("LoRA", "lora_"), ("BiasTuning", "bias")])
def test_a_checkpoint_holds_only_what_is_trained(tmp_path: Path, method: str, part: str) -> None:
    fit(write_config(tmp_path, method=method), "--trainer.max_steps", "1")
    names = trained_weights(tmp_path / "run").keys()
    assert names and all(part in name for name in names)


@pytest.mark.parametrize("schedule", ["Constant", "WarmupStableDecay"])
def test_other_schedules_train(tmp_path: Path, schedule: str) -> None:
    fit(write_config(tmp_path), "--model.schedule", schedule, "--trainer.log_every_n_steps", "1")
    rates = scalars(tmp_path / "run")["train/learning_rate"]
    assert max(rates) == pytest.approx(1e-2)
    assert (rates[-1] == pytest.approx(1e-2)) == (schedule == "Constant")


def test_eight_bit_optimizer_states_go_on_to_the_same_bits(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    eight_bits = ["--model.optimizer.states", "8bit"]
    fit(config, *eight_bits, "--output", str(tmp_path / "whole"))
    with pytest.raises(RuntimeError, match="in the middle"):
        fit(config, *eight_bits, "--checkpoint.every_n_steps", "7", "--trainer.callbacks+", f"{__name__}.Break")
    fit(config, *eight_bits, "--ckpt_path", "last")
    assert_same_bits(trained_weights(tmp_path / "run"), trained_weights(tmp_path / "whole"))


class Break(Callback):
    """Ends a run after its ninth step."""

    def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
        if trainer.global_step == 9:
            raise RuntimeError("in the middle")


def test_options_of_the_optimizer_are_the_configurations_after_a_resume(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    fit(config, "--trainer.max_steps", "2")
    changed = ["--model.optimizer.weight_decay", "0.5", "--model.optimizer.betas", "[0.8, 0.9]", "--accept_changes"]
    fit(config, "--trainer.max_steps", "4", "--ckpt_path", "last", *changed)
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    groups = saved["optimizer_states"][0]["param_groups"]
    assert [group["weight_decay"] for group in groups] == [0.5, 0.0]
    assert all(tuple(group["betas"]) == (0.8, 0.9) for group in groups)


def test_vectors_decay_if_that_is_asked_for(tmp_path: Path) -> None:
    fit(write_config(tmp_path), "--model.optimizer.decay_vectors", "true", "--trainer.max_steps", "1")
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    (optimizer,) = saved["optimizer_states"]
    assert [group["weight_decay"] for group in optimizer["param_groups"]] == [0.1, 0.1]


def test_eight_bit_optimizer_states_train(tmp_path: Path) -> None:
    fit(write_config(tmp_path), "--model.optimizer.states", "8bit", "--trainer.max_steps", "2")
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()


def test_mixed_precision_and_gradient_checkpointing_train(tmp_path: Path) -> None:
    config = write_config(tmp_path, method="LoRA")
    options = ["--trainer.precision", "bf16-mixed", "--model.backbone.gradient_checkpointing", "true"]
    fit(config, *options, "--model.recompute", "always", "--trainer.max_steps", "3")
    weights = trained_weights(tmp_path / "run")
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in weights.values())


def test_the_best_checkpoint_is_kept_beside_the_last(tmp_path: Path) -> None:
    config = write_config(tmp_path, validation_fraction=0.3)
    fit(config, "--checkpoint.monitor", "validation/pairs/loss", "--checkpoint.mode", "min")
    kept = torch.load(tmp_path / "run" / "checkpoints" / "best.ckpt", weights_only=True)
    values = scalars(tmp_path / "run")["validation/pairs/loss"][1:]
    assert kept["evaluation"]["validation/pairs/loss"] == pytest.approx(min(values), rel=1e-5)


def test_a_checkpoint_of_the_last_step_carries_its_evaluation(tmp_path: Path) -> None:
    config = write_config(tmp_path, validation_fraction=0.3)
    fit(config, "--checkpoint.every_n_steps", "1")
    kept = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["evaluation"]
    seen = scalars(tmp_path / "run")["validation/pairs/loss"]
    assert kept["validation/pairs/loss"] == pytest.approx(seen[-1], rel=1e-5)


def test_the_comparison_keeps_the_evaluation_before_training_and_trains_its_control_from_scratch(
    tmp_path: Path,
) -> None:
    config = write_config(tmp_path, validation_fraction=0.3)
    table = ["--trainer.callbacks.class_path", "ComparisonTable"]
    fit(config, *table, "--trainer.max_epochs", "1", "--model.schedule", "Constant")
    first = json.loads((tmp_path / "run" / "results.json").read_text())
    options = [*table, "--trainer.callbacks.init_args.random_weights", "true", "--model.schedule", "Constant"]
    fit(config, *options, "--trainer.max_epochs", "3", "--ckpt_path", "last")
    rows = json.loads((tmp_path / "run" / "results.json").read_text())
    assert list(rows) == [
        "backbone before training",
        "same training from random weights",
        "after training",
        "BM25",
    ]
    assert rows["backbone before training"] == first["backbone before training"]
    assert rows["after training"] != first["after training"]
    control = tmp_path / "run" / "random-weights"
    assert steps_of(control / "checkpoints" / "last.ckpt") == steps_of(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert len(scalars(control)["validation/pairs/loss"]) == 4, "evaluated before training and after each epoch"


def test_measuring_a_run_leaves_its_configuration_as_it_is(tmp_path: Path) -> None:
    config = write_config(tmp_path, validation_fraction=0.3)
    fit(config, "--trainer.max_steps", "2")
    before = (tmp_path / "run" / "config.yaml").read_bytes()
    main(["validate", "--config", str(config), "--ckpt_path", "last"])
    assert (tmp_path / "run" / "config.yaml").read_bytes() == before
    fit(tmp_path / "run" / "config.yaml", "--output", str(tmp_path / "again"))
    assert_same_bits(trained_weights(tmp_path / "again"), trained_weights(tmp_path / "run"))


@pytest.mark.parametrize("plan", [["--trainer.max_epochs", "1"], ["--trainer.max_steps", "3"]], ids=" ".join)
def test_a_plan_that_the_checkpoint_is_past_of_leaves_everything_as_it_is(tmp_path: Path, plan: list[str]) -> None:
    config = write_config(tmp_path, validation_fraction=0.3)
    fit(config, "--trainer.max_steps", "20", "--trainer.max_epochs", "-1", "--record.evaluation_set", "pairs")
    (tmp_path / "run" / "record.json").unlink()
    before = (tmp_path / "run" / "checkpoints" / "last.ckpt").read_bytes()
    fit(config, "--ckpt_path", "last", *plan)
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").read_bytes() == before
    assert not (tmp_path / "run" / "record.json").exists()
