"""Tables of any kind are read, or refused in one line; what is left out of them is counted."""

from __future__ import annotations

import gzip
import math
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from embedlab.scaling.observations import by_method, runs_of, with_best_learning_rates
from embedlab.scaling.tables import Columns, read_table
from helpers.commands import printed_by
from helpers.fuzzing import Fuzz

HEADER = ["model", "N", "D", "C", "loss", "set"]
names = st.one_of(
    st.sampled_from(HEADER),
    st.text(max_size=8),
    st.sampled_from(["N*1e6", "D*0", "loss*-1", "*", "C*nan", "[red]", "columns", "columns*64", "1e9"]),
)
cells = st.one_of(
    st.floats(min_value=1e4, max_value=1e12).map(str),
    st.text(max_size=6),
    st.sampled_from(
        [
            "nan",
            "inf",
            "-1",
            "0",
            "1e400",
            "1e-400",
            "1_000",
            "",
            '"',
            'a"b',
            '"a',
            "1,5",
            "\x1b[2J",
            "[/x]",
            "=1",
            "x" * 9_999,
        ]
    ),
)


@st.composite
def tables(draw: st.DrawFn) -> bytes:
    """A table of runs with odd cells, and, perhaps, of another program, with broken rows or damaged bytes."""
    header = HEADER if draw(st.integers(0, 9)) else draw(st.lists(names, max_size=8))
    delimiter = draw(st.sampled_from([",", ",", ",", "\t", ";", "|", " "]))
    rows = [[f"m{n}", f"{n}e8", f"{n}e9", f"{n}e18", f"{3 + 1 / n}", "x"] for n in range(1, draw(st.integers(1, 6)))]
    for row in rows:
        for _ in range(draw(st.integers(0, 2))):
            row[draw(st.integers(0, len(row) - 1))] = draw(cells)
        if draw(st.integers(0, 5)) == 0:
            row[draw(st.integers(0, len(row) - 1)) :] = draw(st.lists(cells, max_size=3))
    end = draw(st.sampled_from(["\n", "\n", "\r\n", "\r"]))
    text = end.join(delimiter.join(row) for row in [header, *rows])
    encoding = draw(st.sampled_from(["utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-16-le", "latin-1"]))
    content = text.encode(encoding, "replace")
    place = draw(st.integers(0, len(content)))
    how = draw(st.sampled_from(["whole", "whole", "cut", "bytes", "gz", "damaged gz"]))
    if how == "cut":
        return content[:place]
    if how == "bytes":
        return content[:place] + draw(st.binary(max_size=6)) + content[place:]
    if "gz" in how:
        content = gzip.compress(content)
        return content if how == "gz" else content[: len(content) // 2] + draw(st.binary(max_size=6))
    return content


def mostly(name: str) -> st.SearchStrategy[str]:
    """A column that is there, in nine of ten cases."""
    return st.integers(0, 9).flatmap(lambda number: names if number == 9 else st.just(name))


columns = st.fixed_dictionaries(
    {"parameters": mostly("N"), "loss": mostly("loss"), "tokens": mostly("D")},
    optional={
        "flops": mostly("C"),
        "method": mostly("set"),
        "backbone": mostly("model"),
        "unique_tokens": names,
        "family": names,
    },
)


def test_any_table_is_read_or_named(fuzz: Fuzz, tmp_path: Path) -> None:
    def boundary(given: tuple[bytes, dict[str, str], str]) -> None:
        content, asked, name = given
        (tmp_path / name).write_bytes(content)
        rows = with_best_learning_rates(read_table(tmp_path / name, Columns(**asked)))
        assert rows
        for row in rows:
            numbers = (row.parameters, row.tokens, row.loss, row.flops, row.unique_tokens)
            assert row.left_out or all(math.isfinite(number) and number > 0 for number in numbers)
            assert row.left_out is None or row.left_out.isprintable()
        for of_method in by_method(rows).values():
            assert np.isfinite(np.log(runs_of(of_method).loss_P)).all()

    fuzz(st.tuples(tables(), columns, st.sampled_from(["runs.csv", "runs.tsv", "runs.csv.gz"])), boundary, examples=150)


@st.composite
def sweeps(draw: st.DrawFn) -> tuple[bytes, float]:
    """Enough runs for a law, whose numbers lie anywhere, and a budget near or far."""
    scale = draw(st.sampled_from([1e4, 1e8, 1e12, 1e16, 1e34]))
    rows = []
    for size in (1.0, 3.0, 9.0):
        for amount in (1.0, 4.0, 16.0):
            loss: Any = 0.5 + 1 / size**0.3 + 1 / amount**0.3
            if draw(st.integers(0, 19)) == 0:
                loss = draw(st.floats(min_value=0, max_value=1e36))
            rows.append(f"{size * scale},{amount * scale},{loss},{draw(st.sampled_from(['a', '[b]', 'a']))}")
    budget = 6 * 9 * 16 * scale**2 * 10 ** draw(st.floats(min_value=-4, max_value=4))
    return "\n".join(["N,D,loss,set", *rows]).encode(), budget


def test_any_sweep_gives_a_recipe_or_is_refused(fuzz: Fuzz, tmp_path: Path) -> None:
    def boundary(given: tuple[bytes, float]) -> None:
        content, budget = given
        (tmp_path / "runs.csv").write_bytes(content)
        asked = ["--columns.parameters", "N", "--columns.tokens", "D", "--columns.method", "set"]
        command = ["recipe", "--table", str(tmp_path / "runs.csv"), *asked, "--replicates", "2", "--extrapolate"]
        printed_by([*command, "--budget", f"{budget:g}"])

    fuzz(sweeps(), boundary, examples=3)
