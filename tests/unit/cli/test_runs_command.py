"""`embedlab runs` shows what is recorded, and what it exports can be read elsewhere and by `embedlab recipe`."""

from __future__ import annotations

import csv
import json
import math
import resource
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
from pyarrow import parquet

from embedlab.cli.commands import main
from embedlab.records import Ledger, write_record
from embedlab.scaling.observations import of_records
from embedlab.scaling.tables import Columns, read_table
from helpers.run_records import record
from helpers.runs import error_of

MIXED = [
    record(0, metrics={"validation/a/mrr@10": 0.25}, flops_algorithmic=10**20),
    record(1, method="BlockFreezing", method_options={"blocks": 2, "which": ["first", "last"]}, parent_run_id="run-0"),
    record(2, status="diverged", loss=math.nan, method_options={"blocks": "half"}, learning_rate=1),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for one in MIXED:
        write_record(one, tmp_path / "runs" / one.run_id)
    return tmp_path / "runs"


def test_a_list_has_a_row_for_each_run(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    main(["runs", "list", "--runs", str(folder / "run-0"), str(folder / "run-2")])
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    shown = [row for row in rows if row]
    assert shown == [
        ["run", "status", "backbone", "method", "N", "tokens", "learning rate", "loss", "FLOPs", "hours"],
        ["run-0", "finished", "ladder:r0", "LoRA", "1.5e+05", "1e+05", "0.003", "2.5000", "1e+20", "0.00347"],
        ["run-2", "diverged", "ladder:r0", "LoRA", "1.5e+05", "1e+05", "1", "nan", "1e+11", "0.00347"],
    ]


@pytest.mark.parametrize("by", ["identifier", "folder"])
def test_one_run_is_shown_whole(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path, by: str
) -> None:
    monkeypatch.chdir(folder.parent)  # runs/ is where to look unless one says otherwise
    main(["runs", "show", "run-1" if by == "identifier" else str(folder / "run-1")])
    shown = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert {name.partition(".")[0] for name in shown} >= asdict(MIXED[1]).keys() - {"metrics", "versions"}
    assert shown["run_id"] == "run-1" and shown["flops_algorithmic"] == "100000000000"
    assert shown["loss_definition.temperature"] == "0.05" and shown["method_options.blocks"] == "2"
    assert shown["peak_memory_bytes"] == "–"


@pytest.mark.parametrize("file_format", ["csv", "parquet"])
def test_an_export_has_every_field_of_every_run(tmp_path: Path, folder: Path, file_format: str) -> None:
    path = tmp_path / "new" / f"runs.{file_format}"
    main(["runs", "export", "--runs", str(folder), "--format", file_format, "--output", str(path)])
    if file_format == "parquet":
        rows = parquet.read_table(path).to_pylist()
        assert [row["tokens"] for row in rows] == [100_000, 100_001, 100_002]
        assert [row["flops_algorithmic"] for row in rows] == [1e20, 1e11, 1e11], "int64 does not hold the first"
    else:
        with path.open(newline="") as file:
            rows = [{name: value or None for name, value in row.items()} for row in csv.DictReader(file)]
    assert {name.partition(".")[0] for name in rows[0]} == asdict(MIXED[0]).keys() - {"versions"} | {"family"}
    assert [float(row["loss"]) for row in rows[:2]] == [2.5, 2.5] and math.isnan(float(rows[2]["loss"]))
    assert [row["family"] for row in rows] == ["run-0", "run-0", "run-2"]
    assert [row["metrics.validation/a/mrr@10"] for row in rows][1:] == [None, None]
    assert [row["method_options.blocks"] for row in rows] == [None, "2", '"half"'], "of no one type: as JSON"
    assert json.loads(rows[1]["method_options.which"]) == ["first", "last"]


def test_what_is_exported_is_read_back_as_the_same_runs(tmp_path: Path, folder: Path) -> None:
    path = tmp_path / "runs.csv"
    main(["runs", "export", "--runs", str(folder), "--output", str(path)])
    columns = Columns(
        parameters="nonembedding_parameters",
        tokens="tokens",
        flops="flops_algorithmic",
        method="method",
        backbone="backbone",
        family="family",
    )
    back, recorded = read_table(path, columns), of_records(Ledger([folder]).records())
    for name in ("parameters", "tokens", "flops", "backbone", "family"):
        assert [getattr(row, name) for row in back] == [getattr(row, name) for row in recorded], name
    assert [row.method for row in back] == [row.method.partition("(")[0] for row in recorded]
    assert [row.loss for row in back[:2]] == [2.5, 2.5]
    assert [row.left_out for row in back] == [None, None, "its loss is 'nan'"]


HOSTILE = "[bold red]x[/x] :smile: \x1b[2J\u202e=\n"


def test_names_in_records_are_shown_as_text(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    write_record(record(backbone=HOSTILE, method=HOSTILE, schedule=HOSTILE, metrics={HOSTILE: 1.0}), tmp_path / "run")
    for command in (["list"], ["show", "run-0"]):
        main(["runs", *command, "--runs", str(tmp_path)])
        printed = capsys.readouterr().out
        assert r"[bold red]x[/x] :smile: \x1b[2J\u202e=\n" in printed
        assert all(line.isprintable() for line in printed.splitlines())


@pytest.mark.parametrize("begin", ["=", "+", "-", "@", "\t", "\r"])
def test_no_cell_of_an_export_is_a_formula(tmp_path: Path, begin: str) -> None:
    text = f"{begin}HYPERLINK(1)"
    write_record(record(method=text, metrics={text: -0.5}), tmp_path / "run")
    main(["runs", "export", "--runs", str(tmp_path), "--output", str(tmp_path / "runs.csv")])
    with (tmp_path / "runs.csv").open(newline="") as file:
        names, cells = csv.reader(file)
    row = dict(zip(names, cells, strict=True))
    assert row["method"].startswith("'") and not any(name.startswith(begin) for name in names)
    assert "-0.5" in cells, "numbers stay numbers"


def test_ten_thousand_runs_are_listed_in_four_seconds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = asdict(record())
    for number in range(10_000):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "record.json").write_text(json.dumps(values | {"run_id": str(number)}))
    start = time.process_time()
    main(["runs", "list", "--runs", str(tmp_path)])
    assert time.process_time() - start < 4
    assert len(capsys.readouterr().out.splitlines()) == 10_004


def test_a_run_that_was_asked_for_says_what_is_wrong_with_it(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    (folder / "run-1" / "record.json").write_text(json.dumps(asdict(MIXED[1]) | {"tokens": "many"}))
    assert "record.json: tokens is 'many'" in error_of(capsys, ["runs", "show", str(folder / "run-1")])
    main(["runs", "show", "run-0", "--runs", str(folder)])
    assert "run-1/record.json: tokens is 'many'" in capsys.readouterr().err


def test_output_that_nobody_reads_ends_without_a_traceback(folder: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "embedlab", "runs", "list", "--runs", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert "Traceback" not in process.stderr.read() and process.wait() == 1


def test_an_export_leaves_another_file_as_it_is(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, folder: Path
) -> None:
    (tmp_path / "mine.csv").write_text("mine")
    command = ["runs", "export", "--runs", str(folder), "--output", str(tmp_path / "mine.csv")]
    assert "mine.csv exists already. Choose another place" in error_of(capsys, command)
    assert (tmp_path / "mine.csv").read_text() == "mine"


@pytest.mark.parametrize("file_format", ["csv", "parquet"])
def test_a_full_disk_leaves_no_half_export(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, folder: Path, file_format: str
) -> None:
    path = tmp_path / "new" / "runs"
    command = ["runs", "export", "--runs", str(folder), "--format", file_format, "--output", str(path)]
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        assert "runs cannot be written" in error_of(capsys, command)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (
            ["show", "run-3"],
            "No run below runs is called 'run-3'. Expected one of 3 runs: run-0, run-1, run-2. Did you mean 'run-",
        ),
        (["show", "runs"], "The folder runs has no record.json itself. Choose one of the runs below it: run-0"),
        (["show", "."], "The folder . has no record.json itself"),
        (["show", "empty"], "There is no run record below empty"),
        (["list", "--runs", "empty"], "There is no run record below empty. `embedlab fit` writes record.json"),
        (["list", "--runs", "./nowhere"], "There is no folder nowhere"),
        (["export", "--format", "xlsx", "--output", "x"], "xlsx"),
        (["export"], "output"),
        (["export", "--output", "runs/run-0/record.json/x.csv"], "record.json is not a folder"),
        (["remove"], "remove"),
        ([], "command"),
    ],
)
def test_what_cannot_be_done_is_one_clear_error(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    arguments: list[str],
    named: str,
) -> None:
    monkeypatch.chdir(folder.parent)
    Path("empty").mkdir()
    assert named in error_of(capsys, ["runs", *arguments])
