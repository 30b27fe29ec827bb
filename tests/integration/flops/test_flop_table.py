"""What `embedlab flops` shows is what training will cost, and it needs neither weights nor their memory."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from transformers import GPTNeoConfig, MambaConfig, PretrainedConfig

from embedlab.cli.commands import main
from embedlab.cli.flop_table import print_rows
from embedlab.data.collate import PairBatch
from embedlab.flops import FlopProfile, FlopsByLength, WeightsByPass
from embedlab.flops.estimate import FlopRow, StepShape
from embedlab.method.registry import discover
from embedlab.model.backbone import BackboneConfig
from embedlab.testing.backbones import save_tiny_backbone
from helpers.paths import ROOT
from helpers.runs import error_of, fit, write_config

METHODS = sorted(discover())
PYTHIA = ROOT / "configs" / "pythia"
# Non-embedding parameters (Biderman et al. 2023, arXiv:2304.01373, table 1; the two smallest from their repository).
SIZES = {
    "14m": 1_189_888,
    "31m": 4_739_072,
    "70m": 18_915_328,
    "160m": 85_056_000,
    "410m": 302_311_424,
    "1b": 805_736_448,
    "1.4b": 1_208_602_624,
    "2.8b": 2_517_652_480,
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDLAB_CACHE", str(tmp_path / "embedlab-cache"))


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    capsys.readouterr()
    main(["flops", *arguments, "--json"])
    rows: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return rows


def test_pythias_under_every_method_take_seconds_and_less_than_four_gibibytes(tmp_path: Path) -> None:
    names = ["14m", "70m", "410m", "2.8b"]
    folders = [str(PYTHIA / name) for name in names]
    command = [sys.executable, "-m", "embedlab", "flops", "--suite", *folders, "--methods", "all", "--json"]
    command += ["--budget", "1.5e15"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    rows = json.loads(result.stdout)
    assert [(Path(row["backbone"]).name, row["method"]) for row in rows] == [
        (name, method) for name in names for method in METHODS
    ]
    for row in rows:
        size = SIZES[Path(row["backbone"]).name]
        assert row["nonembedding_parameters"] == size
        if row["method"] == "FullFineTuning":
            assert row["flops_per_token_by_the_paper"] == 6 * size
            assert row["flops_per_token"] == pytest.approx(6 * size, rel=0.012), "norms and biases multiply nothing"
        assert row["pairs"] == int(1.5e15 / row["flops_per_pair"])
        assert row["tokens"] == 78 * row["pairs"]
    # The processor's time, since other tests may be running beside this one, which make it half as fast again at worst:
    # benchmarks/flop_table.py measures the minute that all eight may take.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 50
    assert after.ru_maxrss < 4 * 2**20


class TextLengths(Callback):
    """Writes the real lengths of all texts that a run is trained on."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: PairBatch, *_: Any) -> None:
        with Path(trainer.default_root_dir, "lengths").open("a") as file:
            for chunk in batch.chunks:
                file.writelines(f"{length}\n" for length in chunk.attention_mask_BL.sum(1).tolist())


@pytest.mark.parametrize("method", METHODS)
def test_a_run_costs_what_was_shown_before_it(tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str) -> None:
    config = write_config(tmp_path, method=method)
    (row,) = shown(capsys, "--config", str(config))
    fit(config, "--trainer.max_steps", "3", "--trainer.callbacks", f"{__name__}.TextLengths")
    lengths_U = np.loadtxt(tmp_path / "run" / "lengths", dtype=np.int64)
    counts = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["flops"]
    assert counts["tokens"] == lengths_U.sum() > 0
    assert FlopProfile.from_dict(row["profile"]).algorithmic(lengths_U) == counts["algorithmic"]
    assert shown(capsys, "--config", str(tmp_path / "run" / "config.yaml")) == [row], "a run's own configuration"


def test_the_ladders_rungs_need_not_be_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = shown(capsys, "--suite", "ladder:r0", "ladder:r1", "--methods", "FullFineTuning", "LoRA")
    assert [row["nonembedding_parameters"] for row in rows] == [150_080] * 2 + [793_344] * 2
    assert not (tmp_path / "embedlab-cache" / "ladders").exists()


def test_a_second_look_comes_from_the_cache_and_other_options_do_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = shown(capsys, "--suite", "ladder:r0", "--methods", "LoRA")
    folders = list((tmp_path / "embedlab-cache" / "flops").glob("*/row.json"))
    assert shown(capsys, "--suite", "ladder:r0", "--methods", "LoRA") == first
    assert list((tmp_path / "embedlab-cache" / "flops").glob("*/row.json")) == folders
    options = ["--model.method", "LoRA", "--model.method.rank", "4"]
    (other,) = shown(capsys, "--model.backbone.path", "ladder:r0", *options)
    assert other["trainable_parameters"] * 8 == first[0]["trainable_parameters"]


