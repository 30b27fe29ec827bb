"""One irreducible loss for all methods is found where there is one, and known better than by each method alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from embedlab.scaling.laws import Chinchilla
from embedlab.scaling.members import Member
from embedlab.scaling.method_laws import MethodLaw, law_of
from embedlab.scaling.observations import Observation, by_method
from embedlab.scaling.shared_constant import share_irreducible_loss
from helpers.two_methods import runs

TRUTH = {
    "full": {"E": 0.35, "A": 60.0, "B": 400.0, "alpha": 0.35, "beta": 0.35},
    "lora": {"E": 0.35, "A": 60.0, "B": 3000.0, "alpha": 0.35, "beta": 0.42},
}


def rows(noise: float) -> list[Observation]:
    generator = np.random.default_rng(1)
    made = []
    for row in runs():
        t = TRUTH[row.method]
        loss = t["E"] + t["A"] / row.parameters ** t["alpha"] + t["B"] / row.tokens ** t["beta"]
        made.append(replace(row, loss=loss * float(np.exp(noise * generator.standard_normal()))))
    return made


def alone(observations: list[Observation], num_replicates: int) -> list[MethodLaw]:
    """One law a method, of the formula that the losses follow."""
    simple = [Member(Chinchilla(), is_near_best=False, has_worths=False)]
    return [
        law_of(method, its, members=simple, num_replicates=num_replicates, seed=seed)
        for seed, (method, its) in enumerate(by_method(observations).items())
    ]


def both(noise: float, num_replicates: int) -> tuple[list[MethodLaw], list[MethodLaw]]:
    """Alone, and shared."""
    laws = alone(rows(noise), num_replicates)
    return laws, share_irreducible_loss(laws, num_replicates=num_replicates)


def test_without_noise_every_parameter_is_recovered() -> None:
    _, shared = both(0.0, 3)
    for law in shared:
        found = {name: law.fit.parameters[name] for name in TRUTH[law.method]}
        assert found == pytest.approx(TRUTH[law.method], rel=1e-4)
        assert law.fit.num_starts == law.fit.num_in_basin == 2, "from the E of each method alone"


def test_all_methods_have_one_constant_that_is_known_better() -> None:
    separate, shared = both(0.01, 60)
    assert shared[0].fit.parameters["E"] == pytest.approx(shared[1].fit.parameters["E"])
    for one, other in zip(shared[0].replicates.fits_R, shared[1].replicates.fits_R, strict=True):
        assert one.theta_K[0] == other.theta_K[0]
    widths = [np.diff(np.log(law.replicates.parameter("E")))[0] for law in (*separate, *shared)]
    assert max(widths[2:]) < min(widths[:2])
    low, high = shared[0].replicates.parameter("E")
    assert low < 0.35 < high
    assert sum(law.fit.objective for law in shared) >= sum(law.fit.objective for law in separate) * (1 - 1e-9)


def test_the_hold_outs_are_those_of_the_shared_law() -> None:
    other = [replace(row, loss=row.loss + (0.3 if row.method == "lora" else 0.0)) for row in rows(0.0)]
    wrongly = share_irreducible_loss(alone(other, 3), num_replicates=3)
    _, rightly = both(0.0, 3)
    assert [len(law.held_out_error) for law in wrongly] == [3, 3]
    for wrong, right in zip(wrongly, rightly, strict=True):
        assert wrong.choices[0].shares_irreducible_loss and not wrong.choices[1].shares_irreducible_loss
        assert wrong.choices[0].error > 10 * wrong.choices[1].error, "these methods do not end at one E"
        assert max(right.held_out_error) < 1e-4 < wrong.choices[0].error
        assert wrong.hold_outs == wrong.choices[0].hold_outs and wrong.choices[0].weight == 1
