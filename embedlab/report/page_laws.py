"""Prepares laws, random draws and backbones, so that the page can give the same answers as `embedlab recipe`.

The script of the page computes what ``recipe`` computes; a test opens the page and compares both answers. Arrays that
losses depend on keep all their digits.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np

from embedlab.scaling.fitting import Fit
from embedlab.scaling.laws import Bounded, Law, Multiplicative, Repeated
from embedlab.scaling.method_laws import FARTHEST, NUM_DRAWS, LawPart, MethodLaw
from embedlab.scaling.observations import Observation
from embedlab.scaling.recipe import (
    INDISTINGUISHABLE,
    MOST_EPOCHS,
    by_size,
    suite_of,
    tokens_per_pair,
)


def page_laws(laws: Sequence[MethodLaw]) -> dict[str, Any]:
    """Return everything that a recipe depends on, except the budget and the constraints.

    Args:
        laws: Laws of the methods, at least 1.
    """
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


def form_of(law: Law) -> dict[str, Any]:
    """Return what the page needs of the formula of a law, beside the names of its parameters.

    Args:
        law: Formula of the law.

    Returns:
        ``isProduct``: whether the law multiplies powers of size and data, instead of adding a term for each; and
        ``chance``: the loss of random guessing that bounds the law, None for a law without this bound.
    """
    chance = law.chance if isinstance(law, Bounded) else None
    while isinstance(law, Bounded | Repeated):
        law = law.law
    return {"isProduct": isinstance(law, Multiplicative), "chance": chance}


def _method(
    law: MethodLaw, suite: Sequence[tuple[str, float]], rates: dict[tuple[tuple[float, float, float], ...], int]
) -> dict[str, Any]:
    """Return what the page needs of one method.

    Args:
        law: Law of the method.
        suite: Name and number of parameters of each backbone.
        rates: Number of each table of learning rates that any method uses. New tables are added.
    """
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
    place = {backbone: number for number, (backbone, _) in enumerate(suite)}
    return {
        "name": law.method,
        "runs": [[place[row.backbone], row.flops, row.loss] for row in law.observations],
        "parts": [_part(part, [backbone for backbone, _ in suite]) for part in law.parts],
        "knowsRepetition": law.knows_repetition,
        "noise": law.growth.noise,
        "perDecade": law.growth.per_decade,
        "drawsOfLaw": _encoded(law.draws("", NUM_DRAWS)),
        "drawsOfRuns": [_encoded(law.draws(backbone, NUM_DRAWS)) for backbone, _ in suite],
        "largestFlops": law.largest_flops,
        "ratio": [min(ratios), max(ratios)],
        "price": law.token_costs.interpolated(sizes_C).tolist(),
        "speed": speeds,
        "memory": [memory.get(backbone) for backbone, _ in suite],
        "rates": [rates.setdefault(rows, len(rates)) if rows else None for rows in rows_of_rates],
    }


def _part(part: LawPart, backbones: Sequence[str]) -> dict[str, Any]:
    """Return what the page needs of one law of a method.

    Args:
        part: The law, with its share in the predictions.
        backbones: Names of the backbones of the suite.
    """
    at_one_token_C = part.worths.of(backbones, np.zeros(len(backbones)))
    at_e_tokens_C = part.worths.of(backbones, np.ones(len(backbones)))
    fit = part.replicates.fit
    return {
        "share": part.share,
        **form_of(fit.law),
        "names": list(fit.names),
        "estimate": _encoded(_numbers(fit)),
        "worths": _encoded(np.asarray(at_one_token_C)),
        "slopes": _encoded(np.asarray(at_e_tokens_C - at_one_token_C)),
    }


def _speed(row: Observation) -> float | None:
    """Return the training speed of a run in FLOP/s; None if the run states no duration."""
    return row.flops / row.seconds if row.seconds else None


def _numbers(fit: Fit) -> np.ndarray:
    """Return the parameters of a fit as an array, in the order of their names."""
    return np.array([fit.parameters[name] for name in fit.names])


def _encoded(values: np.ndarray) -> str:
    """Return an array as little-endian float64 in base 64, which is exact and half as long as decimal digits."""
    return base64.b64encode(np.ascontiguousarray(values, dtype="<f8").tobytes()).decode("ascii")


def _rates(law: MethodLaw, backbone: str, parameters: float) -> tuple[tuple[float, float, float], ...]:
    """Return FLOPs, loss and learning rate of the runs from which a backbone may get its learning rate.

    These are the runs of the method at the size of the backbone, or else at the nearest size. Runs on the backbone
    itself come first.

    Args:
        law: Law of the method.
        backbone: Name of the backbone.
        parameters: Number of parameters of the backbone (N).
    """
    nearest = min(
        law.observations, key=lambda row: (row.backbone != backbone, abs(np.log(row.parameters) - np.log(parameters)))
    )
    rows = sorted(
        (row for row in law.observations if row.parameters == nearest.parameters and row.learning_rate is not None),
        key=lambda row: row.backbone != backbone,
    )
    return tuple((row.flops, row.loss, row.learning_rate) for row in rows if row.learning_rate is not None)
