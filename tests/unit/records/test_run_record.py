"""A record is written once, whole or not at all, and losses of different definitions are not mixed."""

from __future__ import annotations

import json
import os
import resource
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from embedlab.errors import RecordError
from embedlab.records import FILE, Ledger, LossDefinition, RunRecord, read_record, write_record
from embedlab.scaling.observations import of_ledger
from helpers.run_records import record


def test_what_is_written_is_read(tmp_path: Path) -> None:
    written = record(loss=float("inf"), status="diverged", parent_run_id="trunk", branch_step=7, branch_flops=9)
    assert read_record(write_record(written, tmp_path / "a")) == written
    assert [path.name for path in (tmp_path / "a").iterdir()] == [FILE]


def test_a_run_has_added_what_its_trunk_had_not_spent() -> None:
    assert record(flops_algorithmic=100).flops_added == 100
    assert record(flops_algorithmic=100, parent_run_id="trunk", branch_step=7, branch_flops=80).flops_added == 20


def test_a_record_is_written_once(tmp_path: Path) -> None:
    write_record(record(), tmp_path)
    with pytest.raises(RecordError, match="exists already"):
        write_record(record(loss=1.0), tmp_path)
    assert read_record(tmp_path / FILE).loss == 2.5


def test_of_writers_at_the_same_time_one_wins_and_its_record_is_whole(tmp_path: Path) -> None:
    refused = []

    def write(number: int) -> None:
        try:
            write_record(record(number), tmp_path)
        except RecordError:
            refused.append(number)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 7 and read_record(tmp_path / FILE).run_id not in {f"run-{n}" for n in refused}


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(RecordError, match="run-0 could not be written"):
            write_record(record(), tmp_path / "a")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert list((tmp_path / "a").iterdir()) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("[]", r"it holds \[\]"),
        ("{}", "no schema number"),
        (json.dumps({"schema": 99}), "schema 99. This version of embedlab reads records up to schema 1"),
        (json.dumps({"schema": 1, "run_id": "x"}), "lacks backbone, backward_weights"),
    ],
)
def test_what_is_no_record_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(RecordError, match=message):
        Ledger([tmp_path]).records()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"loss_definition": "InfoNCE"},
            "loss_definition is 'InfoNCE'. Expected an object with candidates, evaluation_set, loss, temp",
        ),
        (
            {"loss_definition": {"loss": "InfoNCE"}},
            "lacks loss_definition.candidates, loss_definition.evaluation_set, loss_definition.temp",
        ),
        ({"tokens": "many"}, "record.json: tokens is 'many'. Expected a whole number of 0 or more"),
        (
            {"loss": None},
            "loss is None. Expected a number of 0 or more, NaN or infinity. Write the file again, or remove it",
        ),
    ],
)
def test_a_record_with_a_value_that_is_none_is_refused(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    (tmp_path / FILE).write_text(json.dumps(asdict(record()) | values))
    with pytest.raises(RecordError, match=message):
        Ledger([tmp_path]).records()


EVERY_FIELD = [field.name for field in fields(RunRecord)]
EVERY_FIELD += [f"loss_definition.{field.name}" for field in fields(LossDefinition)]


def with_value(name: str, value: Any) -> dict[str, Any]:
    values: dict[str, Any] = asdict(record())
    outer, _, inner = name.rpartition(".")
    (values[outer] if outer else values)[inner] = value
    return values


@pytest.mark.parametrize("name", EVERY_FIELD)
def test_every_field_is_checked_and_named(tmp_path: Path, name: str) -> None:
    (tmp_path / FILE).write_text(json.dumps(with_value(name, [[]])))
    with pytest.raises(RecordError, match=f"schema number|record.json: {name} is .*Expected"):
        read_record(tmp_path / FILE)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("run_id", "../../elsewhere"),
        ("run_id", "a/b"),
        ("run_id", ".."),
        ("run_id", ""),
        ("run_id", "x\n"),
        ("run_id", "x" * 65),
        ("parent_run_id", "/etc"),
        ("learning_rate", "0.1"),
        ("learning_rate", -1.0),
        ("learning_rate", float("nan")),
        ("tokens", 0),
        ("tokens", 1.5),
        ("tokens", True),
        ("tokens", 10**40),
        ("pairs", 0),
        ("unique_pairs", 2_561),
        ("branch_flops", 10**12),
        ("loss", -3),
        ("flops_algorithmic", float("inf")),
        ("backbone", True),
        ("random_weights", 1),
        ("method_options", {"a": {"b": [10**40]}}),
        ("metrics", {"mrr": "high"}),
        ("metrics", {str(number): 0.5 for number in range(5_000)}),
        ("loss_definition.candidates", 0),
        ("loss_definition.temperature", 0),
        ("status", "done"),
        ("schedule", "x" * 20_000),
        ("schema", True),
    ],
)
def test_a_value_that_no_run_has_is_named_and_the_other_runs_are_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, value: Any
) -> None:
    write_record(record(1), tmp_path / "b")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / FILE).write_text(json.dumps(with_value(name, value)))
    assert [row.name for row in of_ledger(Ledger([tmp_path]))] == ["run-1"]
    (printed,) = capsys.readouterr().err.splitlines()
    assert f"a/{FILE}" in printed and (name in printed or name == "schema") and len(printed) < 500


