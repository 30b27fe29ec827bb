"""The reader of files of plain data: limits their size, checks each field, and reports every fault in one line.

A record may come from a third party, may be an incomplete copy, or may not be a record. No content of a file is run as
code. The annotations of a dataclass state which types and ranges its fields may have.
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
"""Maximum size of a JSON file that is read, in bytes: a thousand times the size of a record."""

_LARGEST = 1e36  # maximum of every stored number: no count is larger, and squares stay finite
_LONGEST_TEXT = 10_000  # characters of a text
_MOST_ENTRIES = 1_000  # entries of a mapping or a list
_MOST_NODES = 10_000  # values in data of any type, nested values included
_SHOWN = 60  # characters of a value in a message
_LONGEST_PATH = 1_000  # characters of a path in a message

_REPR = reprlib.Repr()  # limited, because YAML's aliases can make data of a thousand levels
_REPR.maxlevel, _REPR.maxlist, _REPR.maxdict, _REPR.maxstring = 2, 4, 4, _SHOWN

_Stored = TypeVar("_Stored", bound=object)
_Check = Callable[[Any], bool]


@dataclass(frozen=True)
class Range:
    """The range of numbers that a field may hold, for example in ``Annotated[int, Range(1)]``.

    Attributes:
        lowest: Smallest number that is allowed.
        may_be_unknown: Whether NaN and infinity are allowed, too, for example for a loss that was not measured.
    """

    lowest: float
    may_be_unknown: bool = False

    def __str__(self) -> str:
        words = f"of {self.lowest:g} or more" if self.lowest > -_LARGEST else "of any sign"
        return words + (", NaN or infinity" if self.may_be_unknown else "")


@dataclass(frozen=True)
class Pattern:
    """A pattern of the texts in a field, as in ``Annotated[str, Pattern("[a-z]+", "small letters")]``.

    Attributes:
        expression: Regular expression that the whole text must match.
        words: Description of the regular expression, for messages.
    """

    expression: str
    words: str

    def __str__(self) -> str:
        return self.words


def is_folder(path: Path) -> bool:
    """Return whether a path is a folder; False for a name that is too long for the system."""
    try:
        return path.is_dir()
    except OSError:
        return False


def read_bytes(path: Path, *, most: int = MOST_BYTES) -> bytes:
    """Return the content of a regular file of limited size, without waiting for a pipe or a device.

    Args:
        path: Path of the file.
        most: Maximum size of the file, in bytes.

    Raises:
        RecordError: If the file cannot be read, is not a regular file, or is larger than ``most`` bytes.
    """
    try:
        with open(path, "rb", buffering=0, opener=_without_waiting) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise RecordError(f"{_named(path)} is not a regular file. Remove it, or leave out its folder.")
            if status.st_size <= most:
                return file.read(status.st_size + 1)
    except OSError as error:
        raise RecordError(f"{_named(path)} cannot be read: {error.strerror or error}.") from error
    raise RecordError(f"{_named(path)} is larger than {most / 2**20:g} MiB. Expected a smaller file of embedlab.")


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # do not wait for a pipe without a writer


def read_json(path: Path, what: str) -> dict[str, Any]:
    """Return the object in a JSON file.

    Args:
        path: Path of the file.
        what: Description of the expected content, for messages, for example "a run record".

    Raises:
        RecordError: If the file cannot be read, or does not hold a JSON object.
    """
    content = read_bytes(path)
    try:
        values = json.loads(content, object_pairs_hook=_without_repetition)
    except (ValueError, RecursionError) as error:  # also for text that is not Unicode, and numbers with many digits
        reason = "its values are nested too deeply" if isinstance(error, RecursionError) else plain_text(error)
        raise RecordError(f"{_named(path)} cannot be read as {what}: {reason}.") from error
    if not isinstance(values, dict):
        raise RecordError(f"{_named(path)} cannot be read as {what}: it holds {_shown(values)}.")
    return values


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {_shown(twice)} occurs twice in an object")
    return values


def from_plain(kind: type[_Stored], values: Mapping[str, Any], path: Path, *, prefix: str = "") -> _Stored:
    """Check plain data against the annotations of a dataclass, and return an instance of the dataclass.

    Fields that the dataclass does not have are ignored, because a later version of embedlab may have written them.

    Args:
        kind: Dataclass to make. Its annotations state which values are allowed. They may be ``int``, ``float``,
            ``bool``, ``str``, ``Literal``, ``Mapping``, ``list``, ``Any``, ``Annotated`` with a ``Range`` or a
            ``Pattern``, a dataclass, and unions.
        values: Values of the fields, by name.
        path: Path of the file that the values were read from, for messages.
        prefix: Name of the field that contains ``values``, with a dot at its end; empty at the top level.

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
    """Check stored arguments against the annotations of a class's constructor, and return them.

    Only parameters with annotations of plain data are accepted, so that no class, function or path is looked up by a
    stored name.

    Args:
        kind: Class whose constructor takes the arguments.
        values: Arguments by name, as they were stored.
        path: Path of the file that the values were read from, for messages.
        prefix: Name of the field that contains ``values``, with a dot at its end; empty at the top level.

    Raises:
        RecordError: If an argument is unknown, of another type, or missing.
    """
    hints = {name: hint for name, hint in get_type_hints(kind.__init__).items() if name != "return" and _is_data(hint)}  # type: ignore[misc]
    for name, value in values.items():
        if name not in hints:
            known = ", ".join(hints) or "none"
            raise wrong_field(path, f"{prefix}{name}", value, f"only options of {kind.__name__}: {known}")
        check, expected = _check(hints[name])
        if not check(value):
            raise wrong_field(path, f"{prefix}{name}", value, expected)
    for name, parameter in inspect.signature(kind).parameters.items():
        if parameter.default is parameter.empty and name in hints and name not in values:
            raise RecordError(f"{_named(path)} lacks {prefix}{name}. Write the file again, or remove it.")
    return dict(values)


