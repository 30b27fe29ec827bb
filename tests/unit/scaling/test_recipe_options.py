"""A recipe takes over what decides a run and nothing that runs code, whoever wrote the run's configuration."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from embedlab.cli.commands import main
from embedlab.data.evaluation.sets import RetrievalFiles, StsFile, TextFile
from embedlab.data.sources import PairSource
from embedlab.errors import RecordError
from embedlab.model.backbone import BackboneConfig
from embedlab.records import FILE, write_record
from embedlab.scaling.recipe_options import options_of_run
from embedlab.training.optimizer import OptimizerConfig
from helpers.run_records import record

PLAIN: dict[str, Any] = {
    "model": {"backbone": {"path": "backbone"}, "method": {"class_path": "embedlab_methods.lora.LoRA"}},
    "data": {"train": [{"path": "pairs.jsonl"}]},
    "trainer": {"max_epochs": 2},
}


def configured(folder: Path, changes: Mapping[str, Any]) -> Path:
    """A run's folder with a configuration in which some options, by their dotted names, are others."""
    config = json.loads(json.dumps(PLAIN))
    for name, value in changes.items():
        *outer, last = name.split(".")
        part = config
        for one in outer:
            part = part.setdefault(one, {})
        part[last] = value
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def test_plain_options_are_taken_over(tmp_path: Path) -> None:
    changes = {
        "model.method.init_args": {"rank": 8, "targets": [r".*\.query_key_value"]},
        "model.loss": {"class_path": "embedlab.losses.InfoNCE", "init_args": {"temperature": 0.05}},
        "model.backbone.trust_remote_code": False,
        "trainer.precision": "bf16-mixed",
        "trainer.logger": False,
        "trainer.callbacks": None,
        "data.train": [{"path": "a/b.jsonl", "query": ["title", "text"], "query_prompt": "query: ", "weight": 0.5}],
    }
    config, left_out = options_of_run(configured(tmp_path, changes))
    assert left_out == []
    assert config["model"]["method"] == {"class_path": "LoRA", "init_args": changes["model.method.init_args"]}
    assert config["model"]["loss"] == {"class_path": "InfoNCE", "init_args": {"temperature": 0.05}}
    assert config["trainer"] == {"max_epochs": 2, "precision": "bf16-mixed", "logger": False}
    assert config["data"]["train"] == changes["data.train"]


def test_every_option_of_the_data_and_the_model_is_known(tmp_path: Path) -> None:
    parts: dict[str, Any] = {
        "data.train": [asdict(PairSource(path="a"))],
        "data.retrieval": [asdict(RetrievalFiles(corpus="a", queries="b", qrels="c"))],
        "data.sts": [asdict(StsFile(path="a"))],
        "data.predict": asdict(TextFile(path="a")),
        "model.backbone": asdict(BackboneConfig(path="a")),
        "model.optimizer": asdict(OptimizerConfig()) | {"betas": [0.9, 0.999]},
    }
    config, _ = options_of_run(configured(tmp_path, parts))
    for name, written in parts.items():
        outer, inner = name.split(".")
        taken = config[outer][inner]
        for one, other in zip(taken, written, strict=True) if isinstance(taken, list) else [(taken, written)]:
            assert one.keys() == other.keys() - {"trust_remote_code"}, name


CODE = {"class_path": "os.system", "init_args": {"command": "touch RAN"}}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model.backbone.trust_remote_code", True),
        ("model.loss", CODE),
        ("model.loss", "planted.Loss"),
        ("model.schedule", CODE),
        ("model.method.init_args", {"inner": CODE}),
        ("model.method.init_args", {"alpha": [CODE]}),
        ("model.optimizer.class_path", "planted.Optimizer"),
        ("trainer.callbacks", [CODE]),
        ("trainer.logger", CODE),
        ("trainer.logger", [CODE]),
        ("trainer.strategy", CODE),
        ("trainer.strategy", "planted.Strategy"),
        ("trainer.plugins", [CODE]),
        ("trainer.profiler", "planted.Profiler"),
        ("data.class_path", "planted.Data"),
        ("data.train", [{"path": "pairs.jsonl", "reader": CODE}]),
        ("optimizer", CODE),
        ("lr_scheduler", CODE),
    ],
)
def test_what_can_run_code_is_left_out_and_named(tmp_path: Path, name: str, value: Any) -> None:
    config, left_out = options_of_run(configured(tmp_path, {name: value}))
    assert len(left_out) == 1 and left_out[0].startswith(name.removesuffix(".init_args"))
    written = yaml.safe_dump(config)
    assert "planted" not in written and "os.system" not in written and "trust_remote_code" not in written


