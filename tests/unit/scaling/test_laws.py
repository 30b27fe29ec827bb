"""Each law predicts what its formula says, with its gradient."""

from __future__ import annotations

import numpy as np
import pytest

from embedlab.scaling.laws import Bounded, Chinchilla, Law, Multiplicative, Points, Rectified, Repeated

LAWS = [
    Chinchilla(),
    Chinchilla(tied=True),
    Multiplicative(),
    Rectified(),
    Rectified(one_model=True),
    Repeated(Chinchilla()),
    Repeated(Rectified()),
    Bounded(Chinchilla(), 20.0),
    Bounded(Repeated(Rectified()), 20.0),
]
IDS = ["chinchilla", "tied", "multiplicative", "rectified", "one model", "repeated", "repeated rectified"]
IDS += ["bounded", "bounded repeated"]
CENTRE_N, CENTRE_D = 2.0, 5.0


def some_points(num_points: int = 12) -> Points:
    generator = np.random.default_rng(0)
    n_P, d_P = generator.normal(size=(2, num_points))
    return Points(n_P, d_P, generator.uniform(0, 4, num_points))


def some_shapes(law: Law) -> np.ndarray:
    return np.random.default_rng(1).uniform(0.2, 0.9, len(law.shapes))


@pytest.mark.parametrize("law", LAWS, ids=IDS)
def test_the_gradients_are_those_of_the_terms(law: Law) -> None:
    points, shape_S, step = some_points(), some_shapes(law), 1e-6
    terms = law.terms(shape_S, points)
    assert terms.log_TP.shape == (len(law.coefficients), 12)
    for number in range(len(shape_S)):
        moved = shape_S + step * np.eye(len(shape_S))[number]
        back = shape_S - step * np.eye(len(shape_S))[number]
        numeric_TP = (law.terms(moved, points).log_TP - law.terms(back, points).log_TP) / (2 * step)
        np.testing.assert_allclose(terms.by_shape_TSP[:, number], numeric_TP, atol=1e-8)

    def at(offset: float) -> np.ndarray:  # more tokens, the unique ones staying as they are
        more = Points(points.log_parameters_P, points.log_tokens_P + offset, points.log_epochs_P + offset)
        return law.terms(shape_S, more).log_TP

    np.testing.assert_allclose(terms.by_tokens_TP, (at(step) - at(-step)) / (2 * step), atol=1e-8)


@pytest.mark.parametrize("law", LAWS, ids=IDS)
def test_the_gradients_are_those_of_the_log_loss(law: Law) -> None:
    points, step = some_points(), 1e-6
    theta_K = np.concatenate([np.random.default_rng(2).normal(size=len(law.coefficients)), some_shapes(law)])
    log_loss_P, jacobian_KP = law.log_loss(theta_K, points)
    moved_KR = theta_K[:, None] + step * np.eye(len(theta_K))
    back_KR = theta_K[:, None] - step * np.eye(len(theta_K))
    many = points.repeated(len(theta_K))
    numeric_KP = (law.log_loss(moved_KR, many)[0] - law.log_loss(back_KR, many)[0]) / (2 * step)
    np.testing.assert_allclose(jacobian_KP, numeric_KP, atol=1e-8)
    _, jacobian_KRP = law.log_loss(np.stack([theta_K, theta_K], axis=1), points.repeated(2))
    np.testing.assert_allclose(jacobian_KRP[:, 1], jacobian_KP, rtol=1e-12)
    assert log_loss_P.shape == (12,)


def formula(law: Law, p: dict[str, float], n: np.ndarray, d: np.ndarray, passes: np.ndarray) -> np.ndarray:
    """As the papers write them, in natural units."""
    if isinstance(law, Repeated):
        unique = d / passes
        worth = unique + unique * p["R"] * (1 - np.exp(-(passes - 1) / p["R"]))
        return formula(law.law, p, n, worth, passes)
    if isinstance(law, Bounded):
        h = formula(law.law, {**p, "E": 0.0}, n, d, passes)
        return p["E"] + (law.chance - p["E"]) * h / (1 + h)
    if isinstance(law, Multiplicative):
        return p["E"] + p["A"] / (n ** p["alpha"] * d ** p["beta"])
    if isinstance(law, Rectified):
        of_data = p["B"] / (p["D_0"] + d ** p["beta"])
        return p["E"] + of_data + (0 if law.one_model else p["A"] / n ** p["alpha"])
    return p["E"] + p["A"] / n ** p["alpha"] + p["B"] / d ** p.get("beta", p["alpha"])


@pytest.mark.parametrize("law", LAWS, ids=IDS)
def test_the_loss_is_that_of_the_formula_in_natural_units(law: Law) -> None:
    points, shape_S = some_points(), some_shapes(law)
    values = {name: 0.5 + number for number, name in enumerate(law.coefficients)}
    theta_K = np.concatenate([np.log(list(values.values())), shape_S])
    centered = np.exp(law.log_loss(theta_K, points)[0])
    shapes = {s.name: np.exp(v) if s.is_log else v for s, v in zip(law.shapes, shape_S, strict=True)}
    parameters = law.uncentered(values, shapes, CENTRE_N, CENTRE_D)
    assert set(parameters) == {*law.coefficients, *shapes}
    n, d = np.exp(points.log_parameters_P + CENTRE_N), np.exp(points.log_tokens_P + CENTRE_D)
    np.testing.assert_allclose(centered, formula(law, parameters, n, d, np.exp(points.log_epochs_P)), rtol=1e-12)


def test_data_seen_once_are_worth_what_they_are_and_many_passes_are_worth_a_limit() -> None:
    law, tokens = Repeated(Chinchilla()), np.zeros(3)
    shape_S = np.array([0.3, 0.4, np.log(4.0)])
    once = law.terms(shape_S, Points(tokens, tokens, np.zeros(3)))
    np.testing.assert_array_equal(once.log_TP, law.law.terms(shape_S[:-1], Points(tokens, tokens, tokens)).log_TP)
    passes = np.log([1e3, 1e4, 1e5])
    often = law.terms(shape_S, Points(tokens, passes, passes))  # one unique token
    np.testing.assert_allclose(often.log_TP[2], -0.4 * np.log(1 + 4.0), rtol=1e-6)


def test_a_bounded_law_lies_between_its_constant_and_the_loss_of_a_guess() -> None:
    law, points = Bounded(Chinchilla(), 5.0), Points(np.zeros(3), np.array([-200.0, 0.0, 200.0]), np.zeros(3))
    loss_P = np.exp(law.log_loss(np.array([np.log(0.5), -30.0, 0.0, 0.3, 0.4]), points)[0])
    np.testing.assert_allclose(loss_P, [5.0, 2.75, 0.5], rtol=1e-6)


def test_a_fit_starts_near_losses_that_a_bounded_law_made() -> None:
    law, points = Bounded(Chinchilla(), 5.0), some_points(30)
    theta_K = np.array([np.log(0.5), np.log(0.4), np.log(0.8), 0.3, 0.4])
    loss_P = np.exp(law.log_loss(theta_K, points)[0])
    found_T = law.coefficients_near(theta_K[3:], points, loss_P, 0.5)
    np.testing.assert_allclose(found_T, np.exp(theta_K[:3]), rtol=1e-6)
