"""Small files of pairs and texts for the tests of the data modules."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from embedlab.data.sources import PairSource
from embedlab.data.tokenized import TokenizedPairs, tokenize_pairs
from embedlab.testing.backbones import tiny_tokenizer


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    """JSON Lines, gzipped if the name says so."""
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def pair_rows(num_pairs: int) -> list[dict[str, str]]:
    """Pairs with no text in common, of growing length."""
    return [{"query": f"q{n}", "positive": f"d{n} " + "x" * (n % 40)} for n in range(num_pairs)]


def store_of(
    folder: Path, pairs: Sequence[tuple[str, str, list[str]]], *, max_length: int = 64, **options: Any
) -> TokenizedPairs:
    """Tokenizes pairs given as (query, positive, negatives), one token a character."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"query": query, "positive": positive, "negatives": negatives} for query, positive, negatives in pairs]
    source = PairSource(path=str(write_rows(folder / "pairs.jsonl", rows)), negatives="negatives", **options)
    return tokenize_pairs(source, tiny_tokenizer(), max_length=max_length, cache_dir=folder / "cache")
