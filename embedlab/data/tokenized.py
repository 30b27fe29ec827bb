"""Reads, checks and tokenizes training pairs once, and keeps them in the user's cache.

Axes in names: N pairs, K hard negatives of all pairs.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections import Counter
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from embedlab.data.sources import PairSource, content_fingerprint, counts_of, read_pairs
from embedlab.data.split import split_position
from embedlab.data.texts import (
    TextWriter,
    TokenizedTexts,
    cache_key,
    mapped_array,
    require_tokens,
    rows_without_tokens,
    shown_progress,
)
from embedlab.errors import DataError
from embedlab.files import build_once

Split = Literal["train", "validation", "test"]

_ARRAYS = ("queries", "positives", "negatives", "negative_offsets", "split_positions")


class TokenizedPairs:
    """Pairs of one source, stored as rows of the source's unique texts.

    Files are opened on first use, and a pickled copy opens the files again, so that data workers share memory pages.

    Args:
        folder: Folder that ``tokenize_pairs`` wrote the pairs to.
        source: Source that the pairs were read from.

    Attributes:
        name: Name of the source, for logs.
        texts: Unique texts of all queries, positives and hard negatives.
    """

    def __init__(self, folder: Path, source: PairSource) -> None:
        self.folder = folder
        self.source = source
        self.name = source.label
        self.texts = TokenizedTexts(folder / "texts")

    def __reduce__(self) -> tuple[type[TokenizedPairs], tuple[Path, PairSource]]:
        return type(self), (self.folder, self.source)

    def __len__(self) -> int:
        return len(self.queries_N)

    @cached_property
    def queries_N(self) -> np.ndarray:
        """Row of each pair's query in ``texts``, shape (N,), int64."""
        return self._load("queries")

    @cached_property
    def positives_N(self) -> np.ndarray:
        """Row of each pair's positive in ``texts``, shape (N,), int64."""
        return self._load("positives")

    @cached_property
    def negatives_K(self) -> np.ndarray:
        """Rows of the hard negatives of all pairs in ``texts``, in the order of the pairs, shape (K,), int64."""
        return self._load("negatives")

    @cached_property
    def negative_offsets(self) -> np.ndarray:
        """Offset of each pair's first hard negative in ``negatives_K``, followed by K, shape (N + 1,), int64."""
        return self._load("negative_offsets")

    @cached_property
    def split_positions_N(self) -> np.ndarray:
        """Hash of each pair's key as a number in [0, 1), shape (N,), float64."""
        return self._load("split_positions")

    @cached_property
    def skipped(self) -> dict[str, int]:
        """Number of the source's rows that were left out, by reason."""
        skipped: dict[str, int] = json.loads((self.folder / "skipped.json").read_text())
        return skipped

    @cached_property
    def fingerprint(self) -> str:
        """Hexadecimal digits that identify the texts, their token counts, the pairs and the hashes of their keys."""
        digest = hashlib.sha256()
        for values in (self.texts.hashes_U, self.texts.lengths_U, *(self._load(name) for name in _ARRAYS)):
            digest.update(np.ascontiguousarray(values).data)
        return digest.hexdigest()[:16]

    @cached_property
    def notes(self) -> list[str]:
        """Remarks for the user about how the source was read, one clause each."""
        notes: list[str] = json.loads((self.folder / "notes.json").read_text())
        return notes

    def negatives_of(self, pairs: np.ndarray) -> np.ndarray:
        """Return the rows in ``texts`` of the hard negatives of some pairs, in the order of the pairs, int64."""
        starts = self.negative_offsets[pairs]
        counts = self.negative_offsets[pairs + 1] - starts
        before = np.cumsum(counts) - counts
        rows: np.ndarray = self.negatives_K[np.repeat(starts - before, counts) + np.arange(counts.sum())]
        return rows

    def texts_of(self, pairs: np.ndarray) -> np.ndarray:
        """Return the rows in ``texts`` of the pairs' queries, then of the positives, then of the negatives, int64."""
        return np.concatenate([self.queries_N[pairs], self.positives_N[pairs], self.negatives_of(pairs)])

    def subset(self, split: Split, *, validation_fraction: float, test_fraction: float) -> np.ndarray:
        """Return the pairs of one split, in ascending order, int64.

        The split of a pair depends only on the pair's key and the fractions. Pairs with the same key are in the same
        split, also across sources and runs, and a larger fraction only adds pairs to a held-out split. No key is in two
        splits. A text is in two splits if pairs with different keys share the text (see ``num_shared_texts``).

        Args:
            split: Split whose pairs to return.
            validation_fraction: Expected share of keys that is held out for validation.
            test_fraction: Expected share of keys that is held out for the test.
        """
        in_validation = self.split_positions_N < validation_fraction
        in_test = self.split_positions_N >= 1 - test_fraction
        chosen = {"train": ~(in_validation | in_test), "validation": in_validation, "test": in_test}
        return np.flatnonzero(chosen[split])

    def num_shared_texts(self, pairs: np.ndarray, other_pairs: np.ndarray) -> int:
        """Return the number of different texts that are a query or a positive in both sets of pairs."""
        return len(np.intersect1d(self._texts_of(pairs), self._texts_of(other_pairs)))

    def _texts_of(self, pairs: np.ndarray) -> np.ndarray:
        return np.concatenate([self.queries_N[pairs], self.positives_N[pairs]])

    def _load(self, name: str) -> np.ndarray:
        assert name in _ARRAYS
        return mapped_array(self.folder / f"{name}.npy")


