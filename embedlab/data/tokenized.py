"""Training pairs over tokenized texts: read, checked and tokenized once, kept in the user's cache.

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
    """The pairs of one source, as rows of its unique texts.

    Files are opened when first used, and a pickled copy opens them again, so that data workers share the pages.

    Args:
        folder: where ``tokenize_pairs`` wrote them.
        source: what they were read from.

    Attributes:
        name: of the source, for logs.
        texts: queries, positives and negatives, each different text once.
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
        """Each pair's query: its row in ``texts``, int64."""
        return self._load("queries")

    @cached_property
    def positives_N(self) -> np.ndarray:
        """Each pair's positive: its row in ``texts``, int64."""
        return self._load("positives")

    @cached_property
    def negatives_K(self) -> np.ndarray:
        """The hard negatives of all pairs, in their order: rows in ``texts``, int64."""
        return self._load("negatives")

    @cached_property
    def negative_offsets(self) -> np.ndarray:
        """Where in ``negatives_K`` each pair's begin, and the end: N + 1 numbers, int64."""
        return self._load("negative_offsets")

    @cached_property
    def split_positions_N(self) -> np.ndarray:
        """A hash of each pair's key as a number in [0, 1), float64."""
        return self._load("split_positions")

    @cached_property
    def skipped(self) -> dict[str, int]:
        """Rows of the source that were left out, by reason."""
        skipped: dict[str, int] = json.loads((self.folder / "skipped.json").read_text())
        return skipped

    @cached_property
    def fingerprint(self) -> str:
        """Hexadecimal digits of the texts, their numbers of tokens, the pairs and their keys, whoever cached them."""
        digest = hashlib.sha256()
        for values in (self.texts.hashes_U, self.texts.lengths_U, *(self._load(name) for name in _ARRAYS)):
            digest.update(np.ascontiguousarray(values).data)
        return digest.hexdigest()[:16]

    @cached_property
    def notes(self) -> list[str]:
        """What the user should know of how the source was read, one clause each."""
        notes: list[str] = json.loads((self.folder / "notes.json").read_text())
        return notes

    def negatives_of(self, pairs: np.ndarray) -> np.ndarray:
        """The hard negatives of some pairs, one pair's after the other's: rows in ``texts``, int64."""
        starts = self.negative_offsets[pairs]
        counts = self.negative_offsets[pairs + 1] - starts
        before = np.cumsum(counts) - counts
        rows: np.ndarray = self.negatives_K[np.repeat(starts - before, counts) + np.arange(counts.sum())]
        return rows

    def texts_of(self, pairs: np.ndarray) -> np.ndarray:
        """The queries, then the positives, then the hard negatives of some pairs: rows in ``texts``, int64."""
        return np.concatenate([self.queries_N[pairs], self.positives_N[pairs], self.negatives_of(pairs)])

    def subset(self, split: Split, *, validation_fraction: float, test_fraction: float) -> np.ndarray:
        """The pairs of one split, int64, ascending.

        A pair's split is a function of its key and the fractions alone: pairs with the same key share it,
        also across sources and runs, and a larger fraction only adds to a held-out split. No key is in two
        splits; a text can be, where pairs of different keys have it in common (see ``num_shared_texts``).

        Args:
            split: which.
            validation_fraction: the share of keys, in expectation, that is held out for validation.
            test_fraction: the same for the test.
        """
        in_validation = self.split_positions_N < validation_fraction
        in_test = self.split_positions_N >= 1 - test_fraction
        chosen = {"train": ~(in_validation | in_test), "validation": in_validation, "test": in_test}
        return np.flatnonzero(chosen[split])

    def num_shared_texts(self, pairs: np.ndarray, other_pairs: np.ndarray) -> int:
        """Different texts that are query or positive in both sets of pairs."""
        return len(np.intersect1d(self._texts_of(pairs), self._texts_of(other_pairs)))

    def _texts_of(self, pairs: np.ndarray) -> np.ndarray:
        return np.concatenate([self.queries_N[pairs], self.positives_N[pairs]])

    def _load(self, name: str) -> np.ndarray:
        assert name in _ARRAYS
        return mapped_array(self.folder / f"{name}.npy")


def tokenize_pairs(
    source: PairSource, tokenizer: PreTrainedTokenizerBase, *, max_length: int, cache_dir: Path
) -> TokenizedPairs:
    """Reads and tokenizes a source, or finds that done in the cache.

    The cache is keyed by the content of the source's files, the options that say how to read them, the
    tokenizer's behavior and the length; a hit reads the files once to know their content, no more.

    Args:
        source: what to read.
        tokenizer: adds its special tokens.
        max_length: tokens of a text, special ones included; longer texts are cut there, and counted.
        cache_dir: where the cache is kept.

    Raises:
        DataError: if the source or the cache cannot be read or written (see ``read_pairs``), or the tokenizer
            makes nothing of a text.
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
    """Leaves out the pairs with a text that has no tokens."""
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
