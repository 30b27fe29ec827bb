"""A batch holds the texts of its pairs once, in chunks with little padding, and every rank its own part."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from embedlab.data.collate import EpochSteps, PairBatch
from embedlab.data.sources import PairSource
from embedlab.data.tokenized import TokenizedPairs, tokenize_pairs
from embedlab.errors import ConfigError
from embedlab.testing.backbones import tiny_tokenizer
from helpers.corpora import pair_rows, store_of, write_rows
from helpers.training_batches import assert_same, batches_of

NEGATIVES = [(f"q{n}", f"d{n}" + "x" * n, [f"n{n}", f"m{n}"][: n % 3]) for n in range(24)]


@pytest.fixture
def store(tmp_path: Path) -> TokenizedPairs:
    return store_of(tmp_path, NEGATIVES)


def texts_of(batch: PairBatch) -> list[str]:
    """The batch's unique texts, read back from the tokens of its chunks."""
    texts = {}
    for chunk in batch.chunks:
        for tokens, mask, row in zip(chunk.input_ids_BL, chunk.attention_mask_BL, chunk.rows_B.tolist(), strict=True):
            texts[row] = tiny_tokenizer().decode(tokens[mask.bool()])
    assert sorted(texts) == list(range(len(texts)))
    return [texts[row] for row in range(len(texts))]


def pairs_of(batch: PairBatch) -> list[tuple[str, str]]:
    texts = texts_of(batch)
    rows = zip(batch.rows.queries_P.tolist(), batch.rows.positives_P.tolist(), strict=True)
    return [(texts[query], texts[positive]) for query, positive in rows]


def test_a_batch_is_the_pairs_of_the_plan(store: TokenizedPairs) -> None:
    batches = batches_of(store)
    for step in range(6):
        batch = batches[step]
        _, planned = batches.plan.batch(step)
        assert pairs_of(batch) == [NEGATIVES[pair][:2] for pair in planned]
        texts = texts_of(batch)
        assert [texts[row] for row in batch.rows.negatives_N.tolist()] == [
            text for pair in planned for text in NEGATIVES[pair][2]
        ]
        assert batch.pair_rows == planned.tolist()
        assert (batch.step, batch.source) == (step, "pairs")


def test_a_text_in_several_roles_is_encoded_once(tmp_path: Path) -> None:
    store = store_of(tmp_path, [(f"a{n}", f"a{n}", [f"a{n}"]) for n in range(8)])
    batch = batches_of(store)[0]
    assert len(texts_of(batch)) == 8
    assert batch.rows.queries_P.tolist() == batch.rows.positives_P.tolist() == batch.rows.negatives_N.tolist()


def test_hashes_are_equal_exactly_for_identical_texts_across_ranks_and_steps(store: TokenizedPairs) -> None:
    text_of_hash: dict[int, str] = {}
    for rank in range(2):
        for step in range(6):
            batch = batches_of(store, rank=rank, world_size=2)[step]
            for text_hash, text in zip(batch.rows.text_hashes_U.tolist(), texts_of(batch), strict=True):
                assert text_of_hash.setdefault(text_hash, text) == text
    assert len(set(text_of_hash.values())) == len(text_of_hash)


@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_the_ranks_together_have_the_batch_of_one(store: TokenizedPairs, world_size: int) -> None:
    for step in range(3):
        parts = [batches_of(store, rank=rank, world_size=world_size)[step] for rank in range(world_size)]
        assert [pair for part in parts for pair in pairs_of(part)] == pairs_of(batches_of(store)[step])


def test_chunks_keep_to_the_budget_and_their_tokens_are_counted(store: TokenizedPairs) -> None:
    for max_tokens in (30, 100, 10_000):
        batch = batches_of(store, max_tokens=max_tokens)[0]
        assert all(len(chunk.rows_B) == 1 or chunk.num_padded_tokens <= max_tokens for chunk in batch.chunks)
        assert batch.num_tokens == sum(int(chunk.attention_mask_BL.sum()) for chunk in batch.chunks)
        assert batch.num_padded_tokens == sum(chunk.num_padded_tokens for chunk in batch.chunks)
        assert batch.num_tokens <= batch.num_padded_tokens <= 1.05 * batch.num_tokens


def test_a_pickled_dataset_is_small(tmp_path: Path) -> None:
    source = PairSource(path=str(write_rows(tmp_path / "a.jsonl", pair_rows(3000))))
    store = tokenize_pairs(source, tiny_tokenizer(), max_length=64, cache_dir=tmp_path / "cache")
    batches = batches_of(store)
    expected = batches[0]
    pickled = pickle.dumps(batches)
    assert len(pickled) < 200_000  # the orders of two epochs and the pairs to train on, no texts
    assert_same(pickle.loads(pickled)[0], expected)


def test_moving_a_batch_moves_all_its_tensors(store: TokenizedPairs) -> None:
    moved = batches_of(store)[0].to("meta")
    tensors = [moved.rows.stacked(), moved.rows.text_hashes_U]
    tensors += [
        tensor for chunk in moved.chunks for tensor in (chunk.input_ids_BL, chunk.attention_mask_BL, chunk.rows_B)
    ]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert moved.pair_rows


@pytest.mark.gpu
def test_a_pinned_batch_is_in_page_locked_memory(store: TokenizedPairs) -> None:
    pinned = batches_of(store)[0].pin_memory()
    assert all(chunk.input_ids_BL.is_pinned() and chunk.rows_B.is_pinned() for chunk in pinned.chunks)


def test_a_batch_that_cannot_be_shared_out_is_an_error_at_once(store: TokenizedPairs) -> None:
    with pytest.raises(ConfigError, match=r"batch_size 8 cannot be divided equally among 3 processes"):
        batches_of(store, world_size=3)


@pytest.mark.parametrize(
    ("position", "steps"), [(0, [0, 1, 2, 3]), (2, [2, 3]), (3, [3]), (4, [4, 5, 6, 7]), (9, [9, 10, 11])]
)
def test_an_epoch_goes_on_where_the_run_stands(position: int, steps: list[int]) -> None:
    sampler = EpochSteps(4, lambda: position)
    assert list(sampler) == steps
    assert len(sampler) == 4


def test_the_position_is_asked_when_an_epoch_begins() -> None:
    positions = iter([0, 2, 4])
    sampler = EpochSteps(2, lambda: next(positions))
    assert [list(sampler) for _ in range(3)] == [[0, 1], [2, 3], [4, 5]]