def fifo(path: Path) -> None:
    os.mkfifo(path)


def endless_link(path: Path) -> None:
    path.symlink_to(path)


def huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(100 * 2**20)


CONTENTS = {
    "cut off": json.dumps(asdict(record()), indent=1)[:700].encode(),
    "a field twice": b'{"schema": 1, "schema": 1}',
    "nested without end": b'{"schema": ' + b"[" * 100_000,
    "not UTF-8": b'{"schema": 1, "run_id": "\xff\xfe\xfa"}',
    "a number of many digits": b'{"schema": 1' + b"0" * 10_000 + b"}",
    "empty": b"",
    "of another program": b"null",
}
MAKERS: dict[str, Callable[[Path], object]] = {
    name: partial(Path.write_bytes, data=content) for name, content in CONTENTS.items()
}
MAKERS |= {"a pipe": fifo, "a link to itself": endless_link, "100 MB": huge}


@pytest.mark.parametrize("kind", MAKERS)
def test_a_file_that_is_no_record_costs_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    write_record(record(), tmp_path / "good")
    (tmp_path / "bad").mkdir()
    MAKERS[kind](tmp_path / "bad" / FILE)
    assert len(Ledger([tmp_path]).usable()) == 1
    (printed,) = capsys.readouterr().err.splitlines()
    assert f"bad/{FILE}" in printed
    with pytest.raises(RecordError, match=f"None of the records can be used. .*bad/{FILE}"):
        Ledger([tmp_path / "bad"]).usable()


def test_of_many_broken_records_some_are_named_and_all_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_record(record(), tmp_path / "good")
    for number in range(12):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / FILE).touch()
    assert len(Ledger([tmp_path]).usable()) == 1
    printed = capsys.readouterr().err.splitlines()
    assert len(printed) == 6 and "7 more" in printed[-1]


def test_a_ledger_is_read_while_a_search_writes_and_removes(tmp_path: Path) -> None:
    def write() -> None:
        for number in range(150):
            write_record(record(number), tmp_path / f"run-{number}")
            if number % 3 == 0:
                (tmp_path / f"run-{number}" / FILE).unlink()
                (tmp_path / f"run-{number}").rmdir()

    writer = threading.Thread(target=write)
    writer.start()
    while writer.is_alive():
        for row in of_ledger(Ledger([tmp_path])):
            assert row.folder == str(tmp_path / row.name)
    writer.join()
    assert len(Ledger([tmp_path]).records()) == 100


def test_a_ledger_is_all_records_below_its_folders(tmp_path: Path) -> None:
    for number in range(3):
        write_record(record(number), tmp_path / "runs" / str(number))
    write_record(record(7), tmp_path / "other")
    ledger = Ledger([tmp_path / "runs", tmp_path / "other"])
    assert [one.run_id for one in ledger.records()] == ["run-0", "run-1", "run-2", "run-7"]
    write_record(record(2), tmp_path / "runs" / "copy")
    assert [one.run_id for one in ledger.records()] == ["run-0", "run-1", "run-2", "run-7"]
    write_record(record(2, loss=1.0), tmp_path / "runs" / "other")
    with pytest.raises(RecordError, match="different records of the same run, run-2"):
        ledger.records()
    with pytest.raises(RecordError, match="no folder"):
        Ledger([tmp_path / "nowhere"]).records()


def test_ten_thousand_records_load_in_two_seconds(tmp_path: Path) -> None:
    values = asdict(record())
    for number in range(10_000):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / FILE).write_text(json.dumps(values | {"run_id": str(number)}))
    seconds = []
    for _ in range(3):  # the processor's time is noisy too where machines are shared
        start = time.process_time()
        assert len(Ledger([tmp_path]).records()) == 10_000
        seconds.append(time.process_time() - start)
    assert min(seconds) < 2
