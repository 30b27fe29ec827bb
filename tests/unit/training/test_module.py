"""Training keeps its weights finite or says when they ceased to be, and refuses a type in which they cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from embedlab.cli.commands import main
from embedlab.testing.backbones import save_tiny_backbone
from helpers.runs import error_of, fit, trained_weights, write_config


class BreakAWeight(Callback):
    """Makes a weight NaN when so many steps are taken, as a step in too few digits does."""

    def __init__(self, after: int) -> None:
        self.after = after

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        if trainer.global_step == self.after:
            with torch.no_grad():
                next(pl_module.parameters())[:] = torch.nan

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        if trainer.global_step == -self.after:
            with torch.no_grad():
                next(pl_module.parameters())[:] = torch.nan


def test_float16_is_not_trained_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path)
    for option in ("--model.backbone.dtype=float16", "--trainer.precision=16-true"):
        printed = error_of(capsys, ["fit", "--config", str(config), option])
        assert "float16" in printed and "bf16-mixed" in printed


def test_adapters_train_in_float32_beside_float16_weights(tmp_path: Path) -> None:
    config = write_config(tmp_path, method="LoRA", validation_fraction=0.3)
    half = ["--model.backbone.dtype", "float16"]
    fit(config, *half, "--trainer.max_steps", "2")
    assert {value.dtype for value in trained_weights(tmp_path / "run").values()} == {torch.float32}
    main(["validate", "--config", str(config), *half, "--ckpt_path", "last"])
    main(["export", "--checkpoint", str(tmp_path / "run/checkpoints/last.ckpt"), "--output", str(tmp_path / "model")])


def test_a_loss_is_not_blamed_for_weights_that_were_broken_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path)
    broken = ["--trainer.callbacks+=test_module.BreakAWeight", "--trainer.callbacks.after=2"]
    printed = error_of(capsys, ["fit", "--config", str(config), *broken])
    assert "at step 2, because the step before made the weight encoder.backbone" in printed
    assert "has not changed the weights" not in printed


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path)
    fit(config, "--trainer.max_steps", "2")
    before = trained_weights(tmp_path / "run")
    broken = ["--trainer.callbacks+=test_module.BreakAWeight", "--trainer.callbacks.after=-4"]
    command = ["fit", "--config", str(config), "--ckpt_path", "last", "--trainer.max_steps", "4", *broken]
    assert "These weights are not saved" in error_of(capsys, command)
    after = trained_weights(tmp_path / "run")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_first_step_that_breaks_the_weights_is_said_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path)
    without_eps = ["--model.optimizer.eps", "1e-46"]  # 0 in float32: 0/0 for tokens that no text has
    printed = error_of(capsys, ["fit", "--config", str(config), *without_eps])
    assert "Step 0, the first of this process, made the weight" in printed


def test_a_checkpoint_goes_on_only_on_its_own_backbone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path, method="LoRA")
    fit(config, "--trainer.max_steps", "2")
    save_tiny_backbone(tmp_path / "backbone", num_hidden_layers=2, initializer_range=0.03)
    command = ["fit", "--config", str(config), "--ckpt_path", "last", "--trainer.max_steps", "4"]
    assert "another backbone" in error_of(capsys, command)
