"""Whether predictions come true: hold-outs of tables of finished runs, one, two and three budgets and a decade out.

    OMP_NUM_THREADS=1 python benchmarks/calibration.py --json

For each table and method, and for each of its largest budget levels in turn, the runs of lower levels predict the runs
above: those one, two and three levels higher, and those of about ten times the FLOPs of the largest fitted run. The
table that is printed says how many losses lie in the 80 and 95 % intervals, how wide those of 80 % are, how good the
whole distribution is (continuous ranked probability score, CRPS, and interval score at 80 %), and how far off the
estimates are, for all runs and for the best run of a level. The baseline is the law of Hoffmann et al. 2022 fitted to
all runs, with intervals from a bootstrap of its residuals. Scores are of log loss, so 0.01 is about 1 %. Tables weigh
alike, whatever their numbers of runs.

By default the public tables of ../shared/runs are used. `--tables FILE` names others: a YAML list of mappings with a
`name`, a `path` (relative to the file) and the columns as in `embedlab recipe --columns` (a factor may follow, as in
`N_millions*1e6`). With `--json` the last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from embedlab.errors import ConfigError, EmbedLabError
from embedlab.scaling.fitting import Runs, fit
from embedlab.scaling.laws import Chinchilla
from embedlab.scaling.method_laws import law_of
from embedlab.scaling.observations import Observation, by_method, runs_of, with_best_learning_rates
from embedlab.scaling.tables import Columns, read_table

PUBLIC = Path(__file__).parent.parent.parent / "shared" / "runs"
_FINE_TUNING = {"parameters": "size", "tokens": "columns", "backbone": "config name"}
_OF_GADRE = {"parameters": "N", "tokens": "D", "flops": "flops", "method": "dataset_name", "backbone": "model_name"}
DEFAULT = [
    {
        "name": "chinchilla",
        "path": "chinchilla_epoch/svg_extracted_data.csv",
        "parameters": "Model Size",
        "flops": "Training FLOP",
        "drop_highest": 5,  # as in Besiroglu et al. 2024, arXiv:2404.10102
    },
    *(
        {"name": f"gadre {loss}", "path": "gadre/gadre_104_runs.csv", "loss": f"loss_{loss}", **_OF_GADRE}
        for loss in ("c4_val", "openlm", "paloma_c4_en")
    ),
    *(
        {"name": f"rectified {name}", "path": f"rectified_ft/{name}.csv", **_FINE_TUNING}
        for name in ("flan", "gigaword", "wmt19")
    ),
]
DISTANCES = ("1", "2", "3", "decade")
FEWEST_RUNS, FEWEST_LEVELS, MOST_CUTS = 12, 3, 8
DECADE = (10 / 1.5, 10 * 1.5)  # times the FLOPs of the largest fitted run
BASELINE_FITS, BASELINE_DRAWS = 100, 5

Prediction = Callable[[list[Observation]], np.ndarray]
"""Function that returns draws of the log loss of runs: (R, P)."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=Path, help="YAML list of tables, in place of the public ones")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    options = parser.parse_args()
    scores: dict[str, dict[str, dict[str, list[float]]]] = {}
    for name, rows in tables(options.tables):
        scores[name] = defaultdict(lambda: defaultdict(list))
        judge(rows, scores[name])
        for distance in DISTANCES:
            if distance in scores[name]:
                print(f"{name:42.42s} {distance:>6s}  {line(scores[name], distance)}", flush=True)
    result = {"all": overall(scores)}
    for distance, figures in result["all"].items():
        print(f"{'all':42s} {distance:>12s}  " + "  ".join(f"{key} {value:.3g}" for key, value in figures.items()))
    if options.json:
        print(json.dumps(result))


def tables(file: Path | None) -> Iterator[tuple[str, list[Observation]]]:
    """The runs of each table and method, by a name of both."""
    entries = DEFAULT if file is None else yaml.safe_load(file.read_text())
    known = {field.name for field in fields(Columns)}
    for entry in entries:
        unknown = entry.keys() - known - {"name", "path", "drop_highest"}
        if unknown:
            raise ConfigError(
                f"{entry['name']}: unknown keys {sorted(unknown)}. Expected name, path and {sorted(known)}."
            )
        columns = Columns(**{key: value for key, value in entry.items() if key in known})
        rows = read_table((PUBLIC if file is None else file.parent) / entry["path"], columns)
        for method, its in by_method(with_best_learning_rates(rows)).items():
            highest = sorted(its, key=lambda row: row.loss)
            kept = highest[: len(highest) - entry.get("drop_highest", 0)]
            yield f"{entry['name']} {method}" if columns.method else entry["name"], kept


def judge(rows: list[Observation], scores: dict[str, dict[str, list[float]]]) -> None:
    """Add the scores of all hold-outs of a method's runs, by distance."""
    levels = runs_of(rows).budget_P
    distinct = np.unique(levels)
    for cut in range(1, min(MOST_CUTS + 1, len(distinct) - FEWEST_LEVELS + 1)):
        fitted = [row for row, level in zip(rows, levels, strict=True) if level >= distinct[cut]]
        if len(fitted) < FEWEST_RUNS:
            break
        largest = max(row.flops for row in fitted)
        by_distance = {
            str(number): [row for row, level in zip(rows, levels, strict=True) if level == distinct[cut - number]]
            for number in (1, 2, 3)
            if cut >= number
        }
        by_distance["decade"] = [row for row in rows if DECADE[0] < row.flops / largest < DECADE[1]]
        try:
            predictions = {"": ours(fitted), "baseline ": baseline(fitted)}
        except EmbedLabError as error:
            print(f"a hold-out of {cut} levels is left out: {error}")
            continue
        for distance, held_out in by_distance.items():
            for whose, prediction in predictions.items():
                if held_out:
                    score(prediction(held_out), np.log([row.loss for row in held_out]), whose, scores[distance])


