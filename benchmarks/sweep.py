"""What a sweep says: the best method at each budget, and whether its laws come true.

    OMP_NUM_THREADS=1 embedlab search --config benchmarks/sweep.yaml --confirm 4e12
    OMP_NUM_THREADS=1 python benchmarks/sweep.py sweep
    OMP_NUM_THREADS=1 python benchmarks/sweep.py smollm2 --predict 6.4e13

The first trains, on two cores in about an hour, and trains the recipe for the largest budget, which it makes from runs
of the smaller ones alone. The second fits each method's law without the largest budget, compares it with the runs
there, and writes benchmarks/results/sweep.{parquet,json,md,png}. The third writes down what the runs of smaller budgets
say of every backbone and method at a larger one, in benchmarks/results/smollm2_prediction_6.4e+13.json, which no later
call changes; the second compares it with the runs, once they are there.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from embedlab.errors import ConfigError
from embedlab.files import require_new
from embedlab.records import Ledger
from embedlab.scaling.crossover import crossovers
from embedlab.scaling.method_laws import MethodLaw, laws_of
from embedlab.scaling.observations import Observation, by_method, of_records, runs_of, with_best_learning_rates
from embedlab.scaling.recipe import recipe
from embedlab.search.confirmation import confirmations

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
    if not rows:
        return []
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


def read(runs: Path) -> list[Observation]:
    """The runs of a sweep that laws are fitted to."""
    ledger = Ledger([runs / "trials"])
    folders = [path.parent for path in ledger.paths()]
    return [row for row in with_best_learning_rates(of_records(ledger.records(), folders)) if row.left_out is None]


def about(command: str) -> dict[str, Any]:
    """When, where, by which versions and by which command something was measured."""
    names = ("embedlab", "torch", "transformers", "lightning", "peft")
    revision = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    return {
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "hardware": f"{platform.machine()}, CPU workers of one thread",
        "versions": {name: version(name) for name in names} | {"git": revision},
        "command": command,
    }


def predict(name: str, budget: float) -> None:
    """Write down what runs of smaller budgets say of a budget."""
    path = RESULTS / f"{name}_prediction_{budget:g}.json"
    require_new(path)
    rows = [row for row in read(Path("runs") / name) if row.flops * SAME_BUDGET < budget]
    laws, refused = laws_of(by_method(rows))
    answer = recipe(laws, budget)
    said = {
        **about(f"OMP_NUM_THREADS=1 python benchmarks/sweep.py {name} --predict {budget:g}"),
        "budget": budget,
        "runs": len(rows),
        "largest_run": max(row.flops for row in rows),
        "methods_without_a_law": refused,
        "method_probability": answer.method_probability,
        "configurations": [
            {
                "method": one.method,
                "backbone": Path(one.backbone).name,
                "loss": one.loss,
                "interval_80": one.interval_80,
                "interval_95": one.interval_95,
                "probability_best": one.probability_best,
            }
            for one in answer.configurations
        ],
    }
    path.write_text(json.dumps(said, indent=1) + "\n")
    print(path)


def outcome(path: Path, methods: dict[str, list[Observation]]) -> list[str]:
    """A prediction that was written down, beside the runs of its budget that have ended since."""
    said = json.loads(path.read_text())
    lines = [
        "",
        f"Predicted for {said['budget']:g} FLOPs on {said['date']} from {said['runs']} runs of at most "
        f"{said['largest_run']:.3g} FLOPs ({path.name}):",
        "",
        "| method | backbone | P(best) | predicted | 80 % | 95 % | measured | off |",
        "|---|---|---|---|---|---|---|---|",
    ]
    inside = {"interval_80": 0, "interval_95": 0}
    trained = 0
    for one in said["configurations"]:
        losses = [
            row.loss for row in at(methods.get(one["method"], []), said["budget"]) if name_of(row) == one["backbone"]
        ]
        ranges = [f"{low:.3f} to {high:.3f}" for low, high in (one["interval_80"], one["interval_95"])]
        measured, off = "not trained", ""
        if losses:
            measured, off = f"{min(losses):.3f}", f"{min(losses) / one['loss'] - 1:+.1%}"
            trained += 1
            for key in inside:
                inside[key] += one[key][0] <= min(losses) <= one[key][1]
        lines.append(
            f"| {short(one['method'])} | {one['backbone']} | {one['probability_best']:.0%} | {one['loss']:.3f} | "
            f"{' | '.join(ranges)} | {measured} | {off} |"
        )
    lines += [
        "",
        f"Of {trained} runs {inside['interval_80']} lie in the 80 % interval, {inside['interval_95']} in that of 95 %.",
    ]
    return lines


def picture(path: Path, methods: dict[str, list[Observation]], predictions: Sequence[Path]) -> None:
    """The best loss of each method at each budget, and what was predicted before it was measured."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    colors = {}
    for method, rows in methods.items():
        budgets = budgets_of(rows)
        losses = [min(row.loss for row in at(rows, budget)) for budget in budgets]
        (line,) = axes.loglog(budgets, losses, marker="o", label=short(method))
        colors[method] = line.get_color()
    for said in (json.loads(one.read_text()) for one in predictions):
        seen: set[str] = set()
        for one in said["configurations"]:  # the lowest predicted loss of a method comes first
            if one["method"] in seen or one["method"] not in colors:
                continue
            at_x = said["budget"] * (0.91 + 0.06 * len(seen))
            low, high = one["interval_80"]
            axes.errorbar(
                [at_x], [one["loss"]], [[one["loss"] - low], [high - one["loss"]]], color=colors[one["method"]],
                marker="D", fillstyle="none", capsize=3, alpha=0.8,
            )  # fmt: skip
            seen.add(one["method"])
    axes.set(xlabel="training FLOPs", ylabel="loss on held-out pairs")
    axes.yaxis.set_major_formatter("{x:.3g}")
    axes.yaxis.set_minor_formatter("{x:.3g}")
    axes.legend(title="best run (filled), prediction with 80 % (open)")
    figure.savefig(path, dpi=150)


