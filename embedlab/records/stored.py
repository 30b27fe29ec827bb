"""Reads what was stored as plain data: bounded, checked field by field, and with one line for whatever is wrong.

A record may be a stranger's, a copy that was cut off, or no record at all. Nothing that is read here runs code, and
the types and ranges of the fields are those that the dataclass states in its annotations.
"""

from __future__ import annotations

import inspect
import json
import math
import os
import re
import reprlib
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from embedlab.errors import RecordError, plain_text

MOST_BYTES = 4 * 2**20
"""Size of the largest JSON file that is read: a thousand times that of a record."""

_LARGEST = 1e36  # of any number that is stored: more is no count, and its square is no number
_LONGEST_TEXT = 10_000  # characters
_MOST_ENTRIES = 1_000  # of a mapping
_MOST_NODES = 10_000  # of free data, nested or not
_SHOWN = 60  # characters of a value in a message
_LONGEST_PATH = 1_000  # characters of a path in a message

_REPR = reprlib.Repr()  # of data that may be nested a thousandfold by YAML's aliases
_REPR.maxlevel, _REPR.maxlist, _REPR.maxdict, _REPR.maxstring = 2, 4, 4, _SHOWN

_Stored = TypeVar("_Stored", bound=object)
_Check = Callable[[Any], bool]


@dataclass(frozen=True)
class Range:
    """Numbers that a field may hold, for ``Annotated[int, Range(1)]``.

    Attributes:
        lowest: Smallest number.
        may_be_unknown: Whether NaN and infinity are allowed, too: a loss that was not reached.
    """

    lowest: float
    may_be_unknown: bool = False

    def __str__(self) -> str:
        words = f"of {self.lowest:g} or more" if self.lowest > -_LARGEST else "of any sign"
        return words + (", NaN or infinity" if self.may_be_unknown else "")


@dataclass(frozen=True)
class Pattern:
    """Texts that a field may hold, for ``Annotated[str, Pattern("[a-z]+", "small letters")]``.

    Attributes:
        expression: Regular expression of the whole text.
        words: What it says, for people.
    """

    expression: str
    words: str

    def __str__(self) -> str:
        return self.words


def is_folder(path: Path) -> bool:
    """Whether there is a folder; a name that no system takes, being too long, is none."""
    try:
        return path.is_dir()
    except OSError:
        return False


def read_bytes(path: Path, *, most: int = MOST_BYTES) -> bytes:
    """Return the content of a regular file of limited size; a pipe or a device is never waited for.

    Args:
        path: The file.
        most: Size of the largest file that is read, in bytes.

    Raises:
        RecordError: If the file cannot be read, is no regular file, or is larger.
    """
    try:
        with open(path, "rb", buffering=0, opener=_without_waiting) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise RecordError(f"{_named(path)} is no regular file. Remove it, or leave the folder out.")
            if status.st_size <= most:
                return file.read(status.st_size + 1)
    except OSError as error:
        raise RecordError(f"{_named(path)} cannot be read: {error.strerror or error}.") from error
    raise RecordError(f"{_named(path)} is larger than {most / 2**20:g} MiB, which no file of embedlab's is.")


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # a pipe that nobody writes to


def read_json(path: Path, what: str) -> dict[str, Any]:
    """Return the object that a JSON file holds.

    Args:
        path: The file.
        what: What the file should be, for the message: "a run record".

    Raises:
        RecordError: If the file cannot be read, or holds something else.
    """
    content = read_bytes(path)
    try:
        values = json.loads(content, object_pairs_hook=_without_repetition)
    except (ValueError, RecursionError) as error:  # also of text that is not Unicode, and of numbers with many digits
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else plain_text(error)
        raise RecordError(f"{_named(path)} cannot be read as {what}: {reason}.") from error
    if not isinstance(values, dict):
        raise RecordError(f"{_named(path)} cannot be read as {what}: it holds {_shown(values)}.")
    return values


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"it has {_shown(twice)} twice")
    return values


def from_plain(kind: type[_Stored], values: Mapping[str, Any], path: Path, *, prefix: str = "") -> _Stored:
    """Return a dataclass made of plain data, when each field has been checked against its annotation.

    Fields that the dataclass does not have are left out: a later version wrote them.

    Args:
        kind: The dataclass. Its annotations state what is allowed: ``int``, ``float``, ``bool``, ``str``, ``Literal``,
            ``Mapping``, ``list``, ``Any``, ``Annotated`` with a ``Range`` or a ``Pattern``, a dataclass, and unions.
        values: The data.
        path: The file that they are from, for the message.
        prefix: The name of the field that they are in, with a point at its end.

    Raises:
        RecordError: If a field is missing, of another type, or out of range.
    """
    arguments: dict[str, Any] = {}
    for name, known in fields_of(kind).items():  # type: ignore[arg-type]  # of a class, which is hashable
        try:
            value = values[name]
        except KeyError:
            if known.is_needed:
                raise without_fields(kind, values, path, prefix) from None
            continue
        if known.nested is not None and isinstance(value, dict):
            value = from_plain(known.nested, value, path, prefix=f"{prefix}{name}.")
        elif not known.check(value):
            raise wrong_field(path, prefix + name, value, known.expected)
        arguments[name] = tuple(value) if known.is_sequence else value
    return kind(**arguments)


