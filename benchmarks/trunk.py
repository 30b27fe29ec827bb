"""Whether a run that branches off a trunk ends where a run of its own does, and what the shared trunk saves.

    OMP_NUM_THREADS=1 python benchmarks/trunk.py

For each seed trains, under benchmarks/trunk.yaml, at five budgets x2 apart: one trunk with a warm-up-stable-decay
schedule and branches off it; runs from the start with the same schedule; and runs from the start with a cosine. Every
run from the start warms up over a tenth of its budget, the trunk over a tenth of the smallest one. One run from the
start warms up as the trunk does: it has to have the same bits as its branch. Needs ../shared; a finished run is not
repeated, and a stopped one goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from embedlab.cli.commands import main as embedlab
from embedlab.records import FILE, RunRecord, read_record

RESULTS = Path(__file__).parent / "results"
WORK = Path("runs/trunk")
BUDGETS = tuple(5e10 * 2**number for number in range(5))
SEEDS = (0, 1, 2)
DECAY, WARMUP = 0.2, 0.1
SETS = ("arxiv", "wikipedia")
ARMS = ("branch", "from the start", "cosine")
EXACT, EXACT_AT = "from the start, warm-up of the trunk", BUDGETS[1:3]  # at the first they are the same


def words(method: str, seed: int, arm: str, budget: float) -> list[str]:
    """The command of a run; a branch goes on from its trunk, which is the branch of the largest budget."""
    output = folder(method, seed, arm, budget)
    config = {"full": "full", "LoRA": "lora"}[method]
    found = ["fit", "--config", f"configs/fit/{config}.yaml", "--config", "benchmarks/trunk.yaml"]
    found += ["--seed_everything", str(seed), "--budget", f"{budget:g}", "--output", str(output)]
    warmup = WARMUP
    if arm in ("branch", EXACT):
        warmup *= BUDGETS[0] / (BUDGETS[-1] if arm == "branch" else budget)
    schedule = "WarmupCosine" if arm == "cosine" else "WarmupStableDecay"
    found += ["--model.schedule", schedule, "--model.schedule.warmup", str(warmup)]
    if arm != "cosine":
        found += ["--model.schedule.decay", str(DECAY)]
    is_trunk = arm == "branch" and budget == BUDGETS[-1]
    if is_trunk:
        found += ["--branch.budgets", json.dumps(BUDGETS[:-1])]
    if (output / "checkpoints" / "last.ckpt").exists():
        found += ["--ckpt_path", "last"]
    elif arm == "branch" and not is_trunk:
        trunk = folder(method, seed, arm, BUDGETS[-1])
        found += ["--ckpt_path", str(trunk / "checkpoints" / f"branch-{budget:g}.ckpt")]
    return found


def folder(method: str, seed: int, arm: str, budget: float) -> Path:
    return WORK / method / f"seed-{seed}" / arm.replace(", ", "-").replace(" ", "_") / f"{budget:g}"


def run(method: str, seed: int, arm: str, budget: float) -> None:
    if not (folder(method, seed, arm, budget) / FILE).exists():
        command = words(method, seed, arm, budget)
        print("embedlab", *command, flush=True)
        embedlab(command)


def loss(record: RunRecord) -> float:
    """On held-out pairs of both sources, in nats."""
    return float(np.mean([record.metrics[f"validation/{name}/loss"] for name in SETS]))


def difference(left: Sequence[float], right: Sequence[float]) -> dict[str, float]:
    """The mean over seeds of left - right, and its standard error."""
    values = np.subtract(left, right)
    return {"mean": float(values.mean()), "standard_error": float(values.std(ddof=1) / len(values) ** 0.5)}


def same_bits(left: Path, right: Path) -> bool:
    one, other = (torch.load(at / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for at in (left, right))
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def train(method: str, seeds: Sequence[int]) -> None:
    """The trunks and their branches first, then small budgets before large ones: stopped early, some rows are whole."""
    for seed in seeds:
        for budget in reversed(BUDGETS):
            run(method, seed, "branch", budget)
    for budget in BUDGETS:
        for seed in seeds:
            run(method, seed, "from the start", budget)
            run(method, seed, "cosine", budget)
        if budget in EXACT_AT:
            run(method, seeds[0], EXACT, budget)


def is_finished(method: str, seeds: Sequence[int], budget: float) -> bool:
    return all((folder(method, seed, arm, budget) / FILE).exists() for seed in seeds for arm in ARMS)


def measured(method: str, seeds: Sequence[int]) -> dict[str, Any]:
    budgets = [budget for budget in BUDGETS if is_finished(method, seeds, budget)]
    records = {
        seed: {
            arm: {budget: read_record(folder(method, seed, arm, budget) / FILE) for budget in budgets} for arm in ARMS
        }
        for seed in seeds
    }
    rows = []
    for budget in budgets:
        losses = {arm: [loss(records[seed][arm][budget]) for seed in seeds] for arm in ARMS}
        first = records[seeds[0]]
        rows.append(
            {
                "budget": budget,
                "steps": first["branch"][budget].pairs // first["branch"][budget].batch_size,
                "losses": losses,
                "seed_noise": float(np.std(losses["from the start"], ddof=1)),
                "branch - from the start": difference(losses["branch"], losses["from the start"]),
                "branch - cosine": difference(losses["branch"], losses["cosine"]),
                "from the start - cosine": difference(losses["from the start"], losses["cosine"]),
            }
        )
    ratios = []
    if len(budgets) == len(BUDGETS):
        for of_seed in records.values():
            added = sum(record.flops_added for record in of_seed["branch"].values())
            ratios.append(added / sum(record.flops_algorithmic for record in of_seed["from the start"].values()))
    pooled = {
        name: difference(
            *([np.mean([row["losses"][arm][at] for row in rows]) for at in range(len(seeds))] for arm in arms)
        )
        for name, arms in {
            "branch - from the start": ("branch", "from the start"),
            "branch - cosine": ("branch", "cosine"),
        }.items()
    }
    return {
        "seeds": list(seeds),
        "rows": rows,
        "mean_over_budgets": pooled,
        "flops_of_trunk_and_branches_over_runs_from_the_start": ratios,
        "same_bits_as_a_run_that_warms_up_as_the_trunk": {
            f"{budget:g}": same_bits(
                folder(method, seeds[0], "branch", budget), folder(method, seeds[0], EXACT, budget)
            )
            for budget in EXACT_AT
            if (folder(method, seeds[0], EXACT, budget) / FILE).exists()
        },
        "seconds": sum(one.seconds for by_arm in records.values() for of in by_arm.values() for one in of.values()),
    }


def table(method: str, result: dict[str, Any]) -> list[str]:
    def shown(value: dict[str, float]) -> str:
        return f"{value['mean']:+.4f} ± {value['standard_error']:.4f}"

    lines = [
        f"## {method}, seeds {', '.join(map(str, result['seeds']))}",
        "",
        "| budget | steps | branch | from the start | cosine | noise of a seed | branch - from the start "
        "| branch - cosine | from the start - cosine |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        means = " | ".join(f"{np.mean(row['losses'][arm]):.4f}" for arm in ARMS)
        names = ("branch - from the start", "branch - cosine", "from the start - cosine")
        lines.append(
            f"| {row['budget']:.0e} | {row['steps']} | {means} | {row['seed_noise']:.4f} | "
            + " | ".join(shown(row[name]) for name in names)
            + " |"
        )
    pooled = result["mean_over_budgets"]
    ratios = result["flops_of_trunk_and_branches_over_runs_from_the_start"]
    bits = result["same_bits_as_a_run_that_warms_up_as_the_trunk"]
    return [
        *lines,
        "",
        "Mean over the budgets: " + "; ".join(f"{name} {shown(value)}" for name, value in pooled.items()) + ".",
        "",
        f"FLOPs of trunk and branches over those of the runs from the start: {', '.join(f'{r:.4f}' for r in ratios)}.",
        "",
        "Same bits as a run from the start that warms up over as many FLOPs as the trunk: "
        + "; ".join(f"{budget}: {'yes' if same else 'NO'}" for budget, same in bits.items())
        + ".",
        "",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=("full", "LoRA"), default=["full"])
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--finished", action="store_true", help="train nothing: the table of what is there")
    options = parser.parse_args()
    for method in () if options.finished else options.methods:
        train(method, options.seeds)
    results = {method: measured(method, options.seeds) for method in options.methods}
    lines = [
        "# Branches off one trunk, against runs from the start",
        "",
        f"Loss in nats on held-out arXiv and Wikipedia pairs (mean of both), {datetime.now(UTC).date().isoformat()}, "
        f"{platform.machine()}, {os.environ.get('OMP_NUM_THREADS', os.cpu_count())} CPU thread(s). A mean is over "
        "seeds, with its standard error; the noise of a seed is the standard deviation of runs from the start. "
        f"`{' '.join(['python', *sys.argv])}`",
        "",
        *(line for method, result in results.items() for line in table(method, result)),
    ]
    print("\n".join(lines))
    RESULTS.joinpath("trunk.md").write_text("\n".join(lines))
    written = {
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": f"{platform.machine()}, {os.environ.get('OMP_NUM_THREADS', os.cpu_count())} CPU threads",
        "versions": {name: version(name) for name in ("embedlab", "torch", "transformers", "lightning", "peft")},
        "command": " ".join(["python", *sys.argv]),
        "commands_of_the_first_seed": {
            method: [" ".join(["embedlab", *_anew(method, arm, budget)]) for arm in ARMS for budget in BUDGETS]
            for method in options.methods
        },
        "methods": results,
    }
    (RESULTS / "trunk.json").write_text(json.dumps(written, indent=1) + "\n")


def _anew(method: str, arm: str, budget: float) -> list[str]:
    return [word for word in words(method, SEEDS[0], arm, budget) if word not in ("--ckpt_path", "last")]


if __name__ == "__main__":
    main()
