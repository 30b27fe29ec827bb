"""Records, configurations and options of any kind are used, or refused in one line: nothing in a folder is trusted."""

from __future__ import annotations

import json
import re
from copy import deepcopy
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import strategies as st

from embedlab.records import FILE, Ledger, RunRecord, write_record
from embedlab.scaling.observations import of_records
from embedlab.scaling.recipe_options import options_of_run
from helpers.commands import printed_by
from helpers.fuzzing import Fuzz
from helpers.run_records import record

VALUES = asdict(record(metrics={"validation/a/mrr@10": 0.5}, parent_run_id="trunk", branch_step=3, branch_flops=10))
NAMES = [field.name for field in fields(RunRecord)]

texts = st.one_of(
    st.text(max_size=30),
    st.sampled_from(["", "..", "/etc/passwd", "[bold red]", "[/x]", "\x1b[2J", "=1+1", "nan", "1e3", "x" * 20_000]),
)
numbers = st.one_of(
    st.integers(),
    st.integers(min_value=-3, max_value=3),
    st.floats(),
    st.sampled_from([10**40, -(10**40), 2**63, 1e308, -1e308, 1e-320, 0, -1, True, False, 1.5]),
)
junk = st.recursive(
    st.one_of(st.none(), texts, numbers),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.one_of(st.sampled_from(NAMES), texts), inner, max_size=4)
    ),
    max_leaves=8,
)


@st.composite
def mutated_json(draw: st.DrawFn) -> bytes:
    """A record in which fields hold junk, are gone, or have company; then, perhaps, some bytes of it are others."""
    values: dict[str, Any] = json.loads(json.dumps(VALUES))
    for name in draw(st.lists(st.sampled_from(NAMES), max_size=3)):
        how = draw(st.sampled_from(["junk", "number", "gone", "inner"]))
        if how == "gone":
            values.pop(name, None)
        elif how == "inner" and isinstance(values.get(name), dict):
            values[name][draw(texts | st.sampled_from(["candidates", "temperature"]))] = draw(junk)
        else:
            values[name] = draw(numbers if how == "number" else junk)
    for _ in range(draw(st.integers(0, 2))):
        values[draw(texts)] = draw(junk)
    return draw(damaged(json.dumps(values).encode()))


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """The content, which in one of three cases has been cut off or has some other bytes."""
    how = draw(st.sampled_from(["whole", "whole", "whole", "whole", "cut", "bytes"]))
    place = draw(st.integers(0, len(content)))
    if how == "cut":
        return content[:place]
    if how == "bytes":
        return content[:place] + draw(st.binary(max_size=6)) + content[place + draw(st.integers(0, 4)) :]
    return content


def test_any_record_is_used_or_named(fuzz: Fuzz, tmp_path: Path) -> None:
    write_record(record(7), tmp_path / "good")
    (tmp_path / "other").mkdir()

    def boundary(content: bytes) -> None:
        (tmp_path / "other" / FILE).write_bytes(content)
        entries = Ledger([tmp_path]).entries()
        assert len(entries.records) + len(entries.broken) == 2 or not entries.broken  # an identical copy is no fault
        rows = of_records([one for _, one in entries.records if one.loss_definition == record().loss_definition])
        assert any(row.name == "run-7" for row in rows) or b"run-7" in content
        for row in rows:
            assert row.left_out or min(row.parameters, row.tokens, row.loss, row.flops, row.unique_tokens) > 0
            assert re.fullmatch(r"[\w-]+", row.name)
        for command in (["list"], ["show", "run-7"], ["export", "--output", str(tmp_path / "runs.csv")]):
            printed_by(["runs", *command, "--runs", str(tmp_path)])
        text = (tmp_path / "runs.csv").read_text()
        assert not re.search(r"(^|,)\"?[=@]", text, re.MULTILINE)
        (tmp_path / "runs.csv").unlink()
        if entries.broken:
            raise entries.broken[0]

    fuzz(mutated_json(), boundary)


