"""Runs that share a trunk go on from each other, each in its turn, and what they share is paid for once."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from embedlab.errors import ConfigError
from embedlab.records import FILE, read_record
from embedlab.search.jobs import JobRunner
from embedlab.search.loop import search
from embedlab.search.plan import SearchPlan
from embedlab.search.policies.isoflop_grid import IsoFlopGrid
from embedlab.search.policies.policy import History
from embedlab.search.space import Cost, MethodGrid, Space, space_of
from embedlab.search.trials import TrialTrainer
from embedlab.testing.backbones import save_tiny_backbone
from helpers.runs import write_config
from helpers.searches import InThisProcess

DECAY = 0.25
BUDGETS = (1e8, 2e8, 4e8)
SCHEDULE = {"class_path": "WarmupStableDecay", "init_args": {"warmup": 0.1, "decay": DECAY}}


@pytest.fixture
def fit_config(tmp_path: Path) -> Path:
    path = write_config(tmp_path, validation_fraction=0.2, schedule=SCHEDULE)
    values = yaml.safe_load(path.read_text())
    values["trainer"] |= {"max_epochs": 20, "num_sanity_val_steps": 0, "logger": False}
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture
def space(tmp_path: Path) -> Space:
    backbone = str(save_tiny_backbone(tmp_path / "tiny", "llama"))
    methods = [MethodGrid(method="FullFineTuning"), MethodGrid(method="LoRA", options={"rank": [2]})]
    return space_of([backbone], methods, lambda *_: Cost(2e4, 2e5), budgets=BUDGETS, cooldown=DECAY)


@pytest.mark.parametrize("keep_checkpoints", [True, False])
def test_each_run_goes_on_from_the_next_smaller_one(
    tmp_path: Path, fit_config: Path, space: Space, keep_checkpoints: bool
) -> None:
    with InThisProcess() as launcher:
        trainer = TrialTrainer(
            fit_config, tmp_path / "search", JobRunner(launcher), space, keep_checkpoints=keep_checkpoints
        )
        # All at once, the largest first: each must wait for the one that it goes on from.
        results = list(trainer.run(list(reversed(space.trials))))
        again = list(trainer.run(space.trials))
    assert not trainer.errors
    for candidate in space.candidates:
        records = [
            read_record(tmp_path / "search" / trial.id / FILE) for trial in space.up_to(len(BUDGETS) - 1, candidate)
        ]
        assert [record.branch_flops is None for record in records] == [True, False, False]
        assert len({record.family for record in records}) == 1
        for smaller, record in zip(BUDGETS, records[1:], strict=False):
            step = record.flops_algorithmic * record.batch_size / record.pairs
            assert record.branch_flops is not None
            assert (1 - DECAY) * smaller - 1.5 * step < record.branch_flops <= (1 - DECAY) * smaller
    assert sum(one.cost for one in results) == pytest.approx(space.price(space.trials))
    assert {one.trial: (one.loss, one.cost) for one in again} == {one.trial: (one.loss, one.cost) for one in results}
    left = sorted(path.name for path in (tmp_path / "search").rglob("*.ckpt"))
    assert bool(left) == keep_checkpoints


def test_a_policy_spends_a_budget_that_counts_the_trunk_once(tmp_path: Path, fit_config: Path, space: Space) -> None:
    total = space.price(space.trials)
    assert total < 0.8 * sum(trial.budget for trial in space.trials)
    with InThisProcess() as launcher:
        trainer = TrialTrainer(fit_config, tmp_path / "search", JobRunner(launcher), space)
        history = search(IsoFlopGrid(), trainer, History(space), total)
    assert len(history) == len(space.trials) and history.spent == pytest.approx(total)


def test_a_trunk_needs_a_schedule_that_has_one() -> None:
    plan = {"suite": ("a", "b"), "methods": ("FullFineTuning",), "budgets": (1e8,)}
    shared = SearchPlan(**plan, fit={"model": {"schedule": SCHEDULE}}, share_trunk=True)
    assert shared.cooldown() == DECAY
    assert SearchPlan(**plan, fit={"model": {"schedule": "WarmupStableDecay"}}, share_trunk=True).cooldown() == 0.2
    assert SearchPlan(**plan, fit={}).cooldown() == 1
    with pytest.raises(ConfigError, match=r"fit's model\.schedule is WarmupCosine\. Set model\.schedule to"):
        SearchPlan(**plan, fit={"model": {"schedule": "WarmupCosine"}}, share_trunk=True).cooldown()
    with pytest.raises(ConfigError, match=r"share_trunk needs a decay between 0 and 1, but .* is 0\."):
        none = {"class_path": "WarmupStableDecay", "init_args": {"decay": 0.0}}
        SearchPlan(**plan, fit={"model": {"schedule": none}}, share_trunk=True).cooldown()
    apart = plan | {"budgets": (1e8, 1e9)}
    with pytest.raises(ConfigError, match=r"1e\+09 FLOPs warms up for 1e\+08 FLOPs .* Lower warmup to at most 0\.08"):
        SearchPlan(**apart, fit={"model": {"schedule": "WarmupStableDecay"}}, share_trunk=True).cooldown()
    with pytest.raises(ConfigError, match=r"fit's model\.schedule is None"):
        SearchPlan(**plan, fit={}, share_trunk=True).cooldown()
