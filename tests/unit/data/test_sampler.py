"""Batches are a pure function of seed and step, hold no text twice, and cover each epoch once."""

from __future__ import annotations

import pickle
import re
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from embedlab.data.sampler import BatchPlan, rows_of_rank
from embedlab.data.sources import PairSource
from embedlab.data.tokenized import TokenizedPairs
from embedlab.errors import ConfigError, DataError
from helpers.corpora import store_of


class Pairs(TokenizedPairs):
    """Pairs made of numbers instead of files: queries, positives and negatives as rows of texts."""

    def __init__(self, pairs: Sequence[tuple[int, int, Sequence[int]]], *, weight: float | None = None) -> None:
        super().__init__(Path(), PairSource(path="numbers", weight=weight))
        self.queries_N = np.array([query for query, _, _ in pairs], dtype=np.int64)
        self.positives_N = np.array([positive for _, positive, _ in pairs], dtype=np.int64)
        self.negatives_K = np.array([text for _, _, texts in pairs for text in texts], dtype=np.int64)
        self.negative_offsets = np.cumsum([0, *(len(texts) for _, _, texts in pairs)])

    def texts_in(self, pair: int) -> set[int]:
        return {int(self.queries_N[pair]), int(self.positives_N[pair]), *self.negatives_of(np.array([pair])).tolist()}


def unique_pairs(num_pairs: int, *, weight: float | None = None) -> Pairs:
    return Pairs([(2 * n, 2 * n + 1, []) for n in range(num_pairs)], weight=weight)


def plan_of(*stores: Pairs, batch_size: int, seed: int = 0) -> BatchPlan:
    return BatchPlan(stores, [np.arange(len(store)) for store in stores], batch_size=batch_size, seed=seed)


def epoch_of(plan: BatchPlan, epoch: int) -> list[tuple[int, list[int]]]:
    steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
    return [(source, pairs.tolist()) for source, pairs in map(plan.batch, steps)]


@st.composite
def pairs_with_common_texts(draw: st.DrawFn) -> Pairs:
    """Some texts are in many pairs, some in one, a few twice in one."""
    text = st.integers(0, draw(st.integers(40, 400)))
    rows = draw(st.lists(st.tuples(text, text, st.lists(text, max_size=2)), min_size=20, max_size=100))
    return Pairs(rows)


@settings(max_examples=100, deadline=None)
@given(store=pairs_with_common_texts(), batch_size=st.integers(2, 6), seed=st.integers(0, 2**40))
def test_batches_are_full_hold_no_text_twice_and_no_pair_twice_an_epoch(
    store: Pairs, batch_size: int, seed: int
) -> None:
    try:
        plan = plan_of(store, batch_size=batch_size, seed=seed)
    except DataError:
        assume(False)
    for epoch in (0, 1, 2, 7):
        batches = [pairs for _, pairs in epoch_of(plan, epoch)]
        for pairs in batches:
            assert len(pairs) == batch_size
            texts = [text for pair in pairs for text in store.texts_in(pair)]
            assert len(texts) == len(set(texts))
        seen = Counter(pair for pairs in batches for pair in pairs)
        assert max(seen.values()) == 1
        assert len(store) - len(seen) == plan.num_left_out()[0]


@settings(max_examples=50, deadline=None)
@given(num_pairs=st.integers(2, 100), batch_size=st.integers(2, 12))
def test_pairs_with_no_text_in_common_are_all_seen_but_for_the_rest_of_the_division(
    num_pairs: int, batch_size: int
) -> None:
    assume(num_pairs >= batch_size)
    plan = plan_of(unique_pairs(num_pairs), batch_size=batch_size)
    assert plan.steps_per_epoch == num_pairs // batch_size
    assert plan.num_left_out() == [num_pairs % batch_size]


def test_a_few_common_texts_leave_out_few_pairs() -> None:
    generator = np.random.default_rng(0)
    store = Pairs([(n, 10_000 + int(generator.integers(5000)), []) for n in range(5000)])
    plan = plan_of(store, batch_size=64)
    assert plan.steps_per_epoch == 5000 // 64


