"""Schedules begin, peak and end where they say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedlab.errors import ConfigError
from embedlab.training.schedule import Constant, Schedule, WarmupCosine, WarmupStableDecay

SCHEDULES = [
    WarmupCosine(),
    Constant(),
    Constant(warmup=0.2),
    WarmupStableDecay(),
    WarmupStableDecay(decay=0.0),
]


@pytest.mark.parametrize("schedule", SCHEDULES)
@given(progress=st.floats(0, 1))
def test_factor_stays_in_the_unit_interval(schedule: Schedule, progress: float) -> None:
    assert 0 <= schedule.factor(progress) <= 1


def test_cosine_warms_up_linearly_and_ends_at_its_final_value() -> None:
    schedule = WarmupCosine(warmup=0.1, final=0.05)
    assert schedule.factor(0.05) == pytest.approx(0.5)
    assert schedule.factor(0.1) == pytest.approx(1.0)
    assert schedule.factor(0.55) == pytest.approx(0.05 + 0.95 * 0.5)
    assert schedule.factor(1.0) == pytest.approx(0.05)


def test_progress_past_the_end_keeps_the_final_value() -> None:
    assert WarmupCosine(final=0.1).factor(1.5) == pytest.approx(0.1)
    assert WarmupStableDecay(final=0.1).factor(1.5) == pytest.approx(0.1)


def test_warmup_stable_decay_holds_the_peak_until_the_decay() -> None:
    schedule = WarmupStableDecay(warmup=0.1, decay=0.2)
    assert [schedule.factor(p) for p in (0.1, 0.5, 0.8)] == pytest.approx([1.0, 1.0, 1.0])
    assert schedule.factor(0.85) == pytest.approx(0.5)
    assert schedule.factor(1.0) == pytest.approx(0.0)


@pytest.mark.parametrize("make", [WarmupCosine, Constant, WarmupStableDecay])
@pytest.mark.parametrize("warmup", [-0.1, 1.0, 1.5])
def test_a_warmup_that_is_no_share_is_refused(make: type[Schedule], warmup: float) -> None:
    with pytest.raises(ConfigError, match=r"schedule\.warmup is a share.*got"):
        make(warmup=warmup)  # type: ignore[call-arg]


def test_warmup_and_decay_that_overlap_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"0\.6 \+ 0\.5 > 1"):
        WarmupStableDecay(warmup=0.6, decay=0.5)


@pytest.mark.parametrize("make", [WarmupCosine, WarmupStableDecay])
@pytest.mark.parametrize("final", [-2.0, -1e-9, 1.5, float("nan"), float("inf")])
def test_an_end_outside_the_unit_interval_is_refused(make: type[WarmupCosine], final: float) -> None:
    with pytest.raises(ConfigError, match=r"schedule\.final .*got"):
        make(final=final)
