"""How much of a search's time is not training, for trials of a minute.

    OMP_NUM_THREADS=1 python benchmarks/search_overhead.py

Trains trials of about a minute, one after another in one worker: a rung of the ladder by two methods from several
seeds, on the pairs of configs/search/quickstart.yaml. Counts as training what the records do: optimizer steps. All
else is overhead: loading the model and the data, watching what a step costs, evaluation, checkpoints, and what passes
between two trials.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import statistics
import time
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import yaml

from embedlab.search.folder import SearchFolder
from embedlab.search.jobs import Ended, JobRunner
from embedlab.search.launchers.local import LocalWorkers
from embedlab.search.loop import search
from embedlab.search.plan import SearchPlan
from embedlab.search.policies.isoflop_grid import IsoFlopGrid
from embedlab.search.policies.policy import History
from embedlab.search.preparation import combinations
from embedlab.search.probing import probe
from embedlab.search.space import Space, Trial
from embedlab.search.trials import Training

RESULTS = Path(__file__).parent / "results"
FOLDER = Path("runs/search_overhead")
SECONDS = 60.0
SEEDS = (0, 1, 2)


def main() -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)
    config = yaml.safe_load(Path("configs/search/quickstart.yaml").read_text())
    config["fit"]["trainer"]["max_epochs"] = 1000
    plan = SearchPlan(
        suite=("ladder:s1", "ladder:r0"), methods=("FullFineTuning", "LoRA"), budgets=(1e10,), fit=config["fit"]
    )
    folder = SearchFolder(FOLDER)
    begin = time.monotonic()
    with folder.locked(), LocalWorkers(1) as launcher:
        folder.take(plan.fixed({}), plan.fit_config(), accept_changes=False)
        started = time.monotonic()
        runner = JobRunner(launcher)
        probes = probe(combinations(plan), 1e10, folder.fit, folder.probes, runner).probes
        trials = []
        for one, found in probes.items():
            if not one.backbone.endswith("r0"):
                continue
            known = replace(one, parameters=found.parameters, flops_per_token=found.flops_per_token, learning_rate=3e-3)
            trials += [Trial(replace(known, seed=seed), SECONDS * found.flops_per_second) for seed in SEEDS]
        space = Space(trials)
        ended: list[Ended] = []
        world = Training(folder.fit, folder.trials, runner, space, on_end=lambda _, one: ended.append(one))
        first = time.monotonic()
        search(IsoFlopGrid(), world, History(space), space.price(space.trials))
        whole = time.monotonic() - first
    training = [one.record.seconds for one in ended if one.record is not None]
    around = [one.seconds or 0.0 for one in ended]
    result = {
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": f"{platform.machine()}, {os.environ.get('OMP_NUM_THREADS', os.cpu_count())} CPU threads",
        "versions": {name: version(name) for name in ("embedlab", "torch", "transformers", "lightning")},
        "command": "OMP_NUM_THREADS=1 python benchmarks/search_overhead.py",
        "trials": len(training),
        "seconds_of_training_each": [round(value, 2) for value in training],
        "seconds_of_training_median": round(statistics.median(training), 2),
        "overhead_share": round(1 - sum(training) / whole, 4),
        "of_it_in_trials": round((sum(around) - sum(training)) / whole, 4),
        "of_it_between_trials": round((whole - sum(around)) / whole, 4),
        "seconds_between_trials": round((whole - sum(around)) / len(training), 3),
        "seconds_to_start_a_worker": round(started - begin, 2),
    }
    (RESULTS / "search_overhead.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
