"""A run that goes on from a checkpoint is the checkpoint's run, or says that it is another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from embedlab.records import FILE, Ledger, RunRecord
from helpers.runs import error_of, fit, trained_weights, write_config, write_pairs

LORA = {"class_path": "LoRA", "init_args": {"rank": 2}}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps in ``run``."""
    config = write_config(tmp_path_factory.mktemp("same"), method=LORA, validation_fraction=0.3)
    fit(config, "--trainer.max_steps", "2")
    return config


def other_pairs(folder: Path) -> Path:
    lines = (folder / "pairs.jsonl").read_text().splitlines(keepends=True)
    path = folder / "reversed.jsonl"
    path.write_text("".join(reversed(lines)))
    return path


def other_backbone(folder: Path) -> Path:
    """The same shape, half the weights."""
    path = folder / "other-backbone"
    path.mkdir(exist_ok=True)
    for file in (folder / "backbone").iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    halved = {name: value / 2 for name, value in load_file(path / "model.safetensors").items()}
    save_file(halved, path / "model.safetensors", metadata={"format": "pt"})
    return path


CHANGES = {
    "data.batch_size": ["--data.batch_size", "6"],
    "data.max_length": ["--data.max_length", "16"],
    "data.validation_fraction": ["--data.validation_fraction", "0.4"],
    "data.test_fraction": ["--data.test_fraction", "0.1"],
    "data.candidates": ["--data.candidates", "8"],
    "data.train": ["--data.train", "OTHER_PAIRS"],
    "seed_everything": ["--seed_everything", "2"],
    "another backbone": ["--model.backbone.path", "OTHER_BACKBONE"],
    "model.backbone.attention_direction": ["--model.backbone.attention_direction", "bidirectional"],
    "model.pooling": ["--model.pooling", "last_token"],
    "options of model.method": ["--model.method.alpha", "64"],
    "model.loss": ["--model.loss.temperature", "0.5"],
    "model.optimizer.learning_rate": ["--model.optimizer.learning_rate", "0.02"],
    "model.optimizer.weight_decay": ["--model.optimizer.weight_decay", "0.2"],
    "model.optimizer.decay_vectors": ["--model.optimizer.decay_vectors", "true"],
    "model.optimizer.clip": ["--model.optimizer.clip", "null"],
    "model.schedule": ["--model.schedule", "Constant"],
    "trainer.precision": ["--trainer.precision", "bf16-mixed"],
}


