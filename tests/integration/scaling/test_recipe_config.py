"""What a recipe writes is trained by `embedlab fit` as it stands, and ends at the budget."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from embedlab.cli.commands import main
from embedlab.records import write_record
from embedlab.scaling.recipe_options import options_of_run
from embedlab.search.plan import ONLY_AT_THE_END
from helpers.run_records import record
from helpers.runs import error_of, fit, write_config

PER_TOKEN = 6.0


def written_runs(folder: Path) -> Path:
    """Two backbones whose runs left their configurations, and losses that follow a law."""
    runs = folder / "runs"
    for backbone, parameters in (("a", 20_000), ("b", 60_000), ("c", 180_000)):
        config = folder / backbone / "config.yaml"
        config.parent.mkdir()
        values = yaml.safe_load(write_config(config.parent).read_text())
        values["trainer"] |= {"check_val_every_n_epoch": None, "val_check_interval": ONLY_AT_THE_END}
        config.write_text(yaml.safe_dump(values))
        for flops in (10**9, 4 * 10**9, 16 * 10**9, 64 * 10**9):
            tokens = int(flops / (PER_TOKEN * parameters))
            name = f"{backbone}-{flops}"
            write_record(
                replace(
                    record(),
                    run_id=name,
                    backbone=backbone,
                    nonembedding_parameters=parameters,
                    tokens=tokens,
                    pairs=max(1, tokens // 40),
                    unique_pairs=min(60, max(1, tokens // 40)),
                    flops_algorithmic=flops,
                    learning_rate=7e-3,
                    loss=0.5 + 9 / parameters**0.3 + 20 / tokens**0.3,
                ),
                runs / name,
            )
            (runs / name / "config.yaml").write_text(config.read_text())
    return runs


def test_the_yaml_of_a_recipe_trains_as_it_stands_and_stops_at_the_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = written_runs(tmp_path)
    monkeypatch.chdir(tmp_path)
    options = ["recipe", "--runs", str(runs), "--budget", "2e9", "--replicates", "10", "--output", "recipes"]
    main([*options, "--json"])
    best = json.loads(capsys.readouterr().out)["recipes"][0]["configurations"][0]
    path = tmp_path / "recipes" / "recipe-2e+09.yaml"
    config = yaml.safe_load(path.read_text())
    assert config["budget"] == 2e9 and config["model"]["optimizer"]["learning_rate"] == 7e-3
    assert config["trainer"]["check_val_every_n_epoch"] == 1 and config["trainer"]["val_check_interval"] is None
    assert path.read_text().startswith("# embedlab fit --config recipe-2e+09.yaml")
    assert Path(config["model"]["backbone"]["path"]).parent.name == best["backbone"]
    fit(path)
    assert options_of_run(Path(config["output"]))[1] == [], "every option of an ordinary run is taken over"
    counts = torch.load(tmp_path / config["output"] / "checkpoints" / "last.ckpt", weights_only=True)["flops"]
    a_step = counts["algorithmic"] / (counts["pairs"] / 5)
    assert 2e9 <= counts["algorithmic"] < 2e9 + 1.5 * a_step
    assert "exists already" in error_of(capsys, options)


def test_a_foreign_table_gives_no_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [f"{n},{d},{0.5 + 9 / n**0.3 + 20 / d**0.3}" for n in (1e6, 3e6, 9e6) for d in (1e8, 3e8, 9e8, 27e8)]
    (tmp_path / "runs.csv").write_text("\n".join(["N,D,loss", *rows]))
    options = ["--table", str(tmp_path / "runs.csv"), "--columns.parameters", "N", "--columns.tokens", "D"]
    command = ["recipe", *options, "--budget", "1e16", "--replicates", "3", "--output", str(tmp_path / "out")]
    assert "from a table of runs" in error_of(capsys, command)
    assert not (tmp_path / "out").exists()
