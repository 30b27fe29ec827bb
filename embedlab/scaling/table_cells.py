"""Cells of a table of runs as people and programs write them: numbers with decimal commas, and conditions on rows."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from embedlab.errors import ConfigError, plain_text

_SPACES = re.compile(r"(?<=\d)[ \u00a0\u202f'\u2019](?=\d{3}(?!\d))")  # between the thousands of a number
_THOUSANDS = re.compile(r"[-+]?\d{1,3}(,\d{3})+(\.\d*)?([eE][-+]?\d+)?")
_COMPARED: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
_CONDITION = re.compile(r"\s*(?P<column>.+?)\s*(?P<sign>==|!=|<=|>=|<|>)\s*(?P<value>.+?)\s*")


@dataclass(frozen=True)
class Numbers:
    """How the numbers of a table are written.

    Attributes:
        has_decimal_commas: Whether a comma is the decimal mark and a point groups thousands, as in ``1.234,5``;
            otherwise a comma groups thousands, as in ``1,234.5``.
    """

    has_decimal_commas: bool = False

    def read(self, text: str) -> float:
        """Return the number in a cell; NaN if the cell holds no number.

        >>> Numbers().read("1,234.5"), Numbers(has_decimal_commas=True).read("1.234,5")
        (1234.5, 1234.5)

        Args:
            text: Text of the cell.
        """
        text = _SPACES.sub("", text.strip())
        if "," in text:
            if self.has_decimal_commas:
                text = text.replace(".", "").replace(",", ".") if text.count(",") == 1 else ""
            else:
                text = text.replace(",", "") if _THOUSANDS.fullmatch(text) else ""
        try:
            return float(text)
        except ValueError:
            return math.nan


def numbers_of(cells: Iterable[str], *, are_commas_likely: bool) -> Numbers:
    """Return how the numbers of a table are written, as far as its cells show it.

    Args:
        cells: Texts of the cells that hold numbers.
        are_commas_likely: Whether commas are decimal marks if no cell decides it, for example because semicolons
            separate the cells.
    """
    for text in cells:
        text = _SPACES.sub("", text.strip())
        if "," not in text:
            continue
        if text.count(",") > 1 or text.rfind(".") > text.rfind(","):
            return Numbers(has_decimal_commas=False)
        if "." in text or not _THOUSANDS.fullmatch(text):
            return Numbers(has_decimal_commas=True)
    return Numbers(has_decimal_commas=are_commas_likely)


@dataclass(frozen=True)
class Condition:
    """A condition that a row of a table must meet, for example ``outlier == 0``.

    Attributes:
        column: Name of the column.
        sign: How the cell is compared: ``==``, ``!=``, ``<``, ``<=``, ``>`` or ``>=``.
        value: Text that the cell is compared with: as a number if both are numbers, otherwise as text.
    """

    column: str
    sign: str
    value: str

    def holds(self, row: Mapping[str, str], numbers: Numbers) -> bool:
        """Return whether a row meets the condition.

        Args:
            row: Cells of the row, by the names of the columns.
            numbers: How the numbers of the table are written.
        """
        cell = row[self.column].strip()
        number, other = numbers.read(cell), Numbers().read(self.value)
        if math.isfinite(number) and math.isfinite(other):
            return _COMPARED[self.sign](number, other)
        return self.sign in ("==", "!=") and _COMPARED[self.sign](cell, self.value)


def conditions_of(where: str | None) -> tuple[Condition, ...]:
    """Return the conditions of an option.

    >>> conditions_of("outlier == 0 and set != 'test'")
    (Condition(column='outlier', sign='==', value='0'), Condition(column='set', sign='!=', value='test'))

    Args:
        where: Conditions with ``and`` between them; None for no condition.

    Raises:
        ConfigError: If a part is no comparison of a column with a value.
    """
    found = []
    for part in [] if where is None else re.split(r"\s+and\s+", where):
        match = _CONDITION.fullmatch(part)
        if match is None:
            raise ConfigError(
                f"--where is '{plain_text(where)}'. Expected comparisons of a column with a value, with `and` between "
                "them, for example \"outlier == 0 and method != 'test'\"."
            )
        value = match["value"]
        if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
            value = value[1:-1]
        found.append(Condition(match["column"], match["sign"], value))
    return tuple(found)
