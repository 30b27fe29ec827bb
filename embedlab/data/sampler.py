"""Which pairs each training step takes: a pure function of (seed, step), so that a resumed run has nothing to restore.

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
# A permutation that makes fewer full batches than an epoch has is replaced by another one, this often.
_ATTEMPTS = 4
_LOOKS = 100  # rounds over a pair's texts in search of a batch for it, before it is left out of the epoch

_Value = TypeVar("_Value")


class BatchPlan:
    """The batches of a training run over one or several sources.

    A batch comes from one source, and no text (query, positive or hard negative) is in two of its pairs, so that
    no pair is another's false negative. Pairs that find no place in an epoch, because their texts are in every
    batch already or too few are left to fill one, are left out of that epoch; the next one draws another order.

    An epoch is as many steps as the sources have full batches. Without weights it takes each source's batches once;
    with weights it shares its steps out by them (largest remainder), and each source goes through epochs of its own.

    The plan is the same in every process, rank and world size (for one version of NumPy).

    Args:
        stores: the sources.
        pairs: the pairs of each source to train on.
        batch_size: pairs a batch, over all ranks.
        seed: of all orders.

    Attributes:
        batch_size: as given.
        steps_per_epoch: the same for every epoch.

    Raises:
        ConfigError: if a batch has no negatives, or some sources have a weight and others none, or one so small that
            its source is never seen.
        DataError: if a source cannot fill a single batch.
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
        """The source of a global step's batch, and its pairs: rows in that source, int64, (batch_size,)."""
        epoch, position = divmod(step, self.steps_per_epoch)
        sources, turns = _remembered(self._schedules, epoch, self._schedule)
        source = int(sources[position])
        turn = epoch * int(self._steps_S[source]) + int(turns[position])
        return source, self._orders[source].batch(turn)

    def num_left_out(self) -> list[int]:
        """Pairs of each source that an epoch of it leaves out."""
        return [order.num_left_out for order in self._orders]

    def num_unique_pairs(self, steps: int) -> int:
        """Different pairs in so many steps from the first one on, at most: what an epoch leaves out another may not."""
        epochs, rest = divmod(steps, self.steps_per_epoch)
        in_the_last = np.bincount(self._schedule(epochs)[0][:rest], minlength=len(self._steps_S))
        seen_S = (epochs * self._steps_S + in_the_last) * self.batch_size
        return sum(min(int(seen), order.num_pairs) for seen, order in zip(seen_S, self._orders, strict=True))

    def _schedule(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Each step's source, and how many steps of the epoch before it have the same."""
        sources = np.repeat(np.arange(len(self._steps_S)), self._steps_S)
        sources = _generator(self._seed, 0, epoch).permutation(sources)
        turns = np.empty_like(sources)
        for source, steps in enumerate(self._steps_S):
            turns[sources == source] = np.arange(steps)
        return sources, turns


def rows_of_rank(rows: np.ndarray, rank: int, world_size: int) -> np.ndarray:
    """A rank's part of a batch: the ranks' parts, one after the other, are the batch.

    Args:
        rows: of the whole batch.
        rank: which part.
        world_size: number of equal parts.

    Raises:
        ConfigError: if the batch cannot be cut into equal parts.

    >>> rows_of_rank(np.array([4, 9, 2, 7]), rank=1, world_size=2)
    array([2, 7])
    """
    per_rank, rest = divmod(len(rows), world_size)
    if rest:
        nearest = max(1, round(len(rows) / world_size)) * world_size
        raise ConfigError(
            f"data.batch_size {len(rows)} cannot be shared out equally over {world_size} processes. It is the batch "
            f"over all of them: set it to a multiple of {world_size}, {nearest} for instance."
        )
    return rows[rank * per_rank : (rank + 1) * per_rank]


class _SourceOrder:
    """The batches of one source, epoch after epoch of its own."""

    def __init__(self, store: TokenizedPairs, pairs: np.ndarray, *, batch_size: int, seed: int, number: int) -> None:
        self._pairs = pairs
        self._batch_size = batch_size
        self._seed = seed
        self._number = number
        self._offsets, self._texts = _texts_of_several_pairs(store, pairs)
        # Where texts recur, orders differ in how many batches they fill. What two of them reach, most do.
        probes = [self._deal(self._order(epoch, 0), batch_size) for epoch in range(_EPOCHS_KEPT)]
        self.num_batches = min(map(len, probes))
        self._epochs = {epoch: batches[: self.num_batches] for epoch, batches in enumerate(probes)}
        if self.num_batches == 0:
            raise DataError(self._why_no_batch(store))
        self.num_pairs = len(pairs)
        self.num_left_out = len(pairs) - self.num_batches * batch_size

    def batch(self, turn: int) -> np.ndarray:
        """The pairs of this source's batch number ``turn``, counted over all epochs."""
        epoch, position = divmod(turn, self.num_batches)
        batches = _remembered(self._epochs, epoch, self._batches)
        pairs: np.ndarray = self._pairs[batches[position]]
        return pairs

    def _batches(self, epoch: int) -> np.ndarray:
        for attempt in range(_ATTEMPTS):
            batches = self._deal(self._order(epoch, attempt), self._batch_size)
            if len(batches) >= self.num_batches:
                return batches[: self.num_batches]
        # Epoch 0 is known to fill them, and in another sequence its batches serve again.
        batches = self._deal(self._order(0, 0), self._batch_size)[: self.num_batches]
        return _generator(self._seed, self._number + 1, epoch).permutation(batches)

    def _order(self, epoch: int, attempt: int) -> np.ndarray:
        return _generator(self._seed, self._number + 1, epoch, attempt).permutation(len(self._pairs))

    def _deal(self, order: np.ndarray, size: int) -> np.ndarray:
        """The full batches (batch, pair) that pairs in this order make."""
        if not len(self._texts):
            num_batches = len(order) // size
            return order[: num_batches * size].reshape(num_batches, size)
        batch_of = self._assign(order, size)
        is_full = np.append(np.bincount(batch_of, minlength=len(order) // size + 1)[:-1] == size, False)
        by_batch = np.argsort(batch_of, kind="stable")
        batches: np.ndarray = order[by_batch[is_full[batch_of[by_batch]]]].reshape(-1, size)
        return batches

    def _assign(self, order: np.ndarray, size: int) -> np.ndarray:
        """Gives each pair in this order the first batch with room that holds none of its texts.

        Returns:
            The number of each pair's batch, or that after the last for a pair that is left out.
        """
        num_batches = len(order) // size
        offsets, texts = self._offsets.tolist(), self._texts.tolist()
        # Where to look instead of a batch that is full, or that holds the text. A way once gone becomes shorter
        # (disjoint sets), so that a text which is in every batch so far is passed in a few steps.
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
        if len(self._texts):  # the same orders as above, which found fewer than a batch needs
            orders = [self._order(epoch, 0) for epoch in range(_EPOCHS_KEPT)]
            fitting = min(int((self._assign(order, num_pairs) == 0).sum()) for order in orders)
            if fitting == 1 and all(len(self._deal(order, 2)) for order in orders):
                fitting = 2  # the pairs that came first have texts of all others, but not all others of each other
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
    """The texts that are in more than one of the pairs, by pair.

    Returns:
        Offsets into the second array for each pair, and the end; numbers of texts.
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
    key = key[np.diff(key, prepend=-1) > 0]  # a text that is in one pair twice is no obstacle to that pair
    pair, text = np.divmod(key, base)
    recurs = np.bincount(text)[text] > 1
    return np.searchsorted(pair[recurs], np.arange(len(pairs) + 1)), text[recurs]


def _shares(stores: Sequence[TokenizedPairs], batches_S: np.ndarray) -> np.ndarray:
    """Steps of an epoch that each source gets."""
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
                f"The weight {weight} of source '{store.name}' is none of the {total} steps of an epoch. Raise it or "
                "leave the source out."
            )
    return steps


def require_weights(sources: Sequence[PairSource]) -> None:
    """Check that all sources have a weight above 0, or none has any.

    Raises:
        ConfigError: If that is not so.
    """
    weights = [source.weight for source in sources]
    if all(weight is None for weight in weights):
        return
    for source, weight in zip(sources, weights, strict=True):
        if weight is None or not (weight > 0 and math.isfinite(weight)):
            raise ConfigError(
                f"The weight of source '{source.label}' is {weight}, and other sources have weights. Expected a number "
                "above 0 for each source, or none for any."
                if len(sources) > 1
                else f"The weight of source '{source.label}' is {weight}. Expected a number above 0, or none."
            )
    if not math.isfinite(sum(weight for weight in weights if weight is not None)):
        raise ConfigError(f"The weights {weights} of data.train add up to no number. Expected smaller ones, such as 1.")


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
    """Random numbers that are a function of these words; padded, because trailing zeros would not count."""
    return np.random.default_rng(np.random.SeedSequence([*words, len(words)]))


def _remembered(memory: dict[int, _Value], epoch: int, make: Callable[[int], _Value]) -> _Value:
    """The value of an epoch, of which the latest few are kept."""
    if epoch not in memory:
        memory[epoch] = make(epoch)
        while len(memory) > _EPOCHS_KEPT:
            del memory[next(iter(memory))]
    return memory[epoch]
