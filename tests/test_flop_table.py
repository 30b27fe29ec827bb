"""What `embedlab flops` shows is what training will cost, and it needs neither weights nor their memory."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from embedlab.backbone import BackboneConfig, load_backbone
from embedlab.chunking import Chunk
from embedlab.cli import main
from embedlab.encoder import Encoder
from embedlab.flop_table import Shape, flop_rows
from embedlab.method import prepare_backbone
from embedlab.registry import discover, method_class
from embedlab.replay import GraphBytes
from embedlab.testing.backbones import save_tiny_backbone
from runs import error_of, fit, write_config

METHODS = sorted(discover())
PYTHIA = Path(__file__).resolve().parents[1] / "configs" / "pythia"
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


def test_eight_pythias_under_every_method_take_less_than_a_minute_and_four_gibibytes(tmp_path: Path) -> None:
    folders = [str(PYTHIA / name) for name in SIZES]
    command = [sys.executable, "-m", "embedlab", "flops", "--suite", *folders, "--methods", "all", "--json"]
    command += ["--budget", "1.5e15"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    rows = json.loads(result.stdout)
    assert [(Path(row["backbone"]).name, row["method"]) for row in rows] == [(s, m) for s in SIZES for m in METHODS]
    for row in rows:
        size = SIZES[Path(row["backbone"]).name]
        assert row["nonembedding_parameters"] == size
        if row["method"] == "FullFineTuning":
            assert row["flops_per_token_by_the_paper"] == 6 * size
            assert row["flops_per_token"] == pytest.approx(6 * size, rel=0.012), "norms and biases multiply nothing"
        assert row["pairs"] == int(1.5e15 / row["flops_per_pair"])
        assert row["tokens"] == 78 * row["pairs"]
    # The processor's time, since other tests may be running beside this one.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 60
    assert after.ru_maxrss < 4 * 2**20


@pytest.mark.parametrize("method", METHODS)
def test_a_run_costs_what_was_shown_before_it(tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str) -> None:
    config = write_config(tmp_path, method=method)
    (row,) = shown(capsys, "--config", str(config))
    fit(config, "--trainer.max_steps", "3")
    counts = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["flops"]
    without_attention = row["flops_per_token"] * counts["tokens"]
    assert without_attention < counts["algorithmic"] < 1.5 * without_attention
    assert shown(capsys, "--config", str(tmp_path / "run" / "config.yaml")) == [row], "a run's own configuration"


@pytest.mark.parametrize("family", ["gpt_neox", "llama"])
@pytest.mark.parametrize("method", ["FullFineTuning", "BlockFreezing", "LoRA"])
def test_the_memory_of_a_graph_is_estimated_without_it(tmp_path: Path, family: str, method: str) -> None:
    backbone = BackboneConfig(path=str(save_tiny_backbone(tmp_path / "backbone", family)))
    shape = Shape(max_length=32, tokens_per_chunk=512)
    (row,) = flop_rows(backbone, [method_class(method)()], shape)
    model = prepare_backbone(method_class(method)(), load_backbone(backbone)).train()
    tokens_BL = torch.zeros(16, 32, dtype=torch.int64)
    graph = GraphBytes(list(model.parameters()))
    with graph:
        Encoder(model, "mean")(Chunk(tokens_BL, torch.ones_like(tokens_BL), torch.arange(16)))
    assert row.profile is not None
    weights = 4 * row.profile.parameters + 12 * row.profile.trainable_parameters
    assert (row.memory_bytes - weights) / 2 == pytest.approx(graph.bytes, rel=0.2)


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
    assert "BiasTuning trains biases and LlamaModel has none" in " ".join(capsys.readouterr().out.split())


def test_the_table_shows_what_a_budget_buys(capsys: pytest.CaptureFixture[str]) -> None:
    main(["flops", "--model.backbone.path", "ladder:r0", "--budget", "1e12"])
    printed = capsys.readouterr().out
    assert "pairs for 1e+12" in printed and "ladder:r0" in printed
    assert "FullFineTuning" in printed and "14 + 64 tokens" in printed


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--budget=-1"], "above 0"),
        (["--suite", "./nowhere"], "no folder here"),
        (["--methods", "Lora"], "Did you mean 'LoRA'?"),
        (["--data.max_length", "9999"], "positions for 512"),
        (["--suite", "ladder:r9"], "no rung 'r9'"),
        (["--budgets", "1"], "budgets"),
    ],
)
def test_what_cannot_be_shown_is_one_clear_error(
    capsys: pytest.CaptureFixture[str], arguments: list[str], named: str
) -> None:
    assert named in error_of(capsys, ["flops", *arguments])
