"""What each method learns from real pairs, from a small pre-trained backbone and from random weights.

    OMP_NUM_THREADS=1 python benchmarks/real_text.py

Trains with configs/fit/*.yaml under benchmarks/real_text.yaml: for each method the learning rate of three whose short
run has the lowest loss on held-out Wikipedia pairs, then one run at that rate; as a control, full fine-tuning from
random weights, its rate chosen alike. Measures on held-out arXiv titles and abstracts, SQuAD dev questions and
paragraphs, and STS-B dev, none of which chose anything. Needs ../shared; a finished run is not repeated.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
SHARED = Path("../shared/data")
WORK = Path("runs/real_text")
RATES = (1e-3, 3e-3, 1e-2)
PROBE_STEPS = 20
CONTROL = "full, random weights"
ARMS: dict[str, list[str]] = {
    "full": [],
    "block_freezing": [],
    "bias": [],
    "lora": [],
    CONTROL: ["--model.backbone.random_weights", "true"],
}
CHOSEN_BY = "validation/wikipedia/loss"
COLUMNS = {
    "arXiv MRR@10": "validation/arxiv/mrr@10",
    "arXiv recall@10": "validation/arxiv/recall@10",
    "SQuAD MRR@10": "validation/squad/mrr@10",
    "SQuAD recall@10": "validation/squad/recall@10",
    "STS-B Spearman": "validation/stsb/spearman",
}


def rows_of(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def prepare(folder: Path) -> None:
    """Wikipedia pairs without the articles of SQuAD, and SQuAD in the three files of BEIR."""
    folder.mkdir(parents=True, exist_ok=True)
    paragraphs = rows_of(SHARED / "eval/squad_dev/squad11_paragraphs.jsonl.gz")
    questions = rows_of(SHARED / "eval/squad_dev/squad11_questions.jsonl.gz")
    titles = {row["title"] for row in paragraphs}
    pairs = rows_of(SHARED / "pairs/wikipedia_2015_pairs/pairs.jsonl.gz")
    kept = [row for row in pairs if row["title"] not in titles]
    print(f"{len(pairs) - len(kept)} of {len(pairs)} Wikipedia pairs are from articles of SQuAD and left out.")
    with gzip.open(folder / "wikipedia.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in kept)
    with (folder / "corpus.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in paragraphs)
    with (folder / "queries.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"_id": row["_id"], "text": row["question"]}) + "\n" for row in questions)
    with (folder / "qrels.tsv").open("w", encoding="utf-8") as file:
        file.write("query-id\tcorpus-id\tscore\n")
        file.writelines(f"{row['_id']}\t{row['para_id']}\t1\n" for row in questions)


def command(arm: str, rate: float, output: Path) -> list[str]:
    config = arm.split(",")[0]
    words = ["embedlab", "fit", "--config", f"configs/fit/{config}.yaml", "--config", "benchmarks/real_text.yaml"]
    return [*words, *ARMS[arm], "--model.optimizer.learning_rate", str(rate), "--output", str(output)]


def folder_of(arm: str) -> str:
    return arm.replace(", ", "-").replace(" ", "_")


def run(words: list[str], output: Path, finished: Path) -> None:
    if finished.exists():
        return
    print(" ".join(words), flush=True)
    again = ["--ckpt_path", "last"] if (output / "checkpoints" / "last.ckpt").exists() else []
    subprocess.run([sys.executable, "-m", *words, *again], check=True)


def probe(arm: str, rate: float) -> float:
    """The held-out loss after a short run."""
    output = WORK / "probes" / f"{folder_of(arm)}-{rate}"
    words = [*command(arm, rate, output), "--trainer.max_steps", str(PROBE_STEPS), "--data.sts", "[]"]
    words += ["--data.retrieval", "[]", "--trainer.num_sanity_val_steps", "0"]
    result = output / "probe.json"
    run(words, output, result)
    if not result.exists():
        saved = torch.load(output / "checkpoints" / "last.ckpt", weights_only=True)
        result.write_text(json.dumps(saved["evaluation"], indent=2))
    loss: float = json.loads(result.read_text())[CHOSEN_BY]
    return loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", choices=ARMS, help="only train these, and print no table")
    only = parser.parse_args().arms
    if not (WORK / "data" / "qrels.tsv").exists():
        prepare(WORK / "data")
    rows: dict[str, dict[str, float]] = {}
    chosen: dict[str, Any] = {}
    commands = []
    for arm in only or ARMS:
        losses = {rate: probe(arm, rate) for rate in RATES}
        rate = min(losses, key=lambda rate: losses[rate])
        chosen[arm] = {"learning_rate": rate, "probes": losses}
        output = WORK / f"{folder_of(arm)}-{rate}"
        words = [*command(arm, rate, output), "--trainer.callbacks.class_path", "ComparisonTable"]
        commands.append(" ".join(words))
        run(words, output, output / "results.json")
        result = json.loads((output / "results.json").read_text())
        rows[f"{arm}, before"] = result["backbone before training"]
        rows[arm] = result["after training"]
        if arm == "full":
            rows["BM25"] = result["BM25"]
    if only:
        return
    result = {
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": f"{platform.machine()}, {os.environ.get('OMP_NUM_THREADS', os.cpu_count())} CPU threads",
        "versions": {name: version(name) for name in ("embedlab", "torch", "transformers", "lightning", "peft")},
        "commands": commands,
        "chosen_by": f"{CHOSEN_BY} after {PROBE_STEPS} steps",
        "learning_rates": chosen,
        "rows": {name: {metric: row[metric] for metric in row if "/" in metric} for name, row in rows.items()},
    }
    (RESULTS / "real_text.json").write_text(json.dumps(result, indent=2) + "\n")
    shown = {"before": rows["full, before"], **{name: rows[name] for name in ("BM25", *ARMS)}}
    lines = ["| | learning rate | " + " | ".join(COLUMNS) + " |", "|---|---|" + "---|" * len(COLUMNS)]
    for name, row in shown.items():
        rate = f"{chosen[name]['learning_rate']:g}" if name in chosen else ""
        cells = [f"{row[metric]:.3f}" if metric in row else "–" for metric in COLUMNS.values()]
        lines.append(f"| {name} | {rate} | " + " | ".join(cells) + " |")
    (RESULTS / "real_text.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