def test_a_method_that_does_not_fit_is_a_row_that_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(save_tiny_backbone(tmp_path / "backbone", "llama"))
    rows = shown(capsys, "--suite", path, "--methods", "all", "--data.max_length", "64")
    assert [row["method"] for row in rows if "refusal" in row] == ["BiasTuning"]
    main(["flops", "--suite", path, "--methods", "BiasTuning", "--data.max_length", "64"])
    assert "BiasTuning trains biases, but LlamaModel has none" in " ".join(capsys.readouterr().out.split())


def test_a_method_that_is_configured_keeps_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model.method", "LoRA", "--model.method.rank", "4", "--model.backbone.path", "ladder:r0"]
    (configured,) = shown(capsys, *options)
    rows = shown(capsys, *options, "--methods", "LoRA", "FullFineTuning")
    assert rows[0] == configured and rows[1]["method"] == "FullFineTuning"
    assert rows[0]["trainable_parameters"] < shown(capsys, "--methods", "LoRA")[0]["trainable_parameters"]
    small = shown(capsys, "--methods", "LoRA", "--model.method.rank", "4")[0]["trainable_parameters"]
    assert small == shown(capsys, "--methods", "LoRA")[0]["trainable_parameters"] / 8


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (MambaConfig(hidden_size=32, num_hidden_layers=2, state_size=4), "no softmax attention. Its cost is counted"),
        (GPTNeoConfig(hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global"], 2]]), None),
    ],
    ids=["state space", "attention"],
)
def test_a_count_by_measurement_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], config: PretrainedConfig, sentence: str | None
) -> None:
    config.save_pretrained(tmp_path / "backbone")
    main(["flops", "--suite", str(tmp_path / "backbone"), "--methods", "FullFineTuning", "BlockFreezing"])
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.count("by measurement") == (sentence is not None), "once a backbone"
    assert (sentence or "backbone") in printed


def test_a_count_measured_at_lengths_names_them_and_not_state_spaces(capsys: pytest.CaptureFixture[str]) -> None:
    profile = FlopProfile(1, 0, 0, 1, *[WeightsByPass()] * 5, attention=FlopsByLength(measured=((2, 8.0), (64, 900.0))))
    row = FlopRow("windowed", "FullFineTuning", profile, None)
    print_rows([row], BackboneConfig(path="windowed"), StepShape(), None)
    printed = " ".join(capsys.readouterr().out.split())
    assert "not a polynomial" in printed and "at lengths from 2 to 64" in printed
    assert "no softmax attention" not in printed
    assert "FullFineTuning loads weights in its own format (backbone_kwargs), so its memory is not estimated" in printed


def test_below_the_table_stands_what_memory_is_of(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--trainer.precision", "bf16-mixed", "--model.backbone.gradient_checkpointing", "true"]
    main(["flops", *options])
    printed = " ".join(capsys.readouterr().out.split())
    assert "weights loaded in float32, trainer.precision bf16-mixed, gradient checkpointing." in printed


def test_a_mean_pair_is_no_longer_than_texts_may_be(capsys: pytest.CaptureFixture[str]) -> None:
    main(["flops", "--data.max_length", "20"])
    assert "A pair has 14 + 20 tokens" in capsys.readouterr().out


def test_the_table_shows_what_a_budget_buys(capsys: pytest.CaptureFixture[str]) -> None:
    main(["flops", "--model.backbone.path", "ladder:r0", "--budget", "1e12"])
    printed = capsys.readouterr().out
    assert "pairs for 1e+12" in printed and "ladder:r0" in printed
    assert "FullFineTuning" in printed and "14 + 64 tokens" in printed


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--budget=-1"], "above 0"),
        (["--suite", "./nowhere"], "is not a folder"),
        (["--methods", "Lora"], "Did you mean 'LoRA'?"),
        (["--data.max_length", "9999"], "positions for 512"),
        (["--data.max_length", "0"], "data.max_length must be at least 1"),
        (["--data.tokens_per_chunk", "0"], "less than one text of data.max_length 128"),
        (["--query_tokens", "0"], "query_tokens must be a mean length between 1 and 128 tokens"),
        (["--query_tokens=-3"], "got -3"),
        (["--document_tokens", "1000"], "document_tokens must be a mean length between 1 and 128 tokens"),
        (["--trainer.precision", "int8"], "trainer.precision is 'int8'"),
        (["--suite", "ladder:r9"], "no rung 'r9'"),
        (["--budgets", "1"], "budgets"),
    ],
)
def test_what_cannot_be_shown_is_one_clear_error(
    capsys: pytest.CaptureFixture[str], arguments: list[str], named: str
) -> None:
    assert named in error_of(capsys, ["flops", *arguments])
