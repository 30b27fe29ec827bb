"""How far the count of FLOPs is from the constants of Ziarko et al. 2024 (arXiv:2406.04165), on the eight Pythias.

    python benchmarks/paper_convention.py

Their cost per token is 6 N for full fine-tuning, 2 N + 4 N_trainable for freezing, 4 N + 2 N_trainable for LoRA and
biases; N leaves tables out and, for LoRA, holds the adapters. Four percentages a method: embedlab's view of that
convention (a weight whose input needs no gradient costs no gradient of it); the matrix products alone (norms and biases
multiply nothing); those and attention at the paper's mean pair, 14 + 64 tokens; and 6 N for whatever is trained, as
Hugging Face's trainer counts. The table goes to results/paper_convention.md; the FLOPs behind it, with date, hardware
and versions, to the JSON beside that.
"""

from __future__ import annotations

import json
import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from embedlab.flops import FlopProfile
from embedlab.flops.estimate import Shape, flop_rows
from embedlab.method.registry import discover, method_class
from embedlab.model.backbone import BackboneConfig

RESULTS = Path(__file__).parent / "results"
PYTHIA = Path(__file__).parents[1] / "configs" / "pythia"
SIZES = ("14m", "31m", "70m", "160m", "410m", "1b", "1.4b", "2.8b")


def theirs(method: str, profile: FlopProfile) -> int:
    everything = profile.nonembedding_parameters + profile.added_parameters
    if method == "FullFineTuning":
        return 6 * everything
    if method == "BlockFreezing":
        return 2 * everything + 4 * profile.trainable_parameters
    return 4 * everything + 2 * profile.trainable_parameters


def main() -> None:
    shape = Shape()
    names = list(discover())
    columns = ("paper", "the paper's view", "matrix products", "with attention", "6 N")
    lines = [
        "| backbone | method | " + " | ".join(("paper, GFLOPs/token", *columns[1:])) + " |",
        "|---|---|" + "---:|" * len(columns),
    ]
    rows = []
    for size in SIZES:
        backbone = BackboneConfig(path=str(PYTHIA / size))
        for name, row in zip(names, flop_rows(backbone, [method_class(n)() for n in names], shape), strict=True):
            assert row.profile is not None
            paper = theirs(name, row.profile)
            per_token = row.profile.algorithmic(shape.pair) / shape.pair.sum()
            six_n = 6 * (row.profile.nonembedding_parameters + row.profile.added_parameters)
            ours = (row.profile.paper_flops_per_token(), row.profile.matrices.flops_per_token, per_token, six_n)
            cells = " | ".join(f"{100 * (flops / paper - 1):+.2f} %" for flops in ours)
            rows.append({"backbone": size, "method": name, **dict(zip(columns, (paper, *ours), strict=True))})
            lines.append(f"| {size} | {name} | {paper / 1e9:.4g} | {cells} |")
    text = "\n".join(lines) + "\n"
    (RESULTS / "paper_convention.md").write_text(text)
    result = {
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": f"{os.cpu_count()} CPU cores, {platform.machine()}",
        "versions": {name: version(name) for name in ("embedlab", "torch", "transformers", "peft")},
        "command": "python benchmarks/paper_convention.py",
        "flops_per_token": rows,
    }
    (RESULTS / "paper_convention.json").write_text(json.dumps(result, indent=2) + "\n")
    print(text)


if __name__ == "__main__":
    main()
