"""The configurations of searches that come with the project can be searched, on other backbones and data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from embedlab.testing.backbones import save_tiny_backbone
from helpers.paths import ROOT
from helpers.runs import write_pairs
from helpers.searches import search


@pytest.mark.parametrize(("name", "family"), [("paper", "gpt_neox"), ("smollm2", "llama")])
def test_a_search_of_the_project_can_be_planned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, family: str
) -> None:
    config: dict[str, Any] = yaml.safe_load((ROOT / "configs" / "search" / f"{name}.yaml").read_text())
    config["suite"] = [
        str(save_tiny_backbone(tmp_path / f"of {layers}", family, num_hidden_layers=layers)) for layers in (1, 2)
    ]
    for method in config["methods"]:
        if isinstance(method, dict):  # one value of each option: a tiny model has few blocks, and a rank is as another
            method["options"] = {name: values[:1] for name, values in method["options"].items()}
    config |= {"output": str(tmp_path / "search"), "budgets": [2e9, 8e9], "min_steps": 1}
    config["calibration"] = {"enabled": False}
    data = config["fit"]["data"]
    data |= {
        "batch_size": 8,
        "max_length": 32,
        "num_workers": 0,
        "validation_fraction": 0.3,
        "cache": str(tmp_path / "cache"),
    }
    data["train"][0]["path"] = str(write_pairs(tmp_path / "pairs.jsonl"))
    config["fit"]["trainer"] |= {"precision": "32-true", "accelerator": "cpu", "logger": False, "max_epochs": 999}
    path = tmp_path / "search.yaml"
    path.write_text(yaml.safe_dump(config))
    assert search(path, "--dry-run")
    printed = capsys.readouterr().out
    assert "Leaving out" not in printed and "all" in printed
