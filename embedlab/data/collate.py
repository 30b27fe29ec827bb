"""From pair rows to a batch ready for the model, in the data worker: unique texts, sorted, cut into chunks."""

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
    """A rank's part of one step.

    Attributes:
        chunks: the unique texts, longest first.
        rows: which of the unique texts are queries, positives and hard negatives.
        step: the global step this batch is for.
        source: name of the source of all its pairs.
        pair_rows: row of each pair in its source, for error messages.
        num_tokens: real tokens.
        num_padded_tokens: tokens with padding.
        lengths_of_all_ranks: tokens of each unique text of the whole step, int64.
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
        """The batch with its tensors moved as ``torch.Tensor.to`` does."""
        rows = PairRows(
            self.rows.queries_P.to(*args, **kwargs),
            self.rows.positives_P.to(*args, **kwargs),
            self.rows.negatives_N.to(*args, **kwargs),
            self.rows.text_hashes_U.to(*args, **kwargs),
        )
        return replace(self, chunks=[chunk.to(*args, **kwargs) for chunk in self.chunks], rows=rows)

    def pin_memory(self) -> PairBatch:
        """The batch with its chunks in page-locked memory, for asynchronous copies to a GPU."""
        return replace(self, chunks=[chunk.pin_memory() for chunk in self.chunks])


class TrainingBatches(Dataset[PairBatch]):
    """Batches by global step: a pure function of the plan and the step.

    Args:
        plan: which pairs each step takes.
        stores: the tokenized sources, in the plan's order.
        rank: which part of the batch is this process's.
        world_size: parts of the batch.
        max_tokens_per_chunk: padded tokens a forward pass, at most.
        max_padding: padding tokens a real token, at most.
        pad_token_id: fills the padding.

    Raises:
        ConfigError: if the batch cannot be cut into ``world_size`` equal parts.
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
        rows_of_rank(np.arange(plan.batch_size), rank, world_size)  # raises here, not first in a data worker

    def __getitem__(self, step: int) -> PairBatch:
        """This rank's part of the batch of one global step."""
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
        """Tokens of each unique text of one global step, over all ranks."""
        source, rows = self.plan.batch(step)
        store = self.stores[source]
        lengths_U: np.ndarray = store.texts.lengths_U[np.unique(store.texts_of(rows))]
        return lengths_U


class EpochSteps(Sampler[int]):
    """The global steps of the current epoch that are still to do.

    Args:
        steps_per_epoch: of every epoch.
        position: the next global step, asked when an epoch begins, so that a resumed run goes on in mid-epoch.
    """

    def __init__(self, steps_per_epoch: int, position: Callable[[], int]) -> None:
        self.steps_per_epoch = steps_per_epoch
        self.position = position

    def __len__(self) -> int:
        return self.steps_per_epoch

    def __iter__(self) -> Iterator[int]:
        step = self.position()
        return iter(range(step, (step // self.steps_per_epoch + 1) * self.steps_per_epoch))
