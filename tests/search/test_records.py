"""A record is written once, whole or not at all, and losses of different definitions are not mixed."""

from __future__ import annotations

import json
import math
import resource
import signal
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedlab.errors import RecordError
from embedlab.search.records import FILE, Ledger, LossDefinition, RunRecord, read_record, runs_of, write_record

DEFINITION = LossDefinition(loss="InfoNCE", temperature=0.05, candidates=256, evaluation_set="arxiv 1a2b")


def record(number: int = 0, **values: Any) -> RunRecord:
    return replace(
        RunRecord(
            run_id=f"run-{number}",
            status="finished",
            backbone="ladder:r0",
            method="LoRA",
            method_options={"rank": 8},
            parameters=281_152,
            nonembedding_parameters=150_080,
            forward_weights=147_456.0,
            backward_weights=147_456.0,
            update_weights=4_096.0,
            tokens=100_000 + number,
            padded_tokens=104_000,
            pairs=2_560,
            unique_pairs=1_280,
            batch_size=128,
            max_length=64,
            learning_rate=3e-3,
            schedule="WarmupCosine",
            seed=0,
            data_hash="3c4d",
            loss_definition=DEFINITION,
            loss=2.5,
            flops_algorithmic=10**11,
            flops_executed=12 * 10**10,
            seconds=12.5,
            device="cpu x 1",
        ),
        **values,
    )


def test_what_is_written_is_read(tmp_path: Path) -> None:
    written = record(loss=float("inf"), status="diverged", parent_run_id="trunk", branch_step=7)
    assert read_record(write_record(written, tmp_path / "a")) == written
    assert [path.name for path in (tmp_path / "a").iterdir()] == [FILE]


def test_a_record_is_written_once(tmp_path: Path) -> None:
    write_record(record(), tmp_path)
    with pytest.raises(RecordError, match="there already"):
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
        ("[]", "no schema number"),
        ("{}", "no schema number"),
        (json.dumps({"schema": 99}), "schema 99, and this embedlab reads up to 1"),
        (json.dumps({"schema": 1, "run_id": "x"}), "without backbone, backward_weights"),
    ],
)
def test_what_is_no_record_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(RecordError, match=message):
        Ledger([tmp_path]).records()


def test_a_ledger_is_all_records_below_its_folders(tmp_path: Path) -> None:
    for number in range(3):
        write_record(record(number), tmp_path / "runs" / str(number))
    write_record(record(7), tmp_path / "other")
    ledger = Ledger([tmp_path / "runs", tmp_path / "other"])
    assert [one.run_id for one in ledger.records()] == ["run-0", "run-1", "run-2", "run-7"]
    write_record(record(2), tmp_path / "runs" / "copy")
    with pytest.raises(RecordError, match="same run, run-2"):
        ledger.records()
    with pytest.raises(RecordError, match="no folder"):
        Ledger([tmp_path / "nowhere"]).records()


def test_runs_are_the_finished_ones_with_their_repetition_and_family() -> None:
    trunk = record(1, tokens=50_000, pairs=1_000)
    records = [
        record(0),
        trunk,
        record(2, parent_run_id="run-1", branch_step=5),
        record(3, loss=math.nan, status="diverged"),
        record(4, status="failed"),
    ]
    assert [one.left_out for one in records] == [None, None, None, "diverged", "failed"]
    runs = runs_of(records)
    np.testing.assert_array_equal(runs.tokens_P, [100_000, 50_000, 100_002])
    assert runs.unique_tokens_P is not None and runs.family_P is not None
    np.testing.assert_allclose(runs.unique_tokens_P, [50_000, 50_000, 50_001])
    assert runs.family_P[0] != runs.family_P[1] == runs.family_P[2]


def test_losses_of_different_definitions_are_not_mixed() -> None:
    other = record(1, loss_definition=replace(DEFINITION, temperature=0.02))
    with pytest.raises(RecordError, match=r"temperature 0.05 and 0.02 \(1 runs like run-0, 1 like run-1\)"):
        runs_of([record(), other])
    with pytest.raises(RecordError, match="nothing to fit"):
        runs_of([record(status="failed")])


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