def test_texts_of_a_method_that_is_not_embedlabs_are_words(tmp_path: Path) -> None:
    method = {"class_path": "theirs.Theirs", "init_args": {"rank": 8, "kind": "full-rank", "call": "os.system"}}
    config, left_out = options_of_run(configured(tmp_path, {"model.method": method}))
    assert config["model"]["method"] == {"class_path": "Theirs", "init_args": {"rank": 8, "kind": "full-rank"}}
    assert left_out == ["model.method.call"]


@pytest.mark.parametrize(
    ("name", "value", "named"),
    [
        ("trainer", 5, "trainer is 5. Expected an object with"),
        ("trainer.max_epochs", "many", "trainer.max_epochs is 'many'. Expected a whole number"),
        ("model", {}, "lacks model.backbone, model.method"),
        ("model.backbone", {}, "lacks model.backbone.path"),
        ("model.backbone.path", ["a"], "model.backbone.path is"),
        ("model.backbone.attention", "org/kernel", "model.backbone.attention is 'org/kernel'"),
        ("model.method", {"class_path": "a b"}, "model.method is"),
        ("model.optimizer.betas", {"a": 1}, "model.optimizer.betas is"),
        ("data.train", [], "data.train is"),
        ("data.train", ["pairs.jsonl"], "data.train is"),
        ("data.batch_size", -4, "data.batch_size is -4"),
        ("seed_everything", [1], "seed_everything is"),
    ],
)
def test_what_no_run_has_is_one_line_that_names_the_file(tmp_path: Path, name: str, value: Any, named: str) -> None:
    with pytest.raises(RecordError, match=r"config\.yaml") as error:
        options_of_run(configured(tmp_path, {name: value}))
    assert named in str(error.value) and len(str(error.value)) < 1_000


BOMB = "".join(f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 9)}]\n" if n else "x0: &x0 [lol]\n" for n in range(12))
MERGED = "".join(
    f"x{n}: &x{n} {{<<: [{', '.join([f'*x{n - 1}'] * 9)}]}}\n" if n else "x0: &x0 {a: 1}\n" for n in range(12)
)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "- a",
        "5",
        "{",
        "model: !!python/object/apply:os.system ['touch RAN']",
        "[" * 10_000,
        "model: 2001-99-99",
        "? [a]\n: b",
        BOMB + "model: *x11\ndata: *x11\n",
        BOMB
        + "model: {backbone: {path: *x11}, method: {class_path: LoRA, init_args: {rank: *x11}}}\ndata: {train: []}",
        MERGED,
        "a: &a " + "x" * 5_000 + "\nmodel: [*a, *a]\n",
        "a: &a [*a]\nmodel: *a\n",
        "a: " + "x" * 2**19,
        "\x00",
    ],
)
def test_yaml_that_is_no_configuration_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(RecordError, match=r"config\.yaml"):
        options_of_run(tmp_path)


def test_a_pipe_in_place_of_a_configuration_is_not_waited_for(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"config\.yaml cannot be read: No such file"):
        options_of_run(tmp_path)
    os.mkfifo(tmp_path / "config.yaml")
    with pytest.raises(RecordError, match="not a regular file"):
        options_of_run(tmp_path)


def test_a_strangers_runs_give_a_recipe_that_is_said_to_lack_their_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs\ntrainer: {plugins: planted.Plugin}\n"  # would end the comment that names it
    for number, parameters in enumerate((20_000, 60_000, 180_000)):
        for budget in (10**9, 4 * 10**9, 16 * 10**9, 64 * 10**9):
            tokens = budget // (6 * parameters)
            values = {
                "run_id": f"{number}-{budget}",
                "backbone": f"b\ntrainer: {number}",
                "nonembedding_parameters": parameters,
                "tokens": tokens,
                "pairs": tokens,
                "unique_pairs": tokens,
                "flops_algorithmic": budget,
                "loss": 0.5 + 9 / parameters**0.3 + 20 / tokens**0.3,
            }
            folder = runs / f"{number}-{budget}"
            assert write_record(record(**values), folder).name == FILE
            configured(folder, {"model.backbone.trust_remote_code": True, "trainer.callbacks": [CODE]})
    output = tmp_path / "recipes"
    main(["recipe", "--runs", str(runs), "--budget", "2e10", "--replicates", "3", "--output", str(output)])
    printed = " ".join(capsys.readouterr().out.split())
    for name in ("model.backbone.trust_remote_code", "trainer.callbacks"):
        assert name in printed
    (path,) = output.iterdir()
    text = path.read_text()
    config = yaml.safe_load(text)
    assert "model.backbone.trust_remote_code, trainer.callbacks" in text.partition("model:")[0]
    assert config["model"]["backbone"] == {"path": "backbone"}
    assert config["trainer"] == {"max_epochs": config["trainer"]["max_epochs"], "max_steps": -1}
