"""What the table of FLOPs costs: the eight Pythias under every method, from their configurations, with an empty cache.

    python benchmarks/flop_table.py

Runs `embedlab flops` in a process of its own on one core and takes its time and its peak memory from the system.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
PYTHIA = Path(__file__).parents[1] / "configs" / "pythia"
SIZES = ("14m", "31m", "70m", "160m", "410m", "1b", "1.4b", "2.8b")


def main() -> None:
    command = [sys.executable, "-m", "embedlab", "flops", "--methods", "all", "--json", "--suite"]
    command += [str(PYTHIA / size) for size in SIZES]
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "EMBEDLAB_CACHE": cache, "OMP_NUM_THREADS": "1"}
        begin = time.perf_counter()
        printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        seconds = time.perf_counter() - begin
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = {
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": f"{os.cpu_count()} CPU cores, {platform.machine()}, one of them used",
        "versions": {name: version(name) for name in ("embedlab", "torch", "transformers", "peft")},
        "command": "python benchmarks/flop_table.py",
        "rows": len(json.loads(printed)),
        "seconds": seconds,
        "processor_seconds": used.ru_utime + used.ru_stime,
        "peak_memory_gib": used.ru_maxrss / 2**20,
        "load_average": os.getloadavg()[0],
    }
    (RESULTS / "flop_table.json").write_text(json.dumps(result, indent=2) + "\n")
    print(
        f"{result['rows']} rows in {seconds:.1f} s ({result['processor_seconds']:.1f} s of the processor), "
        f"{result['peak_memory_gib']:.2f} GiB at most."
    )


if __name__ == "__main__":
    main()
