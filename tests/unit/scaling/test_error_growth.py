"""Errors are as large as hold-outs show, grow with the distance from the runs, and are not those of one bad run."""

from __future__ import annotations

import numpy as np
import pytest

from embedlab.scaling.error_growth import error_growth, shared_error

DECADES = np.tile(np.linspace(0.1, 1.5, 40), 6)


def hold_outs(noise: float, per_decade: float, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    generator = np.random.default_rng(seed)
    scale = np.hypot(noise, per_decade * DECADES)
    return [(DECADES, scale * generator.standard_t(5, len(DECADES))) for _ in range(6)]


@pytest.mark.parametrize(("noise", "per_decade"), [(0.01, 0.001), (0.004, 0.02), (0.001, 0.05)])
def test_noise_and_growth_are_recovered(noise: float, per_decade: float) -> None:
    residuals = noise * np.random.default_rng(1).standard_normal(200)
    found = error_growth(residuals, hold_outs(noise, per_decade))
    assert found.is_measured and found.at(0.0) == found.at(-1.0) == found.noise
    for decades in (0.1, 0.5, 1.0):
        assert found.at(decades) == pytest.approx(np.hypot(noise, per_decade * decades), rel=0.3)


def test_one_bad_run_does_not_widen_everything() -> None:
    residuals = 0.004 * np.random.default_rng(1).standard_normal(200)
    one = hold_outs(0.004, 0.02)
    before = error_growth(residuals, one)
    for _, errors in one:
        errors[7] = 0.4
    after = error_growth(residuals, one)
    assert after.at(1.0) < 1.1 * before.at(1.0) and after.noise < 1.2 * before.noise


def test_more_hold_outs_make_the_tails_lighter_up_to_what_they_share() -> None:
    residuals, errors = np.full(10, 0.01), hold_outs(0.01, 0.01)
    degrees = [error_growth(residuals, errors[:count]).degrees for count in (0, 1, 3, 6)]
    assert degrees == sorted(degrees) and degrees[0] == degrees[1] == 3 and degrees[-1] < 8


def test_without_a_hold_out_the_errors_are_wide_and_said_to_be_unmeasured() -> None:
    found = error_growth(np.full(10, 0.01), [])
    assert not found.is_measured and found.noise > 0.02 and found.per_decade > 0.02


def test_errors_that_all_methods_have_are_shared_and_others_are_not() -> None:
    errors = {1: 0.02, 2: 0.05, 3: 0.04, 4: 0.1}
    alike = shared_error([errors, errors, {number: 1.1 * error for number, error in errors.items()}])
    assert 0.7 < alike < 0.8, "four hold-outs do not show that everything is shared"
    assert shared_error([errors, {number: -error for number, error in errors.items()}]) == 0
    assert shared_error([errors]) == shared_error([errors, {}]) == shared_error([{1: 0.0}, {1: 0.0}]) == 0
    assert shared_error([{1: 0.05}, {1: 0.05}]) == pytest.approx(0.5), "one hold-out shows even less"


def test_runs_that_a_fit_passes_through_say_nothing_of_the_noise() -> None:
    few = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.03, -0.02, 0.04, -0.03])
    assert error_growth(few, [], num_fitted=5).noise == pytest.approx(2 * 1.4826 * 0.03)
    many = 0.01 * np.random.default_rng(0).standard_normal(10_000)
    assert error_growth(many, [], num_fitted=5).noise == pytest.approx(error_growth(many, []).noise, rel=1e-2)
