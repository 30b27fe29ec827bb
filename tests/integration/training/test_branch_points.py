"""A branch is what a run from the start would be, to the bit, and its trunk is what it would be without branches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from embedlab.errors import ConfigError
from embedlab.method.registry import discover
from embedlab.records import FILE, Ledger, RunRecord, read_record
from embedlab.training.callbacks.branch_points import BranchPoints
from helpers.runs import assert_same_bits, error_of, fit, scalars, start_ranks, trained_weights, write_config

EVERY_STEP = ["--trainer.log_every_n_steps", "1"]
HELD_OUT = {"validation_fraction": 0.3}  # 8 steps an epoch are left
DECAY = 0.25


class Interrupt(Callback):
    """Ends the process, so to speak, after some steps."""

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == 14:
            raise RuntimeError("interrupted")


def schedule(warmup: float) -> list[str]:
    options = {"warmup": warmup, "decay": DECAY}
    return [
        "--model.schedule",
        "WarmupStableDecay",
        *(word for name, value in options.items() for word in (f"--model.schedule.{name}", str(value))),
    ]


def spent_by_step(config: Path, folder: Path, steps: int) -> list[int]:
    """Algorithmic FLOPs after each step, from 0 steps on."""
    words = ["--output", str(folder), "--trainer.max_steps", str(steps), *EVERY_STEP]
    fit(config, *words, "--trainer.max_epochs", "9")
    return [0, *(int(flops) for flops in scalars(folder)["flops/algorithmic"])]


def branch_file(trunk: Path, budget: float) -> Path:
    return trunk / "checkpoints" / f"branch-{budget:g}.ckpt"


def options(folder: Path, budget: float | None, warmup: float, *others: str) -> list[str]:
    budgets = [] if budget is None else ["--budget", str(budget), "--allow_repeat"]
    return ["--output", str(folder), *budgets, *schedule(warmup), *others]


def saved(path: Path) -> dict[str, Any]:
    checkpoint: dict[str, Any] = torch.load(path, weights_only=True)
    return checkpoint


@pytest.mark.parametrize("method", sorted(discover()))
def test_a_branch_has_the_bits_of_a_run_from_the_start(tmp_path: Path, method: str) -> None:
    config = write_config(tmp_path, method=method, dropout=0.1, **HELD_OUT)
    one = spent_by_step(config, tmp_path / "one", 1)[-1]
    budget, trunk = 9 * one, tmp_path / "trunk"  # the trunk's is a power of 2 more: shares of both are the same bits
    fit(config, *options(trunk, 2 * budget, 0.05, "--branch.budgets", f"[{budget}]"))
    point = branch_file(trunk, budget)
    assert 0.75 * budget - 1.5 * one < saved(point)["flops"]["algorithmic"] <= 0.75 * budget
    fit(config, *options(tmp_path / "branch", budget, 0.05, "--ckpt_path", str(point), *EVERY_STEP))
    fit(config, *options(tmp_path / "whole", budget, 0.1, *EVERY_STEP))
    assert_same_bits(trained_weights(tmp_path / "branch"), trained_weights(tmp_path / "whole"))
    branch, whole = (read_record(tmp_path / run / FILE) for run in ("branch", "whole"))
    assert (branch.metrics, branch.flops_algorithmic) == (whole.metrics, whole.flops_algorithmic)
    rates = scalars(tmp_path / "branch")["train/learning_rate"]
    assert rates == scalars(tmp_path / "whole")["train/learning_rate"][-len(rates) :]
    assert max(rates) < 1e-2 and rates[-1] == pytest.approx(0, abs=1e-9), "all of it, and only its decay"


def test_a_point_between_epochs_gives_the_same_bits_too(tmp_path: Path) -> None:
    config = write_config(tmp_path, **HELD_OUT)
    spent = spent_by_step(config, tmp_path / "one", 12)
    budget = round((spent[8] + spent[9]) / 2 / (1 - DECAY))
    trunk = tmp_path / "trunk"
    fit(config, *options(trunk, 2 * budget, 0, "--branch.budgets", f"[{budget}]"))
    assert saved(branch_file(trunk, budget))["global_step"] == 8
    fit(config, *options(tmp_path / "branch", budget, 0, "--ckpt_path", str(branch_file(trunk, budget))))
    fit(config, *options(tmp_path / "whole", budget, 0))
    assert_same_bits(trained_weights(tmp_path / "branch"), trained_weights(tmp_path / "whole"))


def test_a_trunk_that_is_killed_and_resumed_leaves_the_same_points_once_and_ends_as_without_them(
    tmp_path: Path,
) -> None:
    config = write_config(tmp_path, dropout=0.1, **HELD_OUT)
    spent = spent_by_step(config, tmp_path / "one", 20)
    before, after = (round(spent[steps] / (1 - DECAY)) for steps in (7, 13))  # of the checkpoint that it goes on from
    later = round(spent[16] / (1 - DECAY))
    command = ["--branch.budgets", str([before, after, later]), "--checkpoint.every_n_steps", "10"]
    fit(config, *options(tmp_path / "whole", spent[20] * 2, 0.05, *command))
    killed = tmp_path / "killed"
    with pytest.raises(RuntimeError, match="interrupted"):
        fit(config, *options(killed, spent[20] * 2, 0.05, *command, "--trainer.callbacks+", f"{__name__}.Interrupt"))
    left = {budget: branch_file(killed, budget).stat() for budget in (before, after)}
    assert not branch_file(killed, later).exists()
    fit(config, *options(killed, spent[20] * 2, 0.05, *command, "--ckpt_path", "last"))
    for budget, status in left.items():
        assert branch_file(killed, budget).stat() == status, "not written again"
    for budget in (before, after, later):
        one, other = (saved(branch_file(run, budget)) for run in (killed, tmp_path / "whole"))
        assert (one["global_step"], one["flops"]) == (other["global_step"], other["flops"])
        assert_same_bits(one["state_dict"], other["state_dict"])
    fit(config, *options(tmp_path / "plain", spent[20] * 2, 0.05))
    assert_same_bits(trained_weights(killed), trained_weights(tmp_path / "plain"))
    names = {path.name for path in (killed / "checkpoints").iterdir()}
    assert names == {
        "last.ckpt",
        "previous.ckpt",
        *(branch_file(killed, budget).name for budget in (before, after, later)),
    }


def test_a_branch_that_is_killed_in_its_decay_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    config = write_config(tmp_path, dropout=0.1, **HELD_OUT)
    spent = spent_by_step(config, tmp_path / "one", 16)
    budget = spent[16]  # decays from step 12 on
    fit(config, *options(tmp_path / "trunk", 2 * budget, 0.05, "--branch.budgets", f"[{budget}]"))
    command = ["--checkpoint.every_n_steps", "1"]
    point = ["--ckpt_path", str(branch_file(tmp_path / "trunk", budget))]
    fit(config, *options(tmp_path / "whole", budget, 0.05, *command, *point))
    killed = options(tmp_path / "killed", budget, 0.05, *command)
    with pytest.raises(RuntimeError, match="interrupted"):
        fit(config, *killed, *point, "--trainer.callbacks+", f"{__name__}.Interrupt")
    fit(config, *killed, "--ckpt_path", "last")
    assert_same_bits(trained_weights(tmp_path / "killed"), trained_weights(tmp_path / "whole"))
    again = options(tmp_path / "again", budget, 0.05, *command, "--ckpt_path", "auto", "--branch.origin", point[1])
    with pytest.raises(RuntimeError, match="interrupted"):
        fit(config, *again, "--trainer.callbacks+", f"{__name__}.Interrupt")
    interrupted = saved(tmp_path / "again" / "checkpoints" / "last.ckpt")["global_step"]
    assert interrupted > saved(Path(point[1]))["global_step"]
    fit(config, *again)
    assert_same_bits(trained_weights(tmp_path / "again"), trained_weights(tmp_path / "whole"))
    one, other = (read_record(tmp_path / run / FILE) for run in ("killed", "whole"))
    assert (one.branch_step, one.branch_flops, one.family) == (other.branch_step, other.branch_flops, other.family)


def test_records_of_a_family_count_each_step_once(tmp_path: Path) -> None:
    config = write_config(tmp_path, **HELD_OUT)
    one = spent_by_step(config, tmp_path / "one", 1)[-1]
    budgets = [one * 4 * 2**number for number in range(3)]
    runs = tmp_path / "runs"
    fit(config, *options(runs / "trunk", budgets[-1], 0.01, "--branch.budgets", str(budgets[:-1])))
    for budget in budgets[:-1]:
        point = branch_file(runs / "trunk", budget)
        fit(config, *options(runs / str(budget), budget, 0.01, "--ckpt_path", str(point)))
    trunk = read_record(runs / "trunk" / FILE)
    assert trunk.branch_flops is None and trunk.flops_added == trunk.flops_algorithmic
    for budget in budgets[:-1]:
        branch, point = read_record(runs / str(budget) / FILE), saved(branch_file(runs / "trunk", budget))
        assert branch.parent_run_id == branch.family == trunk.run_id != branch.run_id
        assert (branch.branch_step, branch.branch_flops) == (point["global_step"], point["flops"]["algorithmic"])
        assert budget <= branch.flops_algorithmic < budget + 1.5 * one, "the whole run, for laws"
        assert branch.flops_added == branch.flops_algorithmic - point["flops"]["algorithmic"]
    added = sum(record.flops_added for record in Ledger([runs]).records())
    expected = (1 - DECAY) * budgets[-1] + DECAY * sum(budgets)
    assert added == pytest.approx(expected, abs=6 * one), "each run may end a step late, and branch off one early"


def test_a_longer_run_goes_on_from_the_decay_of_a_shorter_one(tmp_path: Path) -> None:
    config = write_config(tmp_path, dropout=0.1, **HELD_OUT)
    one = spent_by_step(config, tmp_path / "one", 1)[-1]
    short, middle, long = (one * number for number in (6, 12, 24))
    runs = tmp_path / "runs"
    fit(config, *options(runs / "short", short, 0.2, "--branch.budgets", f"[{short}]"))
    point = ["--ckpt_path", str(branch_file(runs / "short", short))]
    fit(config, *options(runs / "middle", middle, 0.2, *point, "--branch.budgets", f"[{middle}]"))
    point = ["--ckpt_path", str(branch_file(runs / "middle", middle))]
    fit(config, *options(runs / "long", long, 0.2, *point))
    fit(config, *options(tmp_path / "whole", long, 0.05))
    assert_same_bits(trained_weights(runs / "long"), trained_weights(tmp_path / "whole"))
    records: dict[str, RunRecord] = {name: read_record(runs / name / FILE) for name in ("short", "middle", "long")}
    assert {record.family for record in records.values()} == {records["short"].run_id}
    added = sum(record.flops_added for record in records.values())
    assert added == pytest.approx((1 - DECAY) * long + DECAY * (short + middle + long), abs=6 * one)


def test_two_ranks_leave_a_point_and_branch_off_it(tmp_path: Path) -> None:
    config = write_config(tmp_path, batch_size=6, **HELD_OUT)
    spent = spent_by_step(config, tmp_path / "one", 8)
    budget = spent[8]
    ranks = ["--trainer.strategy", "ddp", "--trainer.devices", "2"]
    trunk = options(tmp_path / "trunk", 2 * budget, 0.05, "--branch.budgets", f"[{budget}]", *ranks)
    point = ["--ckpt_path", str(branch_file(tmp_path / "trunk", budget))]
    branch = options(tmp_path / "branch", budget, 0.05, *point, *ranks)
    command = ["fit", "--config", str(config)]
    printed = [rank.printed() for rank in start_ranks([[*command, *trunk], [*command, *branch]], tmp_path)]
    record = read_record(tmp_path / "branch" / FILE)
    assert record.branch_step == saved(Path(point[1]))["global_step"] == 6, printed
    assert record.branch_flops == spent[6] and budget <= record.flops_algorithmic


# What cannot be a branch point


def test_points_that_the_run_cannot_leave_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path, **HELD_OUT)
    spent = spent_by_step(config, tmp_path / "one", 12)
    budget, run = spent[12], tmp_path / "run"

    def refused(budgets: list[float], *others: str, warmup: float = 0.05, own: float | None = budget) -> str:
        words = options(run, own, warmup, "--branch.budgets", str(budgets))
        printed = error_of(capsys, ["fit", "--config", str(config), *words, *others])
        assert not (run / "config.yaml").exists() and not (run / "checkpoints").exists()
        return printed

    assert "got WarmupCosine. Use --model.schedule WarmupStableDecay" in refused(
        [budget / 2], "--model.schedule", "WarmupCosine"
    )
    assert "WarmupStableDecay without a decay" in refused([budget / 2], "--model.schedule.decay", "0")
    assert "needs a --budget" in refused([budget / 2], own=None)
    assert f"has {2.0 * budget:g}, and the run's own budget is {budget:g}. Raise" in refused([2 * budget])
    printed = refused([budget / 4], warmup=0.3)
    assert "warms up over 0.3 of its budget" in printed and "Lower model.schedule.warmup to 0.19 or less" in printed
    assert "the first step costs more. Leave this budget out" in refused([spent[1] / 2], warmup=0)
    assert "Add --ckpt_path auto" in refused([budget / 2], "--branch.origin", "none.ckpt")


def test_a_point_that_is_passed_is_refused_unless_it_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path, **HELD_OUT)
    budget = spent_by_step(config, tmp_path / "one", 12)[-1]
    fit(config, *options(tmp_path / "run", budget, 0.05, "--branch.budgets", f"[{budget / 2}]"))
    more = [*options(tmp_path / "run", 2 * budget, 0.05), "--ckpt_path", "last", "--branch.budgets"]
    printed = error_of(capsys, ["fit", "--config", str(config), *more, f"[{budget / 4}, {budget / 2}]"])
    assert f"A run of {budget / 4:g} FLOPs" in printed and "the checkpoint has spent" in printed
    fit(config, *more, f"[{budget / 2}]")


@pytest.mark.parametrize("budget", [0.0, -1e9, float("nan"), float("inf")])
def test_a_budget_that_is_no_positive_number_is_refused(budget: float) -> None:
    with pytest.raises(ConfigError, match=rf"branch\.budgets has {budget}\. Expected finite FLOPs above 0"):
        BranchPoints(budgets=[1e9, budget])


def test_budgets_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"2 budgets whose checkpoint is branch-1e\+11\.ckpt"):
        BranchPoints(budgets=[1e11, 2e11, 1e11 + 1])


# What cannot be a branch


def test_a_branch_that_is_not_what_a_run_from_the_start_is_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path, **HELD_OUT)
    budget = spent_by_step(config, tmp_path / "one", 12)[-1]
    fit(config, *options(tmp_path / "trunk", 2 * budget, 0.05, "--branch.budgets", f"[{budget}]"))
    point = branch_file(tmp_path / "trunk", budget)
    folder = tmp_path / "branch"

    def refused(*others: str, budget: float | None = budget, warmup: float = 0.05) -> str:
        words = [*options(folder, budget, warmup), "--ckpt_path", str(point)]
        printed = error_of(capsys, ["fit", "--config", str(config), *words, *others])
        assert not (folder / "config.yaml").exists()
        return printed

    assert "learning_rate was 0.01 and is 0.02" in refused("--model.optimizer.learning_rate", "0.02")
    assert "data.batch_size was 5 and is 4" in refused("--data.batch_size", "4")
    assert "seed_everything was 1 and is 2" in refused("--seed_everything", "2")
    assert "data.validation_fraction was 0.3 and is 0.4" in refused("--data.validation_fraction", "0.4")
    assert "temperature=0.5" in refused("--model.loss.temperature", "0.5")
    assert "needs a schedule with a constant rate" in refused("--model.schedule", "WarmupCosine")
    assert "needs a --budget" in refused(budget=None)
    printed = refused(budget=0.9 * budget)
    assert "begins to decay at" in printed and "Use a branch point whose budget is at most" in printed
    assert "would warm up again" in refused(budget=9 * budget, warmup=0.3)