@pytest.mark.parametrize("name", CHANGES)
def test_another_configuration_is_refused_by_name(config: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    folder = config.parent
    words = [
        {"OTHER_PAIRS": f"[{{path: {other_pairs(folder)}}}]", "OTHER_BACKBONE": str(other_backbone(folder))}.get(w, w)
        for w in CHANGES[name]
    ]
    before = (folder / "run" / "config.yaml").read_text()
    weights = trained_weights(folder / "run")
    command = ["fit", "--config", str(config), "--ckpt_path", "last", "--trainer.max_steps", "4", *words]
    printed = error_of(capsys, command)
    assert f"{name} " in printed
    assert ("--accept_changes" in printed) == (name != "another backbone")  # which no run can go on from
    assert (folder / "run" / "config.yaml").read_text() == before
    assert torch.equal(next(iter(weights.values())), next(iter(trained_weights(folder / "run").values())))


def test_what_does_not_change_the_run_may_change(tmp_path: Path) -> None:
    config = write_config(tmp_path, method=LORA)
    fit(config, "--trainer.max_steps", "2")
    (tmp_path / "backbone").rename(tmp_path / "moved")
    options = ["--data.tokens_per_chunk", "32", "--data.num_workers", "1", "--model.recompute", "always"]
    options += ["--model.backbone.path", str(tmp_path / "moved"), "--data.cache", str(tmp_path / "other")]
    fit(config, "--trainer.max_steps", "4", "--ckpt_path", "last", *options)
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 4


def recorded(run: Path) -> dict[str, RunRecord]:
    return {record.run_id: record for record in Ledger([run]).records()}


def test_accepted_changes_make_another_run_of_the_family(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path, validation_fraction=0.3)
    fit(config, "--trainer.max_steps", "2")
    (first,) = recorded(tmp_path / "run")
    changed = ["--ckpt_path", "last", "--model.optimizer.learning_rate", "0.02"]
    fit(config, "--trainer.max_steps", "4", *changed, "--accept_changes")
    assert "another run of the checkpoint's family: model.optimizer.learning_rate was 0.01" in capsys.readouterr().out
    records = recorded(tmp_path / "run")
    assert len(records) == 2
    (second,) = (record for name, record in records.items() if name != first)
    assert second.family == first and second.branch_step == 2 and second.steps == second.planned_steps == 4
    assert "from step 2 on" in second.changes[0]
    assert second.left_out is not None and "changed" in second.left_out
    # What was accepted holds for the run from then on, and is not forgotten.
    fit(config, "--trainer.max_steps", "5", *changed)
    assert all(record.changes for name, record in recorded(tmp_path / "run").items() if name != first)


@pytest.mark.parametrize("option", ["validation_fraction", "train"])
def test_pairs_held_out_afterwards_give_no_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    config = write_config(tmp_path)
    fit(config, "--trainer.max_steps", "2")
    changed = ["--data.validation_fraction", "0.3"]
    if option == "train":
        changed += ["--data.train", f"[{{path: {write_pairs(tmp_path / 'others.jsonl', seed=5)}}}]"]
    fit(config, "--trainer.max_steps", "4", "--ckpt_path", "last", *changed, "--accept_changes")
    assert "held out may have been trained on" in capsys.readouterr().out
    fit(config, "--trainer.max_steps", "5", "--ckpt_path", "last", *changed)
    assert not list((tmp_path / "run").rglob(FILE))


def test_a_checkpoint_of_an_older_version_goes_on_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path)
    fit(config, "--trainer.max_steps", "2")
    edit(tmp_path / "run", lambda saved: saved.pop("identity"))
    fit(config, "--trainer.max_steps", "4", "--ckpt_path", "last")
    assert "cannot be checked" in capsys.readouterr().out


def edit(run: Path, change: Any) -> None:
    """Changes what a run's last checkpoint holds."""
    path = run / "checkpoints" / "last.ckpt"
    saved = torch.load(path, weights_only=True)
    change(saved)
    torch.save(saved, path)


@pytest.mark.parametrize("run_id", ["../../left", "a/b", "", 7, ["x"], "x" * 1000])
def test_a_run_id_that_is_no_plain_name_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], run_id: object
) -> None:
    config = write_config(tmp_path, validation_fraction=0.3)
    fit(config, "--trainer.max_steps", "2")

    def plant(saved: dict[str, Any]) -> None:
        saved["callbacks"]["RunRecorder"]["run_id"] = run_id

    edit(tmp_path / "run", plant)
    before = sorted(tmp_path.rglob("*"))
    command = ["fit", "--config", str(config), "--trainer.max_steps", "4", "--ckpt_path", "last"]
    assert "run_id" in error_of(capsys, command)
    assert [path for path in sorted(tmp_path.rglob("*")) if path not in before and "events" not in path.name] == []


def test_hyper_parameters_of_a_checkpoint_change_nothing(tmp_path: Path) -> None:
    config = write_config(tmp_path, validation_fraction=0.3)
    fit(config, "--trainer.max_steps", "2")
    planted = tmp_path / "planted"
    planted.mkdir()
    auto_map = {"AutoConfig": "planted.Config", "AutoModel": "planted.Model"}
    (planted / "config.json").write_text(json.dumps({"model_type": "planted", "auto_map": auto_map}))
    (planted / "planted.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    backbone = {"path": str(planted), "trust_remote_code": True}
    edit(tmp_path / "run", lambda saved: saved.update(hyper_parameters={"backbone": backbone}))
    fit(config, "--trainer.max_steps", "4", "--ckpt_path", "last")
    assert not (tmp_path / "ran").exists()
