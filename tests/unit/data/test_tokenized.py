"""Pairs are read and tokenized once, found in the cache while nothing changes, and split by key."""

from __future__ import annotations

import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import normalizers

from embedlab.data.sources import PairSource
from embedlab.data.tokenized import Split, TokenizedPairs, tokenize_pairs
from embedlab.errors import DataError
from embedlab.testing.backbones import tiny_tokenizer
from helpers.corpora import pair_rows, store_of, write_rows

PAIRS = [("q0", "d0", []), ("q1", "d1", ["n1", "d0"]), ("q0", "d2", ["n2"]), ("q3", "d1", [])]


def tokenize(source: PairSource, folder: Path, *, max_length: int = 64) -> TokenizedPairs:
    return tokenize_pairs(source, tiny_tokenizer(), max_length=max_length, cache_dir=folder)


def folders(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if path.is_dir())


def test_a_pair_is_rows_of_unique_texts(tmp_path: Path) -> None:
    store = store_of(tmp_path, PAIRS)
    assert len(store) == 4
    assert len(store.texts) == 8
    for number, (query, positive, negatives) in enumerate(PAIRS):
        assert store.texts.string(store.queries_N[number]) == query
        assert store.texts.string(store.positives_N[number]) == positive
        assert [store.texts.string(row) for row in store.negatives_of(np.array([number]))] == negatives
    assert store.queries_N[0] == store.queries_N[2]
    assert store.positives_N[1] == store.positives_N[3]


def test_the_negatives_of_several_pairs_come_in_their_order(tmp_path: Path) -> None:
    store = store_of(tmp_path, PAIRS)
    rows = store.negatives_of(np.array([2, 0, 1]))
    assert [store.texts.string(row) for row in rows] == ["n2", "n1", "d0"]
    assert store.negatives_of(np.array([0, 3])).tolist() == []


def test_pairs_without_negatives_have_none(tmp_path: Path) -> None:
    source = PairSource(path=str(write_rows(tmp_path / "a.jsonl", pair_rows(3))))
    assert tokenize(source, tmp_path / "cache").negatives_of(np.arange(3)).tolist() == []


def test_prompts_are_part_of_the_text(tmp_path: Path) -> None:
    store = store_of(tmp_path, [("a", "a", ["b"])], query_prompt="Q: ", document_prompt="D: ")
    texts = [store.texts.string(row) for row in (store.queries_N[0], store.positives_N[0], store.negatives_K[0])]
    assert texts == ["Q: a", "D: a", "D: b"]
    same = store_of(tmp_path / "same", [("a", "a", ["b"])], query_prompt="P: ", document_prompt="P: ")
    assert same.queries_N[0] == same.positives_N[0]


def test_long_texts_are_cut_and_counted(tmp_path: Path) -> None:
    store = store_of(tmp_path, [("x" * 9, "y" * 8, []), ("z", "w" * 20, [])], max_length=8)
    assert store.texts.lengths_U.max() == 8
    assert store.texts.num_truncated == 2


def test_a_hit_in_the_cache_does_not_read_the_text_again(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "a.jsonl", pair_rows(3))
    first = tokenize(PairSource(path=str(file)), tmp_path / "cache")
    (first.folder / "marked").write_text("")
    again = tokenize(PairSource(path=str(file), name="other", weight=2.0), tmp_path / "cache")
    moved = file.rename(tmp_path / "b.jsonl")
    elsewhere = tokenize(PairSource(path=str(moved)), tmp_path / "cache")
    assert first.folder == again.folder == elsewhere.folder
    assert (elsewhere.folder / "marked").exists()
    assert (first.name, again.name, elsewhere.name) == ("a", "other", "b")


@pytest.mark.parametrize(
    "change",
    [
        {"query": "positive"},
        {"positive": ["query", "positive"]},
        {"query_prompt": "q: "},
        {"document_prompt": "d: "},
        {"split_key": "positive"},
        {"on_error": "skip"},
        {"max_rows": 2},
    ],
)
def test_whatever_changes_the_pairs_misses_the_cache(tmp_path: Path, change: dict[str, Any]) -> None:
    source = PairSource(path=str(write_rows(tmp_path / "a.jsonl", pair_rows(3))))
    first = tokenize(source, tmp_path / "cache")
    assert tokenize(replace(source, **change), tmp_path / "cache").folder != first.folder
    assert len(folders(tmp_path / "cache")) == 2


def test_new_content_or_another_length_misses_the_cache(tmp_path: Path) -> None:
    source = PairSource(path=str(write_rows(tmp_path / "a.jsonl", pair_rows(3))))
    tokenize(source, tmp_path / "cache")
    tokenize(source, tmp_path / "cache", max_length=5)
    write_rows(tmp_path / "a.jsonl", pair_rows(4))
    assert len(tokenize(source, tmp_path / "cache")) == 4
    assert len(folders(tmp_path / "cache")) == 3


def test_skipped_rows_are_counted_from_the_cache_too(tmp_path: Path) -> None:
    rows = [*pair_rows(2), {"query": "", "positive": "d"}, {"query": "q"}]
    source = PairSource(path=str(write_rows(tmp_path / "a.jsonl", rows)), on_error="skip")
    for _ in range(2):
        store = tokenize(source, tmp_path / "cache")
        assert store.skipped == {"empty text": 1, "missing column": 1}
        assert len(store) == 2


