"""`embedlab runs`: what has been run, as a table, one by one, or as a file for other programs."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from io import StringIO
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser
from rich.console import Console
from rich.table import Table

from embedlab.errors import ConfigError, RecordError, suggestion
from embedlab.search.records import FILE, Ledger, RunRecord, read_record

_WIDTH = 150  # where there is no terminal that has one
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
        _print_table(_records(folders))
    elif options.command == "show":
        _print_one(_found(chosen.run, folders))
    else:
        _export(_records(folders), Path(chosen.output), chosen.format)


def _records(folders: Sequence[Path]) -> list[RunRecord]:
    records = Ledger(folders).records()
    if not records:
        raise RecordError(
            f"There is no run record below {', '.join(map(str, folders))}. `embedlab fit` writes {FILE} into the "
            "folder of a run at its end, if it is evaluated there."
        )
    return records


def _found(run: str, folders: Sequence[Path]) -> RunRecord:
    if (Path(run) / FILE).is_file():
        return read_record(Path(run) / FILE)
    records = {record.run_id: record for record in _records([Path(run)] if Path(run).is_dir() else folders)}
    if Path(run).is_dir():
        raise RecordError(f"The folder {run} has no {FILE} itself. Choose one of the runs below it: {_some(records)}.")
    if run not in records:
        raise RecordError(
            f"No run below {', '.join(map(str, folders))} is called '{run}'. There are {len(records)}: "
            f"{_some(records)}." + suggestion(run, records)
        )
    return records[run]


def _some(names: Mapping[str, object]) -> str:
    shown = list(names)[:3]
    return ", ".join(shown) + (", …" if len(names) > len(shown) else "")


def _console() -> Console:
    return Console() if sys.stdout.isatty() else Console(width=_WIDTH)


def _print_table(records: Sequence[RunRecord]) -> None:
    table = Table("run", "status", "backbone", "method")
    for name in ("N", "tokens", "learning rate", "loss", "FLOPs", "hours"):
        table.add_column(name, justify="right")
    for record in records:
        numbers = (record.nonembedding_parameters, record.tokens, record.learning_rate)
        table.add_row(
            record.run_id,
            record.status,
            Path(record.backbone).name,
            record.method + (" from random weights" if record.random_weights else ""),
            *(f"{number:.3g}" for number in numbers),
            f"{record.loss:.4f}",
            f"{record.flops_algorithmic:.3g}",
            f"{record.seconds / 3600:.3g}",
        )
    _console().print(table)


def _print_one(record: RunRecord) -> None:
    fields = dict(_flat(asdict(record)))
    width = max(map(len, fields))
    for name, value in fields.items():
        print(f"{name:<{width}}  {'–' if value is None else value}")


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _export(records: Sequence[RunRecord], output: Path, file_format: str) -> None:
    """One row a run and one column a field, those within a field named after it: ``loss_definition.temperature``."""
    if output.exists():
        raise ConfigError(f"{output} is there already. Choose another file with --output, or move it away.")
    rows = [{**dict(_flat(asdict(record))), "family": record.family} for record in records]
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: _of_one_type([row.get(name) for row in rows]) for name in names}
    unfinished = output.with_name(f"{output.name}.unfinished")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with unfinished.open("wb") as file:
            if file_format == "parquet":
                import pyarrow  # a slow import that the other commands do without
                import pyarrow.parquet

                pyarrow.parquet.write_table(pyarrow.table(columns), file)
            else:
                file.write(_as_csv(columns).encode())
        unfinished.replace(output)
    except OSError as error:
        with suppress(OSError):  # a folder that is none has no such file either
            unfinished.unlink(missing_ok=True)
        raise ConfigError(f"{output} could not be written: {error}. Choose another file with --output.") from error
    print(f"Wrote {len(rows)} runs to {output}.")


def _as_csv(columns: Mapping[str, Sequence[Any]]) -> str:
    text = StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return text.getvalue()


def _of_one_type(values: Sequence[Any]) -> list[Any]:
    """A column's values, None where there is none: numbers, truth values or text; anything else as JSON."""
    types = {type(value) for value in values if value is not None}
    if types in ({int}, {str}, {bool}) or types <= {int, float}:
        too_large = any(type(value) is int and abs(value) > _MOST_INT64 for value in values)
        as_float = float in types or too_large
        return [None if value is None else float(value) if as_float else value for value in values]
    return [None if value is None else json.dumps(value) for value in values]
