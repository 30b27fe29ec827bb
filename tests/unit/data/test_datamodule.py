"""What cannot work is refused before anything is read, and what is left out is said."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from embedlab.cli.commands import main
from embedlab.data.datamodule import PairDataModule
from embedlab.data.evaluation.sets import RetrievalFiles, StsFile, TextFile
from embedlab.data.sources import PairSource
from embedlab.errors import ConfigError
from embedlab.model.backbone import BackboneConfig
from embedlab.testing.backbones import save_tiny_backbone
from helpers.faulty_data import with_faults
from helpers.runs import error_of, fit, write_config

NOWHERE = PairSource(path="nowhere.jsonl")


def data_module(path: Path | str = "nowhere", **options: Any) -> PairDataModule:
    return PairDataModule(BackboneConfig(path=str(path)), **({"train": [NOWHERE]} | options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "data.batch_size must be at least 1, got 0"),
        ({"candidates": 1}, "data.candidates must be at least 2, .* got 1"),
        ({"max_length": -1}, "data.max_length must be at least 1, got -1"),
        ({"num_workers": -1}, "data.num_workers must lie between 0 and"),
        ({"num_workers": 10**6}, "got 1000000"),
        ({"max_padding": -0.1}, "data.max_padding must be a number of 0 or more, got -0.1"),
        ({"max_padding": float("nan")}, "got nan"),
        ({"max_padding": float("inf")}, "got inf"),
        ({"tokens_per_chunk": 127}, "less than one text of data.max_length 128"),
        ({"seed": -1}, "must be 0 or more, got -1"),
        ({"validation_fraction": float("nan")}, "data.validation_fraction .* got nan"),
        ({"test_fraction": 1.0}, "data.test_fraction .* got 1.0"),
        ({"validation_fraction": 0.5, "test_fraction": 0.5}, "leave no pairs to train on"),
        ({"train": [PairSource(path="a", weight=0.0)]}, "weight of source 'a' is 0.0. Expected a number above 0"),
        ({"train": [PairSource(path="a", weight=float("nan"))]}, "weight of source 'a' is nan"),
        ({"train": [PairSource(path="a", weight=1.0), NOWHERE]}, "weight of source 'nowhere' is None"),
        ({"train": [PairSource(path="a", weight=1e308), PairSource(path="b", weight=1e308)]}, "is too large"),
    ],
)
def test_values_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        data_module(**options)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_backbone(tmp_path_factory.mktemp("backbone"))


SETS = {
    "query_prompt of source 'nowhere'": {"train": [PairSource(path="nowhere.jsonl", query_prompt="a" * 32)]},
    "document_prompt of source 'nowhere'": {"train": [PairSource(path="nowhere.jsonl", document_prompt="a" * 32)]},
    "query_prompt of retrieval set 'r'": {
        "retrieval": [RetrievalFiles(corpus="c", queries="q", qrels="j", name="r", query_prompt="a" * 32)]
    },
    "prompt of similarity set 's.csv'": {"sts": [StsFile(path="s.csv", prompt="a" * 32)]},
    "prompt of data.predict": {"predict": TextFile(path="t.txt", prompt="a" * 32)},
}


@pytest.mark.parametrize("whose", SETS)
def test_a_prompt_that_leaves_nothing_of_a_text_is_refused(backbone: Path, whose: str) -> None:
    with pytest.raises(ConfigError, match=rf"The {whose} has 32 tokens .* data\.max_length is 32: nothing of a text"):
        _ = data_module(backbone, max_length=32, **SETS[whose]).tokenizer
    with pytest.warns(UserWarning, match=f"The {whose} has 32 tokens .* is 33: more than half"):
        _ = data_module(backbone, max_length=33, **SETS[whose]).tokenizer
    _ = data_module(backbone, max_length=64, **SETS[whose]).tokenizer


def test_a_length_that_special_tokens_fill_is_refused(tmp_path: Path) -> None:
    folder = save_tiny_backbone(tmp_path)
    file = folder / "tokenizer.json"
    ends = {"special_tokens": {"</s>": {"id": "</s>", "ids": [2], "tokens": ["</s>"]}}, "pair": []}
    single = [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}]
    ended = {"post_processor": {"type": "TemplateProcessing", "single": single, **ends}}
    file.write_text(json.dumps(json.loads(file.read_text()) | ended))
    with pytest.raises(ConfigError, match="max_length is 1, and the tokenizer adds 1 special tokens"):
        _ = data_module(folder, max_length=1).tokenizer


def test_a_prompt_is_refused_before_the_data_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path, train=[{"path": "./nowhere.jsonl", "query_prompt": "a" * 40}])
    assert "query_prompt of source 'nowhere' has 40 tokens" in error_of(capsys, ["fit", "--config", str(config)])


def test_what_is_left_out_is_said_also_from_the_cache(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = with_faults(tmp_path)
    for output in ("first", "second"):
        with pytest.warns(UserWarning) as warned:
            fit(config, "--output", str(tmp_path / output), "--trainer.max_steps", "2")
        printed = capsys.readouterr().out
        lines = [line for line in printed.splitlines() if line.startswith(("pairs: ", "scored: "))][:2]
        counts = [int(number) for number in re.findall(r"(\d+) (?:to train on|held out)", lines[0])]
        assert sum(counts) == 61 and lines[0].startswith("pairs: 61 pairs, ")
        assert f"{counts[0] % 5} pairs that fill no batch" in lines[0]
        assert lines[0].endswith("2 rows skipped (1 malformed line, 1 not a text), " + lines[0].rpartition(", ")[2])
        assert re.search(r", \d+ texts cut at 32 tokens$", lines[0])
        assert lines[1] == "scored: 20 texts to encode, 14 texts cut at 32 tokens"
        messages = [str(warning.message) for warning in warned]
        assert any("pairs: 2 rows skipped (1 malformed line, 1 not a text), of 63." in text for text in messages)
        assert any("scored: 14 texts cut at 32 tokens, of 20. Raise data.max_length" in text for text in messages)
    checkpoint = str(tmp_path / "first" / "checkpoints" / "last.ckpt")
    options = ["--config", str(config), "--output", str(tmp_path / "predicted"), "--ckpt_path", checkpoint]
    main(["predict", *options])
    assert "data.predict: 10 texts to encode, 6 texts cut at 32 tokens" in capsys.readouterr().out