def arguments_of(kind: type, values: Mapping[str, Any], path: Path, *, prefix: str = "") -> dict[str, Any]:
    """Return the arguments of a class's constructor, when each has been checked against its annotation.

    Only parameters whose annotation states plain data are taken: no class, function or path is looked up by a name.

    Args:
        kind: Class whose constructor takes the arguments.
        values: Arguments by name, as they were stored.
        path: File that the values are from, for the message.
        prefix: Name of the field that the values are in, with a point at its end.

    Raises:
        RecordError: If a value is for no such parameter or of another type, or one is missing.
    """
    hints = {name: hint for name, hint in get_type_hints(kind.__init__).items() if name != "return" and _is_data(hint)}  # type: ignore[misc]
    for name, value in values.items():
        if name not in hints:
            known = ", ".join(hints) or "none"
            raise wrong_field(path, f"{prefix}{name}", value, f"no such option; options of {kind.__name__}: {known}")
        check, expected = _check(hints[name])
        if not check(value):
            raise wrong_field(path, f"{prefix}{name}", value, expected)
    for name, parameter in inspect.signature(kind).parameters.items():
        if parameter.default is parameter.empty and name in hints and name not in values:
            raise RecordError(f"{_named(path)} is without {prefix}{name}. Write it anew, or remove it.")
    return dict(values)


def _is_data(hint: Any) -> bool:
    """Whether all values of an annotation are plain data."""
    origin = get_origin(hint)
    if origin is Literal:
        return all(isinstance(one, str) for one in get_args(hint))
    if origin is tuple:
        return all(one is ... or _is_data(one) for one in get_args(hint))
    if origin in (list, dict, Sequence, Mapping, Union, UnionType):
        return all(map(_is_data, get_args(hint)))
    return hint in (str, int, float, bool, NoneType, Any)


def without_fields(kind: type, values: Mapping[str, Any], path: Path, prefix: str) -> RecordError:
    """Return the error of data that lack fields which have no default."""
    missing = sorted(name for name, field in fields_of(kind).items() if field.is_needed and name not in values)
    names = ", ".join(prefix + name for name in missing)
    return RecordError(f"{_named(path)} is without {names}. Write it anew, or remove it.")


def wrong_field(path: Path, name: str, value: object, expected: str) -> RecordError:
    """Return the error of a field that holds what it may not."""
    return RecordError(f"{_named(path)}: {name} is {_shown(value)}. Expected {expected}. Write it anew, or remove it.")


def _named(path: Path) -> str:
    return plain_text(path, longest=_LONGEST_PATH)


def _shown(value: object) -> str:
    try:
        return plain_text(_REPR.repr(value), longest=_SHOWN)
    except (ValueError, RecursionError):  # an int of more digits than Python writes
        return f"a very large {type(value).__name__}"


class Field(NamedTuple):
    """What the annotation of a field states.

    Attributes:
        check: Whether a value may stand there, unless it is an object that is a dataclass itself.
        expected: What the check expects, for people.
        nested: The dataclass that an object there is.
        nested_in_list: The dataclass that each object of a list there is.
        is_needed: Whether the field has no default.
        is_sequence: Whether the field is a ``Sequence``, and a list there becomes a tuple.
    """

    check: _Check
    expected: str
    nested: type | None
    nested_in_list: type | None
    is_needed: bool
    is_sequence: bool


@cache
def fields_of(kind: type) -> dict[str, Field]:
    """Return what the annotations of a dataclass state, by field."""
    assert is_dataclass(kind)
    hints = get_type_hints(kind, include_extras=True)
    found = {}
    for field in fields(kind):
        hint = hints[field.name]
        alternatives = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        nested = _dataclass_of(alternatives)
        nested_in_list = _dataclass_of([get_args(one)[0] for one in alternatives if get_origin(one) is list])
        is_needed = field.default is MISSING and field.default_factory is MISSING
        found[field.name] = Field(*_check(hint), nested, nested_in_list, is_needed, get_origin(hint) is Sequence)
    return found


def _dataclass_of(hints: Iterable[Any]) -> type | None:
    return next((one for one in hints if isinstance(one, type) and is_dataclass(one)), None)


