"""Chooses the pairs of each training step as a pure function of seed and step, so that resuming restores no state.

Axes in names: N pairs of a source, S sources.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from embedlab.data.sources import PairSource
from embedlab.data.tokenized import TokenizedPairs
from embedlab.errors import ConfigError, DataError

_EPOCHS_KEPT = 2
# How often a permutation with fewer full batches than an epoch needs is replaced by another permutation.
_ATTEMPTS = 4
_LOOKS = 100  # rounds of search for a batch that takes a pair, before the pair is left out of the epoch

_Value = TypeVar("_Value")


class BatchPlan:
    """Plan of the batches of a training run over one or several sources.

    All pairs of a batch come from one source, and no text (query, positive or hard negative) occurs in two pairs of a
    batch, so that no pair contains a false negative of another pair. An epoch leaves out the pairs that fit into no
    batch, because every batch already has one of their texts or because the last batch would not be full. The next
    epoch draws another order.

    An epoch has as many steps as the sources have full batches. Without weights, an epoch takes each batch of each
    source once. With weights, the steps of an epoch are divided among the sources in proportion to the weights (largest
    remainder method), and each source has its own epochs.

    The plan is equal in every process, for every rank and world size (with one version of NumPy).

    Args:
        stores: Tokenized sources.
        pairs: Rows of the pairs to train on, one array per source.
        batch_size: Number of pairs per batch, over all ranks.
        seed: Random seed of all orders.

    Attributes:
        batch_size: Number of pairs per batch, over all ranks.
        steps_per_epoch: Number of steps of every epoch.

    Raises:
        ConfigError: If a batch has no negatives, if only some sources have a weight, or if a weight is so small that an
            epoch has no step for its source.
        DataError: If a source cannot fill a single batch.
    """

    def __init__(
        self, stores: Sequence[TokenizedPairs], pairs: Sequence[np.ndarray], *, batch_size: int, seed: int
    ) -> None:
        if batch_size == 1:
            _require_negatives(stores, pairs)
        self.batch_size = batch_size
        self._seed = seed
        self._orders = [
            _SourceOrder(store, rows, batch_size=batch_size, seed=seed, number=number)
            for number, (store, rows) in enumerate(zip(stores, pairs, strict=True))
        ]
        batches_S = np.array([order.num_batches for order in self._orders])
        self.steps_per_epoch = int(batches_S.sum())
        self._steps_S = _shares(stores, batches_S)
        self._schedules: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def batch(self, step: int) -> tuple[int, np.ndarray]:
        """Return the batch of a global step.

        Returns:
            Number of the batch's source, and rows of the batch's pairs in the source, int64, shape (batch_size,).
        """
        epoch, position = divmod(step, self.steps_per_epoch)
        sources, turns = _remembered(self._schedules, epoch, self._schedule)
        source = int(sources[position])
        turn = epoch * int(self._steps_S[source]) + int(turns[position])
        return source, self._orders[source].batch(turn)

    def num_left_out(self) -> list[int]:
        """Return, for each source, the number of training pairs that each of the source's epochs leaves out."""
        return [order.num_left_out for order in self._orders]

    def num_unique_pairs(self, steps: int) -> int:
        """Return an upper bound on the number of different pairs in the first ``steps`` steps.

        The number is a bound because epochs may leave out the same pairs or different pairs.
        """
        epochs, rest = divmod(steps, self.steps_per_epoch)
        in_the_last = np.bincount(self._schedule(epochs)[0][:rest], minlength=len(self._steps_S))
        seen_S = (epochs * self._steps_S + in_the_last) * self.batch_size
        return sum(min(int(seen), order.num_pairs) for seen, order in zip(seen_S, self._orders, strict=True))

    def _schedule(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the sources of an epoch's steps.

        Returns:
            Source of each step, and the number of earlier steps of the epoch with the same source, for each step.
        """
        sources = np.repeat(np.arange(len(self._steps_S)), self._steps_S)
        sources = _generator(self._seed, 0, epoch).permutation(sources)
        turns = np.empty_like(sources)
        for source, steps in enumerate(self._steps_S):
            turns[sources == source] = np.arange(steps)
        return sources, turns


def rows_of_rank(rows: np.ndarray, rank: int, world_size: int) -> np.ndarray:
    """Return a rank's part of a batch. The parts of all ranks in order make up the batch.

    Args:
        rows: Rows of the whole batch.
        rank: Rank whose part to return.
        world_size: Number of ranks, and so of equal parts.

    Raises:
        ConfigError: If the batch cannot be divided into equal parts.

    >>> rows_of_rank(np.array([4, 9, 2, 7]), rank=1, world_size=2)
    array([2, 7])
    """
    per_rank, rest = divmod(len(rows), world_size)
    if rest:
        nearest = max(1, round(len(rows) / world_size)) * world_size
        raise ConfigError(
            f"data.batch_size {len(rows)} cannot be divided equally among {world_size} processes. It counts the pairs "
            f"of all processes: set it to a multiple of {world_size}, for example {nearest}."
        )
    return rows[rank * per_rank : (rank + 1) * per_rank]


class _SourceOrder:
    """Batches of one source, in the order of the source's own epochs."""

    def __init__(self, store: TokenizedPairs, pairs: np.ndarray, *, batch_size: int, seed: int, number: int) -> None:
        self._pairs = pairs
        self._batch_size = batch_size
        self._seed = seed
        self._number = number
        self._offsets, self._texts = _texts_of_several_pairs(store, pairs)
        # If texts recur, the number of full batches depends on the order. Most orders reach the minimum of two orders.
        probes = [self._deal(self._order(epoch, 0), batch_size) for epoch in range(_EPOCHS_KEPT)]
        self.num_batches = min(map(len, probes))
        self._epochs = {epoch: batches[: self.num_batches] for epoch, batches in enumerate(probes)}
        if self.num_batches == 0:
            raise DataError(self._why_no_batch(store))
        self.num_pairs = len(pairs)
        self.num_left_out = len(pairs) - self.num_batches * batch_size

    def batch(self, turn: int) -> np.ndarray:
        """Return the pairs of this source's batch number ``turn``, counted from 0 over all of the source's epochs."""
        epoch, position = divmod(turn, self.num_batches)
        batches = _remembered(self._epochs, epoch, self._batches)
        pairs: np.ndarray = self._pairs[batches[position]]
        return pairs

    def _batches(self, epoch: int) -> np.ndarray:
        for attempt in range(_ATTEMPTS):
            batches = self._deal(self._order(epoch, attempt), self._batch_size)
            if len(batches) >= self.num_batches:
                return batches[: self.num_batches]
        # The order of epoch 0 is known to fill enough batches, so they are used again in another sequence.
        batches = self._deal(self._order(0, 0), self._batch_size)[: self.num_batches]
        return _generator(self._seed, self._number + 1, epoch).permutation(batches)

    def _order(self, epoch: int, attempt: int) -> np.ndarray:
        return _generator(self._seed, self._number + 1, epoch, attempt).permutation(len(self._pairs))

    def _deal(self, order: np.ndarray, size: int) -> np.ndarray:
        """Return the full batches that pairs in this order make, shape (batches, ``size``)."""
        if not len(self._texts):
            num_batches = len(order) // size
            return order[: num_batches * size].reshape(num_batches, size)
        batch_of = self._assign(order, size)
        is_full = np.append(np.bincount(batch_of, minlength=len(order) // size + 1)[:-1] == size, False)
        by_batch = np.argsort(batch_of, kind="stable")
        batches: np.ndarray = order[by_batch[is_full[batch_of[by_batch]]]].reshape(-1, size)
        return batches

    def _assign(self, order: np.ndarray, size: int) -> np.ndarray:
        """Assign each pair, in this order, to the first batch that has room and holds none of the pair's texts.

        Returns:
            Number of each pair's batch. For a pair that is left out, the number of batches.
        """
        num_batches = len(order) // size
        offsets, texts = self._offsets.tolist(), self._texts.tolist()
        # For each batch that is full, or that holds the text: the next batch to try. Paths are shortened as they are
        # followed (disjoint sets), so that a text that is in every batch so far takes only a few steps.
        past_full: dict[int, int] = {}
        past_text: list[dict[int, int]] = [{} for _ in range(max(texts) + 1)]
        num_pairs = [0] * num_batches
        batch_of = []
        first = 0
        for pair in order.tolist():
            own = [past_text[text] for text in texts[offsets[pair] : offsets[pair + 1]]]
            batch = first
            if own:
                for _ in range(_LOOKS):
                    start = batch
                    for past in (past_full, *own):
                        while batch in past:
                            after = past[batch]
                            past[batch] = past.get(after, after)
                            batch = after
                    if batch == start:
                        break
                else:
                    batch = num_batches
            batch_of.append(batch)
            if batch == num_batches:
                continue
            for past in own:
                past[batch] = batch + 1
            num_pairs[batch] += 1
            if num_pairs[batch] == size:
                past_full[batch] = batch + 1
                while first in past_full:
                    first = past_full[first]
        return np.array(batch_of)

    def _why_no_batch(self, store: TokenizedPairs) -> str:
        name = store.name
        num_pairs = len(self._pairs)
        if num_pairs == 0:
            return (
                f"Source '{name}' has no pairs to train on. Lower data.validation_fraction and data.test_fraction, or "
                "set a split_key with more different values."
            )
        fitting = num_pairs
        if len(self._texts):  # the orders in which __init__ found no full batch
            orders = [self._order(epoch, 0) for epoch in range(_EPOCHS_KEPT)]
            fitting = min(int((self._assign(order, num_pairs) == 0).sum()) for order in orders)
            if fitting == 1 and all(len(self._deal(order, 2)) for order in orders):
                fitting = 2  # the first pairs share a text with all others, but some others share none with each other
        received = f"Source '{name}' fills no batch of {self._batch_size}: "
        if fitting == 1:
            received += (
                f"nearly any two of its {num_pairs} pairs to train on have a text in common."
                if num_pairs > 1
                else "it has a single pair to train on."
            )
            alone = "Set data.batch_size to 1, or give" if _all_have_negatives(store, self._pairs) else "Give"
            return f"{received} {alone} more pairs with different texts, at least 2 for a batch."
        return (
            f"{received}of its {num_pairs} pairs to train on, about {fitting} have no text in common. Set "
            f"data.batch_size to {fitting} or less, or give more pairs."
        )


def _texts_of_several_pairs(store: TokenizedPairs, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return, for each pair, those of its texts that are in more than one of the pairs.

    Returns:
        Two arrays. The first holds the offset of each pair's first text in the second array, followed by the end. The
        second holds numbers of texts.
    """
    counts = store.negative_offsets[pairs + 1] - store.negative_offsets[pairs]
    numbers = np.arange(len(pairs))
    text = store.texts_of(pairs)
    pair = np.concatenate([numbers, numbers, np.repeat(numbers, counts)])
    counts = np.bincount(text)
    recurs = counts[text] > 1
    number_of_text = np.cumsum(counts > 1) - 1
    base = int((counts > 1).sum()) or 1
    key = np.sort(pair[recurs] * base + number_of_text[text[recurs]])
    key = key[np.diff(key, prepend=-1) > 0]  # a text that occurs twice in one pair is counted once
    pair, text = np.divmod(key, base)
    recurs = np.bincount(text)[text] > 1
    return np.searchsorted(pair[recurs], np.arange(len(pairs) + 1)), text[recurs]


def _shares(stores: Sequence[TokenizedPairs], batches_S: np.ndarray) -> np.ndarray:
    """Return the number of an epoch's steps that each source gets, shape (S,).

    Raises:
        ConfigError: If a weight is so small that its source gets no step.
    """
    weights = [store.source.weight for store in stores]
    if all(weight is None for weight in weights):
        return batches_S
    require_weights([store.source for store in stores])
    total = int(batches_S.sum())
    exact = np.array(weights, dtype=np.float64) / sum(filter(None, weights)) * total
    steps = np.floor(exact).astype(np.int64)
    steps[np.argsort(steps - exact, kind="stable")[: total - int(steps.sum())]] += 1
    for store, weight, share in zip(stores, weights, steps, strict=True):
        if share == 0:
            raise ConfigError(
                f"The weight {weight} of source '{store.name}' gives the source none of the {total} steps of an epoch. "
                "Raise the weight or leave the source out."
            )
    return steps


def require_weights(sources: Sequence[PairSource]) -> None:
    """Check that either all sources have a weight above 0, or no source has a weight.

    Raises:
        ConfigError: If only some sources have a weight, or if a weight or the sum of weights is no usable number.
    """
    weights = [source.weight for source in sources]
    if all(weight is None for weight in weights):
        return
    for source, weight in zip(sources, weights, strict=True):
        if weight is None or not (weight > 0 and math.isfinite(weight)):
            raise ConfigError(
                f"The weight of source '{source.label}' is {weight}, and other sources have weights. Expected a number "
                "above 0 for each source, or no weight for any source."
                if len(sources) > 1
                else f"The weight of source '{source.label}' is {weight}. Expected a number above 0, or no weight."
            )
    if not math.isfinite(sum(weight for weight in weights if weight is not None)):
        raise ConfigError(f"The sum of the weights {weights} of data.train is too large. Set smaller ones, such as 1.")


def _all_have_negatives(store: TokenizedPairs, pairs: np.ndarray) -> bool:
    return bool((store.negative_offsets[pairs + 1] > store.negative_offsets[pairs]).all())


def _require_negatives(stores: Sequence[TokenizedPairs], pairs: Sequence[np.ndarray]) -> None:
    for store, rows in zip(stores, pairs, strict=True):
        counts = store.negative_offsets[rows + 1] - store.negative_offsets[rows]
        if not counts.all():
            raise ConfigError(
                f"data.batch_size is 1, and {int((counts == 0).sum())} pairs of source '{store.name}' have no hard "
                "negatives: there is nothing to contrast a query with. Set data.batch_size to 2 or more."
            )


def _generator(*words: int) -> np.random.Generator:
    """Return a random generator that depends on the words alone.

    The number of words is appended, because NumPy ignores trailing zeros.
    """
    return np.random.default_rng(np.random.SeedSequence([*words, len(words)]))


def _remembered(memory: dict[int, _Value], epoch: int, make: Callable[[int], _Value]) -> _Value:
    """Return the value of an epoch, made by ``make`` unless it is one of the last few kept in ``memory``."""
    if epoch not in memory:
        memory[epoch] = make(epoch)
        while len(memory) > _EPOCHS_KEPT:
            del memory[next(iter(memory))]
    return memory[epoch]
