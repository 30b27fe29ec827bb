"""What the quickstart learns: its curves as a picture and its table as JSON, read from a finished run's folder.

    embedlab fit --config configs/quickstart.yaml --output runs/control --trainer.callbacks.class_path ComparisonTable \
        --trainer.callbacks.init_args.random_weights true
    python benchmarks/quickstart.py runs/control
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import matplotlib.pyplot as plt
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

RESULTS = Path(__file__).parent / "results"
CONTROL, AFTER, BM25 = "same training from random weights", "after training", "BM25"
METRIC = "validation/python-stdlib/mrr@10"


def curve(run: Path, tag: str) -> tuple[list[int], list[float]]:
    events = EventAccumulator(str(run))
    events.Reload()
    points = events.Scalars(tag)
    return [point.step for point in points], [point.value for point in points]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished quickstart run")
    run: Path = parser.parse_args().run
    rows = json.loads((run / "results.json").read_text())

    figure, (loss, retrieval) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for folder, label, color in ((run, "pre-trained", "C0"), (run / "random-weights", "random weights", "C1")):
        if folder.is_dir():
            loss.plot(*curve(folder, "train/loss"), color=color, label=label)
            retrieval.plot(*curve(folder, METRIC), color=color, marker="o", label=label)
    retrieval.axhline(rows[BM25][METRIC], color="grey", linestyle="--", label="BM25")
    loss.set(xlabel="step", ylabel="training loss", ylim=(0, None))
    retrieval.set(xlabel="step", ylabel="MRR@10, held-out modules", ylim=(0, None))
    for axes in (loss, retrieval):
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    figure.savefig(RESULTS / "quickstart.png", dpi=110)

    result = {
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": f"{os.cpu_count()} CPU cores, {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("embedlab", "torch", "transformers", "lightning")},
        "command": " ".join(__doc__.split("\n\n")[1].split()).replace("\\ ", ""),
        "rows": rows,
    }
    (RESULTS / "quickstart.json").write_text(json.dumps(result, indent=2) + "\n")
    print({name: round(row[METRIC], 4) for name, row in rows.items()})


if __name__ == "__main__":
    main()
