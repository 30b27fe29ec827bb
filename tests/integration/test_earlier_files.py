"""What earlier versions have written opens: ``earlier/`` holds files from before modules and words were renamed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from embedlab.cli import main
from embedlab.records import FILE, read_record
from embedlab.records.renamed import current_class, current_fields, current_plan
from embedlab.search.plan import changes
from embedlab.training.export import restore
from helpers.runs import fit, write_config

EARLIER = Path(__file__).parent / "earlier"


def earlier(name: str, folder: Path) -> str:
    return (EARLIER / name).read_text().replace("FOLDER", str(folder))


def filled(skeleton: Any, fresh: Any) -> Any:
    """What a checkpoint held, with the tensors of a fresh one of the same shapes in their places."""
    if not isinstance(skeleton, dict):
        return skeleton
    ((kind, value),) = skeleton.items()
    if kind == "tensor":
        assert isinstance(fresh, Tensor) and list(fresh.shape) == value
        return fresh
    if kind == "mapping":
        pairs = [(filled(key, None), inner) for key, inner in value]
        return {key: filled(inner, fresh.get(key) if isinstance(fresh, dict) else None) for key, inner in pairs}
    found = [filled(inner, fresh[n] if isinstance(fresh, list | tuple) else None) for n, inner in enumerate(value)]
    return found if kind == "list" else tuple(found)


def test_an_earlier_record_opens() -> None:
    record = read_record(EARLIER / "record.json")
    assert record.method == "BiasTuning" and record.left_out is None


def test_an_earlier_configuration_and_checkpoint_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_config(
        tmp_path, method="BiasTuning", num_layers=4, validation_fraction=0.2
    )  # makes the backbone and the pairs
    config = tmp_path / "earlier.yaml"
    config.write_text(earlier("config.yaml", tmp_path))
    fit(config, "--output", str(tmp_path / "run"))
    said = capsys.readouterr().err
    assert "'embedlab.callbacks.comparison.ComparisonTable' is now called" in said
    assert "'embedlab.training.schedule.WarmupStableDecay'" in said
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    fresh = torch.load(last, weights_only=True)
    saved = filled(json.loads(earlier("checkpoint.json", tmp_path)), fresh)
    assert saved["run_config"]["model"]["schedule"]["class_path"] == "embedlab.schedule.WarmupStableDecay"
    torch.save(saved, last)
    module, _ = restore(last)
    name, trained = next(iter(fresh["state_dict"].items()))
    assert torch.equal(module.state_dict()[name], trained)
    (tmp_path / "run" / FILE).unlink()
    fit(config, "--output", str(tmp_path / "run"), "--ckpt_path", "last", "--trainer.max_epochs", "3")
    assert read_record(tmp_path / "run" / FILE).status == "finished"


def test_an_earlier_plan_is_the_same_plan() -> None:
    before = json.loads((EARLIER / "plan.json").read_text())
    assert "policy.init_args.fewest_rungs" in before
    now = {**before, "policy.init_args.fewest_levels": 2}
    del now["policy.init_args.fewest_rungs"]
    assert changes(current_plan(before), now) == []


def test_an_earlier_policy_is_understood(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "search.yaml"
    plan = "suite: [a]\nmethods: [FullFineTuning]\nbudgets: [1e9]\nfit: {}\npolicy: {class_path: %s}\n"
    for name in ("Ladder", "embedlab.search.policies.ladder.Ladder"):
        config.write_text(plan % name)
        with pytest.raises(SystemExit):
            main(["search", "--config", str(config), "--print_config"])
        printed = capsys.readouterr()
        assert f"'{name}' is now called '{current_class(name)}'." in printed.err
        assert "RisingBudgets" in printed.out
    config.write_text(plan % "ExtrapolatedHalving, init_args: {fewest_rungs: 2}")
    with pytest.raises(SystemExit):
        main(["search", "--config", str(config), "--print_config"])
    assert "fewest_levels: 2" in capsys.readouterr().out


def test_an_earlier_prediction_has_its_epochs() -> None:
    assert current_fields({"passes": 2.0, "loss": 1.0}) == {"epochs": 2.0, "loss": 1.0}
