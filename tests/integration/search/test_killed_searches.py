"""A search that is killed at random moments, alone or with its workers, comes to the ledger of an undisturbed one."""

from __future__ import annotations

import random
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from embedlab.records import Ledger
from helpers.searches import SearchProcess, ledger, search, until, write_search

FEW_REPLICATES = ("--replicates", "5")  # so that most of the time is that of the runs
WHOLE: dict[str, Any] = {
    "methods": ["FullFineTuning", {"method": "LoRA", "options": {"rank": [2, 4]}}],
    "budgets": [5e7, 1e8, 2e8],
    "calibration": {"budget": 5e7, "factor": 10.0},
    "launcher": {"class_path": "LocalWorkers", "init_args": {"num_workers": 2}},
}
TRUNKS: dict[str, Any] = {
    "methods": WHOLE["methods"],
    "launcher": WHOLE["launcher"],
    "budgets": [1e8, 2e8, 4e8, 8e8],
    "calibration": {"enabled": False},
    "share_trunk": True,
    "fit": {"model": {"schedule": {"class_path": "WarmupStableDecay", "init_args": {"decay": 0.25}}}},
    "keep_checkpoints": False,
}
SMALL = {"budgets": [5e7, 2e8], "calibration": {"budget": 5e7, "factor": 10.0}}


def started(config: Path, folder: Path) -> SearchProcess:
    """A search that has begun or gone on to train, or that had nothing left to train."""
    begin = time.time()
    process = SearchProcess(config, "--output", str(folder), *FEW_REPLICATES)
    until(lambda: not process.is_alive or any(log.stat().st_mtime > begin for log in folder.glob("*/*/log")))
    return process


def undisturbed(config: Path, folder: Path) -> float:
    """Seconds that a search takes, from its first run on."""
    process = started(config, folder)
    begin = time.monotonic()
    assert process.status() == 0, process.printed()
    return time.monotonic() - begin


def killed(config: Path, folder: Path, *, seed: int, times: int, within: float, undisturbed: Path) -> None:
    """Kills a search at random moments, and lets it end.

    Args:
        config: of the search.
        folder: for it.
        seed: of the moments.
        times: that it is killed.
        within: so many seconds of its first run, each time that it goes on.
        undisturbed: folder of the same search, to begin anew from where one ends before it is killed so often.
    """
    moments = random.Random(seed)
    num_killed = 0
    while num_killed < times:
        seconds, workers = moments.uniform(0, within), moments.random() < 0.5
        process = started(config, folder)
        end = time.monotonic() + seconds
        until(lambda end=end, process=process: time.monotonic() > end or not process.is_alive)
        if not process.is_alive:
            assert process.status() == 0, process.printed()
            require_the_same(folder, undisturbed)
            shutil.rmtree(folder)
            continue
        process.kill(workers=workers)
        num_killed += 1
        found = Counter(path.relative_to(folder).parts[0] for path in folder.rglob("*.json"))
        what = "search and workers" if workers else "search"
        print(
            f"{num_killed} (seed {seed}): {what} killed {seconds:.2f} s after its first run began, at "
            + ", ".join(f"{found[part]} {part}" for part in ("probes", "calibration", "trials"))
        )
    process = SearchProcess(config, "--output", str(folder), *FEW_REPLICATES)
    assert process.status() == 0, process.printed()


def require_the_same(folder: Path, other: Path) -> None:
    """What does not depend on when and where a run was is the same in all, and no run was brought to its end twice."""
    assert ledger(folder) == ledger(other)
    parts = [part for part in ("calibration", "trials") if (other / part).exists()]
    for part in parts:
        assert {path.name for path in (folder / part).iterdir()} == {path.name for path in (other / part).iterdir()}
        for run in (folder / part).iterdir():
            assert (run / "log").read_text().count("Run record: ") <= 1, f"{run} was trained twice"
    assert not list(folder.rglob("continued"))
    records, others = (
        Ledger([at / part for part in parts]).records()
        for at in (folder, other)  # no two have the same identifier
    )
    assert [(one.learning_rate, one.loss) for one in records] == [(one.learning_rate, one.loss) for one in others]


@pytest.mark.timeout(900)
def test_a_search_that_is_killed_twice_gives_the_ledger_of_an_undisturbed_one(tmp_path: Path) -> None:
    config = write_search(tmp_path, **SMALL)
    begin = time.monotonic()
    search(config, "--output", str(tmp_path / "undisturbed"), *FEW_REPLICATES)
    seconds = time.monotonic() - begin
    killed(config, tmp_path / "killed", seed=1, times=2, within=seconds, undisturbed=tmp_path / "undisturbed")
    require_the_same(tmp_path / "killed", tmp_path / "undisturbed")


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("values", [WHOLE, TRUNKS], ids=["runs of their own", "shared trunks"])
def test_a_search_that_is_killed_ten_times_gives_the_ledger_of_an_undisturbed_one(
    tmp_path: Path, values: dict[str, Any]
) -> None:
    config = write_search(tmp_path, **values)
    for name in ("undisturbed", "killed"):  # so that the kills come while it trains
        search(config, "--output", str(tmp_path / name), "--dry-run")
    seconds = undisturbed(config, tmp_path / "undisturbed")
    killed(config, tmp_path / "killed", seed=0, times=10, within=seconds / 3, undisturbed=tmp_path / "undisturbed")
    require_the_same(tmp_path / "killed", tmp_path / "undisturbed")
