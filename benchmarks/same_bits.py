"""Whether two revisions compute the same bits: the quickstart's weights and record, and the report of a table of runs.

Code that is moved or renamed changes no number. For each revision the script checks the files out into a folder of
their own, trains the quickstart with them, writes two reports, and compares what came of it.

    python benchmarks/same_bits.py 6981e13 HEAD

It prints one line for each thing that is compared and ends with status 1 if any differs. What depends on the moment or
the machine is left out: identifiers, times, memory, the device's measured speed, and the git revision. Of a report all
numbers are compared that it shows or draws; its words may be others.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
OF_THE_MOMENT = {"run_id", "seconds", "peak_memory_bytes", "peak_flops_per_second", "git_revision"}
OF_THE_MACHINE = ("/records/seconds", "/records/memory_bytes")
TABLE = ROOT / "benchmarks/results/sweep.parquet"
CSV = """
import sys
from pyarrow import csv, parquet
table = parquet.read_table(sys.argv[1])
names = ["method", "backbone", "parameters", "tokens", "loss", "learning_rate"]
csv.write_csv(table.select([name for name in names if name in table.column_names]), sys.argv[2])
"""


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the names and values of everything in nested mappings and lists."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, f"{name}/{key}")
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from leaves(inner, f"{name}/{number}")
    else:
        yield name, value


def digest_of_tensors(state: Any) -> str:
    """Return a digest of the bits of all tensors in a nested state."""
    digest = hashlib.sha256()
    for name, value in sorted(leaves(state), key=lambda leaf: leaf[0]):
        if isinstance(value, Tensor):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.contiguous().view(torch.uint8).numpy().tobytes() if value.dim() else b"")
            digest.update(str(value.item()).encode() if not value.dim() else b"")
    return digest.hexdigest()[:16]


def results(revision: str, folder: Path, epochs: int) -> dict[str, Any]:
    """Return what a revision computes, by name."""
    code, run = folder / "code", folder / "run"
    subprocess.run(["git", "-C", ROOT, "worktree", "add", "--detach", "--quiet", code, revision], check=True)
    try:
        environment = os.environ | {"PYTHONPATH": f"{code}:{code / 'plugins'}"}

        def embedlab(*words: str | Path) -> None:
            command = [sys.executable, "-m", "embedlab", *map(str, words)]
            subprocess.run(command, cwd=code, env=environment, check=True, stdout=subprocess.DEVNULL)

        where = subprocess.run(
            [sys.executable, "-c", "import embedlab, embedlab_methods as m; print(embedlab.__file__, m.__file__)"],
            cwd=code, env=environment, check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
        assert where.count(str(code)) == 2, f"the code of {revision} is not what runs: {where}"
        embedlab(
            "fit", "--config", "configs/quickstart.yaml", "--output", run, "--trainer.max_epochs", epochs
        )  # fmt: skip
        embedlab("report", "--runs", run, "--output", folder / "report_of_run")
        table = folder / "runs.csv"
        subprocess.run([sys.executable, "-c", CSV, TABLE, table], check=True)
        columns = [word for name in ("tokens", "method", "backbone") for word in (f"--columns.{name}", name)]
        embedlab("report", "--table", table, "--output", folder / "report_of_table", "--replicates", 20, *columns)
    finally:
        subprocess.run(["git", "-C", ROOT, "worktree", "remove", "--force", code], check=True)
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True, map_location="cpu")
    record = json.loads((run / "record.json").read_text())
    found = {
        "weights": digest_of_tensors(checkpoint["state_dict"]),
        "optimizer": digest_of_tensors(checkpoint["optimizer_states"]),
    }
    found |= {f"record{name}": value for name, value in leaves(record) if name[1:] not in OF_THE_MOMENT}
    for name in ("report_of_run", "report_of_table"):
        page = (folder / name / "report.html").read_text()
        data = re.search(r'<script[^>]*type="application/json"[^>]*>(.*?)</script>', page, re.DOTALL)
        assert data is not None, "the page holds what it shows as JSON"
        numbers = {
            key.replace("colour", "color"): value  # as it was spelled before 0.1.0
            for key, value in leaves(json.loads(data[1]))
            if isinstance(value, int | float) and not key.startswith(OF_THE_MACHINE)
        }
        digest = hashlib.sha256(json.dumps(sorted(numbers.items())).encode()).hexdigest()[:16]
        found[f"{name}: its {len(numbers)} numbers"] = digest
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before")
    parser.add_argument("after")
    parser.add_argument("--epochs", type=int, default=5, help="epochs of the quickstart (default: 5, as it is)")
    parser.add_argument("--keep", type=Path, help="folder to keep what was made in")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = options.keep or Path(temporary)
        made = {}
        for name in ("before", "after"):
            revision = getattr(options, name)
            folder = root / f"{name}-{revision.replace('/', '_')}"
            folder.mkdir(parents=True, exist_ok=True)
            made[name] = results(revision, folder, options.epochs)
    before, after = made["before"], made["after"]
    names = list(dict.fromkeys([*before, *after]))
    differ = [name for name in names if repr(before.get(name)) != repr(after.get(name))]
    for name in names:
        if name in differ:
            print(f"differs  {name}: {before.get(name)} and {after.get(name)}")
        elif not name.startswith("record/"):
            print(f"same     {name}: {before[name]}")
    same = sum(name.startswith("record/") for name in names) - sum(name.startswith("record/") for name in differ)
    print(f"same     record: {same} fields")
    sys.exit(1 if differ else 0)


if __name__ == "__main__":
    main()
