"""The arithmetic of costs: sums over lengths, the paper's convention."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedlab.flops import FlopProfile, FlopsByLength, WeightsByPass

COST = FlopsByLength(per_token=7, per_squared_token=3, per_text=11, per_call=13)


@given(lengths=st.lists(st.integers(1, 5000), max_size=20), calls=st.integers(0, 9))
def test_a_cost_is_the_sum_over_its_texts(lengths: list[int], calls: int) -> None:
    expected = sum(7 * length + 3 * length**2 + 11 for length in lengths) + 13 * calls
    assert COST.of(np.array(lengths, dtype=np.int32), calls=calls) == expected


@given(num_texts=st.integers(1, 9), length=st.integers(1, 5000))
def test_a_chunk_costs_what_its_texts_cost_at_its_width(num_texts: int, length: int) -> None:
    assert COST.of_chunk(num_texts, length) == COST.of(np.full(num_texts, length))


def test_large_batches_of_large_models_are_counted_without_rounding() -> None:
    cost = FlopsByLength(per_token=6 * 70_000_000_000 + 1)
    assert cost.of(np.full(1_000_000, 512)) == (6 * 70_000_000_000 + 1) * 512_000_000


def test_a_measured_cost_is_interpolated_and_goes_on_in_proportion() -> None:
    cost = FlopsByLength(measured=((2, 10.0), (4, 30.0)))
    assert [cost.of(np.array([length])) for length in (2, 3, 4, 8)] == [10, 20, 30, 60]
    assert cost.of_chunk(3, 3) == 60


def profile(**changes: object) -> FlopProfile:
    passes = {
        "backbone": WeightsByPass(100, 90, 80),
        "added": WeightsByPass(10, 9, 10),
        "embeddings": WeightsByPass(),
        "head": WeightsByPass(),
        "elementwise": WeightsByPass(5, 4, 3),
    }
    sizes = {"parameters": 200, "embedding_parameters": 60, "added_parameters": 30, "trainable_parameters": 40}
    return FlopProfile(**{**sizes, **passes, "attention": FlopsByLength(per_squared_token=2), **changes})  # type: ignore[arg-type]


def test_the_algorithmic_count_is_two_for_each_weight_and_pass_and_attention() -> None:
    lengths = np.array([3, 4])
    without = 2 * (110 + 99 + 90) * 7
    assert profile().algorithmic(lengths, attention=False) == without
    assert profile().algorithmic(lengths) == without + 2 * (9 + 16)


def test_the_papers_convention_leaves_out_tables_and_attention_and_counts_norms_and_biases() -> None:
    assert profile(head=WeightsByPass(7, 7, 7)).paper_flops_per_token() == 2 * (115 + 103 + 93)


def test_the_backbones_parameters_are_without_tables_and_adapters() -> None:
    assert profile().nonembedding_parameters == 200 - 60 - 30


@pytest.mark.parametrize(
    "attention", [FlopsByLength(per_squared_token=2), FlopsByLength(measured=((3, 10.0), (8, 30.5)))]
)
def test_a_profile_goes_through_json_as_it_is(attention: FlopsByLength) -> None:
    written = profile(attention=attention)
    assert FlopProfile.from_dict(json.loads(json.dumps(asdict(written)))) == written
    assert FlopProfile.from_dict(asdict(written)) == written


def test_planning_needs_no_torch() -> None:
    program = "import sys, embedlab.flops; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
