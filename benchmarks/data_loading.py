"""How much padding a batch carries, and how long a step waits for its data.

    python benchmarks/data_loading.py

Trains full fine-tuning of the two smallest rungs of ../shared for some steps on arXiv titles and abstracts, 512 pairs
a batch, at two lengths, and reads the padding from the run's logs and the waiting from Lightning's profiler: the
median over steps of the time in which the training loop asks for its next batch, and of the whole step.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import tempfile
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lightning.pytorch.profilers import SimpleProfiler
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from embedlab.cli.commands import main as embedlab

RESULTS = Path(__file__).parent / "results"
STEPS = 15
CASES = [("r0", 75), ("r0", 512), ("r1", 75)]


class KeptProfiler(SimpleProfiler):
    """Keeps every duration where this script finds it again."""

    newest: KeptProfiler

    def __init__(self) -> None:
        super().__init__()
        KeptProfiler.newest = self

    def seconds(self, action: str) -> list[float]:
        (found,) = [durations for name, durations in self.recorded_durations.items() if name.endswith(action)]
        return found[2:]  # the first include starting the worker


def measure(rung: str, length: int, folder: Path) -> dict[str, Any]:
    config = {
        "output": str(folder / "run"),
        "model": {"backbone": {"path": f"../shared/ladder/{rung}"}, "method": "FullFineTuning"},
        "data": {
            "train": [
                {
                    "path": "../shared/data/pairs/arxiv_title_abstract/arxiv.jsonl.gz",
                    "query": "title",
                    "positive": "abstract",
                }
            ],
            "batch_size": 512,
            "max_length": length,
        },
        "trainer": {
            "max_steps": STEPS,
            "log_every_n_steps": 1,
            "accelerator": "cpu",
            "profiler": {"class_path": f"{__name__}.KeptProfiler"},
        },
    }
    path = folder / "config.json"
    path.write_text(json.dumps(config))
    embedlab(["fit", "--config", str(path)])
    events = EventAccumulator(str(folder / "run"))
    events.Reload()
    padding = [event.value for event in events.Scalars("train/padding")]
    waiting = statistics.median(KeptProfiler.newest.seconds("train_dataloader_next"))
    step = waiting + statistics.median(KeptProfiler.newest.seconds("run_training_batch"))
    return {
        "rung": rung,
        "max_length": length,
        "padded_over_real": {"mean": 1 + statistics.mean(padding), "largest": 1 + max(padding)},
        "seconds_waiting": waiting,
        "seconds_a_step": step,
        "waiting_share": waiting / step,
    }


def main() -> None:
    rows = []
    for rung, length in CASES:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(rung, length, Path(folder)))
    result = {
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": f"{os.cpu_count()} CPU cores, {platform.machine()}",
        "versions": {name: version(name) for name in ("embedlab", "torch", "transformers", "lightning")},
        "rows": rows,
    }
    (RESULTS / "data_loading.json").write_text(json.dumps(result, indent=2) + "\n")
    for row in rows:
        print(
            f"{row['rung']}, {row['max_length']} tokens: padded/real {row['padded_over_real']['mean']:.3f} "
            f"(largest {row['padded_over_real']['largest']:.3f}), waiting {1e3 * row['seconds_waiting']:.2f} ms of "
            f"{row['seconds_a_step']:.2f} s a step ({row['waiting_share']:.2%})"
        )


if __name__ == "__main__":
    main()