def test_a_source_with_an_error_leaves_nothing_in_the_cache(tmp_path: Path) -> None:
    source = PairSource(path=str(write_rows(tmp_path / "a.jsonl", [*pair_rows(2), {"query": "q"}])))
    with pytest.raises(DataError, match=r"a\.jsonl:3 has no column 'positive'"):
        tokenize(source, tmp_path / "cache")
    assert folders(tmp_path / "cache") == []


def test_texts_without_tokens_are_an_error_or_skipped(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("~", "")
    rows: list[dict[str, object]] = [
        {"query": "a", "positive": "b", "hard": ["c"]},
        {"query": "~", "positive": "b", "hard": []},
        {"query": "d", "positive": "e", "hard": ["f", "~~"]},
        {"query": "g", "positive": "h", "hard": ["i", "j"]},
    ]
    source = PairSource(path=str(write_rows(tmp_path / "a.jsonl", rows)), negatives="hard")
    options = {"max_length": 8, "cache_dir": tmp_path / "cache"}
    with pytest.raises(DataError, match="makes no token of the text '~'"):
        tokenize_pairs(source, tokenizer, **options)
    store = tokenize_pairs(replace(source, on_error="skip"), tokenizer, **options)
    assert store.skipped == {"text without tokens": 2}
    assert [store.texts.string(row) for row in store.queries_N] == ["a", "g"]
    assert [store.texts.string(row) for row in store.negatives_of(np.array([0, 1]))] == ["c", "i", "j"]
    write_rows(tmp_path / "a.jsonl", rows[1:2])
    with pytest.raises(DataError, match=r"Every row of .* was skipped \(1 text without tokens\)"):
        tokenize_pairs(replace(source, on_error="skip"), tokenizer, **options)


def test_a_disk_that_fills_up_leaves_nothing(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", pair_rows(2000))
    program = """
import resource, sys
from pathlib import Path
from embedlab.data.sources import PairSource
from embedlab.data.tokenized import tokenize_pairs
from embedlab.errors import DataError
from embedlab.testing.backbones import tiny_tokenizer
folder = Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (16384, 16384))
try:
    source = PairSource(path=str(folder / "a.jsonl"))
    tokenize_pairs(source, tiny_tokenizer(), max_length=64, cache_dir=folder / "cache")
except DataError as error:
    print(error)
"""
    command = [sys.executable, "-c", program, str(tmp_path)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "could not be written: File too large" in printed
    assert folders(tmp_path / "cache") == []


def test_a_pickled_copy_is_small_and_the_same(tmp_path: Path) -> None:
    store = store_of(tmp_path, PAIRS)
    assert store.queries_N.tolist()
    pickled = pickle.dumps(store)
    assert len(pickled) < 2000
    copy = pickle.loads(pickled)
    assert copy.positives_N.tolist() == store.positives_N.tolist()
    assert copy.name == store.name


FRACTIONS = st.tuples(st.floats(0, 0.49), st.floats(0, 0.49))


@settings(max_examples=30, deadline=None)
@given(keys=st.lists(st.integers(0, 30), min_size=1, max_size=60), fractions=FRACTIONS)
def test_the_splits_share_no_key_and_hold_every_pair(
    keys: list[int], fractions: tuple[float, float], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("pairs")
    rows = [{"query": f"q{n}", "positive": f"d{n}", "key": key} for n, key in enumerate(keys)]
    source = PairSource(path=str(write_rows(folder / "a.jsonl", rows)), split_key="key")
    store = tokenize(source, folder / "cache")
    names: tuple[Split, ...] = ("train", "validation", "test")
    splits = [store.subset(name, validation_fraction=fractions[0], test_fraction=fractions[1]) for name in names]
    assert sorted(np.concatenate(splits).tolist()) == list(range(len(keys)))
    sets = [{keys[pair] for pair in split} for split in splits]
    assert not (sets[0] & sets[1] or sets[0] & sets[2] or sets[1] & sets[2])


def test_splits_have_about_their_share_and_grow_with_it(tmp_path: Path) -> None:
    source = PairSource(path=str(write_rows(tmp_path / "a.jsonl", pair_rows(2000))))
    store = tokenize(source, tmp_path / "cache")

    def part(split: Split, validation: float, test: float) -> set[int]:
        return set(store.subset(split, validation_fraction=validation, test_fraction=test).tolist())

    assert 0.08 < len(part("validation", 0.1, 0.2)) / 2000 < 0.12
    assert 0.17 < len(part("test", 0.1, 0.2)) / 2000 < 0.23
    assert part("validation", 0.1, 0.2) < part("validation", 0.2, 0.2)
    assert part("validation", 0.1, 0.0) == part("validation", 0.1, 0.3)
    assert part("validation", 0, 0) == part("test", 0, 0) == set()


def test_a_key_has_the_same_split_in_every_source(tmp_path: Path) -> None:
    rows = pair_rows(200)
    first = PairSource(path=str(write_rows(tmp_path / "a.jsonl", rows)))
    second = PairSource(path=str(write_rows(tmp_path / "b.jsonl", rows[::-1])), document_prompt="d: ")
    held_out = []
    for source in (first, second):
        store = tokenize(source, tmp_path / "cache")
        pairs = store.subset("validation", validation_fraction=0.3, test_fraction=0.0)
        held_out.append({store.texts.string(row) for row in store.queries_N[pairs]})
    assert held_out[0] == held_out[1] != set()


def test_texts_in_two_sets_of_pairs_are_counted(tmp_path: Path) -> None:
    store = store_of(tmp_path, PAIRS)
    assert store.num_shared_texts(np.array([0, 1]), np.array([2, 3])) == 2  # q0 and d1
    assert store.num_shared_texts(np.array([0]), np.array([1])) == 0
