"""`embedlab runs`: what has been run, as a table, one by one, or as a file for other programs."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from io import StringIO
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser

from embedlab.cli.console import Column, plain_table, say
from embedlab.errors import RecordError, plain_text, suggestion
from embedlab.files import cannot_write, require_new, whole_file
from embedlab.records import FILE, Ledger, RunRecord, read_record
from embedlab.records.nested import flattened
from embedlab.records.stored import is_folder

_COLUMNS = (
    *(Column(title) for title in ("run", "status", "backbone", "method")),
    *(Column(title, is_number=True) for title in ("N", "tokens", "learning rate", "loss", "FLOPs", "hours")),
)
_LONGEST_VALUE = 2_000  # characters of a value that is shown whole
_MOST_COLUMNS = 10_000  # of an export
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
_FOLDERS = ["runs"]
_MOST_INT64 = 2**63 - 1


def runs_command(parser: ArgumentParser, arguments: Sequence[str]) -> None:
    """`embedlab runs list`, `show` and `export`."""
    commands = parser.add_subcommands(dest="command", required=True)
    for name, summary in (
        ("list", "A table of the runs."),
        ("show", "All that is recorded of one run."),
        ("export", "All that is recorded, one row a run, for `embedlab recipe --table` or any other program."),
    ):
        command = type(parser)(description=summary)
        if name == "show":
            command.add_argument("run", help="Identifier, or folder.")
        command.add_argument(
            "--runs", nargs="+", metavar="FOLDER", default=_FOLDERS, help="Where they are, at any depth."
        )
        if name == "export":
            command.add_argument("--format", type=Literal["csv", "parquet"], default="csv", help="Of the file.")
            command.add_argument("--output", metavar="FILE", required=True, help="A new file.")
        commands.add_subcommand(name, command, help=summary)
    options = parser.parse_args(list(arguments))
    chosen = options[options.command]
    folders = [Path(folder) for folder in chosen.runs]
    if options.command == "list":
        print("\n".join(plain_table(_COLUMNS, list(map(_row, _records(folders))))))
    elif options.command == "show":
        _print_one(_found(chosen.run, folders))
    else:
        output = Path(chosen.output)
        require_new(output)
        _export(_records(folders), output, chosen.format)


def _records(folders: Sequence[Path]) -> list[RunRecord]:
    records = [record for _, record in Ledger(folders).usable()]
    if not records:
        raise RecordError(
            f"There is no run record below {', '.join(map(str, folders))}. `embedlab fit` writes {FILE} into the "
            "folder of a run at its end, if it is evaluated there."
        )
    return records


def _found(run: str, folders: Sequence[Path]) -> RunRecord:
    if os.path.lexists(Path(run) / FILE):
        return read_record(Path(run) / FILE)
    names_folder = is_folder(Path(run))
    records = {record.run_id: record for record in _records([Path(run)] if names_folder else folders)}
    if names_folder:
        raise RecordError(
            f"The folder {plain_text(run)} has no {FILE} itself. Choose one of the runs below it: {_some(records)}."
        )
    if run not in records:
        raise RecordError(
            f"No run below {', '.join(map(str, folders))} is called '{plain_text(run)}'. There are {len(records)}: "
            f"{_some(records)}." + suggestion(run, records)
        )
    return records[run]


def _some(names: Mapping[str, object]) -> str:
    shown = list(names)[:3]
    return ", ".join(shown) + (", …" if len(names) > len(shown) else "")


def _row(record: RunRecord) -> Sequence[str]:
    numbers = (record.nonembedding_parameters, record.tokens, record.learning_rate)
    return (
        record.run_id,
        record.status,
        Path(record.backbone).name,
        record.method + (" from random weights" if record.random_weights else ""),
        *(f"{number:.3g}" for number in numbers),
        f"{record.loss:.4f}",
        f"{record.flops_algorithmic:.3g}",
        f"{record.seconds / 3600:.3g}",
    )


def _print_one(record: RunRecord) -> None:
    values = {plain_text(name): value for name, value in flattened(asdict(record)).items()}
    width = max(map(len, values))
    for name, value in values.items():
        print(f"{name:<{width}}  {'–' if value in (None, ()) else plain_text(value, longest=_LONGEST_VALUE)}")


def _export(records: Sequence[RunRecord], output: Path, file_format: str) -> None:
    """One row a run and one column a field, those within a field named after it: ``loss_definition.temperature``."""
    rows = [{**flattened(asdict(record)), "family": record.family} for record in records]
    names = list(dict.fromkeys(name for row in rows for name in row))
    if len(names) > _MOST_COLUMNS:
        raise RecordError(
            f"The {len(rows)} records have {len(names)} different fields, and an export has {_MOST_COLUMNS} columns at "
            "most. Export fewer folders at a time with --runs."
        )
    columns = {_unicode(name): _of_one_type([row.get(name) for row in rows]) for name in names}
    try:
        with whole_file(output, replace=False) as file:
            if file_format == "parquet":
                import pyarrow  # a slow import that the other commands do without
                import pyarrow.parquet

                pyarrow.parquet.write_table(pyarrow.table(columns), file)
            else:
                file.write(_as_csv(columns).encode())
    except OSError as error:
        raise cannot_write(output, error) from error
    say(f"Wrote {len(rows)} runs to {output}.")


def _as_csv(columns: Mapping[str, Sequence[Any]]) -> str:
    text = StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    for row in (tuple(columns), *zip(*columns.values(), strict=True)):
        writer.writerow([_no_formula(value) for value in row])
    return text.getvalue()


def _no_formula(value: Any) -> Any:
    """A cell that no spreadsheet takes for a formula, as OWASP recommends ("CSV Injection"): numbers stay numbers."""
    if not isinstance(value, str):
        return value
    return ("'" if value.startswith(_FORMULA) else "") + plain_text(value, longest=None)


def _of_one_type(values: Sequence[Any]) -> list[Any]:
    """A column's values, None where there is none: numbers, truth values or text; anything else as JSON."""
    types = {type(value) for value in values if value is not None}
    if types in ({int}, {str}, {bool}) or types <= {int, float}:
        too_large = any(type(value) is int and abs(value) > _MOST_INT64 for value in values)
        as_float = float in types or too_large
        return [None if value is None else float(value) if as_float else _unicode(value) for value in values]
    return [None if value is None else json.dumps(value) for value in values]


def _unicode(value: Any) -> Any:
    """Text that UTF-8 can hold: JSON can smuggle in halves of surrogate pairs."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
