"""How often the intervals of best sizes and crossovers hold the truth, in simulated sweeps whose truth is known.

    OMP_NUM_THREADS=1 python benchmarks/intervals.py --sweeps 40 --json

The losses follow a law of Hoffmann et al. 2022 with noise of 0.5 %. The sweeps are:

    plain      36 runs at six budgets
    jitter     FLOPs that are 5 % off the planned budgets
    nominal    a table that states the planned FLOPs, while the data are 5 % off
    twice      half of the runs stand in the table twice
    families   three groups of four runs share most of their noise
    few        15 runs at three budgets
    crossover  two methods that change places inside the data

It prints how often the 80 % interval of the best size holds the truth, at the largest budget and a decade beyond; of
crossovers how often it holds the truth, how often it is finite, and how often the runs show the change. A sweep takes
some four seconds of a processor.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
from pathlib import Path

import numpy as np

from embedlab.scaling.crossover import crossovers
from embedlab.scaling.method_laws import MethodLaw, laws_of
from embedlab.scaling.observations import by_method
from embedlab.scaling.optimum import optimum
from embedlab.scaling.tables import Columns, read_table

SCENARIOS = ("plain", "jitter", "nominal", "twice", "families", "few", "crossover")
SIZES = np.geomspace(1e6, 2.56e8, 9)
QUICK = {"E": 0.40, "A": 60.0, "B": 400.0, "alpha": 0.35, "beta": 0.35}
PATIENT = {"E": 0.35, "A": 60.0, "B": 1500.0, "alpha": 0.35, "beta": 0.40}
NOISE, OFF, LARGEST, REPLICATES = 0.005, 0.05, 1e18, 200
COLUMNS = Columns(parameters="N", tokens="D", flops="C", method="method", family="family")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", type=int, default=200, help="number of simulated sweeps of each kind")
    parser.add_argument("--scenarios", nargs="+", default=SCENARIOS, choices=SCENARIOS, help="kinds of sweeps")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    options = parser.parse_args()
    result = {}
    for scenario in options.scenarios:
        found = [
            of_crossover(seed) if scenario == "crossover" else of_best_size(scenario, seed)
            for seed in range(options.sweeps)
        ]
        result[scenario] = {key: float(np.mean([one[key] for one in found])) for key in found[0]} | {
            "sweeps": len(found)
        }
        print(scenario, {key: round(value, 3) for key, value in result[scenario].items()}, flush=True)
    if options.json:
        print(json.dumps(result))


def loss(truth: dict[str, float], sizes: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    return np.asarray(truth["E"] + truth["A"] / sizes ** truth["alpha"] + truth["B"] / tokens ** truth["beta"])


def of_best_size(scenario: str, seed: int) -> dict[str, bool]:
    (law,) = fitted(scenario, [("quick", QUICK)], seed)
    found = {}
    for name, budget in (("largest", LARGEST), ("decade", 10 * LARGEST)):
        sizes = np.geomspace(1e5, 1e10, 200_001)
        best = sizes[loss(QUICK, sizes, budget / (6 * sizes)).argmin()]
        answer = optimum(law, budget)
        found[name] = answer is not None and bool(answer.parameters_80.low <= best <= answer.parameters_80.high)
    return found


def of_crossover(seed: int) -> dict[str, bool]:
    (found,) = crossovers(fitted("plain", [("quick", QUICK), ("patient", PATIENT)], seed))
    budgets = np.geomspace(1e15, 1e19, 40_001)
    quick, patient = (
        loss(truth, SIZES[:, None], budgets / (6 * SIZES[:, None])).min(axis=0) for truth in (QUICK, PATIENT)
    )
    truth = budgets[np.flatnonzero(quick < patient)[-1]]
    low, high = found.interval_80
    return {
        "holds": bool(low <= truth <= high),
        "finite": bool(low > 0 and np.isfinite(high)),
        "measured": bool(found.measured),
    }


def fitted(scenario: str, methods: list[tuple[str, dict[str, float]]], seed: int) -> list[MethodLaw]:
    """The laws of a simulated sweep, read from a table as anybody's would be."""
    generator = np.random.default_rng(seed)
    rows = [row for name, truth in methods for row in sweep(scenario, name, truth, generator)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "runs.csv"
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["N", "D", "C", "loss", "method", "family"])
            writer.writerows(rows)
        laws, _ = laws_of(by_method(read_table(path, COLUMNS)), num_replicates=REPLICATES)
    return laws


def sweep(
    scenario: str, method: str, truth: dict[str, float], generator: np.random.Generator
) -> list[tuple[float, float, float, float, str, str]]:
    """The runs of one method, at model sizes around the best size of each budget."""
    num_budgets, num_sizes = (3, 5) if scenario == "few" else (6, 6)
    sizes, budgets = [], []
    for budget in np.geomspace(LARGEST / (100 if scenario == "few" else 1000), LARGEST, num_budgets):
        best = int(loss(truth, SIZES, budget / (6 * SIZES)).argmin())
        first = min(max(0, best - 3), len(SIZES) - num_sizes)
        sizes += SIZES[first : first + num_sizes].tolist()
        budgets += [budget] * num_sizes
    sizes_P, flops_P = np.array(sizes), np.array(budgets)
    off_P = np.exp(OFF * generator.standard_normal(len(sizes_P))) if scenario in ("jitter", "nominal") else 1.0
    tokens_P = off_P * flops_P / (6 * sizes_P)
    flops_P = flops_P * off_P if scenario == "jitter" else flops_P
    noise_P = NOISE * generator.standard_normal(len(sizes_P))
    families = [f"{method} {number}" for number in range(len(sizes_P))]
    if scenario == "families":
        for group in generator.permutation(len(sizes_P))[:12].reshape(3, 4):
            noise_P[group] = 0.9**0.5 * NOISE * generator.standard_normal() + 0.1**0.5 * noise_P[group]
            for place in group:
                families[place] = f"{method} group {group[0]}"
    losses_P = loss(truth, sizes_P, tokens_P) * np.exp(noise_P)
    rows = list(
        zip(sizes, tokens_P.tolist(), flops_P.tolist(), losses_P.tolist(), [method] * len(sizes), families, strict=True)
    )
    return rows + rows[::2] if scenario == "twice" else rows


if __name__ == "__main__":
    main()