def ours(fitted: list[Observation]) -> Prediction:
    law = law_of("runs", fitted, num_replicates=3)  # predictions of single runs do not need the bootstrap

    def draws(rows: list[Observation]) -> np.ndarray:
        return law.log_losses(runs_of(rows).configurations)[1]

    return draws


def baseline(fitted: list[Observation]) -> Prediction:
    runs = runs_of(fitted)
    law = fit(Chinchilla(), runs)
    residual_P = -law.residuals(runs) * np.sqrt(len(runs) / max(1, len(runs) - len(law.theta_K)))
    predicted_P = np.log(law.loss(runs.parameters_P, runs.tokens_P))
    generator = np.random.default_rng(0)
    refits = [
        fit(
            Chinchilla(),
            Runs(runs.parameters_P, runs.tokens_P, np.exp(predicted_P + generator.choice(residual_P, len(runs)))),
            starts=[law.theta_K],
            tolerance=1e-8,
        )
        for _ in range(BASELINE_FITS)
    ]

    def draws(rows: list[Observation]) -> np.ndarray:
        sizes, tokens = (np.array([getattr(row, name) for row in rows]) for name in ("parameters", "tokens"))
        log_RC = np.repeat(np.log([one.loss(sizes, tokens) for one in refits]), BASELINE_DRAWS, axis=0)
        return np.asarray(log_RC + generator.choice(residual_P, log_RC.shape))

    return draws


def score(log_RC: np.ndarray, measured_C: np.ndarray, whose: str, into: dict[str, list[float]]) -> None:
    low80, high80, low95, high95 = np.quantile(log_RC, [0.1, 0.9, 0.025, 0.975], axis=0)
    estimate = np.median(log_RC, axis=0)
    missed = np.maximum(low80 - measured_C, 0) + np.maximum(measured_C - high80, 0)
    ranked = np.sort(log_RC, axis=0)
    count = len(ranked)
    apart = (2 * np.arange(1, count + 1) - count - 1) @ ranked / count**2
    into[f"{whose}crps"] += (np.abs(log_RC - measured_C).mean(axis=0) - apart).tolist()
    into[f"{whose}interval score"] += (high80 - low80 + 2 / 0.2 * missed).tolist()
    into[f"{whose}error"] += (estimate - measured_C).tolist()
    into[f"{whose}in80"] += ((low80 <= measured_C) & (measured_C <= high80)).tolist()
    into[f"{whose}in95"] += ((low95 <= measured_C) & (measured_C <= high95)).tolist()
    into[f"{whose}width"] += (high80 - low80).tolist()
    into[f"{whose}best error"].append(float(estimate.min() - measured_C.min()))


def line(scores: dict[str, dict[str, list[float]]], distance: str) -> str:
    of = scores[distance]
    mean = {key: float(np.mean(values)) for key, values in of.items()}
    best = np.array(of["best error"])
    crps, interval_score = (mean[key] / mean[f"baseline {key}"] for key in ("crps", "interval score"))
    return (
        f"{len(of['error']):4d} runs: in 80 % {mean['in80']:.2f}, in 95 % {mean['in95']:.2f}, "
        f"width {np.median(of['width']):.3f}, CRPS {mean['crps']:.4f} ({crps:.2f} of the baseline), "
        f"interval score {mean['interval score']:.3f} ({interval_score:.2f}), error {mean['error']:+.4f}, "
        f"absolute {np.abs(of['error']).mean():.4f}, best run {np.median(np.abs(best)):.4f}, "
        f"too high {np.mean(best > 0):.2f}"
    )


def overall(scores: dict[str, dict[str, dict[str, list[float]]]]) -> dict[str, dict[str, float]]:
    """Means over tables of the means over runs; of the best runs, the median over all hold-outs."""
    found: dict[str, dict[str, float]] = {}
    for distance in DISTANCES:
        of = [scores[name][distance] for name in scores if distance in scores[name]]
        if not of:
            continue

        def mean(key: str, of: Sequence[dict[str, list[float]]] = of) -> float:
            return float(np.mean([np.mean(one[key]) for one in of]))

        found[distance] = {
            "in80": mean("in80"),
            "in95": mean("in95"),
            "width": float(np.mean([np.median(one["width"]) for one in of])),
            "crps": mean("crps"),
            "crps_ratio": mean("crps") / mean("baseline crps"),
            "mean_of_crps_ratios": float(np.mean([np.mean(one["crps"]) / np.mean(one["baseline crps"]) for one in of])),
            "interval_score_ratio": mean("interval score") / mean("baseline interval score"),
            "error": mean("error"),
            "absolute_error": float(np.mean([np.abs(one["error"]).mean() for one in of])),
            "baseline_in80": mean("baseline in80"),
            "baseline_in95": mean("baseline in95"),
        }
    of_best: Any = [scores[name]["decade"]["best error"] for name in scores if "decade" in scores[name]]
    if of_best:
        errors = np.concatenate(of_best)
        found["best_decade"] = {
            "median_error": float(np.median(np.abs(errors))),
            "share_high": float(np.mean(errors > 0)),
            "hold_outs": len(errors),
        }
    return found


if __name__ == "__main__":
    main()
