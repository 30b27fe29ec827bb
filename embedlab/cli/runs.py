"""The command `embedlab runs`, which lists finished runs, shows one run, or exports runs for other programs."""

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
_LONGEST_VALUE = 2_000  # characters of a value in the output of `embedlab runs show`
_MOST_COLUMNS = 10_000  # columns of an export
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
_FOLDERS = ["runs"]
_MOST_INT64 = 2**63 - 1


def runs_command(parser: ArgumentParser, arguments: Sequence[str]) -> None:
    """Run `embedlab runs list`, `embedlab runs show` or `embedlab runs export`.

    Args:
        parser: Empty parser, to which the subcommands are added.
        arguments: Words of the command line after the name of the command.

    Raises:
        ConfigError: If an option is invalid, or the output cannot be written.
        RecordError: If a record cannot be used, or no run is found.
    """
    commands = parser.add_subcommands(dest="command", required=True)
    for name, summary in (
        ("list", "Print a table of the runs."),
        ("show", "Print all fields of the record of one run."),
        ("export", "Write all records to a file, one row per run, for `embedlab recipe --table` or other programs."),
    ):
        command = type(parser)(description=summary)
        if name == "show":
            command.add_argument("run", help="Identifier or folder of the run.")
        command.add_argument(
            "--runs", nargs="+", metavar="FOLDER", default=_FOLDERS, help="Folders that contain runs, at any depth."
        )
        if name == "export":
            command.add_argument("--format", type=Literal["csv", "parquet"], default="csv", help="Format of the file.")
            command.add_argument(
                "--output", metavar="FILE", required=True, help="Path of the file to write, which must not exist yet."
            )
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
            "folder of a run when the run ends with an evaluation. Name folders of finished runs."
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
            f"No run below {', '.join(map(str, folders))} is called '{plain_text(run)}'. Expected one of "
            f"{len(records)} runs: {_some(records)}." + suggestion(run, records)
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
    """Write records to a file, with one row per run and one column per field.

    The column of a nested field has a dotted name, for example ``loss_definition.temperature``.

    Args:
        records: Records to write.
        output: Path of the file.
        file_format: Format of the file: "csv" or "parquet".

    Raises:
        ConfigError: If the file cannot be written.
        RecordError: If the records have more different fields than the maximum number of columns.
    """
    rows = [{**flattened(asdict(record)), "family": record.family} for record in records]
    names = list(dict.fromkeys(name for row in rows for name in row))
    if len(names) > _MOST_COLUMNS:
        raise RecordError(
            f"The {len(rows)} records have {len(names)} different fields, but an export can have at most "
            f"{_MOST_COLUMNS} columns. Export fewer folders at a time with --runs."
        )
    columns = {_unicode(name): _of_one_type([row.get(name) for row in rows]) for name in names}
    try:
        with whole_file(output, replace=False) as file:
            if file_format == "parquet":
                import pyarrow  # imported here because the import is slow and only this format needs it
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
    """Return the value of a cell, with an apostrophe before a text that a spreadsheet would run as a formula.

    OWASP recommends the apostrophe ("CSV Injection"). Numbers stay unchanged.
    """
    if not isinstance(value, str):
        return value
    return ("'" if value.startswith(_FORMULA) else "") + plain_text(value, longest=None)


def _of_one_type(values: Sequence[Any]) -> list[Any]:
    """Return the values of a column, converted to one type: numbers, truth values or text; otherwise JSON texts.

    Args:
        values: Values of the column; None for a run without a value, which stays None.
    """
    types = {type(value) for value in values if value is not None}
    if types in ({int}, {str}, {bool}) or types <= {int, float}:
        too_large = any(type(value) is int and abs(value) > _MOST_INT64 for value in values)
        as_float = float in types or too_large
        return [None if value is None else float(value) if as_float else _unicode(value) for value in values]
    return [None if value is None else json.dumps(value) for value in values]


def _unicode(value: Any) -> Any:
    """Return the value; in a text, halves of surrogate pairs (which JSON allows and UTF-8 does not) are escaped."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
