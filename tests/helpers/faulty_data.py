"""A run on pairs and texts of which some are left out or cut."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from helpers.corpora import write_rows
from helpers.runs import write_config, write_pairs


def with_faults(folder: Path) -> Path:
    """60 pairs, 2 lines that are none, a long text, and a set of texts of which most are long."""
    config = write_config(folder, validation_fraction=0.2)
    pairs = write_pairs(folder / "pairs.jsonl")
    with pairs.open("a") as file:
        file.write('{"query": \n{"query": "a", "positive": 3}\n')
        file.write(json.dumps({"query": "z", "positive": "long " * 20_000}) + "\n")
    scored = [{"sentence1": "long " * n, "sentence2": "longer " * n, "score": n} for n in range(3, 13)]
    write_rows(folder / "scored.jsonl", scored)
    content = yaml.safe_load(config.read_text())
    content["data"] |= {
        "train": [{"path": str(pairs), "on_error": "skip"}],
        "sts": [{"path": str(folder / "scored.jsonl")}],
        "predict": {"path": str(folder / "scored.jsonl"), "column": "sentence1"},
    }
    config.write_text(yaml.safe_dump(content))
    return config
