"""Laws, replicates and backbones as the page's script needs them to answer as `embedlab recipe` does.

The script computes what `recipe` computes; a test opens the page and compares the two. Arrays that losses depend on
keep all their digits.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np

from embedlab.scaling.fitting import Fit
from embedlab.scaling.laws import Law, Multiplicative, Repeated
from embedlab.scaling.method_laws import FARTHEST, MethodLaw
from embedlab.scaling.observations import Observation
from embedlab.scaling.recipe import (
    INDISTINGUISHABLE,
    MOST_EPOCHS,
    by_size,
    suite_of,
    tokens_per_pair,
)


def page_laws(laws: Sequence[MethodLaw]) -> dict[str, Any]:
    """All that a recipe depends on but the budget and the constraints."""
    suite = suite_of(laws)
    rates: dict[tuple[tuple[float, float, float], ...], int] = {}
    methods = [_method(law, suite, rates) for law in laws]
    return {
        "suite": [[backbone, parameters] for backbone, parameters in suite],
        "methods": methods,
        "rates": [[list(column) for column in zip(*rows, strict=True)] for rows in rates],
        "tokensPerPair": tokens_per_pair(laws),
        "farthest": FARTHEST,
        "mostEpochs": MOST_EPOCHS,
        "indistinguishable": INDISTINGUISHABLE,
    }


def is_product(law: Law) -> bool:
    """Whether size and data are multiplied; else each has a term of its own."""
    return isinstance(law.law if isinstance(law, Repeated) else law, Multiplicative)


def _method(
    law: MethodLaw, suite: Sequence[tuple[str, float]], rates: dict[tuple[tuple[float, float, float], ...], int]
) -> dict[str, Any]:
    sizes_C = np.array([parameters for _, parameters in suite])
    ratios = [row.tokens / row.parameters for row in law.observations]
    of_sizes = [
        [row for row in law.observations if row.seconds],
        [row for row in law.observations if row.memory_bytes],
    ]
    speeds = [by_size(of_sizes[0], size, _speed) if of_sizes[0] else None for size in sizes_C]
    memory: dict[str, float] = {}
    for row in of_sizes[1]:
        memory[row.backbone] = max(memory.get(row.backbone, 0.0), row.memory_bytes or 0.0)
    rows_of_rates = [_rates(law, backbone, parameters) for backbone, parameters in suite]
    return {
        "name": law.method,
        "isProduct": is_product(law.fit.law),
        "names": list(law.fit.names),
        "estimate": _encoded(_numbers(law.fit)),
        "replicates": _encoded(np.stack([_numbers(one) for one in law.replicates.fits_R])),
        "spread": law.replicates.spread,
        "errors": _encoded(law.errors(len(law.replicates.fits_R))),
        "largestFlops": law.largest_flops,
        "ratio": [min(ratios), max(ratios)],
        "price": law.flops_per_token(sizes_C).tolist(),
        "speed": speeds,
        "memory": [memory.get(backbone) for backbone, _ in suite],
        "rates": [rates.setdefault(rows, len(rates)) if rows else None for rows in rows_of_rates],
    }


def _speed(row: Observation) -> float | None:
    return row.flops / row.seconds if row.seconds else None


def _numbers(fit: Fit) -> np.ndarray:
    return np.array([fit.parameters[name] for name in fit.names])


def _encoded(values: np.ndarray) -> str:
    """Doubles, little-endian, in base 64: half as long as their digits would be, and exact."""
    return base64.b64encode(np.ascontiguousarray(values, dtype="<f8").tobytes()).decode("ascii")


def _rates(law: MethodLaw, backbone: str, parameters: float) -> tuple[tuple[float, float, float], ...]:
    """FLOPs, loss and learning rate of the runs that a backbone may have its rate from."""
    nearest = min(
        law.observations, key=lambda row: (row.backbone != backbone, abs(np.log(row.parameters) - np.log(parameters)))
    )
    rows = sorted(
        (row for row in law.observations if row.parameters == nearest.parameters and row.learning_rate is not None),
        key=lambda row: row.backbone != backbone,
    )
    return tuple((row.flops, row.loss, row.learning_rate) for row in rows if row.learning_rate is not None)
