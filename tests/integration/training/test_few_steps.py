"""A run of few steps ends early, evaluated and recorded, and is refused where the whole run would be."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from embedlab.errors import ConfigError
from embedlab.records import FILE, read_record
from embedlab.training.callbacks.few_steps import FewSteps
from helpers.runs import error_of, fit, scalars, write_config

FEW = ["--trainer.callbacks+", "FewSteps", "--trainer.callbacks.steps", "2"]


def test_a_run_of_few_steps_leaves_a_record_of_the_whole_runs_beginning(tmp_path: Path) -> None:
    config = write_config(tmp_path, validation_fraction=0.2)
    budget = ["--budget", "5e8", "--trainer.max_epochs", "50", "--trainer.log_every_n_steps", "1"]
    fit(config, "--output", str(tmp_path / "few"), *budget, *FEW)
    record = read_record(tmp_path / "few" / FILE)
    assert (
        record.status == "stopped"
        and "FewSteps" in str(record.stop_reason)
        and record.pairs == 2 * 5
        and record.loss > 0
    )
    assert torch.load(tmp_path / "few" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 2
    fit(config, "--output", str(tmp_path / "whole"), *budget)
    few, whole = (scalars(tmp_path / name) for name in ("few", "whole"))
    for name in ("train/loss", "train/learning_rate"):
        assert few[name] == whole[name][:2], "its budget and schedule are those of the whole run"


def test_what_the_whole_run_would_be_refused_for_few_steps_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path, validation_fraction=0.2)
    error = error_of(capsys, ["fit", "--config", str(config), "--budget", "1e12", *FEW])
    assert "trainer.max_epochs is 2" in error


def test_no_steps_are_refused() -> None:
    with pytest.raises(ConfigError, match="FewSteps' steps must be at least 1, got 0"):
        FewSteps(0)
