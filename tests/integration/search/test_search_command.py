"""A search goes from a suite to a report, refuses what cannot be trained before it begins, and can be stopped."""

from __future__ import annotations

import re
import shutil
import signal
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from embedlab.cli.commands import main
from embedlab.records import FILE, Ledger, read_record
from embedlab.search.folder import SearchFolder
from helpers.runs import error_of
from helpers.searches import IN_THIS_PROCESS, SearchProcess, ledger, own_signals, search, until, write_search, written

METHODS = ["FullFineTuning", {"method": "LoRA", "options": {"rank": [2, 4]}, "learning_rates": [1e-3]}]
BUDGETS = [3e7, 1.2e8]

pytestmark = pytest.mark.timeout(900)  # a search takes one where nothing else is on the machine


class Finished(NamedTuple):
    """A search that is over.

    Attributes:
        config: of it.
        folder: of it.
        printed: by it.
    """

    config: Path
    folder: Path
    printed: str


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """By the command line, in a process of its own, with a worker."""
    at = tmp_path_factory.mktemp("finished")
    calibration = {"budget": 6e7, "factor": 10.0}
    config = write_search(at, methods=METHODS, budgets=BUDGETS, calibration=calibration, min_steps=1)
    process = SearchProcess(config)
    assert process.status() == 0, process.printed()
    return Finished(config, at / "search", process.printed())


def refusal(capsys: pytest.CaptureFixture[str], config: Path, *options: str) -> str:
    """The error of a search that must be refused."""
    with own_signals():
        return error_of(capsys, ["search", "--config", str(config), *IN_THIS_PROCESS, *options])


def test_every_trial_of_a_search_has_a_record(finished: Finished) -> None:
    records = ledger(finished.folder)
    assert len(records) == 2 * 3 * 2 and "12 of 12 trials have ended" in finished.printed
    methods = Counter((one["method"], one["method_options"].get("rank")) for one in records.values())
    assert methods == {("FullFineTuning", None): 4, ("LoRA", 2): 4, ("LoRA", 4): 4}
    assert Counter(Path(one["backbone"]).name for one in records.values()) == {"small": 6, "large": 6}
    assert all(one["status"] == "finished" for one in records.values())
    for name, one in records.items():
        budget = float(name.split("-")[2])  # of "small-LoRA-3e07-…"
        assert budget <= one["flops_algorithmic"] < budget + 2.5e7, "it ends with the step that spends its budget"


def test_a_search_ends_with_the_report_page(finished: Finished) -> None:
    page = finished.folder / "report" / "report.html"
    assert finished.printed.splitlines()[-1] == str(page) and "<html" in page.read_text()[:200]
    assert list((finished.folder / "tensorboard").glob("events*"))
    assert re.search(r"IsoFlopGrid chooses (small|large) \S+ for 1\.2e\+08 FLOPs, learning rate ", finished.printed)


def test_calibrated_methods_are_trained_by_their_calibrated_rates_and_others_by_those_they_name(
    finished: Finished,
) -> None:
    line = next(line for line in finished.printed.splitlines() if line.startswith("Learning rates: "))
    rates = dict(re.findall(r"(small|large) FullFineTuning ([\d.e-]*\d)", line))
    assert rates.keys() == {"small", "large"} and "LoRA" not in line
    for one in ledger(finished.folder).values():
        expected = 1e-3 if one["method"] == "LoRA" else float(rates[Path(one["backbone"]).name])
        assert one["learning_rate"] == pytest.approx(expected)
    tried = Ledger([finished.folder / "calibration"]).records()
    assert {one.method for one in tried} == {"FullFineTuning"}
    for backbone in {one.backbone for one in tried}:
        at = {one.learning_rate: one.loss for one in tried if one.backbone == backbone}
        best = min(at, key=lambda rate: at[rate])
        assert min(at) < best < max(at), "the best has neighbors on both sides"
    assert not list((finished.folder / "calibration").rglob("*.ckpt"))


def test_a_second_call_trains_nothing_anew_and_gives_the_same_ledger(
    finished: Finished, capsys: pytest.CaptureFixture[str]
) -> None:
    before, records = written(finished.folder), ledger(finished.folder)
    assert search(finished.config) == []
    assert written(finished.folder) == before and ledger(finished.folder) == records
    chosen = re.search(r"IsoFlopGrid chooses .*", finished.printed)
    assert chosen is not None and chosen.group() in capsys.readouterr().out