def _is_data(hint: Any) -> bool:
    """Return whether all values of an annotation are plain data."""
    origin = get_origin(hint)
    if origin is Literal:
        return all(isinstance(one, str) for one in get_args(hint))
    if origin is tuple:
        return all(one is ... or _is_data(one) for one in get_args(hint))
    if origin in (list, dict, Sequence, Mapping, Union, UnionType):
        return all(map(_is_data, get_args(hint)))
    return hint in (str, int, float, bool, NoneType, Any)


def without_fields(kind: type, values: Mapping[str, Any], path: Path, prefix: str) -> RecordError:
    """Return the error about data in which fields without a default are missing."""
    missing = sorted(name for name, field in fields_of(kind).items() if field.is_needed and name not in values)
    names = ", ".join(prefix + name for name in missing)
    return RecordError(f"{_named(path)} lacks {names}. Write the file again, or remove it.")


def wrong_field(path: Path, name: str, value: object, expected: str) -> RecordError:
    """Return the error about a field with a value that is not allowed."""
    return RecordError(
        f"{_named(path)}: {name} is {_shown(value)}. Expected {expected}. Write the file again, or remove it."
    )


def _named(path: Path) -> str:
    return plain_text(path, longest=_LONGEST_PATH)


def _shown(value: object) -> str:
    try:
        return plain_text(_REPR.repr(value), longest=_SHOWN)
    except (ValueError, RecursionError):  # an int with more digits than Python converts to text
        return f"a very large {type(value).__name__}"


class Field(NamedTuple):
    """The requirements of a field, as its annotation states them.

    Attributes:
        check: Function that returns whether a value is allowed. Objects of a nested dataclass are not checked by it.
        expected: Description of the allowed values, for messages.
        nested: Dataclass of an object in this field; None if objects are not dataclasses.
        nested_in_list: Dataclass of each object of a list in this field; None if the objects are not dataclasses.
        is_needed: Whether the field has no default.
        is_sequence: Whether the field is a ``Sequence``, so that a list in the file becomes a tuple.
    """

    check: _Check
    expected: str
    nested: type | None
    nested_in_list: type | None
    is_needed: bool
    is_sequence: bool


@cache
def fields_of(kind: type) -> dict[str, Field]:
    """Return the requirements of a dataclass's fields, by field name."""
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
    """Return the check of an annotation, and a description of the values that the check allows."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        checks, expected = zip(*(_check(one) for one in arguments), strict=True)
        if len(checks) == 2 and arguments[1] is NoneType:  # a fast path, because most unions are like this
            first = checks[0]
            return (lambda value: value is None or first(value)), " or ".join(expected)
        return (lambda value: any(check(value) for check in checks)), " or ".join(expected)
    if hint is NoneType:
        return (lambda value: value is None), "null"
    if origin is Annotated:
        return _annotated(*arguments)
    if origin is Literal:
        return (lambda value: isinstance(value, str) and value in arguments), f"one of {', '.join(arguments)}"
    if is_dataclass(hint):  # an object is read by from_plain, field by field, so other values remain here
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
    if isinstance(hint, type) and issubclass(hint, tuple):  # a named tuple of numbers, which is a list in JSON
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
    """Return whether data of any type hold few values, and only numbers and texts that embedlab could write."""
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
