"""An option that cannot be meant is one line, before a record is read or a law is fitted."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from embedlab.records import FILE, write_record
from helpers.run_records import record
from helpers.runs import error_of

RECIPE = ["recipe", "--budget", "1e12"]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder whose records cannot be read: a message that names them would come too late."""
    (tmp_path / "runs" / "broken").mkdir(parents=True)
    (tmp_path / "runs" / "broken" / FILE).write_text("{")
    return tmp_path / "runs"


@pytest.mark.parametrize(
    ("command", "named"),
    [
        (["recipe", "--budget", "-1"], "--budget is -1. Expected a number of FLOPs from 1"),
        (["recipe", "--budget", "0"], "--budget is 0"),
        (["recipe", "--budget", "1e400"], "budget is 1e400. Expected a finite number"),
        (["recipe", "--budget", "1e300"], "--budget is 1e+300"),
        (["recipe", "--budget", "1e12", "1e12"], "--budget has 1e+12 twice"),
        (["recipe", "--budget", "nan"], "budget"),
        (["recipe", "--budget", "much"], "budget"),
        ([*RECIPE, "--replicates", "0"], "--replicates is 0. Expected a whole number from 1"),
        ([*RECIPE, "--replicates", "-5"], "--replicates is -5"),
        ([*RECIPE, "--max-memory", "-1"], "max_memory is -1"),
        ([*RECIPE, "--unique-pairs", "0"], "unique_pairs is 0"),
        ([*RECIPE, "--hours", "-0.5"], "hours is -0.5"),
        ([*RECIPE, "--serve-tokens", "0"], "serve_tokens is 0"),
        ([*RECIPE, "--max-parameters", "1e999"], "max_parameters is 1e999. Expected a finite number"),
        ([*RECIPE, "--device", "abacus"], "--device is 'abacus'"),
        ([*RECIPE, "--device", "-3e12"], "--device is '-3e12'"),
        ([*RECIPE, "--output", "FILE/recipes"], "is not a folder"),
        ([*RECIPE, "--table", "FILE"], "Expected either --runs or --table"),
        (["report", "--output", "FILE"], "is not a folder"),
        (["report", "--output", "new", "--replicates", "0"], "--replicates is 0"),
        (["report", "--output", "new", "--hours", "0"], "hours is 0"),
        (["runs", "export", "--output", "FILE"], "exists already"),
        (["runs", "list"], "There is no folder nowhere"),
    ],
)
def test_it_is_refused_before_a_record_is_read(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    runs: Path,
    command: list[str],
    named: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("FILE").touch()
    words = [*command, "--runs", str(runs), *(["nowhere"] if "nowhere" in named else [])]
    begin = time.process_time()
    message = error_of(capsys, words)
    assert named in message and FILE not in message
    assert time.process_time() - begin < 2


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (
            ["--columns.tokens", "D", "--columns.loss", "loss*0"],
            "columns.loss is 'loss*0'. Expected a finite factor above 0",
        ),
        (["--columns.tokens", "D*nan"], "columns.tokens is 'D*nan'"),
        ([], "needs an amount of data"),
        (["--columns.tokens", "D", "--output", "out"], "from a table of runs"),
    ],
)
def test_columns_that_no_table_has_are_refused_before_it_is_read(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, options: list[str], named: str
) -> None:
    (tmp_path / "runs.csv").write_bytes(b"\xff\xff")
    assert named in error_of(capsys, [*RECIPE, "--table", str(tmp_path / "runs.csv"), *options])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_to_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, runs: Path
) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    command = [*RECIPE, "--runs", str(runs), "--output", str(tmp_path / "locked" / "recipes")]
    assert "You have no permission to write to" in error_of(capsys, command)


def test_a_disk_that_fills_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    write_record(record(), tmp_path / "runs")
    command = ["runs", "export", "--runs", str(tmp_path / "runs"), "--output", "/proc/self/fd/none/runs.csv"]
    assert "/proc/self/fd" in error_of(capsys, command)
