"""A run with a budget ends where it is spent, with the schedule's last rate, also when it was interrupted."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from embedlab.method.registry import discover
from helpers.runs import assert_same_bits, error_of, fit, scalars, trained_weights, write_config

METHODS = sorted(discover())
EVERY_STEP = ["--trainer.log_every_n_steps", "1", "--checkpoint.every_n_steps", "1"]


class Interrupt(Callback):
    """Ends the process, so to speak, after some steps."""

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == 4:
            raise RuntimeError("interrupted")


class Evaluations(Callback):
    """Counts them."""

    begun = 0

    def on_validation_start(self, *_: Any) -> None:
        Evaluations.begun += 1


def flops_of(run: Path) -> dict[str, int]:
    counts: dict[str, int] = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["flops"]
    return counts


def cost_of_a_step(config: Path, folder: Path) -> int:
    fit(config, "--output", str(folder), "--trainer.max_steps", "1")
    return flops_of(folder)["algorithmic"]


@pytest.mark.parametrize("method", METHODS)
def test_a_run_ends_within_a_step_of_its_budget_also_after_a_resume(tmp_path: Path, method: str) -> None:
    schedule = {"class_path": "WarmupCosine", "init_args": {"final": 0.25}}
    config = write_config(tmp_path, method=method, schedule=schedule)
    budget = round(7.5 * cost_of_a_step(config, tmp_path / "one"))
    options = ["--budget", str(budget), *EVERY_STEP]
    fit(config, "--output", str(tmp_path / "whole"), *options)
    spent = scalars(tmp_path / "whole")["flops/algorithmic"]
    assert spent[-2] < budget <= spent[-1] == pytest.approx(flops_of(tmp_path / "whole")["algorithmic"])
    rates = scalars(tmp_path / "whole")["train/learning_rate"]
    assert rates[-1] == pytest.approx(0.25e-2) and max(rates) > 0.5e-2

    resumed = ["--output", str(tmp_path / "resumed"), *options]
    with pytest.raises(RuntimeError, match="interrupted"):
        fit(config, *resumed, "--trainer.callbacks+", f"{__name__}.Interrupt")
    fit(config, *resumed, "--ckpt_path", "last")
    assert flops_of(tmp_path / "resumed") == flops_of(tmp_path / "whole")
    assert_same_bits(trained_weights(tmp_path / "resumed"), trained_weights(tmp_path / "whole"))


def test_a_finished_run_can_be_given_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path)
    step = cost_of_a_step(config, tmp_path / "one")
    fit(config, "--budget", str(3 * step))
    spent = flops_of(tmp_path / "run")["algorithmic"]
    resumed = ["fit", "--config", str(config), "--ckpt_path", "last"]
    before = (tmp_path / "run" / "config.yaml").read_text()
    printed = error_of(capsys, [*resumed, "--budget", str(3 * step)])
    assert (tmp_path / "run" / "config.yaml").read_text() == before, "a refused run leaves the folder as it was"
    assert "has spent" in printed and "Raise" in printed
    fit(config, "--ckpt_path", "last", "--budget", str(spent + 2 * step))
    assert flops_of(tmp_path / "run")["algorithmic"] >= spent + 2 * step


def test_what_a_budget_buys_is_said_before_the_first_step_and_the_time_after_a_few(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path)
    budget = 9 * cost_of_a_step(config, tmp_path / "one")
    capsys.readouterr()
    fit(config, "--budget", str(budget), "--trainer.enable_progress_bar", "true")
    printed = capsys.readouterr().out
    plan, time, first = (printed.index(word) for word in ("buys about", "will be spent in about", "\nstep "))
    assert plan < first and plan < time
    pairs = float(printed[plan:].split()[2].replace(",", ""))
    assert pairs == pytest.approx(5 * 9, rel=0.2)
    assert "epochs of 60 pairs" in printed


@pytest.mark.parametrize(("budget", "expected"), [("1000", "less than one step"), ("1e12", "epochs of 30 pairs")])
def test_a_wrong_budget_is_refused_before_any_evaluation_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, budget: str, expected: str
) -> None:
    monkeypatch.setattr(Evaluations, "begun", 0)
    config = write_config(tmp_path, validation_fraction=0.3)
    command = ["fit", "--config", str(config), "--trainer.callbacks+", f"{__name__}.Evaluations"]
    assert expected in error_of(capsys, [*command, "--budget", budget])
    assert Evaluations.begun == 0
    left = [path.name for path in (tmp_path / "run").rglob("*")]
    assert all(name == "run.lock" or name.startswith("events.") for name in left), (
        "Lightning opens TensorBoard's file before anybody can refuse"
    )
    assert scalars(tmp_path / "run") == {}
    fit(config, *command[3:], "--trainer.max_steps", "1")
    assert Evaluations.begun > 0


@pytest.mark.parametrize("flops", ["missing", None])
def test_a_run_whose_spending_is_not_known_goes_on_without_a_budget_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flops: str | None
) -> None:
    config = write_config(tmp_path)
    fit(config, "--trainer.max_steps", "2")
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    saved = torch.load(checkpoint, weights_only=True)
    counted = saved.pop("flops")["algorithmic"]
    torch.save(saved if flops == "missing" else {**saved, "flops": flops}, checkpoint)
    command = ["fit", "--config", str(config), "--ckpt_path", "last"]
    refused = error_of(capsys, [*command, "--budget", str(9 * counted)])
    assert "does not say how many FLOPs" in refused and "Resume without --budget" in refused
    with pytest.warns(UserWarning, match="does not say how many FLOPs .* counted from 0 here"):
        fit(config, *command[3:], "--trainer.max_steps", "4", *EVERY_STEP)
    seen = scalars(tmp_path / "run")
    assert seen["flops/tokens"][-1] == pytest.approx(2 * seen["flops/tokens"][-2], rel=0.3), "two steps, from 0"
    assert flops_of(tmp_path / "run") is None, "what the whole run has spent"
    assert "does not say how many FLOPs" in error_of(capsys, [*command, "--budget", str(9 * counted)])


@pytest.mark.parametrize("budget", ["0", "-1000000000.0", "nan", "inf", "plenty"])
def test_a_budget_that_is_no_positive_number_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], budget: str
) -> None:
    for command in (["fit", "--config", str(write_config(tmp_path))], ["flops"]):
        assert f"must be a number of FLOPs above 0, got {budget}." in error_of(capsys, [*command, "--budget", budget])


def test_a_budget_of_less_than_a_step_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = error_of(capsys, ["fit", "--config", str(write_config(tmp_path)), "--budget", "1000"])
    assert "less than one step of 5 pairs" in printed and "data.batch_size" in printed
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_budget_and_a_number_of_steps_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--budget", "1e9", "--trainer.max_steps", "3"]
    printed = error_of(capsys, ["fit", "--config", str(write_config(tmp_path)), *options])
    assert "trainer.max_steps 3" in printed and "Leave one out" in printed


@pytest.mark.parametrize("option", ["min_epochs", "min_steps"])
def test_a_budget_and_a_least_length_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    options = ["--budget", "1e9", f"--trainer.{option}", "2"]
    printed = error_of(capsys, ["fit", "--config", str(write_config(tmp_path)), *options])
    assert f"{option} 2" in printed and "Leave them out" in printed


def test_a_budget_larger_than_the_data_says_how_many_epochs_it_means(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path)  # of 12 steps an epoch, and two epochs
    budget = str(30 * cost_of_a_step(config, tmp_path / "one"))
    printed = error_of(capsys, ["fit", "--config", str(config), "--budget", budget])
    assert "trainer.max_epochs is 2" in printed and "--allow_repeat" in printed
    epochs = float(printed.split("lasts for ")[1].split()[0])
    assert epochs == pytest.approx(2.5, rel=0.2)
    assert f"set trainer.max_epochs to {math.ceil(epochs)}" in printed
    fit(config, "--budget", budget, "--allow_repeat", "true")
    assert flops_of(tmp_path / "run")["algorithmic"] >= float(budget)


def test_measuring_a_run_that_had_a_budget_needs_no_data_for_it(tmp_path: Path) -> None:
    from embedlab.cli.commands import main

    config = write_config(tmp_path, validation_fraction=0.3)
    fit(config, "--budget", str(2 * cost_of_a_step(config, tmp_path / "one")))
    main(["validate", "--config", str(tmp_path / "run" / "config.yaml"), "--ckpt_path", "last"])