def _check(hint: Any) -> tuple[_Check, str]:
    """The check of an annotation, and what it expects in words."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        checks, expected = zip(*(_check(one) for one in arguments), strict=True)
        if len(checks) == 2 and arguments[1] is NoneType:  # most fields: as fast as can be
            first = checks[0]
            return (lambda value: value is None or first(value)), " or ".join(expected)
        return (lambda value: any(check(value) for check in checks)), " or ".join(expected)
    if hint is NoneType:
        return (lambda value: value is None), "null"
    if origin is Annotated:
        return _annotated(*arguments)
    if origin is Literal:
        return (lambda value: isinstance(value, str) and value in arguments), f"one of {', '.join(arguments)}"
    if is_dataclass(hint):  # its fields are read one by one where it is an object
        names = ", ".join(sorted(field.name for field in fields(hint)))
        return (lambda value: False), f"an object with {names}"
    if hint is bool:
        return (lambda value: isinstance(value, bool)), "true or false"
    if hint in (int, float):
        return _annotated(hint, Range(-_LARGEST))
    if hint is str:
        return (lambda value: isinstance(value, str) and len(value) <= _LONGEST_TEXT), "a text"
    if hint is Any:
        return _is_small, f"plain data of at most {_MOST_ENTRIES} entries"
    if origin in (list, Sequence):
        return _list(arguments[0])
    if origin is tuple:
        return _tuple(arguments)
    if isinstance(hint, type) and issubclass(hint, tuple):  # named, of numbers: JSON has a list in its place
        count, (is_number, _) = len(hint._fields), _annotated(float, Range(-_LARGEST, may_be_unknown=True))  # type: ignore[attr-defined]
        return (
            lambda value: isinstance(value, list) and len(value) == count and all(map(is_number, value))
        ), f"a list of {count} numbers"
    assert issubclass(origin, Mapping) and arguments[0] is str, hint
    return _mapping(arguments[1])


def _list(of: Any) -> tuple[_Check, str]:
    check, expected = _check(of)

    def is_list(value: Any) -> bool:
        return isinstance(value, list) and len(value) <= _MOST_ENTRIES and all(map(check, value))

    return is_list, f"a list of at most {_MOST_ENTRIES} entries, each {expected}"


def _tuple(of: Sequence[Any]) -> tuple[_Check, str]:
    if of[-1] is ...:
        check, expected = _list(of[0])
        return (lambda value: check(list(value)) if isinstance(value, list | tuple) else False), expected
    checks = [_check(one)[0] for one in of]

    def is_tuple(value: Any) -> bool:
        if not isinstance(value, list | tuple) or len(value) != len(checks):
            return False
        return all(check(one) for check, one in zip(checks, value, strict=True))

    return is_tuple, f"a list of {len(checks)}"


def _annotated(kind: type, limits: Range | Pattern) -> tuple[_Check, str]:
    if isinstance(limits, Pattern):
        matches = re.compile(limits.expression).fullmatch
        return (lambda value: isinstance(value, str) and matches(value) is not None), f"a text of {limits}"
    lowest = limits.lowest
    if kind is int:
        return (lambda value: type(value) is int and lowest <= value <= _LARGEST), f"a whole number {limits}"
    may_be_unknown = limits.may_be_unknown

    def is_number(value: Any) -> bool:
        if type(value) is not float and type(value) is not int:
            return False
        return lowest <= value <= _LARGEST or (may_be_unknown and type(value) is float and not math.isfinite(value))

    return is_number, f"a number {limits}"


def _mapping(of: Any) -> tuple[_Check, str]:
    if of is Any:
        return (lambda value: isinstance(value, dict) and _is_small(value)), "an object of plain data"
    check, expected = _check(Annotated[float, Range(-_LARGEST, may_be_unknown=True)] if of is float else of)

    def is_mapping(value: Any) -> bool:
        if not isinstance(value, dict) or len(value) > _MOST_ENTRIES:
            return False
        return all(len(name) <= _LONGEST_TEXT and check(entry) for name, entry in value.items())

    return is_mapping, f"an object of at most {_MOST_ENTRIES} entries, each {expected}"


def _is_small(value: Any) -> bool:
    """Whether free data are few, and each number and text of them is one that embedlab would write."""
    waiting = [(value, 0)]
    count = 0
    while waiting:
        one, depth = waiting.pop()
        count += 1
        if count > _MOST_NODES or depth > 10:
            return False
        if isinstance(one, str):
            if len(one) > _LONGEST_TEXT:
                return False
        elif isinstance(one, dict):
            if len(one) > _MOST_ENTRIES or any(len(name) > _LONGEST_TEXT for name in one):
                return False
            waiting += [(entry, depth + 1) for entry in one.values()]
        elif isinstance(one, list):
            if len(one) > _MOST_ENTRIES:
                return False
            waiting += [(entry, depth + 1) for entry in one]
        elif isinstance(one, int) and abs(one) > _LARGEST:
            return False
    return True