def test_a_text_of_many_pairs_is_spread_over_the_batches() -> None:
    store = Pairs([(n, 10_000 + n % 20, []) for n in range(2000)])  # 20 answers, 100 queries each
    plan = plan_of(store, batch_size=16)
    assert plan.steps_per_epoch >= 0.95 * 2000 // 16


def test_texts_of_many_pairs_on_both_sides_still_fill_nearly_every_batch() -> None:
    generator = np.random.default_rng(0)
    store = Pairs([(int(generator.integers(300)), 1000 + int(generator.integers(400)), []) for _ in range(10_000)])
    assert plan_of(store, batch_size=128).steps_per_epoch >= 0.95 * 10_000 // 128


def test_epochs_stay_as_long_where_few_orders_fill_that_many_batches() -> None:
    grid = Pairs([(query, 10 + positive, []) for query in range(3) for positive in range(3)])
    plan = plan_of(grid, batch_size=3, seed=6)
    assert plan.steps_per_epoch == 3  # only Latin squares fill three batches
    for epoch in range(20):
        for _, pairs in epoch_of(plan, epoch):
            assert len(set.union(*map(grid.texts_in, pairs))) == 6
    assert len({str(epoch_of(plan, epoch)) for epoch in range(20)}) > 3


def test_a_text_that_a_pair_holds_twice_is_no_obstacle() -> None:
    store = Pairs([(n, n, [n, n]) for n in range(12)])
    assert plan_of(store, batch_size=4).num_left_out() == [0]


def test_the_left_out_pairs_differ_between_epochs() -> None:
    plan = plan_of(unique_pairs(23), batch_size=5)
    seen = {pair for epoch in range(20) for _, pairs in epoch_of(plan, epoch) for pair in pairs}
    assert seen == set(range(23))


def test_the_order_differs_between_epochs_and_seeds() -> None:
    orders = [
        str(epoch_of(plan_of(unique_pairs(40), batch_size=5, seed=seed), epoch))
        for seed in range(3)
        for epoch in range(3)
    ]
    assert len(set(orders)) == 9


def test_two_sources_have_orders_of_their_own() -> None:
    plan = plan_of(unique_pairs(40), unique_pairs(40), batch_size=40)
    orders = dict(epoch_of(plan, 0))
    assert orders[0] != orders[1]


@pytest.mark.parametrize("num_texts", [10_000, 30])
def test_any_step_may_be_asked_for_in_any_order(num_texts: int) -> None:
    generator = np.random.default_rng(0)
    store = Pairs([(1000 + n, int(generator.integers(num_texts)), []) for n in range(100)])
    undisturbed = [plan_of(store, batch_size=7).batch(step)[1].tolist() for step in range(70)]
    plan = plan_of(store, batch_size=7)
    steps = generator.permutation(70).tolist()
    assert [plan.batch(step)[1].tolist() for step in steps] == [undisturbed[step] for step in steps]
    resumed = plan_of(store, batch_size=7)
    assert [resumed.batch(step)[1].tolist() for step in range(33, 70)] == undisturbed[33:]


