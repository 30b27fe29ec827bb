"""Runs become rows whoever made them, and what cannot be fitted stays with its reason."""

from __future__ import annotations

import gzip
import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from embedlab.errors import ConfigError, RecordError
from embedlab.scaling.observations import by_method, of_records, runs_of, with_best_learning_rates
from embedlab.scaling.tables import Columns, read_table
from helpers.run_records import DEFINITION, record

ASKED_SIMPLY = Columns(parameters="N", tokens="D")


def test_records_become_rows_with_their_repetition_and_family() -> None:
    rows = of_records(
        [
            record(0),
            record(1, tokens=50_000, pairs=1_000),
            record(2, parent_run_id="run-1", branch_step=5),
            record(3, loss=math.nan, status="diverged"),
            record(4, status="failed"),
            record(5, loss=math.inf),
        ]
    )
    assert [row.left_out for row in rows] == [None, None, None, "diverged", "failed", "the loss is inf"]
    runs = runs_of(by_method(rows)["LoRA"])
    np.testing.assert_array_equal(runs.tokens_P, [100_000, 50_000, 100_002])
    assert runs.unique_tokens_P is not None and runs.family_P is not None
    np.testing.assert_allclose(runs.unique_tokens_P, [50_000, 50_000, 50_001])
    assert runs.family_P[0] != runs.family_P[1] == runs.family_P[2]


def test_a_run_near_the_loss_of_a_guess_is_told_from_one_that_has_learnt() -> None:
    rows = of_records([record(0, loss=5.5), record(1, loss=5.0), record(2, loss=math.nan, status="diverged")])
    assert rows[0].chance == pytest.approx(math.log(256))
    assert [row.is_near_chance for row in rows] == [True, False, False]
    assert not replace(rows[0], chance=None).is_near_chance


def test_a_metric_takes_the_place_of_the_loss() -> None:
    records = [
        record(0, metrics={"validation/a/ndcg@10": 0.75, "validation/a/loss": 3.0}),
        record(1),
        record(2, status="failed"),
    ]
    rows = of_records(records, metric="validation/a/ndcg@10")
    assert rows[0].loss == 0.25 and rows[0].chance == 1
    assert [row.left_out for row in rows] == [None, "it has no metric validation/a/ndcg@10", "failed"]
    (row, *_) = of_records(records, metric="validation/a/loss")
    assert row.loss == 3 and row.chance == pytest.approx(math.log(256))
    with pytest.raises(RecordError, match=r"metric b\. The runs have: validation/a/loss, validation/a/ndcg@10\. Name"):
        of_records(records, metric="b")
    with pytest.raises(RecordError, match=r"perplexity has a value of 20\. Expected a loss, or a metric from 0 to 1"):
        of_records([record(0, metrics={"perplexity": 20.0})], metric="perplexity")


def test_losses_of_different_definitions_are_not_mixed() -> None:
    other = record(1, loss_definition=replace(DEFINITION, temperature=0.02))
    with pytest.raises(RecordError, match=r"temperature 0.05 and 0.02 .*: 1 like run-0, 1 like run-1\)"):
        of_records([record(), other])
    of_records([record(), replace(other, status="failed")])
    with pytest.raises(RecordError, match=r"no run to fit a law to; .* left out: 1, because: failed \(1 of 1\)"):
        by_method(of_records([record(status="failed")]))


def test_of_runs_that_differ_in_their_learning_rate_the_best_is_fitted() -> None:
    rows = of_records(
        [
            record(0, learning_rate=1e-3, loss=1.0),
            record(1, learning_rate=3e-3, loss=0.9),
            record(2, learning_rate=3e-3, loss=0.95, seed=1),
            record(3, learning_rate=1e-3, loss=0.5, tokens=400_000, pairs=8_000),
        ]
    )
    reasons = [row.left_out for row in with_best_learning_rates(rows)]
    assert reasons == ["learning rate 0.003 gave a lower loss (run-1)", None, None, None], (
        "another seed is no worse rate"
    )


TABLE = "model,N (M),tok,val,set\na,70,1e9,3.5,x\nb,160,2e9,3.1,y\nc,410,4e9,nan,x\nd,410,,2.9,y\n"


