"""Tables of runs: published ones of ../shared, and made ones whose truth is known."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from embedlab.scaling.fitting import Runs
from embedlab.scaling.laws import Chinchilla, Law, Multiplicative, Rectified, Repeated
from helpers.paths import SHARED

PUBLISHED = SHARED / "runs"
needs_shared = pytest.mark.skipif(not PUBLISHED.is_dir(), reason="../shared is not here")


def table(name: str) -> list[dict[str, str]]:
    with (PUBLISHED / name).open() as file:
        return list(csv.DictReader(file))


def column(rows: list[dict[str, str]], name: str) -> np.ndarray:
    return np.array([float(row[name]) for row in rows])


def chinchilla_runs() -> Runs:
    """Without the five highest losses, as in Besiroglu et al. 2024."""
    rows = sorted(table("chinchilla_epoch/svg_extracted_data.csv"), key=lambda row: float(row["loss"]))[:-5]
    sizes = column(rows, "Model Size")
    return Runs(sizes, column(rows, "Training FLOP") / (6 * sizes), column(rows, "loss"))


TRUTHS: list[tuple[Law, dict[str, float]]] = [
    (Chinchilla(), {"E": 1.8, "A": 480.0, "B": 2100.0, "alpha": 0.35, "beta": 0.37}),
    (Chinchilla(tied=True), {"E": 1.8, "A": 180.0, "B": 300.0, "alpha": 0.28}),
    (Multiplicative(), {"E": 0.9, "A": 900.0, "alpha": 0.2, "beta": 0.15}),
    (Rectified(), {"E": 0.5, "A": 30.0, "B": 2000.0, "alpha": 0.3, "D_0": 900.0, "beta": 0.45}),
    (Rectified(one_model=True), {"E": 0.5, "B": 2000.0, "D_0": 900.0, "beta": 0.45}),
    (Repeated(Chinchilla()), {"E": 1.8, "A": 480.0, "B": 2100.0, "alpha": 0.35, "beta": 0.37, "R": 12.0}),
]


def made(law: Law, p: dict[str, float], noise: float = 0.0) -> Runs:
    """Runs of five sizes and eight amounts of data, of which a tenth of the last is unique."""
    sizes, tokens = (grid.ravel() for grid in np.meshgrid(np.geomspace(1e6, 1e8, 5), np.geomspace(1e6, 1e10, 8)))
    unique = np.minimum(tokens, 1e9) if isinstance(law, Repeated) else None
    worth = tokens
    if unique is not None:
        worth = unique * (1 + p["R"] * (1 - np.exp(-(tokens / unique - 1) / p["R"])))
    if isinstance(law, Multiplicative):
        losses = p["E"] + p["A"] / (sizes ** p["alpha"] * tokens ** p["beta"])
    else:
        losses = p["E"] + p["B"] / (p.get("D_0", 0.0) + worth ** p.get("beta", p.get("alpha", 0.0)))
        losses += p["A"] / sizes ** p["alpha"] if "A" in p else 0.0
    return Runs(sizes, tokens, losses * np.exp(noise * np.random.default_rng(0).standard_normal(len(sizes))), unique)