def test_a_second_search_in_the_folder_is_refused(finished: Finished, capsys: pytest.CaptureFixture[str]) -> None:
    with SearchFolder(finished.folder).locked():
        assert f"Another search is in progress in {finished.folder}." in refusal(capsys, finished.config)


def test_another_plan_is_refused_and_taken_if_accepted(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished.folder, tmp_path / "copy")
    other = ("--output", str(tmp_path / "copy"), "--total_flops", "1e9")
    error = refusal(capsys, finished.config, *other)
    assert "was started with another plan: total_flops: None became 1000000000.0. Add --accept-changes" in error
    # Four runs of a method give no law, which is an error of the recipe, and not of what was trained.
    error = refusal(capsys, finished.config, *other, "--accept-changes", "--confirm")
    assert "No law can be fitted to the runs of FullFineTuning." in error
    assert written(tmp_path / "copy").keys() == {
        tmp_path / "copy" / path.relative_to(finished.folder) for path in written(finished.folder)
    }
    with SearchFolder(tmp_path / "copy").locked():  # it is free after an error
        pass


def test_a_dry_run_trains_no_trial_and_a_method_that_does_not_fit_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    methods = ["FullFineTuning", "BiasTuning"]
    config = write_search(tmp_path, methods=methods, budgets=[5e7, 1e8], keep_checkpoints=False)
    assert len(set(search(config, "--dry-run"))) == 5, "four combinations, and first a run that tokenizes the data"
    printed = capsys.readouterr().out
    assert "Leaving out large BiasTuning: ConfigError: BiasTuning trains biases, but LlamaModel has none." in printed
    rows = {name: row for name, *row in (line.replace("│", " ").split() for line in printed.splitlines() if line)}
    assert rows["5e+07"][:2] == ["3", "1.5e+08"] and rows["1e+08"][:2] == ["3", "3e+08"]
    assert rows["all"][:2] == ["6", "4.5e+08"] and float(rows["all"][2]) > 0
    assert re.search(r"Maximum peak memory: \d\.\d\d GiB, for (small|large) ", printed)
    assert re.search(r"Disk space for checkpoints: \d\.\d\d GiB\.", printed)
    folder = tmp_path / "search"
    assert not (folder / "trials").exists() and not (folder / "report").exists()

    trained = Counter(search(config))
    refused = [name for name in trained if name.startswith("large-BiasTuning")]
    assert len(refused) == 1 and trained.total() == 6 + trained[refused[0]], "what was probed is not probed again"
    assert len(ledger(folder)) == 6 and not list(folder.rglob("*.ckpt"))


def test_a_dry_run_binds_to_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_search(tmp_path)
    search(config, "--dry-run")
    assert search(config, "--dry-run", "--min_steps", "3") == [], "it was probed"
    assert "Changed:" not in capsys.readouterr().out and not (tmp_path / "search" / "plan.json").exists()


def test_a_backbone_that_does_not_load_is_refused_before_anything_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_search(tmp_path)
    suite = f"[{tmp_path / 'small'}, {tmp_path / 'none'}]"
    error = refusal(capsys, config, "--suite", suite)
    assert f"{tmp_path / 'none'} cannot be trained with any of the methods: ConfigError: " in error
    assert not (tmp_path / "search" / "trials").exists()


@pytest.mark.parametrize(
    ("methods", "says"),
    [
        ('["FullFineTuning", "LoRa"]', "LoRa cannot train any of the backbones. "),
        (
            '["FullFineTuning", {"method": "LoRA", "options": {"rnk": [8]}}]',
            "LoRA with {'rnk': 8} cannot train any of the",
        ),
    ],
)
def test_a_method_that_fits_no_backbone_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], methods: str, says: str
) -> None:
    error = refusal(capsys, write_search(tmp_path), "--methods", methods)
    assert says in error and ("Did you mean 'LoRA'" in error or "rnk" in error)
    assert not (tmp_path / "search" / "plan.json").exists()


def test_a_configuration_without_held_out_pairs_says_that_there_are_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = refusal(capsys, write_search(tmp_path, fit={"data": {"validation_fraction": 0.0}}))
    said = "The run left no record: there are no held-out pairs to compute a loss on. Set data.validation_fraction"
    assert said in error


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("--confirm=-5", "--confirm is -5. Expected a number of FLOPs from 1"),
        ("--confirm=0", "--confirm is 0. Expected"),
        ("--fit.data.batch_size=8", "--fit.data.batch_size cannot be set on the command line. Change fit in the"),
    ],
)
def test_an_option_that_cannot_work_is_refused_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, says: str
) -> None:
    assert says in refusal(capsys, write_search(tmp_path), option)
    assert not (tmp_path / "search").exists()