CONFIG: dict[str, Any] = {
    "seed_everything": 0,
    "trainer": {"accelerator": "cpu", "precision": "32-true", "max_epochs": 1, "logger": None, "callbacks": None},
    "model": {
        "backbone": {"path": "backbone", "trust_remote_code": False},
        "method": {"class_path": "embedlab_methods.lora.LoRA", "init_args": {"rank": 8, "targets": "all-linear"}},
        "loss": {"class_path": "embedlab.losses.InfoNCE", "init_args": {"temperature": 0.05}},
        "optimizer": {"learning_rate": 1e-3, "betas": [0.9, 0.99]},
        "schedule": None,
    },
    "data": {"train": [{"path": "pairs.jsonl", "query": "query"}], "batch_size": 8, "cache": None},
    "output": "runs/fit",
}
CODE = {"class_path": "planted.Planted", "init_args": {"a": 1}}


def places(part: Any) -> list[tuple[Any, Any]]:
    """Every place of nested data, as its container and its key."""
    keys = list(part) if isinstance(part, dict) else range(len(part)) if isinstance(part, list) else []
    return [found for key in keys for found in [(part, key), *places(part[key])]]


@st.composite
def mutated_yaml(draw: st.DrawFn) -> bytes:
    """A run's configuration in which options are junk, or name code."""
    config = json.loads(json.dumps(CONFIG))
    for _ in range(draw(st.integers(1, 4))):
        part, key = draw(st.sampled_from(places(config)))
        value = draw(st.one_of(junk, st.sampled_from([CODE, [CODE], "planted.Planted", True, {"class_path": 3}])))
        if isinstance(part, dict) and draw(st.booleans()):
            key = draw(st.sampled_from(["callbacks", "plugins", "trust_remote_code", "class_path", "strategy", "x"]))
        part[key] = deepcopy(value)  # or a later change would be one of the strategy's own value
    return draw(damaged(yaml.safe_dump(config).encode()))


def test_any_configuration_gives_plain_options_or_is_named(fuzz: Fuzz, tmp_path: Path) -> None:
    def boundary(content: bytes) -> None:
        (tmp_path / "config.yaml").write_bytes(content)
        config, left_out = options_of_run(tmp_path)
        assert all(name.isprintable() for name in left_out)
        read = yaml.safe_load(yaml.safe_dump(config))
        assert {"callbacks", "plugins"}.isdisjoint(read.get("trainer") or {})
        assert "trust_remote_code" not in read["model"]["backbone"]
        for part, key in places(read):
            assert key != "class_path" or re.fullmatch(r"\w+", part[key])
        for name in ("loss", "schedule"):
            assert "planted" not in str(read["model"].get(name)).lower()
        assert "lanted" not in str(read.get("trainer"))

    fuzz(mutated_yaml(), boundary)


amounts = st.one_of(numbers.map(str), texts, st.sampled_from(["1e12", "-1", "1e400", "nan", "inf", "--budget", "1e18"]))
CONSTRAINTS = ["--max-memory", "--max-parameters", "--unique-pairs", "--serve-tokens", "--hours"]
FITTING = ["--replicates", "--share-irreducible-loss", "--runs", "--table", "--config"]
WORDS = {
    "recipe": [*CONSTRAINTS, *FITTING, "--budget", "--device", "--extrapolate", "--json", "--columns.loss"],
    "report": [*CONSTRAINTS, *FITTING, "--output", "--columns.tokens"],
    "runs": ["list", "show", "export", "--runs", "--format", "--output", "run-0", "csv"],
}
OPTIONS = {command: st.lists(st.sampled_from(words) | amounts, max_size=5) for command, words in WORDS.items()}


@pytest.mark.parametrize("command", OPTIONS)
def test_any_options_are_understood_or_refused(
    fuzz: Fuzz, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    write_record(record(status="failed"), tmp_path / "runs" / "run")
    (tmp_path / "in").mkdir()
    monkeypatch.chdir(tmp_path / "in")
    needed = {"recipe": ["--budget", "1e12"], "report": ["--output", str(tmp_path / "report")], "runs": ["list"]}

    def boundary(words: list[str]) -> None:
        before = set(tmp_path.iterdir())
        printed_by([command, *needed[command], "--runs", str(tmp_path / "runs"), *words])
        for made in set(tmp_path.iterdir()) - before:
            _remove(made)

    fuzz(OPTIONS[command], boundary, examples=25)


def _remove(path: Path) -> None:
    for one in sorted(path.rglob("*"), reverse=True):
        one.rmdir() if one.is_dir() else one.unlink()
    path.rmdir() if path.is_dir() else path.unlink()