def tokenize_pairs(
    source: PairSource, tokenizer: PreTrainedTokenizerBase, *, max_length: int, cache_dir: Path
) -> TokenizedPairs:
    """Read and tokenize a source, or take the result from the cache.

    The cache key depends on the content of the source's files, the options for reading them, the tokenizer's behavior
    and the maximum length. If the result is in the cache, the files are only read once to compute the key.

    Args:
        source: Source to read.
        tokenizer: Tokenizer, which adds its special tokens.
        max_length: Maximum number of tokens per text, special tokens included. Longer texts are cut at this length and
            counted.
        cache_dir: Folder that holds the cache.

    Raises:
        DataError: If the source or the cache cannot be read or written (see ``read_pairs``), or if the tokenizer makes
            no token of a text.
        ConfigError: If an option of the source is wrong (see ``read_pairs``).
    """
    options = asdict(source)
    for without_effect in ("path", "name", "weight"):
        options.pop(without_effect)
    content = {"content": content_fingerprint(source), **options}
    folder = cache_dir / cache_key("pairs", content, tokenizer, max_length)
    build_once(folder, lambda partial: _build(partial, source, tokenizer, max_length))
    return TokenizedPairs(folder, source)


def _build(folder: Path, source: PairSource, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
    queries, positives, negatives, negative_counts = array("q"), array("q"), array("q"), array("q")
    positions = array("d")
    skipped: Counter[str] = Counter()
    notes: list[str] = []
    texts_folder = folder / "texts"
    texts_folder.mkdir()
    with TextWriter(texts_folder, tokenizer, max_length=max_length) as texts:
        for row in shown_progress(read_pairs(source, skipped, notes), f"Tokenizing {source.label}"):
            queries.append(texts.add(source.query_prompt + row.query))
            positives.append(texts.add(source.document_prompt + row.positive))
            negatives.extend(texts.add(source.document_prompt + text) for text in row.negatives)
            negative_counts.append(len(row.negatives))
            positions.append(split_position(row.key))
    arrays = {
        "queries": np.array(queries, dtype=np.int64),
        "positives": np.array(positives, dtype=np.int64),
        "negatives": np.array(negatives, dtype=np.int64),
        "negative_offsets": np.concatenate([[0], np.cumsum(np.array(negative_counts, dtype=np.int64))]),
        "split_positions": np.array(positions, dtype=np.float64),
    }
    written = TokenizedTexts(texts_folder)
    if source.on_error == "raise":
        require_tokens(written, source.path)
    else:
        arrays = _without_empty_texts(arrays, rows_without_tokens(written), skipped)
        if not len(arrays["queries"]):
            raise DataError(f"Every row of '{source.path}' was skipped ({counts_of(skipped)}).")
    for name in _ARRAYS:
        np.save(folder / f"{name}.npy", arrays[name])
    (folder / "skipped.json").write_text(json.dumps(skipped))
    (folder / "notes.json").write_text(json.dumps(notes))


def _without_empty_texts(
    arrays: dict[str, np.ndarray], empty: np.ndarray, skipped: Counter[str]
) -> dict[str, np.ndarray]:
    """Return the arrays without the pairs that have a text without tokens, and count these pairs in ``skipped``."""
    if not len(empty):
        return arrays
    counts = np.diff(arrays["negative_offsets"])
    pair_of_negative = np.repeat(np.arange(len(counts)), counts)
    is_bad = np.isin(arrays["queries"], empty) | np.isin(arrays["positives"], empty)
    is_bad[pair_of_negative[np.isin(arrays["negatives"], empty)]] = True
    skipped["text without tokens"] += int(is_bad.sum())
    return {
        "queries": arrays["queries"][~is_bad],
        "positives": arrays["positives"][~is_bad],
        "negatives": arrays["negatives"][~is_bad[pair_of_negative]],
        "negative_offsets": np.concatenate([[0], np.cumsum(counts[~is_bad])]),
        "split_positions": arrays["split_positions"][~is_bad],
    }
