"""A search trains for real, runs nothing twice, and goes on where it was stopped."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path

import pytest

from embedlab.search.launchers.local import LocalWorkers
from embedlab.search.policies.isoflop_grid import IsoFlopGrid
from embedlab.search.policy import History, Outcome
from embedlab.search.records import FILE, Ledger
from embedlab.search.search_loop import search
from embedlab.search.space import Cost, MethodGrid, Space, space_of
from embedlab.search.training import Training
from embedlab.testing.backbones import save_tiny_backbone
from runs import write_config

BUDGETS = (1e8, 4e8)


def space(backbone: str) -> Space:
    methods = [MethodGrid(method="FullFineTuning"), MethodGrid(method="LoRA", options={"rank": [2, 0]})]
    return space_of([backbone], methods, lambda *_: Cost(2e4, 2e5), budgets=BUDGETS)


def found(history: History) -> dict[str, tuple[float, float]]:
    return {one.trial.id: (one.loss, one.cost) for one in history}


def test_a_search_trains_each_trial_once_and_goes_on_from_its_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    config = write_config(tmp_path, validation_fraction=0.2)
    backbone = str(save_tiny_backbone(tmp_path / "tiny", "llama"))
    whole = space(backbone)
    total = 2 * whole.price(whole.trials)
    with LocalWorkers(1) as launcher:
        world = Training([config], tmp_path / "search", launcher)
        killed: list[Outcome] = []
        for outcome in world.run(whole.trials):
            killed.append(outcome)
            if len(killed) == 2:
                break  # as a search does that is killed
    assert len(Ledger([tmp_path / "search"]).records()) >= 2
    with LocalWorkers(1) as launcher:
        world = Training([config], tmp_path / "search", launcher)
        first = search(IsoFlopGrid(), world, History(whole), total)
        refused = [trial for trial in whole.trials if trial.candidate.method_options.get("rank") == 0]
        assert set(world.errors) == set(refused)
        assert all("rank must be at least 1" in error for error in world.errors.values())
        written = {path: path.stat().st_mtime_ns for path in (tmp_path / "search").rglob(FILE)}
        again = search(IsoFlopGrid(), Training([config], tmp_path / "search", launcher), History(whole), total)
    assert found(first) == found(again) and len(first) == 6
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "search").rglob(FILE)} == written
    for one in first:
        if one.trial in refused:
            assert (one.loss, one.cost) == (math.inf, 0.0)
        else:
            assert one.trial.budget <= one.cost < 1.5 * one.trial.budget and math.isfinite(one.loss)
    assert [found(first)[one.trial.id] for one in killed] == [(one.loss, one.cost) for one in killed]