def test_a_suite_of_one_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_search(tmp_path, suite=["small"])
    assert "suite is ['small']. A search compares model sizes, so it needs at least two" in refusal(capsys, config)
    assert not (tmp_path / "search").exists()


def test_budgets_that_are_too_small_for_the_largest_model_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_search(tmp_path, budgets=[1e7])
    error = refusal(capsys, config, "--min_steps", "1")
    assert (
        "large cannot be trained with any of the methods: ConfigError: The budget of 1e+07 FLOPs is less than" in error
    )
    error = refusal(capsys, config, "--budgets", "[3e7]")
    assert "The largest budget of 3e+07 FLOPs pays for 1.3 steps of large FullFineTuning at" in error
    assert "min_steps is 2. Raise budgets, lower fit's data.batch_size or min_steps, or leave the" in error
    assert not (tmp_path / "search" / "trials").exists()


def test_a_budget_that_lasts_longer_than_the_data_is_refused_before_the_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_search(tmp_path, fit={"trainer": {"max_epochs": 1}}, budgets=[1e8, 1e9])
    error = refusal(capsys, config)
    assert re.search(r"1e\+09 FLOPs lasts for [\d.]+ epochs of 4\d pairs, but trainer\.max_epochs is 1", error)
    assert not (tmp_path / "search" / "trials").exists()


def test_a_search_that_is_stopped_in_mid_trial_saves_it_and_goes_on(tmp_path: Path) -> None:
    config = write_search(tmp_path, fit={"trainer": {"callbacks": ["helpers.runs.StepFile"]}}, budgets=[3e8])
    folder = tmp_path / "search"
    process = SearchProcess(config)
    until(lambda: list(folder.glob("trials/*/step")), process)
    workers = process.started()
    process.send(signal.SIGINT)
    assert workers and process.status() == 130
    assert (
        process.printed().splitlines()[-1] == "Stopped. The runs in progress are saved. Repeat the command to continue."
    )
    assert "Traceback" not in process.printed()
    assert not [one for one in workers if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    (step,) = folder.glob("trials/*/step")
    stopped = step.parent
    assert (stopped / "checkpoints" / "last.ckpt").exists() and not (stopped / FILE).exists()
    saved = re.search(r"Saved at step (\d+)\. Go on with", (stopped / "log").read_text())
    assert saved is not None and int(saved.group(1)) > 0
    with SearchFolder(folder).locked():  # it is free
        pass
    assert search(config)[0] == stopped.name and len(ledger(folder)) == 2


def test_the_launcher_that_is_written_down_is_the_one_that_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_search(tmp_path, launcher={"class_path": "LocalWorkers", "init_args": {"num_workers": 0}})
    with own_signals():
        assert "num_workers must be at least 1, got 0" in error_of(capsys, ["search", "--config", str(config)])
    with own_signals():
        options = ["--launcher", "TrialProcesses", "--launcher.devices", "0"]
        error = error_of(capsys, ["search", "--config", str(config), *options])
    assert "devices must be at least 1, got 0" in error


@pytest.mark.slow
def test_trials_on_several_devices_are_searched(tmp_path: Path) -> None:
    launcher = {"class_path": "TrialProcesses", "init_args": {"devices": 2}}
    config = write_search(tmp_path, launcher=launcher)
    with own_signals():
        main(["search", "--config", str(config)])
    assert [one.device for one in Ledger([tmp_path / "search" / "trials"]).records()] == ["cpu x 2"] * 2


@pytest.mark.slow
def test_the_recipe_is_confirmed_beyond_the_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_search(tmp_path, budgets=[3e7, 6e7, 1.2e8], min_steps=1)
    folder = tmp_path / "search"
    assert search(config, "--replicates", "10", "--confirm")[-1] == "confirmation-2.4e+08"
    printed = capsys.readouterr().out
    assert "Training the recipe for 2.4e+08 FLOPs, predicted only from runs with smaller budgets." in printed
    told = next(line for line in printed.splitlines() if line.startswith("2.4e+08 FLOPs, "))
    record = read_record(folder / "confirmation" / "2.4e+08" / "run" / FILE)
    assert f"measured {record.loss:.4g}, " in told
    assert len(ledger(folder)) == 6, "it is none of the trials"
    assert search(config, "--replicates", "10", "--confirm", "2.4e8") == []
