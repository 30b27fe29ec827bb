"""Builds a model's batch in the data worker: the unique texts of the pairs, sorted by length, cut into chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from embedlab.data.sampler import BatchPlan, rows_of_rank
from embedlab.data.tokenized import TokenizedPairs
from embedlab.gradcache.chunking import Chunk, cut_chunks, pad_chunk
from embedlab.losses import PairRows


@dataclass
class PairBatch:
    """A rank's part of the batch of one step.

    Attributes:
        chunks: Chunks of the unique texts, longest texts first.
        rows: Index, among the unique texts, of the query, the positive and each hard negative of every pair.
        step: Global step that the batch belongs to.
        source: Name of the source that all pairs of the batch come from.
        pair_rows: Row of each pair in its source, for error messages.
        num_tokens: Number of tokens without padding.
        num_padded_tokens: Number of tokens including padding.
        lengths_of_all_ranks: Number of tokens of each unique text of the step over all ranks, int64.
    """

    chunks: list[Chunk]
    rows: PairRows
    step: int
    source: str
    pair_rows: list[int]
    num_tokens: int
    num_padded_tokens: int
    lengths_of_all_ranks: np.ndarray

    def to(self, *args: Any, **kwargs: Any) -> PairBatch:
        """Return a copy of the batch with its tensors converted by ``torch.Tensor.to``."""
        rows = PairRows(
            self.rows.queries_P.to(*args, **kwargs),
            self.rows.positives_P.to(*args, **kwargs),
            self.rows.negatives_N.to(*args, **kwargs),
            self.rows.text_hashes_U.to(*args, **kwargs),
        )
        return replace(self, chunks=[chunk.to(*args, **kwargs) for chunk in self.chunks], rows=rows)

    def pin_memory(self) -> PairBatch:
        """Return a copy of the batch with its chunks in page-locked memory, for asynchronous transfer to a GPU."""
        return replace(self, chunks=[chunk.pin_memory() for chunk in self.chunks])


class TrainingBatches(Dataset[PairBatch]):
    """Data set of batches, indexed by global step. A batch depends on the plan and the step alone.

    Args:
        plan: Plan of the pairs that each step takes.
        stores: Tokenized sources, in the plan's order.
        rank: Rank of this process, which selects its part of each batch.
        world_size: Number of processes that share each batch.
        max_tokens_per_chunk: Maximum number of tokens per forward pass, padding included.
        max_padding: Maximum number of padding tokens per real token, over all chunks of a batch.
        pad_token_id: Token id that fills the padding.

    Raises:
        ConfigError: If the batch cannot be divided into ``world_size`` equal parts.
    """

    def __init__(
        self,
        plan: BatchPlan,
        stores: Sequence[TokenizedPairs],
        *,
        rank: int = 0,
        world_size: int = 1,
        max_tokens_per_chunk: int,
        max_padding: float,
        pad_token_id: int,
    ) -> None:
        self.plan = plan
        self.stores = stores
        self.rank = rank
        self.world_size = world_size
        self.max_tokens_per_chunk = max_tokens_per_chunk
        self.max_padding = max_padding
        self.pad_token_id = pad_token_id
        rows_of_rank(np.arange(plan.batch_size), rank, world_size)  # raises here, not later in a data worker

    def __getitem__(self, step: int) -> PairBatch:
        """Return this rank's part of the batch of one global step."""
        source, rows = self.plan.batch(step)
        store = self.stores[source]
        rows = rows_of_rank(rows, self.rank, self.world_size)
        texts_U, inverse = np.unique(store.texts_of(rows), return_inverse=True)
        lengths_U = store.texts.lengths_U[texts_U]
        chunks = [
            pad_chunk(
                [store.texts.tokens(int(texts_U[row])) for row in chunk_rows],
                chunk_rows,
                pad_token_id=self.pad_token_id,
            )
            for chunk_rows in cut_chunks(lengths_U, max_tokens=self.max_tokens_per_chunk, max_padding=self.max_padding)
        ]
        of_query, of_positive, of_negative = np.split(inverse, [len(rows), 2 * len(rows)])
        return PairBatch(
            chunks=chunks,
            rows=PairRows(
                torch.from_numpy(of_query),
                torch.from_numpy(of_positive),
                torch.from_numpy(of_negative),
                torch.from_numpy(store.texts.hashes_U[texts_U]),
            ),
            step=step,
            source=store.name,
            pair_rows=rows.tolist(),
            num_tokens=int(lengths_U.sum()),
            num_padded_tokens=sum(chunk.num_padded_tokens for chunk in chunks),
            lengths_of_all_ranks=lengths_U if self.world_size == 1 else self.lengths(step),
        )

    def lengths(self, step: int) -> np.ndarray:
        """Return the number of tokens of each unique text of one global step, over all ranks, int64."""
        source, rows = self.plan.batch(step)
        store = self.stores[source]
        lengths_U: np.ndarray = store.texts.lengths_U[np.unique(store.texts_of(rows))]
        return lengths_U


class EpochSteps(Sampler[int]):
    """Sampler of the remaining global steps of the current epoch.

    Args:
        steps_per_epoch: Number of steps per epoch.
        position: Function that returns the next global step. It is called when an iteration begins, so that a resumed
            run continues in the middle of an epoch.
    """

    def __init__(self, steps_per_epoch: int, position: Callable[[], int]) -> None:
        self.steps_per_epoch = steps_per_epoch
        self.position = position

    def __len__(self) -> int:
        return self.steps_per_epoch

    def __iter__(self) -> Iterator[int]:
        step = self.position()
        return iter(range(step, (step // self.steps_per_epoch + 1) * self.steps_per_epoch))
