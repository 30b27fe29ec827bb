"""Made runs of one method whose losses begin near that of random guessing."""

from __future__ import annotations

import math

import numpy as np

from embedlab.scaling.observations import Observation
from helpers.observations import observation

CHANCE = math.log(256)


def runs_near_chance() -> list[Observation]:
    """Contrastive losses among 256 candidates, which begin near the loss of a guess, with noise of 1 %."""
    generator = np.random.default_rng(0)
    rows = []
    for budget in np.geomspace(1e12, 2.56e14, 5):
        for size in np.geomspace(1e6, 1.6e7, 5):
            tokens = budget / (6 * size)
            h = 300 / size**0.4 + 1.5e5 / tokens**0.7
            noise = 0.01 * generator.standard_normal()
            loss = (0.3 + (CHANCE - 0.3) * h / (1 + h)) * math.exp(noise)
            rows.append(observation("lora", size, budget, tokens, loss, chance=CHANCE))
    return rows