def written(folder: Path, text: str, name: str = "runs.csv") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_a_table_with_other_names_and_units_is_read(tmp_path: Path) -> None:
    columns = Columns(parameters="N (M)*1e6", tokens="tok", loss="val", method="set", backbone="model")
    rows = read_table(written(tmp_path, TABLE), columns)
    assert [row.parameters for row in rows] == [70e6, 160e6, 410e6, 410e6]
    assert [row.method for row in rows] == ["x", "y", "x", "y"] and rows[0].backbone == "a"
    assert rows[0].flops == 6 * 70e6 * 1e9 and rows[0].name == "runs.csv:2"
    assert [row.left_out for row in rows] == [None, None, "its loss is 'nan'", "its number of tokens is ''"]
    zipped = tmp_path / "runs.tsv.gz"
    with gzip.open(zipped, "wt") as file:
        file.write(TABLE.replace(",", "\t"))
    assert [row.tokens for row in read_table(zipped, columns)][:3] == [1e9, 2e9, 4e9]


def test_a_row_that_stands_twice_counts_once(tmp_path: Path) -> None:
    path = written(tmp_path, "N,D,loss,seed\n1e8,1e9,3,0\n1e8,2e9,2.9,0\n1e8,1e9,3,0\n1e8,1e9,3.001,0\n1e8,1e9,3,1\n")
    columns = Columns(parameters="N", tokens="D")
    rows = read_table(path, columns)
    told = "the same run stands in an earlier row, and counts once"
    assert [row.left_out for row in rows] == [None, None, told, None, told]
    families = read_table(path, replace(columns, family="seed"))
    assert [row.left_out for row in families] == [None, None, told, None, None], "another family is another run"


def test_the_best_learning_rate_of_a_table_is_fitted(tmp_path: Path) -> None:
    path = written(tmp_path, "N,D,loss,lr\n1e8,1e9,3,1e-3\n1e8,1e9,2.9,3e-4\n1e8,2e9,2.8,1e-3\n1e8,2e9,2.7,none\n")
    rows = with_best_learning_rates(read_table(path, Columns(parameters="N", tokens="D", learning_rate="lr")))
    assert [row.learning_rate for row in rows][:3] == [1e-3, 3e-4, 1e-3]
    assert [row.left_out for row in rows] == [
        "learning rate 0.0003 gave a lower loss (runs.csv:3)",
        None,
        None,
        "its learning rate is 'none'",
    ]


@pytest.mark.parametrize(
    ("cells", "numbers"),
    [
        ("1,5e8;1,234", [1.5e8, 1.234]),
        ("100 000 000;3,25", [1e8, 3.25]),
        ("100.000.000,0;3,25", [1e8, 3.25]),
        ('"100,000,000",3.25', [1e8, 3.25]),
        ('"100,000,000.5","3.25"', [1e8 + 0.5, 3.25]),
        ("100'000'000,3.25", [1e8, 3.25]),
        ("100\u202f000\u202f000\t3,25", [1e8, 3.25]),
    ],
)
def test_numbers_are_read_as_countries_write_them(tmp_path: Path, cells: str, numbers: list[float]) -> None:
    delimiter = next(one for one in ";\t," if one in cells)
    path = written(tmp_path, f"N{delimiter}loss{delimiter}D\n{cells}{delimiter}1e9\n")
    (row,) = read_table(path, Columns(parameters="N", tokens="D"))
    assert [row.parameters, row.loss] == numbers and row.left_out is None


def test_a_comma_that_may_mean_either_is_read_as_the_other_cells_say(tmp_path: Path) -> None:
    rows = "N;D;loss\n1e8;1e9;3,125\n1e8;2e9;3,1\n"
    assert [row.loss for row in read_table(written(tmp_path, rows), ASKED_SIMPLY)] == [3.125, 3.1]
    quoted = 'N,D,loss\n"10,000","1,000,000",3.1\n'
    (row,) = read_table(written(tmp_path, quoted), ASKED_SIMPLY)
    assert (row.parameters, row.tokens) == (1e4, 1e6)
    (odd,) = read_table(written(tmp_path, 'N,D,loss\n1e8,1e9,"3,1,2"\n'), ASKED_SIMPLY)
    assert odd.left_out == "its loss is '3,1,2'"


def test_a_parquet_file_is_a_table(tmp_path: Path) -> None:
    path = tmp_path / "runs.parquet"
    parquet.write_table(
        pa.table(
            {"N": [1e8, 2e8, 4e8], "D": [10**9, 2 * 10**9, 4 * 10**9], "loss": [3.0, None, 2.9], "set": ["x", "y", "z"]}
        ),
        path,
    )
    rows = read_table(path, Columns(parameters="N", tokens="D", method="set"))
    assert [(row.parameters, row.tokens, row.method) for row in rows] == [
        (1e8, 1e9, "x"),
        (2e8, 2e9, "y"),
        (4e8, 4e9, "z"),
    ]
    assert [row.left_out for row in rows] == [None, "its loss is ''", None]


