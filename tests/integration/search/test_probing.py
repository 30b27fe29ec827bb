"""A few steps show what a combination costs, once, and why another cannot be trained."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from filelock import FileLock

from embedlab.errors import TrainingError
from embedlab.records import FILE
from embedlab.search.jobs import JobRunner
from embedlab.search.plan import SearchPlan
from embedlab.search.preparation import named_rates
from embedlab.search.probing import probe
from embedlab.search.space import Candidate, MethodGrid
from helpers.searches import InThisProcess, write_search

BUDGET = 1e8


@pytest.fixture
def runner() -> Iterator[JobRunner]:
    InThisProcess.trained.clear()
    with InThisProcess() as launcher:
        yield JobRunner(launcher)


def fit_of(config: Path) -> Path:
    """What all runs of a search have in common."""
    path = config.parent / "fit.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(config.read_text())["fit"]))
    return path


def candidate(backbone: Path, method: str = "FullFineTuning", **options: object) -> Candidate:
    return Candidate(
        backbone=str(backbone), method=method, method_options=options, parameters=math.nan, flops_per_token=math.nan
    )


def test_a_probe_measures_once_and_leaves_neither_record_nor_checkpoint(tmp_path: Path, runner: JobRunner) -> None:
    fit = fit_of(write_search(tmp_path))
    full, none = candidate(tmp_path / "small"), candidate(tmp_path / "none")
    probes = tmp_path / "probes"
    found = probe([full, none], BUDGET, fit, probes, runner)
    assert found.probes.keys() == {full} and found.refused.keys() == {none}
    assert str(tmp_path / "none") in found.refused[none]
    measured = found.probes[full]
    assert measured.parameters == 4480 and measured.learning_rate > 0 and measured.flops_per_second > 0
    assert 6 * 4480 < measured.flops_per_token < 12 * 4480, "six a parameter and token, and attention"
    assert 4 * 2 * 4 < measured.flops_per_step / measured.flops_per_token < 4 * 2 * 32, "of four pairs of texts"
    assert measured.checkpoint_bytes > 3 * 4 * 4480, "weights and two moments"
    assert measured.seconds(2 * measured.flops_per_second) == pytest.approx(measured.other_seconds + 2)
    assert not list(probes.rglob(FILE)) and not list(probes.rglob("*.ckpt"))
    InThisProcess.trained.clear()
    assert probe([full, none], BUDGET, fit, probes, runner) == found
    assert all(name.startswith("none") for name in InThisProcess.trained)


def test_each_backbone_is_probed_once_before_one_is_again(tmp_path: Path, runner: JobRunner) -> None:
    fit = fit_of(write_search(tmp_path))
    both = [replace(candidate(tmp_path / name), seed=seed) for name in ("small", "large") for seed in (0, 1)]
    found = probe(both, BUDGET, fit, tmp_path / "probes", runner)
    assert list(found.probes) == both
    first, *names = InThisProcess.trained
    assert first == "first" and [name.partition("-")[0] for name in names] == ["small", "large", "small", "large"]


def test_a_probe_that_somebody_is_still_on_is_waited_for(
    tmp_path: Path, runner: JobRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedlab.search.probing._SECONDS_TO_END", 0.2)
    full = candidate(tmp_path / "small")
    folder = tmp_path / "probes" / full.named(BUDGET)
    folder.mkdir(parents=True)
    with (
        FileLock(folder / "run.lock"),
        pytest.raises(TrainingError, match=r"Another process is training in .*small-FullFineTuning.* Stop it or wait"),
    ):
        probe([full], BUDGET, tmp_path / "fit.yaml", tmp_path / "probes", runner)


@pytest.mark.parametrize("left", ["checkpoint", "record"])
def test_a_probe_that_was_killed_is_begun_anew(tmp_path: Path, runner: JobRunner, left: str) -> None:
    fit = fit_of(write_search(tmp_path))
    full = candidate(tmp_path / "small")
    found = probe([full], BUDGET, fit, tmp_path / "probes", runner)
    folder = tmp_path / "probes" / full.named(BUDGET)
    (folder / "probe.json").unlink()
    if left == "record":
        (folder / FILE).write_text("{}")
    else:
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints" / "last.ckpt").write_bytes(b"half of one")
    again = probe([full], BUDGET, fit, tmp_path / "probes", runner)
    assert not again.refused
    for name in ("parameters", "flops_per_token", "flops_per_step", "learning_rate", "checkpoint_bytes"):
        assert getattr(again.probes[full], name) == getattr(found.probes[full], name)


def test_the_rates_that_a_grid_names_are_those_of_its_own_variants() -> None:
    grids = [MethodGrid(method="LoRA", options={"rank": [2]}, learning_rates=[1e-3, 3e-3]), MethodGrid(method="LoRA")]
    plan = SearchPlan(suite=["a", "b"], methods=grids, budgets=[1e9], fit={})
    with_rank, without = candidate(Path("a"), "LoRA", rank=2), candidate(Path("a"), "LoRA")
    assert named_rates(plan, [with_rank, without]) == {with_rank: [1e-3, 3e-3]}
