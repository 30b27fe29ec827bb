"""The counts that are logged are those of the steps, and the peak they are held against is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch.utils.flop_counter import FlopCounterMode

from embedlab.errors import ConfigError
from embedlab.flops.observer import ADDED_FORMULAS
from embedlab.gradcache.engine import GradCache
from embedlab.method.registry import discover
from embedlab.training.callbacks.flop_counter import FlopCounter
from helpers.runs import error_of, fit, scalars, write_config

METHODS = sorted(discover())


class TorchsCounter(Callback):
    """Counts every training step as torch does, fused attention on the CPU added."""

    steps: list[int]

    def __init__(self) -> None:
        TorchsCounter.steps = []
        self.counter = FlopCounterMode(display=False, custom_mapping=ADDED_FORMULAS)

    def on_train_batch_start(self, *_: Any) -> None:
        self.counter = FlopCounterMode(display=False, custom_mapping=ADDED_FORMULAS)
        self.counter.__enter__()

    def on_train_batch_end(self, *_: Any) -> None:
        self.counter.__exit__(None, None, None)
        TorchsCounter.steps.append(self.counter.get_total_flops())


@pytest.mark.parametrize("recompute", ["auto", "always"])
@pytest.mark.parametrize("method", METHODS)
def test_the_executed_count_is_torchs_in_real_training(tmp_path: Path, method: str, recompute: str) -> None:
    config = write_config(tmp_path, method=method)
    options = ["--trainer.callbacks+", f"{__name__}.TorchsCounter", "--model.recompute", recompute]
    fit(config, *options, "--trainer.max_steps", "3", "--trainer.log_every_n_steps", "1")
    seen = scalars(tmp_path / "run")
    executed = seen["flops/executed"]
    steps = [after - before for before, after in zip([0.0, *executed], executed, strict=False)]
    assert steps == pytest.approx(TorchsCounter.steps, rel=0.005)
    assert all(value > 0 for value in seen["flops/mfu"] + seen["flops/hfu"])
    assert seen["flops/algorithmic"][-1] < executed[-1], "padding, if nothing else"


@pytest.mark.parametrize("method", METHODS)
def test_the_executed_count_is_torchs_where_memory_lasts_for_some_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setattr(GradCache, "_free_bytes", lambda *_: 900_000.0)
    config = write_config(tmp_path, method=method, num_layers=4, tokens_per_chunk=32)
    options = ["--trainer.callbacks+", f"{__name__}.TorchsCounter", "--model.recompute", "auto"]
    fit(config, *options, "--trainer.max_steps", "4", "--trainer.log_every_n_steps", "1")
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["flops"]
    assert 0 < sum(scalars(tmp_path / "run")["train/recomputed_tokens"]) < 0.9 * saved["tokens"], "some, and not all"
    assert saved["executed"] == pytest.approx(sum(TorchsCounter.steps), rel=0.005)


def test_what_utilization_is_measured_against_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path)
    fit(config, "--trainer.max_steps", "1")
    assert "FLOP/s per device (measured here: " in capsys.readouterr().out
    options = ["--trainer.callbacks+", "FlopCounter", "--trainer.callbacks.peak_flops", "1e12"]
    fit(config, "--output", str(tmp_path / "stated"), *options, "--trainer.max_steps", "1")
    printed = capsys.readouterr().out
    assert "MFU is relative to 1e+12 FLOP/s per device (stated by you)" in printed
    assert printed.count("MFU is relative to") == 1


def test_a_peak_that_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="above 0, got -1"):
        FlopCounter(peak_flops=-1)


def test_a_backbone_whose_cost_cannot_be_observed_trains_without_a_budget_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from embedlab.errors import PluginError
    from embedlab.training import meter

    def refuse(*_: object, **__: object) -> None:
        raise PluginError("The cost of layer 'x' (Opaque) cannot be observed.")

    monkeypatch.setattr(meter, "observe", refuse)
    config = write_config(tmp_path)
    with pytest.warns(UserWarning, match="FLOPs are not counted in this run. The cost of layer 'x'"):
        fit(config, "--trainer.max_steps", "2", "--trainer.log_every_n_steps", "1")
    assert not any(name.startswith("flops/") for name in scalars(tmp_path / "run"))
    assert torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["flops"] is None
    resumed = ["fit", "--config", str(config), "--ckpt_path", "last"]
    assert "because they were not counted" in error_of(capsys, [*resumed, "--budget", "1e9"])
    printed = error_of(capsys, ["fit", "--config", str(config), "--output", str(tmp_path / "b"), "--budget", "1e9"])
    assert "layer 'x'" in printed