def test_rows_that_meet_no_condition_are_left_out(tmp_path: Path) -> None:
    path = written(tmp_path, "N,D,loss,outlier,set\n1e8,1e9,3,0,x\n1e8,2e9,9,1,x\n1e8,4e9,2,0.0,test\n")

    def used(where: str) -> list[int]:
        rows = read_table(path, ASKED_SIMPLY, where=where)
        return [number for number, row in enumerate(rows) if row.left_out is None]

    assert used("outlier == 0") == [0, 2] and used("outlier == 0 and set != 'test'") == [0]
    assert used("loss<5") == [0, 2] and used("loss >= 3") == [0, 1] and used('set == "test"') == [2]
    assert used("set > a") == [], "names have no order"
    assert read_table(path, ASKED_SIMPLY, where="outlier == 0")[1].left_out == "it does not meet outlier == 0"
    with pytest.raises(RecordError, match=r"no column 'outliers' \(--where\).*Did you mean 'outlier'"):
        read_table(path, ASKED_SIMPLY, where="outliers == 0")
    with pytest.raises(ConfigError, match=r"--where is 'outlier'\. Expected comparisons"):
        read_table(path, ASKED_SIMPLY, where="outlier")


def test_accuracies_are_read_as_errors_and_not_taken_for_losses(tmp_path: Path) -> None:
    rows = "".join(f"1e8,{n}e9,{0.9 - 0.5 / n}\n" for n in range(1, 10))
    path = written(tmp_path, f"N,D,loss\n{rows}")
    with pytest.raises(RecordError, match=r"rise with the FLOPs \(correlation of ranks 1.00\).*add --loss_is accuracy"):
        read_table(path, ASKED_SIMPLY)
    found = read_table(path, ASKED_SIMPLY, loss_is="accuracy")
    assert [row.loss for row in found] == pytest.approx([0.1 + 0.5 / n for n in range(1, 10)])
    percent = read_table(written(tmp_path, "N,D,loss\n1e8,1e9,71.5\n"), ASKED_SIMPLY, loss_is="accuracy")
    assert percent[0].left_out == "its accuracy is '71.5', and not between 0 and 1"
    percent = read_table(path.parent / "runs.csv", replace(ASKED_SIMPLY, loss="loss*0.01"), loss_is="accuracy")
    assert percent[0].loss == pytest.approx(0.285)


def test_data_follow_from_flops_where_the_table_has_no_tokens(tmp_path: Path) -> None:
    path = written(tmp_path, "N,C,loss\n1e8,6e17,3\n")
    (row,) = read_table(path, Columns(parameters="N", flops="C"))
    assert row.tokens == pytest.approx(1e9) and row.method == "all runs" and row.backbone == "1e+08 parameters"


def test_a_table_with_an_amount_of_data_in_each_column_is_read(tmp_path: Path) -> None:
    path = written(tmp_path, "model,size,0,200,400\na,1e8,4.0,3.5,3.2\n")
    rows = read_table(path, Columns(parameters="size", tokens="columns*64", backbone="model", family="model"))
    assert [(row.tokens, row.loss) for row in rows] == [(0, 4.0), (12800, 3.5), (25600, 3.2)]
    assert [row.left_out for row in rows] == ["the run saw no data", None, None]
    assert {row.family for row in rows} == {"a"} and len({row.name for row in rows}) == 3


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (Columns(parameters="N (M)", tokens="tok", loss="val"), r"median of 285.*--columns.parameters 'N \(M\)\*1e6'"),
        (
            Columns(parameters="n", tokens="tok", loss="val"),
            "no column 'n' .columns.parameters.. Its columns are model, N",
        ),
        (Columns(parameters="N (M)*1e6", tokens="tok", loss="vall"), "Did you mean 'val'"),
        (Columns(parameters="N (M)*1e6", loss="val"), "columns.tokens.*columns.flops"),
        (Columns(parameters="N (M)*many", tokens="tok", loss="val"), r"no column 'N \(M\)\*many'"),
        (
            Columns(parameters="N (M)*1e6", tokens="columns", loss="val"),
            "no column of the table has a number as its name",
        ),
    ],
)
def test_a_table_that_cannot_be_used_is_one_clear_error(tmp_path: Path, columns: Columns, message: str) -> None:
    with pytest.raises(RecordError, match=message):
        read_table(written(tmp_path, TABLE), columns)


