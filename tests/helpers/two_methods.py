"""Made runs of two methods that change places as the budget grows."""

from __future__ import annotations

import numpy as np

from embedlab.scaling.observations import Observation
from helpers.observations import observation

SIZES = {"tiny": 1e6, "small": 4e6, "medium": 1.6e7, "large": 6.4e7, "huge": 2.56e8}
# Full fine-tuning learns quickly to an end, LoRA slowly to a lower one and for less a token.
PRICES = {"full": 6.0, "lora": 4.5}


def true_loss(method: str, parameters: float, tokens: float) -> float:
    if method == "full":
        return float(0.40 + 60 / parameters**0.35 + 400 / tokens**0.35)
    return float(0.30 + 60 / parameters**0.35 + 3000 / tokens**0.42)


def runs(noise: float = 0.003) -> list[Observation]:
    generator = np.random.default_rng(0)
    return [
        observation(
            method,
            parameters,
            flops,
            tokens := flops / (PRICES[method] * parameters),
            true_loss(method, parameters, tokens) * float(np.exp(noise * generator.standard_normal())),
            backbone=backbone,
            learning_rate=1e-3 if backbone in ("tiny", "small") else 3e-4,
            pairs=tokens / 80,
            seconds=flops / 1e13,
            memory_bytes=4 * 2**30 * parameters / 1e8,
        )
        for method in PRICES
        for backbone, parameters in SIZES.items()
        for flops in np.geomspace(1e13, 1e18, 7)
    ]
