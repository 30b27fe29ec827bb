"""Chunks of similar length under a token budget, so that memory does not limit the batch and padding costs little.

Axes in names: U unique texts of a batch, B texts of a chunk, L tokens, D dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


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
        return Chunk(
            self.input_ids_BL.pin_memory(), self.attention_mask_BL.pin_memory(), self.rows_B.pin_memory()
        )


def cut_chunks(lengths_U: np.ndarray, *, max_tokens: int, max_padding: float = 0.05) -> list[np.ndarray]:
    """Sorts texts by length, longest first, and cuts them into chunks.

    A chunk ends where one text more would take it past ``max_tokens`` tokens with padding (a single text
    may be longer) or past ``1 + max_padding`` padded tokens a real one.

    Args:
        lengths_U: tokens of each text.
        max_tokens: padded tokens a chunk, at most.
        max_padding: padding tokens a real token, at most.

    Returns:
        The rows of each chunk, int64; every row stands in exactly one chunk.

    >>> [rows.tolist() for rows in cut_chunks(np.array([3, 50, 2, 50, 3]), max_tokens=100)]
    [[1, 3], [0, 4], [2]]
    """
    order = np.argsort(-lengths_U, kind="stable")
    chunks: list[np.ndarray] = []
    start = 0
    real = longest = 0
    for position, row in enumerate(order):
        length = int(lengths_U[row])
        count = position - start
        padded = (count + 1) * longest
        if count and (padded > max_tokens or padded > (1 + max_padding) * (real + length)):
            chunks.append(order[start:position])
            start, real, count = position, 0, 0
        if count == 0:
            longest = length
        real += length
    if start < len(order):
        chunks.append(order[start:])
    return chunks


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
