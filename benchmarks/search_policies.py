"""How good a model each search policy finds for a share of the whole grid's cost, on tables of finished fine-tunings.

    python benchmarks/search_policies.py

Replays ../shared/runs/rectified_ft (30 pre-trained models fine-tuned on 14 amounts of data, on three data sets: Lin et
al. 2024, arXiv:2402.02314). A policy sees a loss when it has paid for it: 6 N D FLOPs, each run anew. The regret is how
much higher the chosen model's loss at the full amount of data is than that of the best model, as a share of it. Each
policy with 20 seeds, on all models and, since most policies leave little to chance, on 20 random halves of them.
"""

from __future__ import annotations

import inspect
import json
import platform
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from embedlab.scaling.tables import Columns, read_table
from embedlab.search.loop import search
from embedlab.search.policies.extrapolated_halving import ExtrapolatedHalving
from embedlab.search.policies.isoflop_grid import IsoFlopGrid
from embedlab.search.policies.policy import History, Policy
from embedlab.search.policies.random_search import RandomSearch
from embedlab.search.policies.rising_budgets import RisingBudgets
from embedlab.search.policies.successive_halving import SuccessiveHalving
from embedlab.search.simulation import RunTable, TrialSimulator, run_table

RESULTS = Path(__file__).parent / "results"
TABLES = ("flan", "gigaword", "wmt19")
SHARES = (0.01, 0.02, 0.04, 0.05, 0.1, 0.2, 1.0)
SEEDS = 20
POLICIES: list[type[Policy]] = [ExtrapolatedHalving, SuccessiveHalving, RisingBudgets, RandomSearch, IsoFlopGrid]


def made(policy: type[Policy], seed: int) -> Policy:
    make: Callable[..., Policy] = policy
    return make(seed=seed) if "seed" in inspect.signature(policy).parameters else make()


def regret(policy: Policy, table: RunTable, share: float) -> float:
    budget = share * table.space.price(table.space.trials)
    found = search(policy, TrialSimulator(table, budget), History(table.space), budget)
    return table.regret(policy.choose(found))


def summary(values: list[float]) -> dict[str, float]:
    return {"mean": float(np.mean(values)), "worst": float(np.max(values))}


def main() -> None:
    regrets: dict[str, Any] = {}
    for name in TABLES:
        columns = Columns(parameters="size", tokens="columns", backbone="config name", family="config name")
        table = run_table(read_table(Path(f"../shared/runs/rectified_ft/{name}.csv"), columns))
        candidates = table.space.candidates
        halves = [
            table.only({candidates[n] for n in np.random.default_rng(seed).choice(len(candidates), 15, replace=False)})
            for seed in range(SEEDS)
        ]
        for policy in POLICIES:
            for share in SHARES:
                whole = [regret(made(policy, seed), table, share) for seed in range(SEEDS)]
                half = [regret(made(policy, seed), part, share) for seed, part in enumerate(halves)]
                found = regrets.setdefault(policy.__name__, {}).setdefault(name, {})
                found[f"{share:g}"] = {"all models": summary(whole), "halves of them": summary(half)}
            print(name, policy.__name__, {s: round(v["all models"]["mean"], 4) for s, v in found.items()}, flush=True)
    result = {
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": platform.machine(),
        "versions": {name: version(name) for name in ("embedlab", "numpy", "scipy")},
        "command": "python benchmarks/search_policies.py",
        "seeds": SEEDS,
        "regret": regrets,
    }
    (RESULTS / "search_policies.json").write_text(json.dumps(result, indent=1) + "\n")
    heads = [f"{share:.0%}" for share in SHARES]
    lines = ["| policy | table | " + " | ".join(heads) + " |", "|---|---|" + "---|" * len(heads)]
    for policy_name, tables in regrets.items():
        for name, by_share in tables.items():
            cells = [f"{v['all models']['mean']:.1%} / {v['halves of them']['mean']:.1%}" for v in by_share.values()]
            lines.append(f"| {policy_name} | {name} | " + " | ".join(cells) + " |")
    (RESULTS / "search_policies.md").write_text(
        "Mean regret over 20 seeds on all 30 models / over 20 random halves of them, by share of the grid's cost "
        "(`python benchmarks/search_policies.py`).\n\n" + "\n".join(lines) + "\n"
    )
    figure, axes = plt.subplots(1, len(TABLES), figsize=(11, 3.6), sharey=True, layout="constrained")
    for axis, name in zip(axes, TABLES, strict=True):
        for policy_name, tables in regrets.items():
            means = [100 * value["halves of them"]["mean"] for value in tables[name].values()]
            axis.plot([100 * share for share in SHARES], means, marker="o", markersize=3, label=policy_name)
        axis.set(title=name, xscale="log", xlabel="share of the grid's cost, %")
        axis.set_yscale("symlog", linthresh=1)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("mean regret, %")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(POLICIES), frameon=False)
    figure.savefig(RESULTS / "search_policies.png", dpi=90)


if __name__ == "__main__":
    main()