def test_a_pickled_plan_goes_on_alike() -> None:
    plan = plan_of(Pairs([(n, 100 + n // 2, []) for n in range(60)]), batch_size=6)
    copy = pickle.loads(pickle.dumps(plan))
    assert epoch_of(copy, 3) == epoch_of(plan, 3)


def test_only_the_given_pairs_are_taken() -> None:
    store = unique_pairs(30)
    chosen = np.array([1, 4, 7, 12, 20, 29])
    plan = BatchPlan([store], [chosen], batch_size=3, seed=0)
    assert sorted(pair for _, pairs in epoch_of(plan, 0) for pair in pairs) == chosen.tolist()


def test_without_weights_every_source_is_seen_once_an_epoch() -> None:
    plan = plan_of(unique_pairs(20), unique_pairs(41), unique_pairs(5), batch_size=5)
    for epoch in range(3):
        batches = epoch_of(plan, epoch)
        assert Counter(source for source, _ in batches) == {0: 4, 1: 8, 2: 1}
        for source, num_pairs in ((0, 20), (1, 40), (2, 5)):
            assert len({pair for other, pairs in batches if other == source for pair in pairs}) == num_pairs
    assert plan.num_left_out() == [0, 1, 0]


@settings(max_examples=50, deadline=None)
@given(sizes=st.lists(st.tuples(st.integers(20, 60), st.floats(0.5, 5)), min_size=1, max_size=4))
def test_weights_share_out_the_steps_of_an_epoch(sizes: list[tuple[int, float]]) -> None:
    plan = plan_of(*(unique_pairs(num_pairs, weight=weight) for num_pairs, weight in sizes), batch_size=2)
    assert plan.steps_per_epoch == sum(num_pairs // 2 for num_pairs, _ in sizes)
    total = sum(weight for _, weight in sizes)
    for epoch in range(2):
        counts = Counter(source for source, _ in epoch_of(plan, epoch))
        assert sum(counts.values()) == plan.steps_per_epoch
        for source, (_, weight) in enumerate(sizes):
            assert abs(counts[source] - weight / total * plan.steps_per_epoch) < 1


def test_a_weighted_source_goes_through_epochs_of_its_own() -> None:
    plan = plan_of(unique_pairs(10, weight=3.0), unique_pairs(30, weight=1.0), batch_size=5)
    assert plan.steps_per_epoch == 8
    own = [pairs for epoch in range(4) for source, pairs in epoch_of(plan, epoch) if source == 0]
    assert len(own) == 24
    for first, second in zip(own[::2], own[1::2], strict=True):
        assert sorted(first + second) == list(range(10))


def test_different_pairs_are_counted_source_by_source() -> None:
    plan = plan_of(unique_pairs(10, weight=3.0), unique_pairs(30, weight=1.0), batch_size=5)
    for steps in range(30):
        seen = {(source, int(pair)) for source, pairs in map(plan.batch, range(steps)) for pair in pairs}
        assert plan.num_unique_pairs(steps) == len(seen)


def test_the_sources_alternate() -> None:
    plan = plan_of(unique_pairs(100), unique_pairs(100), batch_size=2)
    sources = [source for source, _ in epoch_of(plan, 0)]
    assert sources != sorted(sources)
    assert sources != [source for source, _ in epoch_of(plan, 1)]


@pytest.mark.parametrize("weights", [(1.0, None), (1.0, 0.0), (1.0, -2.0), (1.0, float("nan")), (float("inf"), 1.0)])
def test_weights_that_make_no_sense_are_an_error(weights: tuple[float | None, float | None]) -> None:
    with pytest.raises(ConfigError, match=r"weight of source 'numbers' is .*Expected a number above 0 for each"):
        plan_of(*(unique_pairs(10, weight=weight) for weight in weights), batch_size=2)


def test_a_weight_too_small_to_be_seen_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"weight 0.001 of source 'numbers' gives the source none of the 10 steps"):
        plan_of(unique_pairs(10, weight=1.0), unique_pairs(10, weight=0.001), batch_size=2)


def test_a_batch_that_cannot_be_filled_is_an_error_that_says_what_can() -> None:
    with pytest.raises(DataError, match=r"fills no batch of 8: of its 7 pairs to train on, about 7 .*batch_size to 7"):
        plan_of(unique_pairs(7), batch_size=8)
    labels = Pairs([(100 + n, n % 5, []) for n in range(50)])
    with pytest.raises(
        DataError, match=r"of its 50 pairs to train on, about 5 have no text in common.*batch_size to 5"
    ):
        plan_of(labels, batch_size=8)
    assert plan_of(labels, batch_size=5).steps_per_epoch > 0


@settings(max_examples=200, deadline=None)
@given(store=pairs_with_common_texts(), batch_size=st.integers(2, 30))
def test_a_batch_size_that_is_advised_can_be_had(store: Pairs, batch_size: int) -> None:
    try:
        plan_of(store, batch_size=batch_size)
    except DataError as error:
        if advised := re.search(r"Set data\.batch_size to (\d+)", str(error)):
            assert plan_of(store, batch_size=int(advised[1])).steps_per_epoch >= 1


def test_pairs_of_which_no_two_go_together_are_an_error_that_says_so() -> None:
    one_answer = Pairs([(n, 100, []) for n in range(5)])
    with pytest.raises(DataError, match=r"nearly any two of its 5 pairs .* have a text in common\. Give more pairs"):
        plan_of(one_answer, batch_size=4)
    with pytest.raises(DataError, match=r"a single pair to train on\. Give more pairs"):
        plan_of(unique_pairs(1), batch_size=4)
    with pytest.raises(DataError, match=r"Set data\.batch_size to 1, or give more pairs"):
        plan_of(Pairs([(n, 100, [n + 200]) for n in range(5)]), batch_size=4)


def test_a_pair_with_a_text_of_each_other_does_not_spoil_the_advice() -> None:
    pairs = Pairs([(0, 1, [2, 3]), *((n, n + 100, []) for n in range(4))])
    advised = set()
    for seed in range(20):  # the pair comes first in some of the orders
        with pytest.raises(DataError) as error:
            plan_of(pairs, batch_size=5, seed=seed)
        advised |= set(re.findall(r"Set data\.batch_size to (\d) or less", str(error.value)))
    assert advised == {"2", "4"}


def test_a_source_without_pairs_to_train_on_is_an_error() -> None:
    with pytest.raises(DataError, match=r"has no pairs to train on\. Lower data\.validation_fraction"):
        BatchPlan([unique_pairs(7)], [np.arange(0)], batch_size=2, seed=0)


def test_a_batch_of_one_pair_needs_hard_negatives(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"batch_size is 1, and 3 pairs .*nothing to contrast"):
        plan_of(unique_pairs(3), batch_size=1)
    with pytest.raises(ConfigError, match=r"batch_size is 1, and 1 pairs "):
        plan_of(Pairs([(0, 1, [2]), (3, 4, [])]), batch_size=1)
    store = store_of(tmp_path, [("a", "b", ["c"]), ("d", "e", ["f"])])
    assert BatchPlan([store], [np.arange(2)], batch_size=1, seed=0).steps_per_epoch == 2


@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
def test_the_parts_of_the_ranks_are_the_batch(world_size: int) -> None:
    rows = np.random.default_rng(0).permutation(6)
    parts = [rows_of_rank(rows, rank, world_size) for rank in range(world_size)]
    assert np.concatenate(parts).tolist() == rows.tolist()
    assert {len(part) for part in parts} == {6 // world_size}


@pytest.mark.parametrize(("batch_size", "world_size", "nearest"), [(10, 4, 8), (11, 4, 12), (1, 4, 4)])
def test_a_batch_that_cannot_be_shared_out_is_an_error(batch_size: int, world_size: int, nearest: int) -> None:
    with pytest.raises(
        ConfigError, match=f"among {world_size} processes.*multiple of {world_size}, for example {nearest}"
    ):
        rows_of_rank(np.arange(batch_size), 0, world_size)


def test_a_million_pairs_are_planned_in_seconds() -> None:
    store = unique_pairs(2)
    num_pairs = 1_000_000
    store.queries_N = np.random.default_rng(0).integers(0, 10 * num_pairs, num_pairs)  # one in ten comes again
    store.positives_N = np.arange(num_pairs) + 10 * num_pairs
    store.negatives_K, store.negative_offsets = np.arange(0), np.zeros(num_pairs + 1, dtype=np.int64)
    begin = time.process_time()
    BatchPlan([store], [np.arange(num_pairs)], batch_size=1024, seed=0).batch(0)
    assert time.process_time() - begin < 15
