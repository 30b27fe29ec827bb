"""From a few measurements follows what a text of any length costs, also where the cost has steps."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedlab.flops.lengths import costs_by_length, fitted

COST = st.integers(0, 10**12)


def errors(cost: Callable[[int], int], max_length: int) -> tuple[np.ndarray, int]:
    """Relative error at every length from 1 to the longest, and the number of measurements."""
    measured = set()

    def measure(length: int) -> int:
        measured.add(length)
        return cost(length)

    found = costs_by_length(measure, max_length)
    lengths = np.arange(1, max_length + 1)
    expected = np.array([cost(int(length)) for length in lengths], dtype=np.float64)
    return np.interp(lengths, list(found), list(found.values())) / expected - 1, len(measured)


def test_three_points_give_their_polynomial_in_whole_numbers() -> None:
    found = fitted({length: 5 + 7 * length + 3 * length**2 for length in (3, 5, 8)})
    assert found == (5, 7, 3) and all(isinstance(number, int) for number in found)


@given(
    block=st.integers(1, 300),
    prompt=st.integers(0, 40),
    max_length=st.integers(9, 2048),
    per_token=st.integers(1, 10**12),
    others=st.tuples(COST, COST, COST, COST),
)
def test_blocks_of_any_size_are_found_in_few_measurements(
    block: int, prompt: int, max_length: int, per_token: int, others: tuple[int, int, int, int]
) -> None:
    per_text, per_block_token, per_pair, per_pair_of_blocks = others

    def cost(length: int) -> int:
        blocks = -(-(length + prompt) // block)
        padded = blocks * block
        linear = per_text + per_token * (length + prompt) + per_block_token * padded
        return linear + per_pair * length**2 + per_pair_of_blocks * blocks * (blocks + 1)

    wrong, measurements = errors(cost, max_length)
    assert np.abs(wrong[1:]).max() < 0.005
    assert measurements <= 64 + 40


@pytest.mark.parametrize("window", [4, 10, 64, 100, 1024])
def test_a_window_after_which_the_cost_is_linear_is_found(window: int) -> None:
    def cost(length: int) -> int:
        inside = min(length, window)
        return 1000 * length + inside**2 + 2 * (length - inside) * window

    wrong, measurements = errors(cost, 512)
    assert np.abs(wrong[1:]).max() < 0.005 and measurements <= 60


def test_steps_that_do_not_repeat_are_measured_where_they_are() -> None:
    def cost(length: int) -> int:
        return 100 * length + 10_000 * (length > 20) + 9_000 * (length > 50) + 20_000 * (length > 67)

    wrong, measurements = errors(cost, 128)
    assert np.abs(wrong).max() < 0.005 and measurements <= 100


def test_a_long_text_of_small_blocks_needs_no_long_measurements() -> None:
    measured = []

    def measure(length: int) -> int:
        measured.append(length)
        return 10**6 * length + 10**5 * (-(-length // 64) * 64)

    costs_by_length(measure, 8192)
    assert sum(length > 256 for length in set(measured)) <= 3
    assert len(set(measured)) <= 40
