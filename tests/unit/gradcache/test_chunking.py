"""Chunks hold every text once, within the token budget, with little padding."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from embedlab.gradcache.chunking import cut_chunks, pad_chunk

LENGTHS = st.lists(st.integers(1, 80), min_size=1, max_size=200).map(np.array)


@given(lengths=LENGTHS, max_tokens=st.integers(80, 1000), max_padding=st.sampled_from([0.0, 0.05, 0.5]))
def test_every_text_stands_in_exactly_one_chunk_within_the_limits(
    lengths: np.ndarray, max_tokens: int, max_padding: float
) -> None:
    chunks = cut_chunks(lengths, max_tokens=max_tokens, max_padding=max_padding)
    assert sorted(np.concatenate(chunks).tolist()) == list(range(len(lengths)))
    padded = [len(rows) * lengths[rows].max() for rows in chunks]
    assert max(padded) <= max_tokens
    assert sum(padded) <= (1 + max_padding) * lengths.sum() + 1e-9


@given(lengths=LENGTHS)
def test_chunks_come_longest_first(lengths: np.ndarray) -> None:
    longest = [int(lengths[rows].max()) for rows in cut_chunks(lengths, max_tokens=400)]
    assert longest == sorted(longest, reverse=True)


def test_a_text_longer_than_the_budget_has_a_chunk_of_its_own() -> None:
    chunks = cut_chunks(np.array([500, 3, 500]), max_tokens=100)
    assert [rows.tolist() for rows in chunks] == [[0], [2], [1]]


def test_padding_is_on_the_right_and_masked() -> None:
    chunk = pad_chunk([np.array([5, 6, 7]), np.array([8])], np.array([4, 2]), pad_token_id=9)
    assert chunk.input_ids_BL.tolist() == [[5, 6, 7], [8, 9, 9]]
    assert chunk.attention_mask_BL.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert chunk.rows_B.tolist() == [4, 2]
    assert chunk.num_padded_tokens == 6
