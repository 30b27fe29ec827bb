"""The time that is left is said by a clock that stands still during evaluation, from the first step after a resume."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from embedlab.training.callbacks import step_clock
from helpers.runs import SteppedTime, fit, write_config


class Interrupt(Callback):
    """Ends the process, so to speak, after four steps."""

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == 4:
            raise RuntimeError("interrupted")


@pytest.fixture(autouse=True)
def stepped_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_clock, "time", SimpleNamespace(perf_counter=lambda: SteppedTime.now))


CLOCK = ["--trainer.callbacks+", "helpers.runs.SteppedTime"]
EVERY_STEP = ["--trainer.callbacks+", "ProgressLines", "--trainer.callbacks.every_seconds", "0"]
EVERY_STEP += ["--trainer.enable_progress_bar", "true"]


def seconds_left(printed: str, before: str) -> list[int]:
    found = re.findall(rf"{before} (\d+):(\d\d):(\d\d)", printed)
    return [3600 * int(hours) + 60 * int(minutes) + int(seconds) for hours, minutes, seconds in found]


def test_the_time_to_spend_a_budget_leaves_out_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path, validation_fraction=0.3)
    fit(config, *CLOCK, "--output", str(tmp_path / "one"), "--trainer.max_steps", "1")
    step = torch.load(tmp_path / "one" / "checkpoints" / "last.ckpt", weights_only=True)["flops"]["algorithmic"]
    capsys.readouterr()
    fit(config, *CLOCK, "--budget", str(11 * step), "--trainer.val_check_interval", "2")
    left = seconds_left(capsys.readouterr().out, "The budget will be spent in about")
    assert left == [pytest.approx(50, abs=10)], "after six steps of about eleven"


def test_the_time_left_leaves_out_evaluation_and_is_right_after_a_resume(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path, validation_fraction=0.3)
    options = [*CLOCK, *EVERY_STEP, "--trainer.max_steps", "10", "--trainer.val_check_interval", "2"]
    options += ["--checkpoint.every_n_steps", "1", "--trainer.max_epochs", "-1"]
    with pytest.raises(RuntimeError, match="interrupted"):
        fit(config, *options, "--trainer.callbacks+", f"{__name__}.Interrupt")
    assert seconds_left(capsys.readouterr().out, " left")[-1] <= 70
    fit(config, *options, "--ckpt_path", "last")
    left = seconds_left(capsys.readouterr().out, " left")
    assert left == [10 * steps for steps in (6, 5, 4, 3, 2, 1, 0)], "from the fourth step, which was not saved"
