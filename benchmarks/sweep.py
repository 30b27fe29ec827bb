"""What the sweep of benchmarks/sweep.yaml says: the best method at each budget, and whether its laws come true.

    OMP_NUM_THREADS=1 embedlab search --config benchmarks/sweep.yaml --confirm 4e12
    python benchmarks/sweep.py

The first trains, on two cores in about an hour, and trains the recipe for the largest budget, which it makes from runs
of the smaller ones alone. The second fits each method's law without the largest budget, compares it with the runs
there, and writes benchmarks/results/sweep.{parquet,json,md}.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from embedlab.records import Ledger
from embedlab.scaling.method_laws import MethodLaw, laws_of
from embedlab.scaling.observations import Observation, by_method, of_records, runs_of, with_best_learning_rates
from embedlab.search.confirmation import confirmations

RUNS = Path("runs/sweep")
RESULTS = Path(__file__).parent / "results"
SAME_BUDGET = 1.3


def budgets_of(rows: Sequence[Observation]) -> list[float]:
    """Rising; a run overshoots its budget by less than a step."""
    found: list[float] = []
    for flops in sorted(row.flops for row in rows):
        if not found or flops > SAME_BUDGET * found[-1]:
            found.append(flops)
    return found


def at(rows: Sequence[Observation], budget: float) -> list[Observation]:
    return [row for row in rows if budget <= row.flops <= SAME_BUDGET * budget]


def name_of(row: Observation) -> str:
    return Path(row.backbone).name


def held_out(law: MethodLaw, rows: Sequence[Observation]) -> list[dict[str, Any]]:
    """What a law said of runs that it was not fitted to."""
    predicted_C, log_RC = law.log_losses(runs_of(rows).configurations)
    found = []
    for number, row in enumerate(rows):
        low80, high80, low95, high95 = np.exp(np.quantile(log_RC[:, number], [0.1, 0.9, 0.025, 0.975]))
        found.append(
            {
                "method": law.method,
                "backbone": name_of(row),
                "flops": row.flops,
                "predicted": float(np.exp(predicted_C[number])),
                "interval_80": [float(low80), float(high80)],
                "interval_95": [float(low95), float(high95)],
                "measured": row.loss,
            }
        )
    return found


def main() -> None:
    ledger = Ledger([RUNS / "trials"])
    folders = [path.parent for path in ledger.paths()]
    rows = [row for row in with_best_learning_rates(of_records(ledger.records(), folders)) if row.left_out is None]
    budgets = budgets_of(rows)
    methods = by_method(rows)
    export = ["runs", "export", "--runs", str(RUNS / "trials"), "--format", "parquet", "--output"]
    (RESULTS / "sweep.parquet").unlink(missing_ok=True)
    subprocess.run([sys.executable, "-m", "embedlab", *export, str(RESULTS / "sweep.parquet")], check=True)

    best = {
        f"{budget:.3g}": {
            method: {name_of(row): row.loss for row in sorted(at(of_it, budget), key=lambda row: row.loss)}
            for method, of_it in methods.items()
        }
        for budget in budgets
    }
    smaller = {method: [row for row in of_it if row.flops < budgets[-1]] for method, of_it in methods.items()}
    laws, refused = laws_of(smaller)
    predictions = [said for law in laws for said in held_out(law, at(methods[law.method], budgets[-1]))]
    errors = {
        law.method: [np.log(one["predicted"] / one["measured"]) for one in predictions if one["method"] == law.method]
        for law in laws
    }
    made = [str(one) for one in confirmations(RUNS / "confirmation")]
    result = {
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": f"{platform.machine()}, 2 CPU workers of one thread",
        "versions": {name: version(name) for name in ("embedlab", "torch", "transformers", "lightning", "peft")},
        "commands": [line.strip() for line in (__doc__ or "").splitlines() if line.startswith("    ")],
        "losses": best,
        "held_out": predictions,
        "root_mean_square_error": {
            method: float(np.sqrt(np.mean(np.square(values)))) for method, values in errors.items()
        },
        "methods_without_a_law": refused,
        "confirmations": made,
    }
    (RESULTS / "sweep.json").write_text(json.dumps(result, indent=1) + "\n")
    lines = ["| budget | " + " | ".join(methods) + " |", "|---|" + "---|" * len(methods)]
    for budget, of_budget in best.items():
        cells = []
        for losses in of_budget.values():
            (backbone, loss), *_ = losses.items()
            cells.append(f"{loss:.3f} ({backbone})")
        lines.append(f"| {budget} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "| method | backbone | predicted without that budget | 80 % | 95 % | measured |",
        "|---|---|---|---|---|---|",
    ]
    for one in predictions:
        ranges = [f"{low:.3f} to {high:.3f}" for low, high in (one["interval_80"], one["interval_95"])]
        lines.append(
            f"| {one['method']} | {one['backbone']} | {one['predicted']:.3f} | {' | '.join(ranges)} | "
            f"{one['measured']:.3f} |"
        )
    shares = [
        sum(one[key][0] <= one["measured"] <= one[key][1] for one in predictions)
        for key in ("interval_80", "interval_95")
    ]
    lines += [
        "",
        f"Of {len(predictions)} runs at the largest budget {shares[0]} lie in the 80 % interval, "
        f"{shares[1]} in that of 95 %.",
    ]
    lines += [
        f"Root-mean-square error of {method}: {value:.2%}."
        for method, value in result["root_mean_square_error"].items()
    ]
    lines += [f"Without a law: {method}. {reason}" for method, reason in refused.items()]
    lines += ["", *made]
    (RESULTS / "sweep.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