def test_data_in_another_unit_and_an_empty_file_are_said_to_be_that(tmp_path: Path) -> None:
    path = written(tmp_path, "N,D,loss\n1e8,300,3\n1e8,600,2.9\n")
    with pytest.raises(RecordError, match=r"'D' .* median of 450, .* number of tokens.*--columns.tokens 'D\*1e6'"):
        read_table(path, Columns(parameters="N", tokens="D"))
    assert read_table(path, Columns(parameters="N", tokens="D*1e9"))[0].tokens == 3e11
    with pytest.raises(RecordError, match=r"nothing\.csv is empty. Expected a header"):
        read_table(written(tmp_path, "", "nothing.csv"), Columns(parameters="N", tokens="D"))


def test_a_file_that_is_no_table_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="cannot be read as a table"):
        read_table(tmp_path / "nowhere.csv", Columns(tokens="tokens"))


GOOD = "N,D,loss,set\n1e8,1e9,3.5,x\n2e8,2e9,3.1,y\n"
ASKED = Columns(parameters="N", tokens="D", method="set")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(GOOD.encode())[:-12], "cannot be read as a table: .*end-of-stream"),
        (gzip.compress(GOOD.encode())[:10] + b"\xff" * 20, "cannot be read as a table"),
        (b"", "is empty. Expected a header"),
        (b"\n\n", "is empty. Expected a header"),
        (b"N,D,loss,set\n", "has a header and no rows"),
        (b"1e8,1e9,3.5,4\n2e8,2e9,3.1,5\n", "Its first line holds numbers"),
        (b"N,D,loss,set,D\n1e8,1e9,3.5,x,2e9\n", "has the column 'D' 2 times"),
        (b"PAR1....", "cannot be read as a Parquet file"),
        (b"PK\x03\x04....", "is a spreadsheet or a ZIP archive"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (GOOD.encode("utf-16-le"), "NUL bytes"),
        (GOOD.replace("x", "é").encode("latin-1"), "line 2 is not utf-8 text"),
        (("N,D,loss,set," + ",".join(map(str, range(20_000))) + "\n").encode(), "20004 columns"),
        (b"\x1b[31m,b\n1,2\n", r"Its columns are \\x1b\[31m, b"),
        (("," * 200 + "\n1\n").encode(), "has no column 'N'"),
    ],
)
def test_a_damaged_table_is_one_line_that_names_it(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "runs.csv"
    path.write_bytes(content)
    with pytest.raises(RecordError, match=message) as error:
        read_table(path, ASKED)
    assert "runs.csv" in str(error.value) and len(str(error.value)) < 1_000


def test_a_folder_or_a_pipe_is_no_table(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="is a folder, and folders of runs go to --runs"):
        read_table(tmp_path, ASKED)
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(RecordError, match="no regular file"):
        read_table(tmp_path / "pipe.csv", ASKED)


@pytest.mark.parametrize(
    "content",
    [
        GOOD.encode("utf-8-sig"),
        GOOD.encode("utf-16"),
        GOOD.replace("\n", "\r\n").encode(),
        GOOD.replace("\n", "\r").encode(),
        GOOD.replace(",", ";").encode(),
        GOOD.replace(",", "\t").encode(),
        GOOD.replace(",", " , ").encode(),
        ("\n" + GOOD.replace("\n", ",\n")).encode(),
        gzip.compress(GOOD.encode()),
        ("a b,N,D,loss,set,a b\n" + "".join(f'"x\ny",{row},\n' for row in GOOD.split()[1:])).encode(),
    ],
)
def test_the_same_table_is_read_however_a_program_wrote_it(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "runs.csv"
    path.write_bytes(content)
    rows = read_table(path, ASKED)
    assert [(row.parameters, row.tokens, row.loss, row.left_out) for row in rows] == [
        (1e8, 1e9, 3.5, None),
        (2e8, 2e9, 3.1, None),
    ]


def test_a_stray_quote_costs_one_row(tmp_path: Path) -> None:
    broken = GOOD + '"3e8,1e9,3,x\n' + "".join(f"4e8,{number}e9,3,x\n" for number in range(1, 40)) + "5e8,1e9\n"
    rows = read_table(written(tmp_path, broken), ASKED)
    assert sum(row.left_out is None for row in rows) == 41
    assert [(row.name, row.left_out) for row in rows if row.left_out] == [
        ("runs.csv:4", "the row is broken: a quote has no end"),
        ("runs.csv:44", "the row is broken: it has 2 cells, and the header has 4"),
    ]