def short(method: str) -> str:
    """A method's name with its rank alone."""
    name, _, options = method.partition("(")
    rank = [word.strip(")") for word in options.split(", ") if word.startswith("rank=")]
    return name + "".join(f"({one})" for one in rank)


def in_short(words: str, methods: Iterable[str]) -> str:
    """Words with the methods' names cut."""
    for method in methods:
        words = words.replace(method, short(method))
    return words


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=["sweep", "smollm2"], help="sweep, whose runs are in runs/NAME")
    parser.add_argument("--predict", type=float, metavar="BUDGET", help="FLOPs to predict the losses of")
    options = parser.parse_args()
    if options.predict:
        try:
            predict(options.name, options.predict)
        except ConfigError as error:
            sys.exit(str(error))
        return
    runs, name = Path("runs") / options.name, options.name
    rows = read(runs)
    budgets = budgets_of(rows)
    methods = by_method(rows)
    export = ["runs", "export", "--runs", str(runs), "--format", "parquet", "--output"]
    (RESULTS / f"{name}.parquet").unlink(missing_ok=True)
    subprocess.run([sys.executable, "-m", "embedlab", *export, str(RESULTS / f"{name}.parquet")], check=True)

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
    made = [str(one) for one in confirmations(runs / "confirmation")]
    result = {
        **about(f"OMP_NUM_THREADS=1 python benchmarks/sweep.py {name}"),
        "losses": best,
        "held_out": predictions,
        "root_mean_square_error": {
            method: float(np.sqrt(np.mean(np.square(values)))) for method, values in errors.items() if values
        },
        "methods_without_a_law": refused,
        "confirmations": made,
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    lines = ["| budget | " + " | ".join(map(short, methods)) + " |", "|---|" + "---|" * len(methods)]
    for budget, of_budget in best.items():
        cells = []
        for losses in of_budget.values():
            cells.append(next((f"{loss:.3f} ({backbone})" for backbone, loss in losses.items()), ""))
        lines.append(f"| {budget} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "| method | backbone | predicted without that budget | 80 % | 95 % | measured |",
        "|---|---|---|---|---|---|",
    ]
    for one in predictions:
        ranges = [f"{low:.3f} to {high:.3f}" for low, high in (one["interval_80"], one["interval_95"])]
        lines.append(
            f"| {short(one['method'])} | {one['backbone']} | {one['predicted']:.3f} | {' | '.join(ranges)} | "
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
        f"Root-mean-square error of {short(method)}: {value:.2%}."
        for method, value in result["root_mean_square_error"].items()
    ]
    lines += [f"Without a law: {method}. {reason}" for method, reason in refused.items()]
    lines += ["", *made]
    of_all, _ = laws_of(methods)
    lines += ["", *(in_short(one.words, methods) for one in crossovers(of_all))]
    picture(RESULTS / f"{name}.png", methods, sorted(RESULTS.glob(f"{name}_prediction_*.json")))
    for path in sorted(RESULTS.glob(f"{name}_prediction_*.json")):
        lines += outcome(path, methods)
    (RESULTS / f"{name}.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
