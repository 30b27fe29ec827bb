"""Safe output of the planning commands: names of runs, methods and backbones may come from strangers.

Every text is printed without control characters and without markup, so that no name can change the terminal.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

from rich.cells import cell_len
from rich.console import Console
from rich.progress import track as rich_track
from rich.table import Table
from rich.text import Text

from embedlab.errors import plain_text

_WIDTH = 150  # characters
_LONGEST_CELL = 80  # characters
_LONGEST_LINE = 10_000


def console() -> Console:
    """Return a console as wide as the terminal, or without one wide enough for every table (COLUMNS may widen it)."""
    if sys.stdout.isatty():
        return Console()
    columns = os.environ.get("COLUMNS", "")
    return Console(width=max(_WIDTH, int(columns) if columns.isdecimal() else 0))


def track(names: Collection[str]) -> Iterable[str]:
    """Return names as they are, and show a bar of how many were asked for if the errors go to a terminal.

    Args:
        names: Names of methods that laws are fitted for.
    """
    screen = Console(stderr=True)
    return rich_track(names, "Fitting laws", console=screen, transient=True, disable=not screen.is_terminal)


def say(text: object) -> None:
    """Print a line without control characters, and flush the output.

    Args:
        text: Text to print, converted with ``str``.
    """
    print(plain_text(text, longest=_LONGEST_LINE), flush=True)


def line(screen: Console, text: str) -> None:
    """Print a paragraph without control characters on a rich console, which breaks lines between words.

    Args:
        screen: Console to print on.
        text: Text of the paragraph.
    """
    screen.print(Text(plain_text(text, longest=_LONGEST_LINE)))


def add_row(table: Table, *texts: object) -> None:
    """Add a row to a rich table, with each cell shown as plain text without markup and control characters.

    Args:
        table: Table to extend.
        texts: Cells of the row, converted with ``str``.
    """
    table.add_row(*(Text(plain_text(text)) for text in texts))


class Column(NamedTuple):
    """A column of a plain table.

    Attributes:
        title: Heading of the column.
        is_number: Whether the cells are aligned on the right; otherwise on the left.
    """

    title: str
    is_number: bool = False


def plain_table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a table. For ten thousand rows, this is a hundred times as fast as a rich table.

    Args:
        columns: Columns of the table.
        rows: Cells of each row, in the order of the columns.
    """
    titles = [column.title for column in columns]
    shown = [titles, *([plain_text(text, longest=_LONGEST_CELL) for text in row] for row in rows)]
    lengths = [[_width(text) for text in row] for row in shown]
    widths = [max(of_column) for of_column in zip(*lengths, strict=True)]

    def ruled(left: str, between: str, right: str) -> str:
        return left + between.join("─" * (width + 2) for width in widths) + right

    def row(texts: Sequence[str], own: Sequence[int]) -> str:
        cells = []
        for text, length, width, column in zip(texts, own, widths, columns, strict=True):
            space = " " * (width - length)
            cells.append(f" {space}{text} " if column.is_number else f" {text}{space} ")
        return "│" + "│".join(cells) + "│"

    yield ruled("┌", "┬", "┐")
    yield row(shown[0], lengths[0])
    yield ruled("├", "┼", "┤")
    yield from map(row, shown[1:], lengths[1:])
    yield ruled("└", "┴", "┘")


def _width(text: str) -> int:
    return len(text) if text.isascii() else cell_len(text)
