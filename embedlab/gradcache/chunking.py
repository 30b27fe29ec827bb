"""Chunks of similar length under a token budget, so that memory does not limit the batch and padding costs little.

Axes in names: U unique texts of a batch, B texts of a chunk, L tokens, D dimensions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

_PRICES_TRIED = 12  # halvings, on a logarithmic scale, of the range in which a chunk's price in tokens is sought


@dataclass
class Chunk:
    """Texts of similar length, right-padded to the longest of them.

    Attributes:
        input_ids_BL: token ids, int64.
        attention_mask_BL: 1 for tokens, 0 for padding, int64.
        rows_B: each text's row among the unique texts it was cut from, int64.
    """

    input_ids_BL: Tensor
    attention_mask_BL: Tensor
    rows_B: Tensor

    @property
    def num_padded_tokens(self) -> int:
        """Tokens including padding: what the hardware computes on."""
        return self.input_ids_BL.numel()

    def to(self, *args: Any, **kwargs: Any) -> Chunk:
        """The chunk with its tensors moved as ``torch.Tensor.to`` does."""
        return Chunk(
            self.input_ids_BL.to(*args, **kwargs),
            self.attention_mask_BL.to(*args, **kwargs),
            self.rows_B.to(*args, **kwargs),
        )

    def pin_memory(self) -> Chunk:
        """The chunk in page-locked memory, for asynchronous copies to a GPU."""
        return Chunk(self.input_ids_BL.pin_memory(), self.attention_mask_BL.pin_memory(), self.rows_B.pin_memory())


def cut_chunks(lengths_U: np.ndarray, *, max_tokens: int, max_padding: float = 0.05) -> list[np.ndarray]:
    """Sorts texts by length, longest first, and cuts them into few chunks with little padding.

    Of the ways to cut, it takes nearly the one with the fewest chunks whose padding, over all of them, stays
    within ``max_padding``: every chunk costs calls, every padded token costs arithmetic.

    Args:
        lengths_U: tokens of each text.
        max_tokens: padded tokens a chunk, at most; a single text may be longer.
        max_padding: padding tokens a real token over all chunks, at most.

    Returns:
        The rows of each chunk, int64; every row stands in exactly one chunk.

    >>> [rows.tolist() for rows in cut_chunks(np.array([3, 50, 2, 50, 3]), max_tokens=100)]
    [[1, 3], [0, 4, 2]]
    """
    if len(lengths_U) == 0:
        return []
    order = np.argsort(-lengths_U, kind="stable")
    lengths = lengths_U[order].astype(np.int64)
    starts = _where_to_cut(lengths, max_padding / 2)
    # The group from start f to the end before start t + 1, padded to its longest, is cut where memory ends.
    counts_TF = starts[1:, None] - starts[None, :-1]
    padded_TF = counts_TF * lengths[starts[:-1]]
    texts_a_chunk_F = np.maximum(1, max_tokens // lengths[starts[:-1]])
    chunks_TF = -(-counts_TF // texts_a_chunk_F)

    def grouped(tokens_a_chunk_costs: float) -> list[tuple[int, int]]:
        """Groups that make tokens and chunks, at this price of a chunk, cheapest (dynamic programming)."""
        cost_TF = padded_TF + tokens_a_chunk_costs * chunks_TF
        cheapest = np.zeros(len(starts))
        came_from = np.zeros(len(starts), dtype=np.int64)
        for end in range(1, len(starts)):
            candidates = cheapest[:end] + cost_TF[end - 1, :end]
            came_from[end] = candidates.argmin()
            cheapest[end] = candidates[came_from[end]]
        groups = []
        end = len(starts) - 1
        while end:
            groups.append((int(came_from[end]), end))
            end = groups[-1][0]
        return groups[::-1]

    limit = (1 + max_padding) * lengths.sum()
    best = grouped(0)
    cheap, dear = 1.0, 1.0 + float(padded_TF[-1, 0])
    for _ in range(_PRICES_TRIED):
        price = math.sqrt(cheap * dear)
        groups = grouped(price)
        if sum(padded_TF[end - 1, start] for start, end in groups) <= limit:
            best, cheap = groups, price
        else:
            dear = price
    return [
        rows
        for start, end in best
        for rows in np.array_split(order[starts[start] : starts[end]], chunks_TF[end - 1, start])
    ]


def _where_to_cut(lengths: np.ndarray, tolerance: float) -> np.ndarray:
    """Where a chunk may start, and the end: where the length falls below the last such place's by the tolerance.

    Fewer places are less to choose from. Cut at all of them, padding is within the tolerance.
    """
    starts: list[int] = []
    for start in np.flatnonzero(np.diff(lengths, prepend=lengths[0] + 1)).tolist():
        if not starts or lengths[start] * (1 + tolerance) < lengths[starts[-1]]:
            starts.append(start)
    return np.array([*starts, len(lengths)])


def pad_chunk(texts: list[np.ndarray], rows_B: np.ndarray, *, pad_token_id: int) -> Chunk:
    """Right-pads token sequences to the longest of them.

    Args:
        texts: B arrays of token ids.
        rows_B: each text's row among the unique texts.
        pad_token_id: fills the padding; masked, so any id of the vocabulary serves.
    """
    width = max(len(tokens) for tokens in texts)
    input_ids_BL = np.full((len(texts), width), pad_token_id, dtype=np.int64)
    attention_mask_BL = np.zeros((len(texts), width), dtype=np.int64)
    for row, tokens in enumerate(texts):
        input_ids_BL[row, : len(tokens)] = tokens
        attention_mask_BL[row, : len(tokens)] = 1
    return Chunk(
        torch.from_numpy(input_ids_BL),
        torch.from_numpy(attention_mask_BL),
        torch.from_numpy(np.asarray(rows_B, dtype=np.int64)),
    )
