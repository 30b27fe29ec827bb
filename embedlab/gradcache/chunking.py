"""Cuts batches into chunks of texts of similar length, so that memory does not limit the batch size.

Little compute is spent on padding, because the texts of a chunk have similar lengths.

Names end in their axes: U unique texts of a batch, B texts of a chunk, L tokens, T chunk ends, F chunk starts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

_PRICES_TRIED = 12  # steps of the search for the price of a chunk in tokens; each step halves the range of log price


@dataclass
class Chunk:
    """Texts of similar length, padded on the right to the longest text.

    Attributes:
        input_ids_BL: Token ids, int64.
        attention_mask_BL: 1 for tokens and 0 for padding, int64.
        rows_B: Row of each text among the unique texts of the batch, int64.
    """

    input_ids_BL: Tensor
    attention_mask_BL: Tensor
    rows_B: Tensor

    @property
    def num_padded_tokens(self) -> int:
        """Number of tokens that the hardware processes, padding included."""
        return self.input_ids_BL.numel()

    def to(self, *args: Any, **kwargs: Any) -> Chunk:
        """Return a chunk with all tensors moved or converted by ``torch.Tensor.to``.

        Args:
            *args: Positional arguments of ``torch.Tensor.to``.
            **kwargs: Keyword arguments of ``torch.Tensor.to``.
        """
        return Chunk(
            self.input_ids_BL.to(*args, **kwargs),
            self.attention_mask_BL.to(*args, **kwargs),
            self.rows_B.to(*args, **kwargs),
        )

    def pin_memory(self) -> Chunk:
        """Return a copy of the chunk in page-locked memory, for asynchronous copies to a GPU."""
        return Chunk(self.input_ids_BL.pin_memory(), self.attention_mask_BL.pin_memory(), self.rows_B.pin_memory())


def cut_chunks(lengths_U: np.ndarray, *, max_tokens: int, max_padding: float = 0.05) -> list[np.ndarray]:
    """Sort texts by length, longest first, and cut them into few chunks with little padding.

    The number of chunks is close to the minimum for which the padding over all chunks stays within ``max_padding``.
    Every chunk costs kernel launches, and every padding token costs arithmetic.

    Args:
        lengths_U: Number of tokens of each text.
        max_tokens: Maximum number of tokens per chunk, padding included. A text that is longer gets its own chunk.
        max_padding: Maximum number of padding tokens per real token, over all chunks together.

    Returns:
        The rows of the texts in each chunk, int64. Every row is in exactly one chunk.

    >>> [rows.tolist() for rows in cut_chunks(np.array([3, 50, 2, 50, 3]), max_tokens=100)]
    [[1, 3], [0, 4, 2]]
    """
    if len(lengths_U) == 0:
        return []
    order = np.argsort(-lengths_U, kind="stable")
    lengths = lengths_U[order].astype(np.int64)
    starts = _where_to_cut(lengths, max_padding / 2)
    # Entry [t, f] describes the group of texts from start f to the text before start t + 1, padded to the longest
    # text of the group. A group with more than max_tokens tokens is cut into several chunks.
    counts_TF = starts[1:, None] - starts[None, :-1]
    padded_TF = counts_TF * lengths[starts[:-1]]
    texts_a_chunk_F = np.maximum(1, max_tokens // lengths[starts[:-1]])
    chunks_TF = -(-counts_TF // texts_a_chunk_F)

    def grouped(tokens_a_chunk_costs: float) -> list[tuple[int, int]]:
        """Return the groups with the lowest total cost, found by dynamic programming.

        Args:
            tokens_a_chunk_costs: Cost of one chunk, in padded tokens.
        """
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
    """Return the positions at which a group of texts may start, followed by the number of texts.

    A position is added where the length has fallen below the length at the last position, divided by 1 + tolerance.
    If a group starts at every position, the padding is within the tolerance; fewer positions make the search faster.

    Args:
        lengths: Number of tokens of each text; the longest text comes first.
        tolerance: Maximum number of padding tokens per real token if a group starts at every position.
    """
    starts: list[int] = []
    for start in np.flatnonzero(np.diff(lengths, prepend=lengths[0] + 1)).tolist():
        if not starts or lengths[start] * (1 + tolerance) < lengths[starts[-1]]:
            starts.append(start)
    return np.array([*starts, len(lengths)])


def pad_chunk(texts: list[np.ndarray], rows_B: np.ndarray, *, pad_token_id: int) -> Chunk:
    """Build a chunk from token sequences, padded on the right to the longest sequence.

    Args:
        texts: Token ids of each text: B arrays of shape (length,).
        rows_B: Row of each text among the unique texts of the batch.
        pad_token_id: Token id that fills the padding. Any id of the vocabulary works, because padding is masked.
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
